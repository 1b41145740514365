from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from conftest import N_PIXEL
from scipy import stats

import bayeslabels as bl
from bayeslabels import Block, Cannon, Gibbs, Stars
from bayeslabels.core import priors
from bayeslabels.errors import CannotDo
from bayeslabels.inference.map import MAP
from bayeslabels.kinds.spectra import gibbs
from bayeslabels.kinds.spectra import sweep as sweeps
from bayeslabels.kinds.spectra.em import by_em
from bayeslabels.numerics import variates
from bayeslabels.numerics.features import Monomials
from bayeslabels.numerics.linalg import in_float64

NAMES = ("TEFF", "LOGG")
RIDGE = Cannon(order=1, label_noise="joint", coefficient_prior=priors.Normal())
"""Of as many stars and pixels as those of other tests: its sweep is compiled once for all."""


def simulate(n=40, n_pixel=N_PIXEL, seed=0, order=1, missing=0.0, missing_labels=0.0, covariance=False):
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
    return gibbs.by_gibbs(model.bind(stars), stars, inference, seed, False)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _prior_after_moves(plan, move, n_move, data, keys):
    """Parameters from the prior, data given them, moves: the parameters are again draws from the prior."""
    k, m, n = plan.features.size, data.labels.shape[1], data.labels.shape[0]
    n_block, _, width = data.value.shape

    def one(key):
        keys = jax.random.split(key, 11)
        sigma, mean = jnp.eye(k), jnp.zeros(k)
        if plan.prior == "learned":
            sigma = variates.inverse_wishart(keys[0], plan.freedom, data.matrix)
            mean = data.width_mean * jax.random.normal(keys[1], (k,))
            theta = mean + jax.random.normal(keys[2], (n_block, width, k)) @ jnp.linalg.cholesky(sigma).T
        else:
            theta = jax.random.normal(keys[2], (n_block, width, k)) / jnp.sqrt(jnp.diagonal(data.precision))
        s = data.width_scatter * jnp.abs(jax.random.normal(keys[3], (n_block, width)))
        population = variates.inverse_wishart(keys[4], m + 2, jnp.eye(m))
        mu = 10 * jax.random.normal(keys[5], (m,))
        u = mu + jax.random.normal(keys[6], (n, m)) @ jnp.linalg.cholesky(population).T
        tau = data.width_tau * jnp.abs(jax.random.normal(keys[7], (m,)))
        noise = data.label_covariance + jnp.eye(m) * tau**2
        z = jax.random.normal(keys[8], (n, m))
        labels = jnp.where(data.observed, u + jnp.einsum("nij,nj->ni", jnp.linalg.cholesky(noise), z), 0.0)
        flux = jnp.einsum("nk,jbk->jnb", plan.features(u), theta * data.allowed)
        known = data.variance < 1e100
        sd = jnp.where(known, jnp.sqrt(data.variance + s[:, None] ** 2), 0.0)
        value = jnp.where(known, flux + sd * jax.random.normal(keys[9], flux.shape), 0.0)
        widths = jnp.log(jnp.array([[0.5] * m, [1.0] * m]))
        state = sweeps.State(theta, s, mean, sigma, u, jnp.zeros((m, theta.shape[-1])), tau, mu, population, *widths)
        # proposals may depend on the data, not on the state
        design = jnp.concatenate([jnp.ones((n, 1)), labels], 1)
        weight = data.observed / (jnp.diagonal(data.label_covariance, axis1=1, axis2=2) + 1)
        step = jnp.linalg.cholesky(jnp.linalg.inv(jnp.einsum("ni,nm,nj->mij", design, weight, design) + jnp.eye(m + 1)))
        mine = data._replace(value=value, labels=labels, guess_u=labels, step=step)
        return jax.lax.scan(lambda x, key: move(plan, mine, x, key, 0.0), state, jax.random.split(keys[10], n_move))

    return jax.lax.map(one, keys, batch_size=256)


def assert_prior(prior, move, n_move, n):
    stars = simulate(n=6, n_pixel=5, missing=0.2, missing_labels=0.2, covariance=True, seed=3)
    flux = stars.flux.value.copy()
    flux[:4, 2] = 1.0
    stars = stars.with_block(flux=Block(flux, stars.flux.error))
    known = priors.HalfNormal(0.5)
    model = Cannon(order=1, label_noise="joint", coefficient_prior=prior, label_scatter_distribution=known).bind(stars)
    start = by_em(model, stars, MAP(max_iterations=1), 0, False)
    plan, data, _ = gibbs._prepare(model, stars, start, 1, 0)
    assert plan.affine
    data = data._replace(guess2=jnp.full_like(data.guess2, data.width_scatter**2))
    state, told = _prior_after_moves(plan, move, n_move, data, jax.random.split(jax.random.key(0), n))
    used = np.asarray(data.trained)[0]
    tests = {
        "s": (state.s[:, 0, used], stats.halfnorm(scale=float(data.width_scatter)).cdf),
        "tau": (state.tau, stats.halfnorm(scale=0.5).cdf),
        "mu": (state.mu, stats.norm(scale=10).cdf),
        # 1 / Lambda_mm ~ Gamma((nu - M + 1) / 2, rate 1 / 2)
        "population": (jnp.diagonal(state.population, axis1=1, axis2=2), stats.invgamma(1.5, scale=0.5).cdf),
    }
    if plan.prior == "learned":
        tests["m"] = (state.m, stats.norm(scale=float(data.width_mean)).cdf)
        scale = 0.5 * float(data.matrix[0, 0])
        tests["sigma"] = (jnp.diagonal(state.sigma, axis1=1, axis2=2), stats.invgamma(1.5, scale=scale).cdf)
    else:
        sd = 1 / np.sqrt(np.diagonal(data.precision))
        tests["theta"] = ((state.theta[:, 0] / sd)[:, used].reshape(n, -1), stats.norm().cdf)
    for name, (x, cdf) in tests.items():
        p = np.array([stats.kstest(column, cdf).pvalue for column in np.asarray(x).reshape(n, -1).T])
        assert p.min() * len(p) > 1e-3, (name, p)
    return told


@pytest.mark.slow
@pytest.mark.parametrize("prior", [priors.Learned(), priors.Normal(0.5)])
@in_float64
def test_sweeps_started_from_the_prior_stay_in_the_prior(prior):
    assert_prior(prior, sweeps.sweep, 6, 4096)


@in_float64
def test_label_scatter_started_from_the_prior_stays_in_the_prior():
    told = assert_prior(priors.Normal(0.5), sweeps._label_scatter, 20, 2048)
    assert float(told.mean()) > 0.1


@pytest.mark.long
@pytest.mark.parametrize("prior", [priors.Learned(), priors.Normal(0.5)])
@in_float64
def test_affine_moves_started_from_the_prior_stay_in_the_prior(prior):
    told = assert_prior(prior, sweeps._affine, 20, 2048)
    assert min(float(told[kind].mean()) for kind in ("affine", "leap")) > 0.02


@in_float64
def sites_of(model, stars):
    """Names and shapes of the latent and deterministic sites of the program."""
    model = model.bind(stars)

    def sites():
        seeded = numpyro.handlers.substitute(numpyro.handlers.seed(model, 0), substitute_fn=_any_value)
        return {
            name: site["value"]
            for name, site in numpyro.handlers.trace(seeded).get_trace(stars).items()
            if site["type"] == "deterministic" or (site["type"] == "sample" and not site["is_observed"])
        }

    return {name: x.shape for name, x in jax.eval_shape(sites).items()}


def _any_value(site):
    if site["type"] == "sample" and isinstance(site["fn"], numpyro.distributions.ImproperUniform):
        return jnp.zeros(site["fn"].event_shape)
    return None


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"label_noise": "joint"}, marks=pytest.mark.slow),
        {"label_noise": "joint", "coefficient_prior": priors.Normal(), "population": "flat"},
        pytest.param(
            {"label_noise": "joint", "scatter": 0.01, "terms": [{}, {"TEFF": 1}, {"LOGG": 2}]}, marks=pytest.mark.slow
        ),
        {"label_noise": "cut", "coefficient_prior": priors.Learned()},
        {"label_noise": False},
    ],
    ids=["joint", "ridge", "terms", "cut", "classic"],
)
def test_draws_are_the_sites_of_the_program(settings):
    stars, model = simulate(), Cannon(order=1, **settings)
    trained = train(model, stars)
    expected = sites_of(model, stars)
    if not model.integrates_labels:
        del expected["true_labels"]
    assert {name: x.shape for name, x in trained.draws.items()} == {
        name: (2, 25, *shape) for name, shape in expected.items()
    }
    assert all(np.isfinite(x).all() for x in trained.draws.values())
    assert trained.stats["n_star"] == 40
    assert trained.stats["n_pixel_trained"] == N_PIXEL


def test_labels_taken_as_they_are_have_a_curve_beside_the_draws():
    stars = simulate()
    posterior = bl.fit(Cannon(order=1, label_noise="cut"), stars, SHORT, progress=False)
    draws = posterior.data["posterior"].to_dataset()
    assert draws["label_curve"].shape[:2] == draws["coefficients"].shape[:2] == (2, 25)
    result = bl.infer(posterior, stars.drop("labels"), bl.MAP())
    assert np.isfinite(result.mean).all()


def test_same_seed_same_draws_other_seed_others():
    stars = simulate()
    a, b, c = (train(RIDGE, stars, seed=seed).draws for seed in (1, 1, 2))
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
        assert not np.array_equal(a[name], c[name])


def test_chains_of_any_number_and_draws_that_do_not_fill_the_chunks():
    trained = train(Cannon(order=1, label_noise=False), simulate(), Gibbs(chains=1, draws=33, warmup=7, thin=2))
    assert trained.draws["scatter"].shape == (1, 33, N_PIXEL)
    assert np.isnan(trained.stats["rhat_max"])
    assert not trained.stats["converged"]


def test_fit_gives_a_posterior_that_infers():
    stars = simulate()
    posterior = bl.fit(RIDGE, stars, SHORT, progress=False)
    result = bl.infer(posterior, stars.drop("labels"), progress=False)
    offset = (result.mean - stars.labels.value) / np.hypot(result.error, stars.labels.error)
    assert np.abs(offset).mean() < 1.5
    assert posterior.info["acceptance_u"] > 0.5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"coefficient_prior": priors.Laplace()}, ["Laplace", "NUTS"]),
        ({"bounds": {"TEFF": (0.0, 1.0)}}, ["bounds", "NUTS"]),
    ],
)
def test_refusals_say_what_to_use_instead(settings, words):
    with pytest.raises(CannotDo) as refusal:
        bl.fit(Cannon(order=1, label_noise="joint", **settings), simulate(), Gibbs(), progress=False)
    assert all(word in str(refusal.value) for word in words)


def test_no_test_step():
    stars = simulate()
    posterior = bl.fit(Cannon(order=1, label_noise=False), stars, progress=False)
    with pytest.raises(CannotDo, match="infer"):
        bl.infer(posterior, stars, Gibbs())


@pytest.mark.long
def test_missing_pixels_and_labels_and_a_dead_pixel():
    stars = simulate(missing=0.1, missing_labels=0.15, covariance=True)
    flux = stars.flux.value.copy()
    flux[:, 3] = np.nan
    stars = stars.with_block(flux=Block(flux, stars.flux.error))
    trained = train(Cannon(order=1, label_noise="joint"), stars)
    dead = np.arange(N_PIXEL) == 3
    assert np.isnan(trained.draws["coefficients"][:, :, dead]).all()
    assert np.isnan(trained.draws["scatter"][:, :, dead]).all()
    assert np.isfinite(trained.draws["coefficients"][:, :, ~dead]).all()
    assert np.isfinite(trained.draws["true_labels"]).all()
    assert trained.stats["n_pixel_dropped"] == 1
    assert np.isnan(trained.moments.scatter[3])


def test_classic_coefficients_match_least_squares():
    """Fixed scatter, flat prior, exact labels: independent draws from N(theta_hat, (Phi' W Phi)^-1)."""
    stars = simulate()
    model = Cannon(order=1, label_noise=False, scatter=0.01, coefficient_prior=priors.Flat()).bind(stars)
    draws = train(model, stars, Gibbs(chains=2, draws=2000, warmup=1)).draws["coefficients"].reshape(-1, N_PIXEL, 3)
    u = model.frame.scaled(stars.labels.value)
    phi = np.column_stack([np.ones(40), u])
    for pixel in range(N_PIXEL):
        w = 1 / (stars.flux.error[:, pixel] ** 2 + 0.01**2)
        covariance = np.linalg.inv(phi.T * w @ phi)
        mean = covariance @ (phi.T @ (w * stars.flux.value[:, pixel]))
        sd = np.sqrt(np.diag(covariance))
        np.testing.assert_array_less(np.abs(draws[:, pixel].mean(0) - mean) / sd, 5 / np.sqrt(4000))
        np.testing.assert_allclose(
            np.cov(draws[:, pixel].T) / np.outer(sd, sd), covariance / np.outer(sd, sd), atol=0.1
        )


def test_a_missing_exact_label_is_sampled_and_a_known_one_is_not_touched():
    full = simulate()
    value = full.labels.value.copy()
    value[[2, 5, 5], [0, 0, 1]] = np.nan
    stars = full.with_block(labels=Block(value, full.labels.error, names=NAMES))
    trained = train(Cannon(order=1, label_noise=False, population="learned"), stars)
    labels = trained.draws["true_labels"]
    known = np.isfinite(value)
    np.testing.assert_allclose(
        labels[:, :, known], np.broadcast_to(value[known], labels[:, :, known].shape), rtol=1e-12
    )
    assert (labels[:, :, ~known].std((0, 1)) > 0).all()
    assert trained.draws["labels_missing"].shape[2:] == (3,)
    assert np.abs(labels[:, :, ~known].mean((0, 1)) - full.labels.value[~known] < 3 * full.labels.error[~known]).all()


@pytest.mark.parametrize("prior", [priors.Flat(), priors.Learned()])
def test_censored_coefficients_do_not_act(prior):
    stars = simulate()
    mask = np.arange(N_PIXEL) < 4
    model = Cannon(order=1, label_noise=False, censor={"LOGG": mask}, coefficient_prior=prior)
    trained = train(model, stars)
    column = model.bind(stars).feature_names.index("LOGG")
    np.testing.assert_array_equal(trained.moments.coefficients[~mask, column], 0)
    censored = trained.draws["coefficients"][:, :, ~mask, column]
    if isinstance(prior, priors.Flat):
        np.testing.assert_array_equal(censored, 0)
    else:
        assert (censored.std((0, 1)) > 0).all()


def test_no_flux_errors():
    stars = simulate()
    stars = stars.with_block(flux=Block(stars.flux.value))
    scatter = train(Cannon(order=1, label_noise=False), stars).moments.scatter
    assert ((scatter > 0.01) & (scatter < 0.1)).all()
