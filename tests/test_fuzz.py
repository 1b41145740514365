"""Odd and damaged tables: a star has the numbers of an undisturbed run, or is flagged, or the table is refused."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.table import MaskedColumn, Table

import bayeslabels as bl
from bayeslabels.catalogues.catalog import infer_catalog
from bayeslabels.data.stars import Stars
from bayeslabels.errors import BadInput, CannotDo
from bayeslabels.files.formats import SUFFIXES
from bayeslabels.files.tables import read_table, write_table
from bayeslabels.results.star_posterior import Flags

pytest.importorskip("pyarrow")
N, LABELS = 16, ("TEFF", "LOGG")
ODD = [np.nan, np.inf, -np.inf, -1.0, 0.0, 1e-30, 1e30, -9999.0, 1e300, None, "masked"]
TYPES = ["f4", ">f8", "f2", "i8", "u1", "?", "O", "U9", "c16", "M8[s]"]
MEANT = (BadInput, CannotDo)
COLUMNS = {"flux": "FLUX", "flux_error": "ERR", "id": "ID"}


def table_of(stars, n):
    out = Table({"ID": [f"s{i}" for i in range(n)], "FLUX": stars.flux.value[:n], "ERR": stars.flux.error[:n]})
    for i, name in enumerate(LABELS):
        out[name] = stars.labels.value[:n, i]
    return out


def disturbed(table, names, rng):
    """A copy of the table with odd numbers in one to three places, and (N,) the stars in which they are."""
    out, rows = table.copy(), np.zeros(len(table), bool)
    for _ in range(rng.integers(1, 4)):
        name, odd, star = rng.choice(names), ODD[rng.integers(len(ODD))], rng.integers(len(table))
        place = np.zeros(out[name].shape, bool)
        place[star] = True if rng.random() < 0.3 else rng.random(out[name].shape[1:]) < 0.3
        mask = np.ma.getmaskarray(out[name]) | place if odd == "masked" else None
        values = np.array(out[name], object if odd is None else None)
        values[place] = 77.0 if odd == "masked" else odd
        out[name] = MaskedColumn(values, mask=mask) if mask is not None else values
        rows[star] = True
    return out, rows


def retyped(table, rng):
    """A copy of the table with a column of another type."""
    out, name = table.copy(), rng.choice(["FLUX", "ERR", "ID"])
    dtype = rng.choice(["S9", "O"] if name == "ID" else TYPES)
    values = np.asarray(out[name])
    with np.errstate(all="ignore"):
        out[name] = values.astype("i8").view(dtype) if dtype == "M8[s]" else values.astype(dtype)
    return out


def assert_right_or_flagged(mean, error, flags, expected, rows):
    """Stars without odd numbers are as they were; the others are flagged, or near to what they were."""
    at = dict(rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(mean[~rows], expected.mean[~rows], **at)
    np.testing.assert_allclose(error[~rows], expected.error[~rows], **at)
    np.testing.assert_array_equal(flags[~rows] & ~int(Flags.MULTIMODAL), expected.flags[~rows])
    assert (flags[np.isnan(mean).any(1)] > 0).all()
    off = np.abs(mean - expected.mean) / np.hypot(error, expected.error)
    assert ((off < 5).all(1) | (flags > 0) | ~rows).all(), (off, flags)


@pytest.fixture(scope="module")
def survey(training):
    return table_of(training, N)


@pytest.fixture(scope="module")
def expected(trained, survey):
    return bl.infer(trained, Stars.from_table(survey, **COLUMNS))


@pytest.mark.parametrize("seed", range(60))
def test_odd_numbers_in_memory(trained, survey, expected, seed):
    table, rows = disturbed(survey, ["FLUX", "ERR"], np.random.default_rng(seed))
    try:
        found = bl.infer(trained, Stars.from_table(table, **COLUMNS))
    except MEANT:
        return
    assert_right_or_flagged(found.mean, found.error, found.flags, expected, rows)


@pytest.mark.parametrize("seed", range(30))
def test_odd_numbers_in_catalogues(trained, survey, expected, tmp_path, seed):
    """Never refused: the star is flagged."""
    rng = np.random.default_rng(1000 + seed)
    table, rows = disturbed(survey, ["FLUX", "ERR"], rng)
    for name in ("FLUX", "ERR"):
        if table[name].dtype == object:
            table[name] = np.array(table[name].tolist(), float)
    suffix = rng.choice([x for x in SUFFIXES if ".csv" not in x])
    source = write_table(table, tmp_path / f"in{suffix}")
    infer_catalog(trained, source, tmp_path / "out.parquet", columns=COLUMNS, progress=False)
    found = read_table(tmp_path / "out.parquet")
    mean, error = (np.column_stack([found[f"{x}{end}"] for x in LABELS]) for end in ("", "_error"))
    assert found["id"].tolist() == survey["ID"].tolist()
    assert_right_or_flagged(mean, error, np.asarray(found["flags"]), expected, rows)


@pytest.mark.parametrize("seed", range(40))
def test_columns_of_other_types(trained, survey, expected, seed):
    table = retyped(survey, np.random.default_rng(2000 + seed))
    try:
        found = bl.infer(trained, Stars.from_table(table, **COLUMNS))
    except MEANT:
        return
    off = np.abs(found.mean - expected.mean) / np.hypot(found.error, expected.error)
    assert ((off < 5).all(1) | (found.flags > 0)).all(), (table.dtype, off)


@pytest.mark.parametrize("seed", range(40))
def test_odd_numbers_among_training_stars(training, trained, survey, expected, seed):
    """Two stars of forty are odd: what is learned is refused or nearly the same."""
    table, _ = disturbed(table_of(training, 40), ["FLUX", "ERR", *LABELS], np.random.default_rng(3000 + seed))
    try:
        posterior = bl.fit(trained.model.replace(frame=None), Stars.from_table(table, labels=LABELS, **COLUMNS))
        found = bl.infer(posterior, Stars.from_table(survey, **COLUMNS))
    except MEANT:
        return
    off = np.abs(found.mean - expected.mean) / np.hypot(found.error, expected.error)
    assert ((off < 3).all(1) | (found.flags > 0)).all(), (off, found.flags)


@pytest.mark.parametrize(
    "suffix", [x for x in SUFFIXES if x.count(".") == 1 and x not in (".fit", ".pq", ".hdf5", ".hdf")]
)
def test_damaged_files(trained, survey, tmp_path, suffix):
    """Cut anywhere, overwritten anywhere: refused, or a result of as many stars as were read."""
    table = survey if suffix != ".csv" else survey["ID", "TEFF"]
    content = write_table(table, tmp_path / f"whole{suffix}").read_bytes()
    path, rng = tmp_path / f"t{suffix}", np.random.default_rng(4)
    for i in range(40):
        damaged = bytearray(content[: rng.integers(len(content))] if i % 2 else content)
        if i % 2 == 0:
            for at in rng.integers(len(content), size=rng.integers(1, 9)):
                damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            Stars.from_table(read_table(path), **(COLUMNS if suffix != ".csv" else {"labels": "TEFF", "id": "ID"}))
        except MEANT:
            continue
