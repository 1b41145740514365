"""What must not matter does not: the order of stars, pixels and labels, units, batches, and what is missing altogether.

Each relation is judged against the errors: results agree to a small fraction of the error bar.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import bayeslabels as bl

NAMES, UNITS = ("TEFF", "LOGG"), ("K", "dex")
CENTRE, SPREAD = np.array([5000.0, 3.0]), np.array([300.0, 0.5])
MODELS = {
    "flat": bl.Cannon(order=2, label_noise=False, coefficient_prior=bl.priors.Flat()),
    "learned": bl.Cannon(order=2, label_noise=False),
    "noisy": bl.Cannon(order=1, label_noise="joint"),
    "lux": bl.Lux(3),
}
CLOSE = 1e-9
"""Largest difference, in errors: rounding (1e-16), as far as iterations multiply it."""


@dataclasses.dataclass(frozen=True)
class Case:
    labels: np.ndarray
    label_error: np.ndarray
    flux: np.ndarray
    error: np.ndarray

    def stars(self, names=NAMES, units=UNITS):
        labels = bl.Block(self.labels, self.label_error, names=names, unit=units)
        return bl.Stars(labels=labels, flux=bl.Block(self.flux, self.error))

    def rows(self, at):
        return Case(self.labels[at], self.label_error[at], self.flux[at], self.error[at])


def survey(n, seed):
    rng = np.random.default_rng(seed)
    u = rng.normal(size=(n, 2))
    theta = np.random.default_rng(5).normal(size=(15, 3)) * 0.05
    flux = 1 + np.column_stack([u, u[:, 0] * u[:, 1] * 0.2]) @ theta.T + 0.01 * rng.normal(size=(n, 15))
    flux[rng.random(flux.shape) < 0.05] = np.nan
    label_error = 0.1 * SPREAD * np.ones((n, 2))
    return Case(CENTRE + SPREAD * u, label_error, flux, 0.01 * np.ones((n, 15)))


TRAIN, TEST = survey(60, 0), survey(12, 1)


def answer(name, train, test, **how):
    """Labels and errors (N, M) of test stars."""
    posterior = bl.fit(MODELS[name], train, seed=0, progress=False)
    result = bl.infer(posterior, test.drop("labels"), bl.MAP(), seed=0, progress=False, **how)
    return result.mean, result.error


@pytest.fixture(scope="module")
def plain():
    known = {}

    def of(name):
        if name not in known:
            known[name] = answer(name, TRAIN.stars(), TEST.stars())
        return known[name]

    return of


def assert_same(name, found, expected):
    (mean, error), (mean0, error0) = found, expected
    assert np.isfinite(mean).all()
    assert (np.abs(mean - mean0) / error0).max() < CLOSE
    np.testing.assert_allclose(error, error0, rtol=CLOSE)


every = pytest.mark.parametrize("name", MODELS)


@every
def test_the_order_of_stars(name, plain):
    order = np.random.default_rng(2).permutation(60)
    back = np.random.default_rng(3).permutation(12)
    mean, error = answer(name, TRAIN.rows(order).stars(), TEST.rows(back).stars())
    at = np.argsort(back)
    assert_same(name, (mean[at], error[at]), plain(name))


@every
def test_the_order_of_pixels(name, plain):
    order = np.random.default_rng(4).permutation(15)
    mixed = [dataclasses.replace(x, flux=x.flux[:, order], error=x.error[:, order]) for x in (TRAIN, TEST)]
    assert_same(name, answer(name, *(x.stars() for x in mixed)), plain(name))


@pytest.mark.parametrize("name", ["flat", "learned", "noisy"])  # rotations of Lux's latents begin elsewhere
def test_the_order_of_labels(name, plain):
    swapped = [
        dataclasses.replace(x, labels=x.labels[:, ::-1], label_error=x.label_error[:, ::-1]) for x in (TRAIN, TEST)
    ]
    mean, error = answer(name, *(x.stars(NAMES[::-1], UNITS[::-1]) for x in swapped))
    assert_same(name, (mean[:, ::-1], error[:, ::-1]), plain(name))


@every
@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_the_unit_of_the_flux(name, scale, plain):
    scaled = [dataclasses.replace(x, flux=scale * x.flux, error=scale * x.error) for x in (TRAIN, TEST)]
    assert_same(name, answer(name, *(x.stars() for x in scaled)), plain(name))


@every
def test_the_units_of_the_labels(name, plain):
    factor = np.array([1e-3, 100.0])
    scaled = [
        dataclasses.replace(x, labels=factor * x.labels, label_error=factor * x.label_error) for x in (TRAIN, TEST)
    ]
    mean, error = answer(name, *(x.stars(units=("kK", "")) for x in scaled))
    assert_same(name, (mean / factor, error / factor), plain(name))


@every
def test_the_size_of_batches(name, plain):
    assert_same(name, answer(name, TRAIN.stars(), TEST.stars(), batch_size=5), plain(name))


@every
def test_a_pixel_that_no_star_has(name, plain):
    wider = []
    for x in (TRAIN, TEST):
        flux = np.column_stack([x.flux[:, :7], np.full(len(x.flux), np.nan), x.flux[:, 7:]])
        wider.append(dataclasses.replace(x, flux=flux, error=np.full(flux.shape, 0.01)))
    assert_same(name, answer(name, *(x.stars() for x in wider)), plain(name))


@every
def test_a_star_without_data_among_those_to_be_inferred(name, plain):
    rows = np.arange(12)
    blank = TEST.rows(np.append(rows, 0))
    blank = dataclasses.replace(blank, flux=np.where(np.arange(13)[:, None] == 12, np.nan, blank.flux))
    mean, error = answer(name, TRAIN.stars(), blank.stars())
    assert np.isnan(mean[12]).all()
    assert_same(name, (mean[rows], error[rows]), plain(name))


@pytest.mark.parametrize("name", ["flat", "learned"])
def test_a_training_star_without_a_spectrum(name, plain):
    """It says nothing, but for the labels' scales, which stay as they are where it has a typical label."""
    middle = np.median(TRAIN.labels, 0)
    more = TRAIN.rows(np.append(np.arange(60), 0))
    flux = np.where(np.arange(61)[:, None] == 60, np.nan, more.flux)
    labels = np.where(np.arange(61)[:, None] == 60, middle, more.labels)
    found = answer(name, dataclasses.replace(more, flux=flux, labels=labels).stars(), TEST.stars())
    (mean, error), (mean0, error0) = found, plain(name)
    assert (np.abs(mean - mean0) / error0).max() < 1e-2
    np.testing.assert_allclose(error, error0, rtol=1e-2)
