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
from astropy.table import Table

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


def tables(folder: Path) -> dict[str, Any]:
    """The files and names that the examples of the pages take as given."""
    train, test, _ = bl.simulate.simulate(150, 40, seed=1, n_test=40)
    for name, stars in (("train", train), ("new", test)):
        table = {"NAME": stars.id, "FLUX": stars.flux.value, "FLUX_ERR": stars.flux.error}
        table["IVAR"] = np.where(stars.flux.observed, stars.flux.error, np.inf) ** -2.0
        for i, label in enumerate(("TEFF", "LOGG", "FE_H") if "labels" in stars else ()):
            table |= {label: stars.labels.value[:, i], f"{label}_ERR": stars.labels.error[:, i]}
        bl.tables.write_table(Table(table), folder / f"{name}.fits")
    posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
    result = bl.infer(posterior, test, progress=False)
    return {
        "bl": bl, "np": np, "stars": train, "new_stars": test, "wavelength": train.flux.coords["pixel"],
        "flux": train.flux.value, "ivar": train.flux.error**-2.0, "posterior": posterior, "visits": test,
        "snr": np.nanmedian(train.flux.value / train.flux.error, axis=1), "star": np.repeat(np.arange(20), 2),
        "catalogue": result.table(), "result": result,
    }  # fmt: skip


RUN = ("start.md", "howto/fits.md", "howto/flags.md", "howto/error-bars.md", "howto/priors-nuisances.md")
"""Pages whose examples have no gaps for the reader's own names and files. README and others are run elsewhere."""


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_examples_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space = tables(tmp_path)
    for code in blocks(ROOT / "docs" / page, "python"):
        exec(compile(code, page, "exec"), space)
