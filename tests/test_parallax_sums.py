"""Parallax trained from sums over stars: the answers of training in memory."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from astropy.table import Table
from test_catalog import write_parquet
from test_training_stream import Stopped, stop_after
from test_training_sums import minibatch_sums, small  # noqa: F401  (a fixture)

import bayeslabels as bl
from bayeslabels.data.batches import Batches, RowsInMemory
from bayeslabels.files import training
from bayeslabels.inference.passes import Sweeps, by_sweeps
from bayeslabels.kinds.parallax.sums import GaussianBySums, ModeBySums
from bayeslabels.kinds.parallax.training import data_of, fit_mode
from bayeslabels.numerics import shrinkage

N, FEW = 600, 250
NAMES = {"magnitudes_names": ("G", "K")}


def table(seed=0, wrong=0.0):
    """Giants with spectra and magnitudes, some of which are missing; parallaxes of any sign, some of which are."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(N, 3))
    flux = np.exp(z @ rng.normal(size=(3, 6)) * 0.1 + 0.03 * rng.normal(size=(N, 6)))
    magnitudes = np.column_stack([12 + z[:, 0] + 0.3 * z[:, 1], 11 + 0.8 * z[:, 0]])
    error = rng.uniform(0.03, 0.3, N)
    parallax = np.exp(-0.3 * z[:, 0] + 0.2 * z[:, 1] - 0.5 + 0.1 * rng.normal(size=N)) - 0.03
    parallax += error * rng.normal(size=N) + 3.0 * (rng.random(N) < wrong)
    parallax[rng.random(N) < 0.03] = np.nan
    magnitudes[rng.random(magnitudes.shape) < 0.03] = np.nan
    return Table({
        "parallax": parallax[:, None], "parallax_error": error[:, None], "magnitudes": magnitudes,
        "magnitudes_error": np.full(magnitudes.shape, 0.02), "flux": flux, "flux_error": np.full(flux.shape, 0.02),
    })  # fmt: skip


def in_memory(table):
    return bl.Stars.from_table(table, **{name: name for name in table.colnames}, **NAMES)


@pytest.fixture(scope="module")
def stars():
    return in_memory(table())


def rows_of(model, stars):
    seen = stars["parallax"].observed[:, 0]
    return RowsInMemory(model.bind(stars[seen]), stars, seen, stars[np.flatnonzero(seen)[:FEW]])


@pytest.mark.long
def test_passes_end_at_the_gaussian_posterior(stars, small):  # noqa: F811
    rows = rows_of(bl.Parallax(coefficient_prior=bl.priors.Normal(0.2)), stars)
    with jax.enable_x64(True):
        data, model = data_of(rows.model, stars), rows.model
        penalised = model.require_frame().penalised
        theirs = shrinkage.fit_posterior(
            data.features.value, data.y, data.sigma, ridge=np.where(penalised, 25.0, model.wide_precision),
            sparse=penalised, prior=lambda second: np.full(len(second), 25.0), variance=data.features.variance,
            zero_prior=model.zero_prior, tolerance=1e-8, max_iterations=1000,
        )  # fmt: skip
        ours = by_sweeps(GaussianBySums(model, rows.stars, 10, 0, 1e-7), rows, 200, False)
    assert theirs.converged
    assert ours.stats["converged"]
    m, covariance = ours.moments, theirs.covariance[:-1, :-1]
    sd = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(m.coefficients, theirs.mean[:-1], atol=1e-3 * sd.min())
    np.testing.assert_allclose(np.sqrt((m.coefficient_factor**2).sum(1)), sd, rtol=5e-3)
    np.testing.assert_allclose([m.scatter, m.zero_point], [theirs.s, theirs.mean[-1]], atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("prior", [bl.priors.Laplace(0.2), bl.priors.Normal(0.1)], ids=["sparse", "ridge"])
def test_passes_end_at_the_mode(prior, stars, small):  # noqa: F811
    rows = rows_of(bl.Parallax(coefficient_prior=prior, scatter=0.1), stars)
    with jax.enable_x64(True):
        theirs = fit_mode(rows.model, data_of(rows.model, stars), 0)
        ours = by_sweeps(ModeBySums(rows.model, rows.stars, int(rows.usable.sum()), 0), rows, 60, False)
    assert ours.stats["converged"]
    assert ours.stats["n_zero"] == theirs.stats["n_zero"]
    np.testing.assert_allclose(ours.moments.coefficients, theirs.moments.coefficients, atol=5e-4)
    np.testing.assert_allclose(ours.moments.zero_point, theirs.moments.zero_point, atol=2e-4)
    np.testing.assert_allclose(ours.stats["objective"], theirs.stats["objective"], atol=0.05)


def test_minibatches_are_unbiased(stars, small):  # noqa: F811
    rows = rows_of(bl.Parallax(), stars)
    with jax.enable_x64(True):
        by_sums = GaussianBySums(rows.model, rows.stars, 10, 0)
        g = by_sums.start()
        batches = Batches.of(rows, 1, 0, 50)
        mean = minibatch_sums(by_sums, batches, g)
        counts = np.pad(batches.often[0].astype(float), (0, -N % 256))
        whole = by_sums.sums(g, rows.held_out(np.resize(np.arange(N), len(counts))), counts)
    for name, x in mean._asdict().items():
        y = np.asarray(getattr(whole, name)) / counts.sum()
        np.testing.assert_allclose(x, y, rtol=1e-8, atol=1e-10 * np.abs(y).max(), err_msg=name)


WAYS = {
    "Laplace": (bl.Laplace(draws=20), FEW, 0.1),
    "MAP": (bl.MAP(), N, 0.01),
    "MAP, penalty of a sample": (bl.MAP(), FEW, 1.0),  # over 8 seeds of the sample: .01 to .6, in the mean .3
    "SVI": (bl.SVI(batch_size=128, epochs=400), FEW, 0.1),
}


@pytest.mark.parametrize("way", [x if x != "SVI" else pytest.param(x, marks=pytest.mark.slow) for x in WAYS])
def test_files_train_as_memory_does(way, tmp_path, stars, small, monkeypatch):  # noqa: F811
    """Up to what penalties and scales from a sample make of it: within the error of a prediction."""
    inference, sample, close = WAYS[way]
    monkeypatch.setattr(training, "SAMPLE", sample)
    source = write_parquet(table(), tmp_path / "in.parquet", group=90)
    ours = bl.fit(bl.Parallax(), source, inference, columns=NAMES, checkpoint=tmp_path / "run.npz")
    theirs = bl.fit(bl.Parallax(), stars, inference)
    assert ours.info["n_without_parallax"] == theirs.info["n_without_parallax"] > 5
    assert ours.info["n_star"] == theirs.info["n_star"] < N
    some = stars[:100].drop("parallax")
    (a, error), (b, _) = (x.predict(some, with_error=True) for x in (ours, theirs))
    assert np.sqrt(np.mean(((a - b) / error) ** 2)) < close
    again = bl.fit(bl.Parallax(), source, inference, columns=NAMES, checkpoint=tmp_path / "run.npz")
    np.testing.assert_array_equal(again.moments.coefficients, ours.moments.coefficients)


@pytest.mark.parametrize(
    "inference", [bl.Laplace(draws=20), pytest.param(bl.MAP(), marks=pytest.mark.slow)], ids=["Laplace", "MAP"]
)
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(inference, tmp_path, stars, small, monkeypatch):  # noqa: F811
    whole = bl.fit(bl.Parallax(), stars, inference, checkpoint=tmp_path / "whole.npz")
    for n in (2, 4):  # in the middle of a pass
        go_on = stop_after(monkeypatch, n, Sweeps)
        with pytest.raises(Stopped):
            bl.fit(bl.Parallax(), stars, inference, checkpoint=tmp_path / "run.npz", every=0)
        go_on()
    again = bl.fit(bl.Parallax(), stars, inference, checkpoint=tmp_path / "run.npz")
    for name, x in whole.moments._asdict().items():
        np.testing.assert_array_equal(getattr(again.moments, name), x, err_msg=name)
    with pytest.raises(bl.BadInput, match=r"wide was 10\.0, is 5\.0"):
        bl.fit(bl.Parallax(wide=5.0), stars, inference, checkpoint=tmp_path / "run.npz")


@pytest.mark.slow
def test_outliers_are_left_out(small):  # noqa: F811
    stars = in_memory(table(1, 0.03))
    rows = rows_of(bl.Parallax(outliers=True), stars)
    with jax.enable_x64(True):
        ours = by_sweeps(GaussianBySums(rows.model, rows.stars, 10, 0), rows, 200, False)
    theirs = bl.fit(bl.Parallax(outliers=True), stars)
    fraction = float(theirs.moments.outlier_fraction)
    np.testing.assert_allclose(ours.moments.outlier_fraction, fraction, atol=0.1 * fraction + 1e-3)
    np.testing.assert_allclose(ours.moments.scatter, theirs.moments.scatter, rtol=0.05)


@pytest.mark.parametrize("seed", [0, 2])
def test_passes_settle_where_the_scale_of_many_coefficients_is_learned(seed, small):  # noqa: F811
    """Few stars, most of them far, and a hundred pixels whose prior says much: no cycles, and the answer of memory."""
    rng, n, n_pixel = np.random.default_rng(seed), 400, 100
    z, modulus = rng.normal(size=(n, 3)), rng.uniform(8.5, 14, n)
    flux = np.exp(0.1 * np.tanh(z @ rng.normal(size=(3, n_pixel))) + 0.02 * rng.normal(size=(n, n_pixel)))
    magnitudes = (modulus + z[:, 0])[:, None] + 0.02 * rng.normal(size=(n, 3)) + 0.1 * z[:, 1:2] * [0, 1, 2]
    parallax = 10 ** (-(modulus - 10) / 5) + 0.03 * rng.normal(size=n)
    stars = bl.Stars(
        magnitudes=bl.Block(magnitudes, 0.02, names=("G", "K", "W"), unit="mag"), flux=bl.Block(flux, 0.02),
        parallax=bl.Block(parallax, 0.03, unit="mas"),
    )  # fmt: skip
    model = bl.Parallax().bind(stars)
    rows = RowsInMemory(model, stars)
    with jax.enable_x64(True):
        ours = by_sweeps(GaussianBySums(model, stars, 10, 0), rows, 60, False)
    theirs = bl.fit(bl.Parallax(), stars, bl.Laplace(draws=10), progress=False)
    assert ours.stats["converged"]
    np.testing.assert_allclose(ours.moments.scatter, theirs.moments.scatter, rtol=0.05)
    off = ours.moments.zero_point - theirs.moments.zero_point
    assert abs(off) < 0.2 * theirs.moments.zero_point_error
