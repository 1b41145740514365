"""Imports point one way: what a file may know of the rest of the package (ARCHITECTURE.md)."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import bayeslabels
from bayeslabels.core.model import models
from bayeslabels.kind import KINDS

ROOT = Path(bayeslabels.__file__).parent
FLOORS = [
    {"errors", "progress", "names", "cache"},
    {"process"},
    {"devices"},
    {"numerics", "astro"},
    {"data"},
    {"core", "simulate"},
    {"files"},
    {"inference"},
    {"kind"},
    {"results"},
    {"kinds"},
    {"verbs"},
    {"calibration"},
    {"catalogues", "reports"},
    {"plots"},
    {"demo", "tables", "streams", "surveys", "partitions", "models"},
    {"commands", "model_info"},
    {"cli"},
    {"__main__"},
]
"""From the ground up: what stands on a floor knows those below it, and of its own what is in the same folder."""
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names}
FILES = sorted(ROOT.rglob("*.py"))
WINGS = sorted(path.name for path in (ROOT / "kinds").iterdir() if (path / "__init__.py").exists())


def place(path: Path) -> str:
    """The file at the top of the package, or the folder."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def known_to(path: Path) -> set[tuple[str, ...]]:
    """The parts of bayeslabels that a file imports, at its top or inside functions: ("kinds", "spectra", ...)."""
    package = ["bayeslabels", *path.relative_to(ROOT).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module or "").split(".")] if node.module else base
            names = [".".join([*base, alias.name]) for alias in node.names]
        else:
            continue
        found |= {tuple(name.split(".")[1:]) for name in names if name.split(".")[0] == "bayeslabels"}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    here = place(path)
    if here == "__init__":
        return
    assert here in FLOOR, f"{path.name} has no floor in ARCHITECTURE.md"
    for known in known_to(path):
        there = known[0] if known else "__init__"
        allowed = there in FLOOR and (FLOOR[there] < FLOOR[here] or there == here)
        assert allowed, f"{here} must not import {there}"


@pytest.mark.parametrize("path", [p for p in FILES if place(p) == "kinds"], ids=lambda p: str(p.relative_to(ROOT)))
def test_wings_do_not_know_one_another(path):
    own = path.relative_to(ROOT).parts[1]
    if own not in WINGS:
        return
    others = {known[1] for known in known_to(path) if known[:1] == ("kinds",) and len(known) > 1} - {own}
    assert not others


def test_inferences_know_no_kind():
    names = {*models(), *(kind.__name__ for kind in KINDS), *(type(kind).__name__ for kind in KINDS.values())}
    for path in FILES:
        if place(path) == "inference":
            words = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
            assert not words & names, path.name


PUBLIC_TWICE = {"Laplace": "an inference and a prior, each a public name in its own module"}
"""Names that two types may have, and why."""


def named_types(path: Path) -> list[str]:
    """The classes of a file, and the types that it gives a name, such as `Prior = Flat | Normal`."""
    tree = ast.parse(path.read_text())
    found = [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names = [x.id for x in targets if isinstance(x, ast.Name)]
        found += [x for x in names if x[:1].isupper() and not x.isupper()]
    return [name.strip("_") for name in found]


def test_no_two_types_have_one_name():
    places = defaultdict(list)
    for path in FILES:
        for name in named_types(path):
            places[name].append(str(path.relative_to(ROOT)))
    assert {name for name, found in places.items() if len(found) > 1} == set(PUBLIC_TWICE), [
        (name, found) for name, found in places.items() if len(found) > 1 and name not in PUBLIC_TWICE
    ]


def test_the_reader_of_imports_reads_them():
    assert ("data", "stars", "Stars") in known_to(ROOT / "inference" / "nuts.py")
    assert ("verbs", "fit") in known_to(ROOT / "__init__.py")
    assert ("kinds", "spectra", "model", "LinearModel") in known_to(ROOT / "kinds" / "spectra" / "kind.py")


def test_public_names():
    names = bayeslabels.__all__
    assert len(names) <= 28
    assert len(set(names)) == len(names)
    assert all(hasattr(bayeslabels, name) for name in names)
    assert all(getattr(bayeslabels, name).__doc__ for name in names)
