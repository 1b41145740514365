"""The README and the documentation: their examples are Python, their names exist, and every public name is there."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from astropy import units as u
from astropy.table import QTable

import bayeslabels as bl
from bayeslabels.cli import main
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


def measured(block: bl.Block, names: tuple[str, ...], error: str) -> dict[str, Any]:
    """Columns of a block and of its errors, in its units."""
    value, sd = (
        [u.Quantity(x, unit) for x, unit in zip(numbers.T, block.units, strict=True)]
        for numbers in (block.value, block.error)
    )
    return dict(zip(names, value, strict=True)) | dict(zip(map(error.format, names), sd, strict=True))


def tables(folder: Path) -> dict[str, Any]:
    """The files and names that the examples of the pages take as given."""
    labels = ("TEFF", "LOGG", "FE_H")
    train, test, _ = bl.simulate.simulate(150, 40, seed=1, n_test=40)
    spectra = {}
    for name, stars in (("train", train), ("new", test)):
        table = {"NAME": stars.id, "FLUX": stars.flux.value, "FLUX_ERR": stars.flux.error}
        table["IVAR"] = np.where(stars.flux.observed, stars.flux.error, np.inf) ** -2.0
        spectra[name] = table
        known = measured(stars.labels, labels, "{}_ERR") if "labels" in stars else {}
        bl.tables.write_table(QTable(table | known), folder / f"{name}.fits")
    dusty, _ = bl.simulate.simulate_photometry(150, seed=1)
    bands = dusty["magnitudes"].names
    photometric = measured(dusty.labels, labels, "{}_ERR") | measured(dusty["magnitudes"], bands, "{}_ERR")
    photometric |= measured(dusty["parallax"], ("PARALLAX",), "{}_ERROR")
    photometric |= measured(dusty["reddening"], ("EBV",), "{}_ERR")
    photometric |= {"PLX": photometric["PARALLAX"], "E_PLX": photometric["PARALLAX_ERROR"]}
    photometric |= {"SURVEY": np.repeat(["A", "B"], 75), "CATALOGUE": np.tile(["gaia_dr2", "gaia_dr3"], 75)}
    (folder / "survey").mkdir()
    bl.tables.write_table(QTable(spectra["train"] | photometric), folder / "survey" / "part0.parquet")
    bl.tables.write_table(QTable(photometric), folder / "giants.fits")
    both = measured(dusty.labels, labels, "{}_ERR")
    both |= measured(dusty.labels, tuple(f"{x}_B" for x in labels), "{}_ERR")
    posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
    result = bl.infer(posterior, test, progress=False)
    with_magnitudes = train.with_block(magnitudes=dusty["magnitudes"])
    return {
        "bl": bl, "np": np, "stars": with_magnitudes, "new_stars": test, "wavelength": train.flux.coords["pixel"],
        "flux": train.flux.value, "ivar": train.flux.error**-2.0, "posterior": posterior, "visits": test,
        "snr": np.nanmedian(train.flux.value / train.flux.error, axis=1), "star": np.repeat(np.arange(20), 2),
        "catalogue": result.table(), "result": result,
        "table": QTable(spectra["train"] | photometric), "both": QTable(both),
        "survey_a": bl.Stars(labels=dusty.labels), "survey_b": bl.Stars(target_labels=dusty.labels),
    }  # fmt: skip


RUN = (
    "start.md", "howto/fits.md", "howto/flags.md", "howto/error-bars.md", "howto/priors-nuisances.md", "howto/arviz.md",
    "howto/large.md", "howto/own-program.md",
)  # fmt: skip
"""Pages whose examples run one after the other."""
SYSTEMS = "howto/systems.md"
"""A page of first lines: its examples share no stars, so that each is run with stars of its own."""
NOT_RUN = {
    "howto/cluster.md": "needs a scheduler and several machines; tests/test_partitions.py runs the functions",
    "howto/surveys.md": "needs files of surveys; tests/test_surveys.py reads simulated ones",
    "howto/units.md": "needs a table of the Gaia archive; tests/test_gaia_xp.py makes one",
}


def test_every_page_with_examples_is_run_or_has_a_reason():
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES[1:] if blocks(page, "python")}
    assert pages == {*RUN, SYSTEMS, *NOT_RUN}


def needs_arviz_plots(page: str) -> None:
    if "arviz" in page:
        try:
            import arviz_plots  # noqa: F401
        except (ImportError, AttributeError) as problem:  # AttributeError: beside a matplotlib that is too new for it
            pytest.skip(f"pip install 'bayeslabels[plots]': {problem}")


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_examples_run_one_after_the_other(page, tmp_path, monkeypatch):
    needs_arviz_plots(page)
    monkeypatch.chdir(tmp_path)
    space = tables(tmp_path)
    for code in blocks(ROOT / "docs" / page, "python"):
        exec(compile(code, page, "exec"), space)


@pytest.mark.slow
@pytest.mark.parametrize("i", range(5))
def test_examples_of_the_systems_run(i, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = blocks(ROOT / "docs" / SYSTEMS, "python")
    assert len(found) == 5
    space = tables(tmp_path)
    if i:
        few, _ = bl.simulate.simulate_photometry(20, seed=2)
        bands = few["magnitudes"].names if i == 1 else ("G", "BP", "RP", "J")
        space["new_stars"] = few.drop("labels").with_block(magnitudes=few["magnitudes"].select(bands))
    if "flux=" in found[i]:
        space["new_stars"] = space["new_stars"].with_block(flux=space["stars"][:20].flux)
    exec(compile(found[i], SYSTEMS, "exec"), space)


def commands(page: Path) -> list[list[str]]:
    """The lines of a page that call `bayeslabels`, as words."""
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("bayeslabels")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", ["README.md", "docs/howto/fits.md", "docs/howto/error-bars.md", "docs/reference/cli.md"]
)
def test_commands_run_one_after_the_other(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tables(tmp_path)
    found = commands(ROOT / page)
    assert found
    for words in found:
        out = words[words.index("-o") + 1] if "-o" in words else None
        quick = [x.replace("draws=1000", "draws=20") for x in words]
        quick += ["--inference-set", "warmup=20"] if "nuts" in words else []
        assert main([*quick, "--overwrite"] if out and Path(out).exists() else quick) == 0, (words, capsys.readouterr())
