"""The README and the documentation: their examples are Python, their names exist, and every public name is there."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import bayeslabels as bl
from bayeslabels.names import PLACES
from bayeslabels.results.star_posterior import Flags

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
PAGES = [page for page in PAGES if "_build" not in page.parts]
NUMBER = re.compile(r"-?\d+\.?\d*")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def names_in(code: str) -> set[str]:
    """`bl.NAME`, `bl.NAME.NAME` and what is imported from the package, as dotted names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bayeslabels"):
            path = (node.module or "").removeprefix("bayeslabels").removeprefix(".")
            found |= {f"{path}.{alias.name}".removeprefix(".") for alias in node.names}
        text = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        if re.fullmatch(r"bl(\.\w+)+", text):
            found.add(text.removeprefix("bl."))
    return found


def exists(name: str) -> bool:
    value: Any = bl
    for part in name.split("."):
        if not hasattr(value, part) and isinstance(value, ModuleType):
            importlib.import_module(f"{value.__name__}.{part}")
        value = getattr(value, part)
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_are_python_and_their_names_exist(page):
    for code in blocks(page, "python"):
        for name in names_in(code):
            assert exists(name), name


def test_every_public_name_is_in_the_reference():
    said = "\n".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.rst"))
    modules = {"nuisances", "priors"}
    assert {name for name in PLACES if not re.search(rf":: {name}$", said, re.MULTILINE)} == modules
    for module in modules:
        assert f".. currentmodule:: bayeslabels.{module}" in said


def test_every_flag_is_explained():
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", (ROOT / "docs" / "howto" / "flags.md").read_text(), re.MULTILINE)
    assert {name: int(bit) for bit, name in rows} == {str(flag.name): int(flag) for flag in Flags}


def printed(code: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "example", "exec"), {"__name__": "example"})
    return out.getvalue()


@pytest.mark.parametrize("page", ["README.md", "docs/howto/own-program.md"])
def test_examples_print_what_the_page_says(page):
    """The first example; numbers to 2 per cent, since they differ in the last digits from machine to machine."""
    code, said = blocks(ROOT / page, "python")[0], blocks(ROOT / page, "text")[0]
    got = printed(code)
    frames = [re.sub("-{2,}", "--", NUMBER.sub("0", x)).split() for x in (got, said)]
    assert frames[0] == frames[1]
    a, b = (np.array(NUMBER.findall(x), float) for x in (got, said))
    np.testing.assert_allclose(a, b, rtol=0.02, atol=0.02)


def test_the_start_page_has_the_example_of_the_readme():
    start = ROOT / "docs" / "start.md"
    for language in ("python", "text"):
        assert blocks(start, language)[0] == blocks(ROOT / "README.md", language)[0]
