from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import bayeslabels as bl
from bayeslabels import Block, CannotDo, Cannon, Gibbs, Stars, priors
from bayeslabels.inference import gibbs
from bayeslabels.inference.map import MAP
from bayeslabels.numerics.features import Monomials
from bayeslabels.numerics.linalg import in_float64

NAMES = ("TEFF", "LOGG")


def simulate(n=40, n_pixel=8, seed=0, order=1, missing=0.0, missing_labels=0.0, covariance=False):
    rng = np.random.default_rng(seed)
    exponents = np.array(Monomials.up_to(order, 2).exponents)
    u = rng.standard_normal((n, 2)) @ np.array([[1, 0.4], [0, 0.8]])
    phi = (u[:, None] ** exponents).prod(-1)
    theta = rng.standard_normal((n_pixel, len(exponents))) * 0.1 ** np.minimum(exponents.sum(1), 2) + (
        exponents.sum(1) == 0
    )
    error = rng.uniform(0.01, 0.03, (n, n_pixel))
    flux = phi @ theta.T + np.hypot(error, 0.01) * rng.standard_normal(error.shape)
    flux[rng.random(flux.shape) < missing] = np.nan
    scale = np.array([400.0, 0.7])
    sigma = np.array([[0.04, 0.015], [0.015, 0.03]]) if covariance else np.diag([0.04, 0.03])
    labels = u + rng.standard_normal((n, 2)) @ np.linalg.cholesky(sigma).T
    labels[rng.random(labels.shape) < missing_labels] = np.nan
    spread = np.broadcast_to(sigma * scale[:, None] * scale, (n, 2, 2))
    label_error = spread.copy() if covariance else np.sqrt(np.einsum("nmm->nm", spread))
    block = Block(np.array([5000.0, 3.0]) + scale * labels, label_error, names=NAMES)
    return Stars(labels=block, flux=Block(flux, error))


SHORT = Gibbs(chains=2, draws=25, warmup=20)


@in_float64
def train(model, stars, inference=SHORT, seed=0):
    return inference.fit(model.bind(stars), stars, seed, False)


# ---- every sweep leaves the posterior invariant ----


@functools.partial(jax.jit, static_argnums=(0, 1))
def _prior_after_sweeps(plan, n_sweep, data, keys):
    """Draw parameters from the prior and data given them, sweep, and return the parameters: again draws of the prior."""
    k, m, n = plan.features.size, data.labels.shape[1], data.labels.shape[0]
    n_block, _, width = data.value.shape

    def one(key):
        keys = jax.random.split(key, 12)
        sigma, mean = jnp.eye(k), jnp.zeros(k)
        if plan.prior == "learned":
            sigma = gibbs._inverse_wishart(keys[0], plan.freedom, data.matrix)
            mean = plan.width_mean * jax.random.normal(keys[1], (k,))
            theta = mean + jax.random.normal(keys[2], (n_block, width, k)) @ jnp.linalg.cholesky(sigma).T
        else:
            theta = jax.random.normal(keys[2], (n_block, width, k)) / jnp.sqrt(jnp.diagonal(data.precision))
        s = plan.width_scatter * jnp.abs(jax.random.normal(keys[3], (n_block, width)))
        population = gibbs._inverse_wishart(keys[4], m + 2, jnp.eye(m))
        mu = 10 * jax.random.normal(keys[5], (m,))
        u = mu + jax.random.normal(keys[6], (n, m)) @ jnp.linalg.cholesky(population).T
        tau = jnp.abs(jax.random.normal(keys[7], (m,)))
        noise = data.label_covariance + jnp.eye(m) * tau**2
        z = jax.random.normal(keys[8], (n, m))
        labels = jnp.where(data.observed, u + jnp.einsum("nij,nj->ni", jnp.linalg.cholesky(noise), z), 0.0)
        flux = jnp.einsum("nk,jbk->jnb", plan.features(u), theta * data.allowed)
        known = data.variance < 1e100
        sd = jnp.where(known, jnp.sqrt(data.variance + s[:, None] ** 2), 0.0)
        value = jnp.where(known, flux + sd * jax.random.normal(keys[9], flux.shape), 0.0)
        state = gibbs.State(
            theta, s, mean, sigma, u, tau, mu, population, jnp.log(0.5 * jnp.ones(m)), jnp.log(0.7 * jnp.ones(m))
        )
        mine = data._replace(value=value, labels=labels)
        # proposals may depend on the data, not on the state
        mine = mine._replace(guess_u=labels)

        def step(state, key):
            state, rates = gibbs.sweep(plan, mine, state, key, 0.0)
            return state, rates

        return jax.lax.scan(step, state, jax.random.split(keys[10], n_sweep))

    return jax.lax.map(one, keys, batch_size=256)


@pytest.mark.parametrize("prior", [priors.Learned(), priors.Normal(0.5)])
@pytest.mark.parametrize("seed", [0])
@in_float64
def test_sweeps_started_from_the_prior_stay_in_the_prior(prior, seed):
    stars = simulate(n=6, n_pixel=5, missing=0.2, missing_labels=0.2, covariance=True, seed=3)
    stars = stars.with_block(flux=Block(np.where(np.arange(5) == 2, np.nan, stars.flux.value), stars.flux.error))
    flux = stars.flux.value.copy()
    flux[:4, 2] = 1.0
    stars = stars.with_block(flux=Block(flux, stars.flux.error))
    model = Cannon(order=1, label_noise="joint", coefficient_prior=prior).bind(stars)
    start = MAP(max_iterations=1).fit(model, stars, 0, False)
    plan, data, _ = gibbs._prepare(model, stars, start, 1, 0)
    assert plan.affine
    data = data._replace(step=jnp.broadcast_to(jnp.diag(jnp.array([0.5, 0.2, 0.2])), (2, 3, 3)))
    data = data._replace(guess2=jnp.full_like(data.guess2, plan.width_scatter**2))
    n = 4096
    state, rates = _prior_after_sweeps(plan, 6, data, jax.random.split(jax.random.key(seed), n))
    assert 0.1 < float(np.mean(rates["affine"])) < 0.95
    tests = {
        "s": (state.s[:, 0], stats.halfnorm(scale=plan.width_scatter).cdf),
        "tau": (state.tau, stats.halfnorm().cdf),
        "mu": (state.mu, stats.norm(scale=10).cdf),
        # 1 / Lambda_mm ~ Gamma((nu - M + 1) / 2, rate 1 / 2)
        "population": (jnp.diagonal(state.population, axis1=1, axis2=2), stats.invgamma(1.5, scale=0.5).cdf),
    }
    if plan.prior == "learned":
        tests["m"] = (state.m, stats.norm(scale=plan.width_mean).cdf)
        scale = 0.5 * float(data.matrix[0, 0])
        tests["sigma"] = (jnp.diagonal(state.sigma, axis1=1, axis2=2), stats.invgamma(1.5, scale=scale).cdf)
    else:
        sd = 1 / np.sqrt(np.diagonal(data.precision))
        tests["theta"] = (state.theta[:, 0] / sd, stats.norm().cdf)
    used = np.asarray(data.trained)[0]
    for name, (x, cdf) in tests.items():
        x = np.asarray(x).reshape(n, -1)
        if name in ("s",):
            x = x[:, used]
        p = np.array([stats.kstest(column, cdf).pvalue for column in x.T])
        assert p.min() * len(p) > 1e-3, (name, p)
