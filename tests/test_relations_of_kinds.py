"""What must not matter does not, of photometry, parallaxes and translators: order, batches, units, what is missing.

The test step is held to rounding, and so are its draws: the random numbers of a star follow from its own data. So is
training; where it takes minibatches, another order of the columns is another path, which ends elsewhere by a part of an
error.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import pytest
from test_parallax import make
from test_translator import PLAIN, surveys, with_gaps

import bayeslabels as bl
from bayeslabels.kind import kind_of


class Case(NamedTuple):
    """close: in errors; of_draws: of draws, and of moments that are taken from them; of_columns: of training anew with
    the columns in another order, largest and median."""

    model: object
    train: bl.Stars
    test: bl.Stars
    close: float
    of_draws: float
    of_columns: tuple[float, float]
    columns: str
    iterations: int = 100


def parallaxes(prior):
    train, test = make(150, n_pixel=8).stars, make(20, seed=3, n_pixel=8).stars.drop("parallax")
    holes = {"magnitudes": bl.Block(
        np.where(np.random.default_rng(0).random((150, 3)) < 0.1, np.nan, train.magnitudes.value), 0.03,
        names=train.magnitudes.names, unit="mag",
    )}  # fmt: skip
    return Case(
        bl.Parallax(coefficient_prior=prior), train.with_block(**holes), test, 1e-9, 1e-9, (1e-9, 1e-9), "magnitudes"
    )


def translator():
    train, test = (
        stars.with_block(labels=with_gaps(stars.labels, 0.1, seed))
        for seed, stars in enumerate([surveys(150, error=0.1)[0], surveys(20, seed=3, error=0.1)[0]])
    )
    return Case(PLAIN, train, test.drop("target_labels"), 1e-9, 1e-9, (3.0, 0.5), "labels", 40)


def photometry():
    """Of draws and their weights the function of the labels is in float32: stars are always taken by the same number,
    so that it is rounded alike in every batch."""
    train, test = (bl.simulate.simulate_photometry(n, ("G", "BP", "RP"), seed=n)[0] for n in (150, 20))
    model = bl.Photometry(function="polynomial", order=1, members=2, components=1)
    return Case(model, train, test.drop("labels"), 1e-9, 1e-9, (np.inf, 0.5), "magnitudes", 20)


def cannon():
    train, test, _ = bl.simulate.simulate(100, 50, seed=1, n_test=20)
    return Case(bl.Cannon(order=1), train, test, 1e-9, 1e-9, (1e-9, 1e-9), "flux")


CASES = {
    "Cannon": cannon,
    "Parallax, Normal": functools.partial(parallaxes, bl.priors.Normal()),
    "Parallax, Laplace": functools.partial(parallaxes, bl.priors.Laplace()),
    "Translator": translator,
    "Photometry": photometry,
}


@functools.cache
def case(name):
    return CASES[name]()


def fitted(name, train):
    """By minibatches, of whichever rows."""
    return bl.fit(case(name).model, train, bl.MAP(max_iterations=case(name).iterations), seed=0, progress=False)


@functools.cache
def plain(name):
    posterior = fitted(name, case(name).train)
    return posterior, answer(posterior, case(name).test)


def answer(posterior, stars, inference=None, **how):
    """Means and errors of what is inferred, and of inferences that draw also some draws, by the same errors."""
    result = bl.infer(posterior, stars, inference or bl.MAP(), seed=0, progress=False, **how)
    draws = result.data["posterior"]["true_labels"].values
    some = np.moveaxis(draws[0, :: max(1, draws.shape[1] // 5)], 0, 1).reshape(len(result), -1)
    mean = np.concatenate([result.mean, some], 1)
    return mean, np.tile(result.error, mean.shape[1] // result.error.shape[1])


def apart(found, expected):
    """Differences (N, Q) in errors, of means and of the errors themselves."""
    (mean, error), (mean0, error0) = found, expected
    np.testing.assert_array_equal(np.isnan(mean), np.isnan(mean0))
    known = np.isfinite(mean0).all(1)
    assert known.sum() > len(known) / 2
    return np.maximum(np.abs(mean - mean0) / error0, np.abs(error / error0 - 1))[known]


def with_a_blank(stars, at):
    """One more star in this row, of which nothing is measured."""
    more = stars[np.insert(np.arange(len(stars)), at, 0)]
    blocks = {}
    for name, block in more.blocks.items():
        value = np.array(block.value, float)
        value[at] = np.nan
        blocks[name] = bl.Block(value, block.error, names=block.names, unit=block.units, coords=block.coords)
    return bl.Stars(**blocks)


def reordered(posterior, stars, by):
    order = np.random.default_rng(2).permutation(len(stars))
    back = np.argsort(order)
    return tuple(x[back] for x in answer(posterior, stars[order], by))


def beside_a_blank(posterior, stars, by):
    return tuple(np.delete(x, 4, 0) for x in answer(posterior, with_a_blank(stars, 4), by))


TEST_STEP = {
    "order of stars": reordered,
    "batches": lambda posterior, stars, by: answer(posterior, stars, by, batch_size=7),
    "a part of the stars": lambda posterior, stars, by: tuple(
        np.concatenate(x)
        for x in zip(*(answer(posterior, stars[s], by) for s in (slice(9), slice(9, None))), strict=True)
    ),
    "a star without data": beside_a_blank,
}


@pytest.mark.parametrize("by", [bl.MAP(), bl.Laplace(draws=50), bl.Importance(draws=200)], ids=repr)
@pytest.mark.parametrize("name", [x if x != "Photometry" else pytest.param(x, marks=pytest.mark.slow) for x in CASES])
def test_of_the_test_step(name, by):
    posterior, stars = plain(name)[0], case(name).test
    if type(by) not in kind_of(posterior.model).serving("infer"):
        pytest.skip("has no such test step")
    expected = answer(posterior, stars, by)
    for name_of, relation in TEST_STEP.items():
        off = apart(relation(posterior, stars, by), expected)
        n = len(kind_of(posterior.model).quantities(posterior.model).names)
        assert off.max() < case(name).of_draws, name_of
        assert isinstance(by, bl.Importance) or off[:, :n].max() < case(name).close, name_of


@pytest.mark.long
def test_draws_of_what_is_translated_back():
    """Also of the inputs, given what survey B has; as of the inputs, of columns that are wholly missing nothing is
    known."""
    of = case("Translator")
    posterior, by = plain("Translator")[0], bl.Laplace(draws=100)
    stars = surveys(20, seed=4, error=0.1)[0].drop("labels")
    expected = answer(posterior, stars, by)
    for name, relation in TEST_STEP.items():
        assert apart(relation(posterior, stars, by), expected).max() < of.close, name


def in_another_order(name, train, test):
    return train[np.random.default_rng(3).permutation(len(train))], test


def with_one_blank(name, train, test):
    return with_a_blank(train, 7), test


def of_other_columns(name, train, test):
    block = case(name).columns
    names = train[block].names[::-1]
    return tuple(x.with_block(**{block: x[block].select(names)}) for x in (train, test))


TRAINING = {
    "order of stars": in_another_order,
    "a star without data": with_one_blank,
    "order of columns": of_other_columns,
}


@pytest.mark.parametrize("relation", TRAINING)
@pytest.mark.parametrize(
    "name",
    [x if "Parallax" in x else pytest.param(x, marks=pytest.mark.slow) for x in CASES if x != "Cannon"],
)
def test_of_training(name, relation):
    """Of spectra with exact labels: `test_metamorphic`."""
    of = case(name)
    train, test = TRAINING[relation](name, of.train, of.test)
    off = apart(answer(fitted(name, train), test), plain(name)[1])
    largest, median = of.of_columns if relation == "order of columns" else (1e-9, 1e-9)
    assert off.max() < largest
    assert np.median(off) < median


@pytest.mark.long
@pytest.mark.parametrize("relation", ["order of stars", "a star without data"])
def test_of_training_with_latent_labels(relation):
    """The stars are trained on in an order that follows from their data, without those that say nothing."""
    train, test, _ = bl.simulate.simulate(60, 20, seed=1, n_test=20)
    model, by = bl.Cannon(order=2), bl.MAP()
    stars = TRAINING[relation]("", train, test)[0]
    one, other = (bl.fit(model, x, progress=False) for x in (train, stars))
    np.testing.assert_array_equal(answer(one, test, by), answer(other, test, by))
    inferred = other.data["posterior"]["true_labels"].values[0, 0]  # of the stars as they were given
    measured = stars["labels"].value[stars["labels"].observed.all(1)]
    assert np.corrcoef(inferred[:, 0], measured[:, 0])[0, 1] > 0.9


@pytest.mark.parametrize(
    "model",
    [bl.Cannon(order=1, label_noise="joint"), pytest.param(bl.Lux(2), marks=pytest.mark.slow)],
    ids=["Cannon", "Lux"],
)
def test_of_training_from_files(model, tmp_path):
    """Stars are summed over in an order that follows from their data, but for those that say nothing."""
    train, test, _ = bl.simulate.simulate(60, 20, seed=1, n_test=20)
    answers = []
    for name in ("plain", "order of stars", "a star without data"):
        stars = train if name == "plain" else TRAINING[name]("", train, test)[0]
        path = tmp_path / f"{name}.parquet"
        stars.to_table().write(path)
        trained = bl.fit(model, path, columns={"labels": list(train["labels"].names)}, progress=False)
        assert trained.info["n_without_data"] == (name == "a star without data")
        answers.append(answer(trained, test, bl.MAP()))
    for other in answers[1:]:
        assert apart(other, answers[0]).max() < 1e-9


@pytest.mark.parametrize("scale", [1e-20, 1e20])
@pytest.mark.parametrize("name", [x for x in CASES if "Parallax" in x])
def test_the_unit_of_the_flux(name, scale):
    """It enters by its logarithm, about its mean."""
    scaled = [x.with_block(flux=bl.Block(scale * x.flux.value, scale * x.flux.error)) for x in case(name)[1:3]]
    assert apart(answer(fitted(name, scaled[0]), scaled[1]), plain(name)[1]).max() < 1e-9
