"""Imports point one way: what a file may know of the rest of the package."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import bayeslabels

ROOT = Path(bayeslabels.__file__).parent
MAY_KNOW = {
    "errors": set(),
    "files": {"errors"},
    "progress": set(),
    "process": {"errors"},
    "numerics": {"numerics", "process"},
    "astro": {"astro", "errors"},
    "columns": {"errors"},
    "stars": {"columns", "errors"},
    "priors": {"numerics", "errors"},
    "program": {"errors", "numerics", "stars"},
    "model": {"errors", "numerics", "program", "stars"},
    "linear": {"columns", "errors", "model", "nuisances", "numerics", "priors", "stars"},
    "nuisances": {"errors"},
    "loglinear_frame": {"columns", "errors", "model", "numerics", "stars"},
    "loglinear": {"columns", "errors", "loglinear_frame", "model", "numerics", "priors", "stars"},
    "collapsed": {"model", "numerics", "stars"},
    "models": {
        "collapsed",
        "columns",
        "linear",
        "loglinear",
        "numerics",
        "astro",
        "model",
        "models",
        "priors",
        "stars",
        "errors",
    },
    "checkpoint": {"devices", "errors", "files"},
    "devices": {"process"},
    "inference": {
        "checkpoint",
        "devices",
        "collapsed",
        "linear",
        "loglinear",
        "model",
        "nuisances",
        "numerics",
        "stars",
        "priors",
        "process",
        "progress",
        "errors",
        "inference",
    },
}
FILES = sorted(ROOT.rglob("*.py"))


def layer(path: Path) -> str:
    """The file at the top of the package, or the folder."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def known_to(path: Path) -> set[str]:
    """Layers of bayeslabels that a file imports, at its top or inside functions; '' for the package itself."""
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
        for name in names:
            first, *rest = name.split(".")
            if first == "bayeslabels":
                found.add(rest[0] if rest and ((ROOT / rest[0]).exists() or (ROOT / f"{rest[0]}.py").exists()) else "")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    known = known_to(path)
    if layer(path) in MAY_KNOW:
        excess = known - MAY_KNOW[layer(path)]
        assert not excess, f"{path.name} must not import {sorted(excess)}"
    elif layer(path) in ("family", "fit", "posterior", "model_file", "star_posterior", "state"):
        excess = known & {"", "calibration", "catalog", "families", "plots", "cli", "demo"}
        assert not excess, f"{path.name} must not import {sorted(excess)}"


def test_inference_names_no_model():
    for path in FILES:
        if layer(path) == "inference":
            words = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
            assert not words & set(bayeslabels.model.MODELS), path.name


def test_the_reader_of_imports_reads_them():
    assert {"linear", "numerics", "stars"} <= known_to(ROOT / "inference" / "map.py")
    assert "stars" in known_to(ROOT / "models" / "cannon.py")
    assert "fit" in known_to(ROOT / "__init__.py")


def test_public_names():
    names = bayeslabels.__all__
    assert len(names) <= 28
    assert len(set(names)) == len(names)
    assert all(hasattr(bayeslabels, name) for name in names)
    assert all(getattr(bayeslabels, name).__doc__ for name in names)
