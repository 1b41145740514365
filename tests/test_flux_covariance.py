"""Flux whose errors are correlated between pixels: dense Gaussian densities in float64, recovery, coverage, routes."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from astropy.table import Table
from conftest import ln_p
from scipy.linalg import block_diag
from scipy.stats import multivariate_normal, norm

import bayeslabels as bl
from bayeslabels.errors import BadInput, CannotDo
from bayeslabels.kinds.spectra.correlated import CorrelatedEM
from bayeslabels.kinds.spectra.em import settled
from bayeslabels.kinds.spectra.nuisances import shapes_of
from bayeslabels.kinds.spectra.quartic import prepare
from bayeslabels.numerics.correlated import CorrelatedSpectra, scatter_move, solve_coefficients, statistics_of, weights
from bayeslabels.numerics.linalg import outer_pairs

N_PIXEL, TRAIN, SCATTER, ERRORS = 20, 300, 0.005, np.array([60.0, 0.15])
JOINT = bl.Cannon(order=1, label_noise="joint")
EXACT = bl.Cannon(order=1, label_noise=False, coefficient_prior=bl.priors.Normal(1.0))


def make(n, seed=0, length=3.0):
    """Spectra linear in two labels, with noise that is correlated over 3 pixels and varies from star to star."""
    rng, lines = np.random.default_rng(seed), np.random.default_rng(7)
    u = rng.normal(size=(n, 2)) @ np.array([[1, 0.3], [0, 0.9]])
    labels = np.array([4800.0, 2.5]) + u * np.array([200.0, 0.5])
    smooth = [np.convolve(lines.normal(size=N_PIXEL + 8), np.ones(9) / 3, "valid") for _ in range(2)]
    theta = np.column_stack([np.ones(N_PIXEL), *(0.05 * x for x in smooth)])
    shape = np.exp(-np.abs(np.subtract.outer(np.arange(N_PIXEL), np.arange(N_PIXEL))) / length)
    size = 0.02 * np.exp(0.3 * rng.normal(size=n))
    flux = np.column_stack([np.ones(n), u]) @ theta.T + SCATTER * rng.normal(size=(n, N_PIXEL))
    flux += size[:, None] * (rng.normal(size=(n, N_PIXEL)) @ np.linalg.cholesky(shape).T)
    catalogue = labels + ERRORS * rng.normal(size=labels.shape)
    stars = bl.Stars(
        labels=bl.Block(catalogue, ERRORS, names=("TEFF", "LOGG"), unit=("K", "")),
        flux=bl.Block(flux, size[:, None, None] ** 2 * shape),
    )
    return stars, labels


def diagonal(stars):
    flux = stars["flux"]
    return stars.with_block(flux=bl.Block(flux.value, np.sqrt(np.diagonal(flux.error, axis1=1, axis2=2))))


def with_gaps(stars, seed=0):
    """A tenth of the values are missing, and some variances."""
    rng, flux = np.random.default_rng(seed), stars["flux"]
    value, error = flux.value.copy(), flux.error.copy()
    value[rng.random(value.shape) < 0.1] = np.nan
    error[0, 3, 3] = np.nan
    return stars.with_block(flux=bl.Block(value, error))


@pytest.fixture(scope="module")
def case():
    return make(2 * TRAIN)


@pytest.fixture(scope="module")
def stars(case):
    return case[0][:TRAIN]


@pytest.fixture(scope="module")
def test(case):
    return case[0][TRAIN:].drop("labels")


@pytest.fixture(scope="module")
def posterior(stars):
    return bl.fit(JOINT, stars)


class Dense:
    """Four pixels of seven stars, some missing, with all that a training takes of them, and NumPy's own densities."""

    def __init__(self):
        rng = np.random.default_rng(0)
        n, size, k = 7, 4, 3
        root = rng.normal(size=(n, size, size))
        observed = rng.random((n, size)) < 0.8
        observed[0], observed[1] = True, False
        value = np.where(observed, rng.normal(size=(n, size)), 0.0)
        self.spectra = CorrelatedSpectra(value, root @ root.swapaxes(1, 2) + np.eye(size), observed)
        self.scatter2, self.theta, self.phi = (
            np.array([4.0, 9.0, 6.0, 12.0]),
            rng.normal(size=(size, k)),
            rng.normal(size=(n, k)),
        )
        self.precision, self.mean = 2 * np.eye(k) + 0.3, np.array([0.05, 0.1, 0.15])
        self.use, self.size, self.k = np.ones(size, bool), size, k

    def noise(self, n, scatter2):
        at = self.spectra.observed[n]
        return (self.spectra.covariance[n] + np.diag(scatter2))[np.ix_(at, at)]

    def log_evidence(self, scatter2):
        """ln p(flux | phi, s), the coefficients of all pixels integrated out."""
        seen = self.spectra.observed
        design = np.concatenate([np.kron(np.eye(self.size), x[None])[at] for x, at in zip(self.phi, seen, strict=True)])
        covariance = block_diag(*[self.noise(n, scatter2) for n in range(len(seen))])
        spread = np.kron(np.eye(self.size), np.linalg.inv(self.precision))
        mean = design @ np.tile(self.mean, self.size)
        return multivariate_normal.logpdf(self.spectra.value[seen], mean, covariance + design @ spread @ design.T)

    def solved(self, scatter2):
        w = weights(self.spectra, scatter2, self.use).w
        prior = self.precision, self.mean, np.ones(self.theta.shape)
        return w, solve_coefficients(self.spectra, w, self.phi, outer_pairs(self.phi), *prior)


def test_compressed_spectra_have_the_dense_density():
    dense = Dense()
    found = statistics_of(dense.spectra, weights(dense.spectra, dense.scatter2, dense.use), dense.theta)
    expected = []
    for n, at in enumerate(dense.spectra.observed):
        mean, noise = dense.theta[at] @ dense.phi[n], dense.noise(n, dense.scatter2)
        expected.append(multivariate_normal.logpdf(dense.spectra.value[n, at], mean, noise) if at.any() else 0.0)
    np.testing.assert_allclose(found.log_likelihood(dense.phi), expected, atol=1e-12)
    assert found.n_pixel.tolist() == dense.spectra.observed.sum(1).tolist()


def test_evidence_and_its_slope_are_the_dense_ones():
    dense = Dense()
    w, found = dense.solved(dense.scatter2)
    own = 0.5 * dense.size * (np.linalg.slogdet(dense.precision)[1] - dense.mean @ dense.precision @ dense.mean)
    constant = statistics_of(dense.spectra, weights(dense.spectra, dense.scatter2, dense.use), 0 * dense.theta).constant
    assert found.evidence + own - constant.sum() == pytest.approx(dense.log_evidence(dense.scatter2), abs=1e-10)
    up, down = (np.exp(sign * 1e-5 * np.eye(dense.size)) * dense.scatter2 for sign in (1, -1))
    slope = [(dense.log_evidence(a) - dense.log_evidence(b)) / 2e-5 for a, b in zip(up, down, strict=True)]
    second = outer_pairs(dense.phi)
    move, told = scatter_move(dense.spectra, w, dense.scatter2, dense.phi, second, found.mean, found.covariance, 1e9)
    fisher = 0.5 * dense.scatter2[:, None] * (w**2).sum(0) * dense.scatter2
    assert (np.abs(move) < 2).all()
    np.testing.assert_allclose(-(fisher @ move), slope, rtol=1e-5)
    np.testing.assert_allclose(-told[:, 0] * dense.scatter2, slope, rtol=1e-5)


def test_program_has_the_dense_density(stars):
    model, some = EXACT.bind(stars), with_gaps(stars[:5])
    sites = {"coefficients": np.random.default_rng(0).normal(size=(N_PIXEL, 3)), "scatter": np.full(N_PIXEL, 0.01)}
    with jax.enable_x64(True):
        ours, plain = (ln_p(model, x, sites) for x in (some, diagonal(some)))
    phi, flux = model.features(model.catalogue(some).value), some["flux"]
    expected = 0.0
    for n, at in enumerate(flux.observed):
        noise = (flux.error[n] + 1e-4 * np.eye(N_PIXEL))[np.ix_(at, at)]
        mean, value = sites["coefficients"][at] @ phi[n], flux.value[n, at]
        expected += multivariate_normal.logpdf(value, mean, noise)
        expected -= norm.logpdf(value, mean, np.sqrt(np.diag(noise))).sum()
        expected -= 0.5 * np.log(2 * np.pi) * (~at).sum()  # a constant for each that is missing
    assert ours - plain == pytest.approx(expected, rel=1e-9)


def test_training_ends_at_the_mode_of_the_evidence(stars):
    """Exact labels: coefficients as generalised least squares has them, scatter where its evidence is flat."""
    model = EXACT.replace(coefficient_prior=bl.priors.Learned()).bind(stars)
    with jax.enable_x64(True):
        em = settled(model, with_gaps(stars[:150]), 300, 1e-6)
    assert isinstance(em, CorrelatedEM)
    phi, second = em.features(em.u), outer_pairs(em.features(em.u))
    em.solve(phi, second)
    move, _ = scatter_move(em.spectra, em.weighing.w, em.scatter2, phi, second, em.theta, em.joint, em.scatter_scale)
    assert np.abs(move * em.scatter2 / (em.scatter2 + 4e-4)).max() < 1e-3


def test_diagonal_covariances_train_as_errors_do(stars, test):
    """The same labels and errors, of two routes that share little."""
    plain = diagonal(stars)
    sd = plain["flux"].error
    same = stars.with_block(flux=bl.Block(stars["flux"].value, sd[:, :, None] ** 2 * np.eye(N_PIXEL)))
    one, other = (bl.fit(JOINT, x, bl.MAP(tolerance=1e-3)) for x in (plain, same))
    np.testing.assert_allclose(one.moments.coefficients, other.moments.coefficients, atol=2e-4)
    np.testing.assert_allclose(one.moments.scatter, other.moments.scatter, atol=3e-4)
    a, b = bl.infer(one, diagonal(test), bl.MAP()), bl.infer(other, diagonal(test), bl.MAP())
    assert np.abs((a.mean - b.mean) / a.error).max() < 0.05
    np.testing.assert_allclose(a.error, b.error, rtol=0.01)


@pytest.mark.parametrize("model", [JOINT, bl.Lux(2)], ids=["Cannon", "Lux"])
def test_errors_hold(model, case, stars, test, posterior):
    """Of 300 new stars the sd of z is 1; the diagonals alone give 1.8 to 2.1 for the Cannon."""
    trained = posterior if model is JOINT else bl.fit(model, stars)
    assert trained.info["converged"]
    result = bl.infer(trained, test)
    z = (result.mean - case[1][TRAIN:]) / result.error
    assert (np.abs(z.std(0) - 1.0) < 0.15).all()  # sampling: 0.04; the label system and the scatter: as much again
    assert np.nanmedian(trained.moments.scatter) == pytest.approx(SCATTER, rel=0.3)
    assert (result.flags == 0).mean() > 0.95
    if model is JOINT:
        before = bl.infer(bl.fit(model, diagonal(stars)), diagonal(test))
        assert ((before.mean - case[1][TRAIN:]) / before.error).std(0).min() > 1.4


def test_missing_pixels_drop_out(posterior, test):
    """Their rows and columns say nothing, whatever they hold; stars with few of them know less."""
    gaps = with_gaps(test[:40])
    value, error = gaps["flux"].value.copy(), gaps["flux"].error.copy()
    for n, at in enumerate(~gaps["flux"].observed):
        error[n, at], error[n, :, at] = 0.0, 0.0
        error[n, at, at] = np.nan
    same = gaps.with_block(flux=bl.Block(value, error))
    a, b, whole = (bl.infer(posterior, x, bl.MAP()) for x in (gaps, same, test[:40]))
    np.testing.assert_array_equal(a.mean, b.mean)
    assert (a.error.mean(0) > whole.error.mean(0)).all()
    assert (a.stars["n_pixel"].values == gaps["flux"].observed.sum(1)).all()


def test_nuisances_are_integrated_out(posterior, test):
    """v of a continuum: C + T T', of which the mean and covariance of v follow."""
    model, moments = posterior.model.replace(nuisances=(bl.nuisances.Continuum(0.02, 1),)), posterior.moments
    with jax.enable_x64(True):
        own = prepare(model, moments, test[:6], 0).own
        phi = model.features(prepare(model, moments, test[:6], 0).modes.location[0])
    shapes = shapes_of(model.nuisances, model.require_frame(), moments.coefficients)
    extra = moments.scatter**2 + np.einsum("nj,ljk,nk->nl", phi, moments.coefficient_covariance, phi)
    for n in range(6):
        templates = np.einsum("k,qlk->ql", phi[n], shapes)
        noise = test["flux"].error[n] + np.diag(extra[n])
        w = np.linalg.inv(noise + templates.T @ templates)
        theta = moments.coefficients
        gram = theta.T @ w @ theta
        np.testing.assert_allclose(own.statistics.gram[n], gram, atol=1e-3 * gram.max())
        bare = np.linalg.inv(noise)
        np.testing.assert_allclose(own.nuisances.gram[n], templates @ bare @ templates.T, rtol=2e-3, atol=2e-3)


def test_files_and_catalogues_take_matrices(posterior, test, tmp_path):
    flux = test["flux"]
    few = Table({"flux": flux.value[:30], "flux_error": flux.error[:30]})
    few.write(tmp_path / "in.fits")
    bl.infer_catalog(bl.load(posterior.save(tmp_path / "model.nc")), tmp_path / "in.fits", tmp_path / "out.fits")
    ours, theirs = Table.read(tmp_path / "out.fits"), bl.infer(posterior, test[:30]).table()
    np.testing.assert_allclose(ours["TEFF"], theirs["TEFF"].value, rtol=1e-6)
    np.testing.assert_allclose(ours["TEFF_error"], theirs["TEFF_error"].value, rtol=1e-3)


def test_other_inferences_of_the_test_step(posterior, test):
    exact, sampled = (bl.infer(posterior, test[:20], x) for x in (bl.Laplace(), bl.Importance()))
    np.testing.assert_allclose(sampled.error, exact.error, rtol=0.15)  # linear: the posterior is Gaussian


def test_what_is_refused(stars):
    for inference in (bl.Gibbs(draws=2, warmup=2), bl.SVI(epochs=1)):
        with pytest.raises(CannotDo, match=r"MAP\(\).*NUTS\(\).*np\.diagonal"):
            bl.fit(JOINT, stars, inference)
    with pytest.raises(CannotDo, match="flux_error_factor=None"):
        bl.fit(JOINT.replace(flux_error_factor="star"), stars)
    with pytest.raises(CannotDo, match=r"priors\.Learned"):
        bl.fit(EXACT.replace(coefficient_prior=bl.priors.Laplace(0.1)), stars)
    error = stars["flux"].error.copy()
    error[4, 0, 1] = error[4, 1, 0] = 1.5 * np.sqrt(error[4, 0, 0] * error[4, 1, 1])
    with pytest.raises(BadInput, match="not positive definite"):
        bl.Block(stars["flux"].value, error)
