"""Photometry with a second dust vector: its integrals against dense grids, and what it learns of simulated stars."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from scipy.special import logsumexp
from scipy.stats import binom, multivariate_normal, norm

import bayeslabels as bl
from bayeslabels.core import priors
from bayeslabels.core.reddening_priors import Falling
from bayeslabels.errors import BadInput
from bayeslabels.numerics import dusty
from bayeslabels.numerics.two_vectors import log_marginal_of_both, of_shape, second_vector
from bayeslabels.numerics.whitening import noise_of
from bayeslabels.simulate import simulate_photometry

VECTOR = np.array([2.6, 3.4, 1.9, 0.8, 0.3])
SECOND = np.array([0.05, 0.35, -0.15, -0.2, -0.1])


def star(seed, e, parallax=True, reddening=True, missing=()):
    rng = np.random.default_rng(seed)
    factors = 0.2 * rng.normal(size=(3, 5))
    variance = rng.uniform(0.02, 0.04, 5) ** 2
    seen = np.ones(5)
    seen[list(missing)] = 0.0
    mu, x = 9.0 + rng.normal(), rng.normal()
    noise = factors.T @ rng.normal(size=3) + np.sqrt(variance) * rng.normal(size=5)
    residual = np.where(seen > 0, mu + e * (VECTOR + x * SECOND) + noise, 0.0)
    w, sigma = 10 ** (0.2 * (10 - mu)), 0.1
    of_e = 0.02 + 0.1 * e
    others = dusty.Others(
        *(np.asarray(a) for a in (w + sigma * rng.normal() if parallax else 0.0, 1 / sigma if parallax else 0.0,
          e + of_e * rng.normal() if reddening else 0.0, 1 / of_e if reddening else 0.0)),
        priors.NormalModulus(), Falling(np.asarray(6.0)),
    )  # fmt: skip
    return mu, residual, factors, variance, seen, others


CASES = [(0.05, {}), (0.4, {}), (0.4, {"reddening": False}), (1.2, {}), (1.2, {"reddening": False, "parallax": False}),
         (0.6, {"missing": (0, 3)})]  # fmt: skip


@pytest.mark.parametrize(("e", "given"), CASES)
def test_the_integral_over_the_shape_of_the_extinction_curve(e, given):
    prior = priors.NormalModulus()

    def columns_of(residual, vector, second, factors, variance, seen, e_0):
        noise = noise_of(variance, 0.0 * seen, seen)
        mu_0 = dusty.centre_of(residual - e_0 * vector, noise)
        columns = jnp.stack([jnp.ones(5), vector, residual - mu_0 - e_0 * vector, second])
        return columns, factors, noise, mu_0, jnp.asarray(e_0)

    @jax.jit
    def integral(others, *args):
        return log_marginal_of_both(*dusty.quadratic_and_rest(*columns_of(*args)), 0.0, others)

    along = jax.jit(lambda x, *args: of_shape(*columns_of(*args), x))
    for seed in (0, 1):
        true, residual, factors, variance, seen, others = star(seed, e, **given)
        with jax.enable_x64(True):
            args = [jnp.asarray(a) for a in (residual, VECTOR, SECOND, factors, variance, seen, 0.3)]
            ours = float(integral(jax.tree.map(jnp.asarray, others), *args))
            known = along(jnp.linspace(-5.0, 5.0, 401), *args)
        # the same by dense matrices: E on a grid of x, mu and E
        x, mu = np.linspace(-5, 5, 81), true + np.linspace(-2, 2, 240)
        grid_e = np.linspace(0.0, 2.5, 301)[1:] - 0.5 * 2.5 / 300
        at = seen > 0
        inverse = np.linalg.inv((np.diag(variance) + factors.T @ factors)[np.ix_(at, at)])
        norm_log = 0.5 * np.linalg.slogdet(inverse / (2 * np.pi))[1]
        of_mu = np.asarray(prior.log_density(jnp.asarray(mu)))
        if others.parallax_weight > 0:
            of_mu = of_mu + norm(10 ** (0.2 * (10 - mu)), 1 / others.parallax_weight).logpdf(others.parallax)
        of_e = np.log(6.0) - 6.0 * grid_e
        if others.reddening_weight > 0:
            of_e = of_e + norm(grid_e, 1 / others.reddening_weight).logpdf(others.reddening)
        total = []
        one = np.ones(at.sum())
        for value in x:
            off = residual[at] - grid_e[:, None] * (VECTOR + value * SECOND)[at]
            a, b = one @ inverse @ one, off @ inverse @ one
            c = ((off @ inverse) * off).sum(1)
            p = -0.5 * (a * mu**2 - 2 * b[:, None] * mu + c[:, None]) + norm_log + of_mu + of_e[:, None]
            total.append(logsumexp(p) + norm.logpdf(value))
        brute = logsumexp(total) + np.log((x[1] - x[0]) * (mu[1] - mu[0]) * (grid_e[1] - grid_e[0]))
        np.testing.assert_allclose(ours, brute, atol=0.02)
        dense = multivariate_normal(np.zeros(at.sum()), np.linalg.inv(inverse))
        y, m = 0.7, 9.4
        q = jax.tree.map(lambda a: np.broadcast_to(np.asarray(a), 401)[300], known)
        a, b = m - q.mu_0, y - q.e_0
        value = q.log_norm + q.b_mu * a + q.b_e * b - 0.5 * (q.a_mu * a**2 + 2 * q.a_both * a * b + q.a_e * b**2)
        np.testing.assert_allclose(value, dense.logpdf((residual - m - y * (VECTOR + 2.5 * SECOND))[at]), rtol=1e-8)


BANDS = ("G", "BP", "RP", "J", "Ks")
MODEL = bl.Photometry(
    function="polynomial", order=2, members=2, components=2, dust_vectors=2,
    distance_prior=priors.ExponentialDisk(0.6), reddening_prior=priors.Exponential(0.4),
)  # fmt: skip


def dusty_survey(n, seed):
    """Stars behind much dust, whose extinction curves differ; and the truth, with x."""
    stars, truth = simulate_photometry(n, BANDS, seed=seed, length=0.6, missing=0.02)
    rng = np.random.default_rng(seed)
    vector = np.median(truth.reddening_vector, 0)
    second = SECOND - vector * (SECOND @ vector) / (vector @ vector)
    e, x = rng.exponential(0.4, n), rng.standard_normal(n)
    m = stars.magnitudes.value + (e - truth.reddening)[:, None] * truth.reddening_vector + (e * x)[:, None] * second
    error = 0.02 + 0.1 * e
    magnitudes = bl.Block(m, stars.magnitudes.error, names=BANDS, unit="mag")
    reddening = bl.Block(e + error * rng.standard_normal(n), error, unit="mag")
    return stars.with_block(magnitudes=magnitudes, reddening=reddening), truth, e, x


@pytest.fixture(scope="module")
def survey():
    return dusty_survey(1100, 3)


@pytest.fixture(scope="module")
def posterior(survey):
    return bl.fit(MODEL, survey[0][:900], bl.MAP(max_iterations=60), seed=0)


@pytest.fixture(scope="module")
def told(survey, posterior):
    new = survey[0][900:].drop("labels", "reddening")
    return bl.infer(posterior, new, bl.Importance(draws=400, rescue=False), seed=0)


@pytest.mark.slow
def test_recovers_the_second_vector(survey, posterior):
    vector = np.median(survey[1].reddening_vector, 0)
    true = SECOND - vector * (SECOND @ vector) / (vector @ vector)
    table = posterior.summary()
    ours = np.asarray(table["second_vector"]) * np.sign(np.asarray(table["second_vector"]) @ true)
    np.testing.assert_allclose(ours, true, atol=0.05)


@pytest.mark.slow
def test_posteriors_hold_the_truth_of_dust_that_differs(survey, posterior, told):
    _, truth, e, x = survey
    names = told.frame.names
    assert names[-1] == "reddening_variation"
    sign = np.sign(posterior.moments.reddening_second.mean(0) @ SECOND)
    true = np.column_stack([truth.labels, e, 10 + 5 * np.log10(truth.distance)])[900:]
    z = (true - told.mean[:, :5]) / told.error[:, :5]
    np.testing.assert_allclose(z.std(0), 1.0, atol=0.25)
    assert np.abs(z.mean(0)).max() < 0.3
    low, high = (told.stars[name].values[:, :5] for name in ("p16", "p84"))
    inside = ((true > low) & (true < high)).sum(0)
    band = binom.interval(0.999, len(true), 0.6827)
    assert (inside > band[0] - 6).all()
    assert (inside < band[1] + 6).all()
    off = (sign * x[900:] - told.mean[:, -1]) / told.error[:, -1]
    # R is uncertain along R_2 by a part that all stars share: it moves the zero of x
    shift = sign * x[900:] - told.mean[:, -1]
    assert abs(np.mean(shift[e[900:] > 0.3])) < 0.4
    assert abs(off[e[900:] < 0.5].std() - 1) < 0.2
    much = e[900:] > 0.8
    assert np.corrcoef(sign * x[900:][much], told.mean[much, -1])[0, 1] > 0.6
    # where there is no dust nothing is learned of it
    assert np.median(told.error[e[900:] < 0.02, -1]) > 0.9


@pytest.mark.slow
def test_save_and_load(tmp_path, survey, posterior):
    again = bl.load(posterior.save(tmp_path / "two.nc"))
    assert again.model == posterior.model
    np.testing.assert_array_equal(again.moments.reddening_second, posterior.moments.reddening_second)
    magnitudes, error = again.predict(survey[0][:5], "magnitudes", with_error=True)
    assert np.isfinite(magnitudes).all()
    assert (error > 0).all()


@pytest.mark.parametrize("wrong", [0, 3, "two"])
def test_other_numbers_of_vectors_are_refused(wrong):
    with pytest.raises(BadInput, match="dust_vectors"):
        bl.Photometry(dust_vectors=wrong)


@pytest.mark.slow
def test_the_program_simulates_both_vectors(survey, posterior):
    """Magnitudes of the program with one reddening and two shapes differ by E R_2."""
    model, stars = posterior.model, survey[0][:4].drop("magnitudes")
    values = model.start(None, 0)
    fixed = {"true_reddening": jnp.full(4, 0.5), "luminosity": jnp.zeros(4), "u": jnp.zeros((4, 3)),
             "distance_modulus": jnp.full(4, 9.0)}  # fmt: skip

    @jax.jit
    def magnitudes(x):
        values_of = {**values, **fixed, "reddening_variation": jnp.full(4, x)}
        with handlers.seed(rng_seed=0), handlers.condition(data=values_of):
            trace = handlers.trace(model).get_trace(stars)
        return trace["magnitudes"]["fn"].mean_

    second = np.asarray(second_vector(values["reddening_second"], values["reddening_log"]))
    np.testing.assert_allclose(magnitudes(2.0) - magnitudes(0.0), np.tile(second, (4, 1)), atol=1e-5)
    np.testing.assert_allclose(second @ np.exp(values["reddening_log"]), 0.0, atol=1e-6)
