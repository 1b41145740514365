"""Relations that hold whatever the data are: searched by `hypothesis`, shortly by default, for long with `-m slow`."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
from astropy import units as u
from astropy.table import Column, MaskedColumn, QTable, Table
from astropy.utils.masked import Masked
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_relations import MODELS, NAMES, SPREAD, UNITS, survey

import bayeslabels as bl
from bayeslabels.errors import BadInput
from bayeslabels.files.formats import SUFFIXES
from bayeslabels.files.streams import open_stream
from bayeslabels.files.tables import read_table, write_table

CLOSE = 1e-9
"""Of an error."""


def holds(check, *strategies, examples):
    """Run a check on examples that are drawn: the same ones in every short run."""
    how = settings(
        max_examples=examples, derandomize=examples < 100, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    how(given(*strategies)(check))()


def searched(short, long):
    """Parametrize a test by the number of examples."""
    return pytest.mark.parametrize("examples", [short, pytest.param(long, marks=pytest.mark.slow)])


# Relations of results


@functools.cache
def base(seed, gaps):
    """Training and test stars with gaps of some pattern, and what is inferred of them."""
    train, test = survey(60, seed), survey(12, seed + 100)
    rng = np.random.default_rng(seed)
    holes = {
        "few": [], "a red end": [(slice(0, 20), slice(10, 15))], "one star": [(3, slice(1, 15))],
        "every other pixel": [(slice(0, 30), slice(0, 15, 2))], "one pixel left": [(5, np.delete(np.arange(15), 7))],
    }[gaps]  # fmt: skip
    for some in (train, test):
        for rows, columns in holes:
            some.flux[rows, columns] = np.nan
        some.error[:] *= rng.uniform(0.5, 2, (1, 15))
    return train, test, answer(train, test)


def answer(train, test, names=NAMES, units=UNITS, **how):
    posterior = bl.fit(MODELS["flat"], train.stars(names, units), progress=False)
    return found(bl.infer(posterior, test.stars(names, units).drop("labels"), bl.MAP(), progress=False, **how))


def found(result):
    return result.mean, result.error


def permuted_stars(train, test, draw):
    a, b = draw.permutation(60), draw.permutation(12)
    mean, error = answer(train.rows(a), test.rows(b))
    return mean[np.argsort(b)], error[np.argsort(b)]


def permuted_pixels(train, test, draw):
    order = draw.permutation(15)
    return answer(*(dataclasses.replace(x, flux=x.flux[:, order], error=x.error[:, order]) for x in (train, test)))


def permuted_labels(train, test, draw):
    some = (dataclasses.replace(x, labels=x.labels[:, ::-1], label_error=x.label_error[:, ::-1]) for x in (train, test))
    mean, error = answer(*some, NAMES[::-1], UNITS[::-1])
    return mean[:, ::-1], error[:, ::-1]


def scaled_flux(train, test, draw):
    s = 10.0 ** draw.uniform(-20, 20)
    return answer(*(dataclasses.replace(x, flux=s * x.flux, error=s * x.error) for x in (train, test)))


def scaled_labels(train, test, draw):
    s = 10.0 ** draw.uniform(-6, 6, 2)
    some = (dataclasses.replace(x, labels=s * x.labels, label_error=s * x.label_error) for x in (train, test))
    mean, error = answer(*some, units=("", ""))
    return mean / s, error / s


def batches(train, test, draw):
    return answer(train, test, batch_size=int(draw.integers(1, 13)))


def blank_pixels(train, test, draw):
    """Some more that no star has, without values or without errors."""
    at = np.sort(draw.integers(0, 16, 2))
    no_value = bool(draw.integers(2))
    wider = []
    for x in (train, test):
        flux = np.insert(x.flux, at, np.nan if no_value else 1.0, axis=1)
        wider.append(dataclasses.replace(x, flux=flux, error=np.insert(x.error, at, 0.01 if no_value else np.nan, 1)))
    return answer(*wider)


def blank_stars(train, test, draw):
    """Among those to be inferred."""
    place = int(draw.integers(0, 13))
    rows = np.insert(np.arange(12), place, 0)
    more = test.rows(rows)
    flux = np.where(np.arange(13)[:, None] == place, np.nan, more.flux)
    mean, error = answer(train, dataclasses.replace(more, flux=flux))
    assert np.isnan(mean[place]).all()
    return np.delete(mean, place, 0), np.delete(error, place, 0)


RELATIONS = {x.__name__: x for x in (
    permuted_stars, permuted_pixels, permuted_labels, scaled_flux, scaled_labels, batches, blank_pixels, blank_stars,
)}  # fmt: skip
GAPS = ["few", "a red end", "one star", "every other pixel", "one pixel left"]


@pytest.mark.long
@searched(2, 100)
@pytest.mark.parametrize("name", RELATIONS)
def test_results_stay_as_they_are(name, examples):
    def check(seed, gaps, key):
        train, test, (mean0, error0) = base(seed, gaps)
        mean, error = RELATIONS[name](train, test, np.random.default_rng(key))
        np.testing.assert_array_equal(np.isnan(mean), np.isnan(mean0))
        known = np.isfinite(mean0).all(1) & (error0 < 3 * SPREAD).all(1)
        assert known.sum() > 6
        assert (np.abs(mean - mean0) / error0)[known].max() < CLOSE
        np.testing.assert_allclose(error[known], error0[known], rtol=CLOSE)

    holds(check, st.integers(0, 2), st.sampled_from(GAPS), st.integers(0, 2**32), examples=examples)


# Relations of tables

numbers = st.lists(
    st.one_of(st.none(), st.floats(-1e6, 1e6, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3)),
    min_size=1, max_size=7,
)  # fmt: skip
"""Of a column; None: missing."""
DTYPES = ("f8", ">f8", "f4", ">f4")
UNIT = ("mmag", "mag")


def written(values, dtype, how, unit):
    """A table column of these numbers: what is missing is NaN or masked, in the ways that people have."""
    blank = np.array([x is None for x in values])
    full = np.array([np.nan if x is None else x for x in values], dtype)
    under = np.where(blank, 99.0, full).astype(dtype)
    if how == "nan":
        return Column(full, unit=unit)
    if how == "masked":
        return MaskedColumn(under, mask=blank, unit=unit)
    if how == "quantity":
        return full.astype(full.dtype.newbyteorder("=")) * u.Unit(unit or "")
    return Masked(under.astype(full.dtype.newbyteorder("=")), mask=blank) * u.Unit(unit or "")


columns = st.tuples(
    numbers, st.sampled_from(DTYPES), st.sampled_from(["nan", "masked", "quantity", "masked quantity"]),
    st.sampled_from(UNIT),
)  # fmt: skip


def table_of(values, dtype, how, unit):
    column = written(values, dtype, how, unit)
    return (QTable if "quantity" in how else Table)({"G": column})


@searched(150, 5000)
def test_every_way_of_writing_a_column_is_the_same_column(examples):
    def check(column):
        values, dtype, _, unit = column
        block = bl.Stars.from_table(table_of(*column), magnitudes="G", magnitudes_unit="mag").magnitudes
        expected = np.array([np.nan if x is None else x for x in values], dtype).astype(float)
        expected *= {"mmag": 1e-3, "mag": 1.0}[unit]
        np.testing.assert_allclose(block.value[:, 0], expected, rtol=3e-7 if "f4" in dtype else 1e-15)

    holds(check, columns, examples=examples)


@searched(60, 2000)
def test_every_format_gives_back_the_column(tmp_path, examples):
    pytest.importorskip("pyarrow")

    def check(column, suffix, size):
        table = table_of(*column)
        path = write_table(table, tmp_path / f"t{suffix}")
        expected = bl.Stars.from_table(table, magnitudes="G").magnitudes
        stream = open_stream(path)
        for parts in ([read_table(path)], list(stream.read(0, size, ["G"]))):
            blocks = [bl.Stars.from_table(part, magnitudes="G").magnitudes for part in parts]
            np.testing.assert_array_equal(np.concatenate([x.value for x in blocks]), expected.value)
            assert ".csv" in suffix or blocks[0].units == expected.units

    holds(check, columns, st.sampled_from(SUFFIXES), st.integers(1, 5), examples=examples)


ids = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5, unique=True),
    st.lists(st.integers(2**63, 2**64 - 1), min_size=1, max_size=5, unique=True),
    st.lists(
        st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=9),
        min_size=1, max_size=5, unique=True,
    ),
)  # fmt: skip


@searched(80, 3000)
def test_ids_come_back_or_are_refused(tmp_path, examples):
    """From every format with types; as texts, at most: never as other ids."""
    pytest.importorskip("pyarrow")

    def check(names, suffix):
        stars = bl.Stars(id=np.array(names), magnitudes=bl.Block(np.arange(float(len(names)))))
        path = write_table(stars.to_table(), tmp_path / f"i{suffix}")
        for parts in ([read_table(path)], list(open_stream(path).read(0, 2, ["id", "magnitudes"]))):
            try:
                back = [x for part in parts for x in bl.Stars.from_table(part, magnitudes="magnitudes", id="id").id]
            except BadInput:
                assert {"NULL", "null"} & set(names)  # which text files have for what is missing
                continue
            assert [str(x) for x in back] == [str(x) for x in names]

    typed = [x for x in SUFFIXES if ".csv" not in x]
    holds(check, ids, st.sampled_from(typed), examples=examples)


@searched(150, 5000)
def test_labels_of_any_kind_are_read_or_refused(examples):
    """Numbers of any type, and what is none: right, missing, or `BadInput`; nothing else."""
    anything = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.binary(max_size=3),
        st.complex_numbers(), st.dates(), st.just(np.ma.masked), st.decimals(), st.fractions(),
    )  # fmt: skip

    def check(values):
        try:
            block = bl.Block(np.array(values, object))
        except BadInput:
            return
        for given_, got in zip(values, block.value[:, 0], strict=True):
            if given_ is None or given_ is np.ma.masked:
                assert np.isnan(got)
            else:
                np.testing.assert_equal(got, float(given_))

    holds(check, st.lists(anything, min_size=1, max_size=4), examples=examples)
