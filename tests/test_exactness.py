"""The fast routes against the NumPyro program, and the program against its equations."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.util import log_density
from scipy import stats as distributions

import bayeslabels as bl
from bayeslabels import MAP, NUTS, Block, Cannon, Gibbs, Importance, Laplace, Stars
from bayeslabels.core import priors
from bayeslabels.core.model import Model
from bayeslabels.inference import nuts
from bayeslabels.inference.diagnostics import ess, rhat
from bayeslabels.inference.starwise import StarProblem
from bayeslabels.kind import kind_of
from bayeslabels.kinds.spectra.em import by_em
from bayeslabels.kinds.spectra.moments import Moments
from bayeslabels.kinds.spectra.quartic import label_terms
from bayeslabels.numerics.compress import compress
from bayeslabels.numerics.features import Monomials
from bayeslabels.numerics.linalg import in_float64
from bayeslabels.numerics.modes import Energy, Modes
from bayeslabels.numerics.own_variates import keys_of

pytestmark = pytest.mark.long

NAMES, CENTRE, SPREAD = ("TEFF", "LOGG"), np.array([5000.0, 3.0]), np.array([400.0, 0.8])


def simulate(n, n_pixel, order=2, seed=0, flux_error=0.03, missing=False):
    """Stars whose labels have covariances of 0.15 of their spread, plus 0.1 that is not stated; true labels too."""
    rng = np.random.default_rng(seed)
    exponents = np.array(Monomials.up_to(order, 2).exponents)
    u = rng.standard_normal((n, 2)) @ np.array([[1, 0.3], [0, 0.95]])
    theta = rng.standard_normal((n_pixel, len(exponents))) * np.array([0.1, 0.1, 0.02, 0.01])[exponents.sum(1)]
    theta[:, 0] += 1
    error = flux_error * rng.uniform(0.7, 1.3, (n, n_pixel))
    flux = (u[:, None] ** exponents).prod(-1) @ theta.T + rng.standard_normal(error.shape) * np.hypot(error, 0.01)
    stated = 0.15**2 * np.array([[1, 0.4], [0.4, 1]]) * rng.uniform(0.5, 1.5, (n, 1, 1))
    noise = np.linalg.cholesky(stated + 0.01 * np.eye(2))
    labels = u + np.einsum("nij,nj->ni", noise, rng.standard_normal((n, 2)))
    if missing:
        flux[rng.random(flux.shape) < 0.1] = np.nan
        labels[rng.random(labels.shape) < 0.1] = np.nan
    block = Block(CENTRE + SPREAD * labels, stated * SPREAD[:, None] * SPREAD, names=NAMES)
    return Stars(labels=block, flux=Block(flux, error)), CENTRE + SPREAD * u


def parameters(model, n, seed=1):
    """A value of every site of the program with latent labels."""
    rng = np.random.default_rng(seed)
    m, k, n_pixel = 2, model.features.size, model.frame.n_pixel
    return {
        "coefficients": rng.normal(size=(n_pixel, k)) * 0.1 + np.eye(k)[0],
        "coefficients_mean": rng.normal(size=k),
        "coefficients_covariance": 0.1 * np.cov(rng.normal(size=(k, 5 * k))),
        "scatter": rng.uniform(0.01, 0.05, n_pixel),
        "population_mean": rng.normal(size=m),
        "population_covariance": np.array([[1.1, 0.3], [0.3, 0.8]]),
        "label_scatter": np.array([0.1, 0.2]) * model.frame.scale,
        "u": rng.normal(size=(n, m)),
    }


@pytest.fixture(scope="module")
def incomplete():
    return simulate(30, 20, missing=True)[0]


@in_float64
def test_compressed_likelihood_is_the_programs(incomplete):
    model = Cannon(order=2, label_noise="joint").bind(incomplete)
    values = parameters(model, 30)
    other = values | {"u": np.random.default_rng(7).normal(size=(30, 2))}
    statistics = compress(*model.output(incomplete), values["coefficients"], values["scatter"], constant=True)
    moments = Moments(
        values["coefficients"], np.zeros((20, 6, 6)), values["scatter"], values["label_scatter"],
        values["population_mean"], values["population_covariance"], np.zeros((2, 6)), np.zeros((2, 6, 2, 6)),
        values["u"],
    )  # fmt: skip
    precision, information = label_terms(model, moments, incomplete)

    @jax.jit
    def compressed(u):
        flux = statistics.log_likelihood(model.features(u))
        labels = -0.5 * jnp.einsum("nm,nmk,nk->n", u, precision, u) + (information * u).sum(1)
        return flux.sum(), labels.sum()

    @jax.jit
    def program(values):
        trace = numpyro.handlers.trace(numpyro.handlers.substitute(model, values)).get_trace(incomplete)
        terms = {name: x["fn"].log_prob(x["value"]).sum() for name, x in trace.items() if x["type"] == "sample"}
        return terms["flux"], sum(terms.values())

    (flux, total), (_, of_other) = program(values), program(other)
    assert float(compressed(values["u"])[0]) == pytest.approx(float(flux), rel=1e-8)
    difference = float(of_other - total)
    assert float(sum(compressed(other["u"])) - sum(compressed(values["u"]))) == pytest.approx(difference, rel=1e-8)


@in_float64
def test_program_is_the_docstrings_equations(incomplete):
    """An independent oracle in NumPy and SciPy."""
    known = priors.HalfNormal(0.3)
    model = Cannon(order=2, label_noise="joint", label_scatter_distribution=known).bind(incomplete)
    p = parameters(model, 30)
    f, scale = model.frame.flux_scale, model.frame.scale
    k, n_pixel = p["coefficients"].shape[1], len(p["coefficients"])
    norm, halfnorm = distributions.norm, distributions.halfnorm
    gauss, wishart = distributions.multivariate_normal, distributions.invwishart
    total = norm(0, 10 * f).logpdf(p["coefficients_mean"]).sum()
    total += wishart(k + 2, (1e-4 * f) ** 2 * np.eye(k)).logpdf(p["coefficients_covariance"])
    total += gauss(p["coefficients_mean"], p["coefficients_covariance"]).logpdf(p["coefficients"]).sum()
    total += halfnorm(scale=f).logpdf(p["scatter"]).sum()
    total += norm(0, 10).logpdf(p["population_mean"]).sum() + wishart(4, np.eye(2)).logpdf(p["population_covariance"])
    total += halfnorm(scale=0.3 * scale).logpdf(p["label_scatter"]).sum()
    total += gauss(p["population_mean"], p["population_covariance"]).logpdf(p["u"]).sum()
    for n in range(30):
        x, y = p["u"][n]
        phi = np.array([1, x, y, x * x, x * y, y * y])
        for pixel in range(n_pixel):
            value, error = incomplete.flux.value[n, pixel], incomplete.flux.error[n, pixel]
            if np.isfinite(value):
                sigma = np.hypot(error, p["scatter"][pixel])
                total += norm(p["coefficients"][pixel] @ phi, sigma).logpdf(value)
        seen = np.isfinite(incomplete.labels.value[n])
        if seen.any():
            offset = (incomplete.labels.value[n] - model.frame.physical(p["u"][n]))[seen]
            noise = incomplete.labels.error[n] + np.diag(p["label_scatter"] ** 2)
            total += gauss(np.zeros(seen.sum()), noise[np.ix_(seen, seen)]).logpdf(offset)
        # an entry that is not observed takes part as N(0; 0, 1)
        total += norm.logpdf(0.0) * (~seen).sum()
    density = jax.jit(lambda values: log_density(model, (incomplete,), {}, values)[0])
    assert float(density(p)) == pytest.approx(total, rel=1e-10)


@in_float64
def test_gradient_is_zero_at_the_classic_mode():
    stars, _ = simulate(80, 15, seed=4)
    flux = stars.flux.value.copy()
    flux[np.random.default_rng(0).random(flux.shape) < 0.05] = np.nan
    stars = stars.with_block(flux=Block(flux, stars.flux.error))
    model = Cannon(order=2, label_noise=False, coefficient_prior=priors.Flat()).bind(stars)
    draws = by_em(model, stars, MAP(), 0, False).draws
    theta, scatter = draws["coefficients"][0, 0], draws["scatter"][0, 0]
    inner = scatter > 1e-4
    assert inner.sum() >= 5

    def density(theta, scatter):
        return log_density(model, (stars,), {}, {"coefficients": theta, "scatter": scatter})[0]

    d_theta, d_scatter = jax.jit(jax.grad(density, (0, 1)))(theta, scatter)
    phi = np.asarray(model.features(jnp.asarray(model.of_latents(model.catalogue(stars)).value)))
    w = 1 / (stars.flux.error**2 + scatter**2)
    residual = np.nan_to_num(flux - phi @ theta.T)
    size_theta = np.einsum("nl,nk->lk", np.abs(w * residual), np.abs(phi))
    size_scatter = scatter * (w + w**2 * residual**2).sum(0)
    assert (np.abs(d_theta) / size_theta)[inner].max() < 1e-6
    assert (np.abs(d_scatter) / size_scatter)[inner].max() < 1e-6
    assert (np.abs(d_theta) / size_theta).max() < 1e-6


def assert_same_posterior(a, b, what):
    """Draws (chain, draw, ...): means within 0.1 sd and sds within 10 per cent, beyond four Monte Carlo errors."""
    size = np.minimum(ess(a), ess(b))
    sd_a, sd_b = a.std((0, 1)), b.std((0, 1))
    shift = np.abs(a.mean((0, 1)) - b.mean((0, 1))) / sd_b
    stretch = np.abs(np.log(sd_a / sd_b))
    assert np.sqrt((shift**2).mean()) < 0.1, (what, shift)
    assert np.sqrt((stretch**2).mean()) < 0.1, (what, stretch)
    assert (shift < 0.1 + 4 * np.sqrt(2 / size)).all(), (what, shift.max())
    assert (stretch < 0.1 + 4 * np.sqrt(2 / size)).all(), (what, stretch.max())


def identified(model, draws):
    """Every parameter of interest, and predicted fluxes, which no change of the label system touches."""
    phi = np.asarray(model.features(jnp.asarray(draws["u"][..., :10, :])))
    names = ("coefficients", "scatter", "label_scatter", "true_labels", "population_mean")
    return {name: draws[name] for name in names} | {
        "log population_covariance": np.log(np.einsum("cdmm->cdm", draws["population_covariance"])),
        "flux": np.einsum("cdnk,cdlk->cdnl", phi, draws["coefficients"]),
    }


def compare_training(stars, model, gibbs, nuts, nuts_rhat):
    model = model.bind(stars)
    a = kind_of(model).train(model, stars, gibbs, 0, False)
    b = nuts.fit(model, stars, 1, False)
    assert b.stats["n_divergent"] == 0
    a, b = identified(model, a.draws), identified(model, b.draws)
    for name in a:
        assert rhat(a[name]).max() < 1.01, name
        assert rhat(b[name]).max() < nuts_rhat, name
        assert_same_posterior(a[name], b[name], name)


@pytest.mark.parametrize(
    ("gibbs", "nuts"),
    [
        pytest.param(Gibbs(draws=1000, warmup=150, thin=2), NUTS(draws=500, warmup=300), marks=pytest.mark.slow),
        pytest.param(Gibbs(draws=4000, warmup=500, thin=2), NUTS(draws=2000, warmup=500), marks=pytest.mark.slow),
    ],
    ids=["short", "long"],
)
@in_float64
def test_gibbs_and_nuts_draw_from_one_posterior(gibbs, nuts):
    stars, _ = simulate(40, 8, order=1, seed=2, missing=True)
    compare_training(stars, Cannon(order=1, label_noise="joint"), gibbs, nuts, 1.02)


@pytest.mark.slow
@in_float64
def test_gibbs_and_nuts_draw_from_one_posterior_of_a_quadratic_model():
    stars, _ = simulate(100, 30, seed=1)
    model = Cannon(order=2, label_noise="joint")
    compare_training(stars, model, Gibbs(draws=2000, warmup=500, thin=4), NUTS(draws=3000, warmup=700), 1.01)


@pytest.fixture(scope="module")
def trained():
    """Trained, with everything that the test step integrates over set to be known."""
    stars, _ = simulate(100, 30, seed=1, flux_error=0.02)
    posterior = bl.fit(Cannon(order=2, label_noise="joint"), stars, MAP(), progress=False)
    moments = posterior.moments
    known = moments._replace(
        coefficient_covariance=np.zeros_like(moments.coefficient_covariance),
        label_system_covariance=np.zeros_like(moments.label_system_covariance),
    )
    return posterior.with_moments(known)


@pytest.fixture(scope="module")
def reference(trained):
    """Draws (chain, draw, star, label) of NumPyro's NUTS on the program, all pixels, globals at the moments."""
    stars = simulate(6, 30, seed=1, flux_error=0.02)[0]
    moments = trained.moments
    values = {
        "coefficients": moments.coefficients,
        "scatter": moments.scatter,
        "label_scatter": moments.label_scatter,
        "population_mean": moments.population_mean,
        "population_covariance": moments.population_covariance,
        "coefficients_mean": np.zeros(6),
        "coefficients_covariance": np.eye(6),
    }

    @in_float64
    def run():
        program = numpyro.handlers.condition(trained.model, {k: jnp.asarray(v) for k, v in values.items()})
        kernel = numpyro.infer.NUTS(functools.partial(program, stars))
        start = jnp.broadcast_to(jnp.asarray(trained.model.of_latents(trained.model.catalogue(stars)).value), (4, 6, 2))

        @jax.jit
        def sampled(key):
            sampler = numpyro.infer.MCMC(
                kernel, num_warmup=500, num_samples=1500, num_chains=4, chain_method="vectorized", progress_bar=False
            )
            sampler.run(key, init_params={"u": start})
            return sampler.get_samples(group_by_chain=True)["true_labels"]

        return np.asarray(sampled(jax.random.key(3)))

    draws = run()
    assert rhat(draws).max() < 1.01
    return stars, draws


@pytest.mark.parametrize(
    "inference", [Laplace(), Importance(draws=4000), NUTS(draws=1500)], ids=lambda x: type(x).__name__
)
def test_test_step_is_the_programs_posterior(trained, reference, inference):
    stars, draws = reference
    result = bl.infer(trained, stars, inference, progress=False)
    sd = draws.std((0, 1))
    np.testing.assert_array_less(np.abs(result.mean - draws.mean((0, 1))) / sd, 0.1)
    np.testing.assert_allclose(result.error / sd, 1, atol=0.1)


@dataclasses.dataclass(frozen=True)
class Bent(Energy):
    """x ~ N(0, own^2), y ~ N(x^2, 0.3^2): the longer, the more bent."""

    def __call__(self, u, shared, own):
        x, y = u.T
        return 0.5 * (x / own) ** 2 + 0.5 * ((y - x**2) / 0.3) ** 2


@pytest.mark.slow
@in_float64
def test_stars_of_bent_posteriors_get_longer_trajectories(monkeypatch):
    width = np.array([0.2, 0.6, 0.2])
    covariance = np.stack([np.diag([w**2, 0.09]) for w in width])[None]
    modes = Modes(np.zeros((1, 3, 2)), covariance, np.zeros((1, 3)), np.ones((1, 3), bool))
    problem = StarProblem(Bent(), None, width, modes)
    keys = keys_of(np.arange(3, dtype=np.uint64), 0)
    found = NUTS().infer(problem, keys, False)
    monkeypatch.setattr(nuts, "ENOUGH", 0)
    short = NUTS().infer(problem, keys, False)
    np.testing.assert_array_equal(found.u[:, :, [0, 2]], short.u[:, :, [0, 2]])
    assert short.star_stats["ess"][1] < 100
    assert found.star_stats["ess"][1] > 2 * short.star_stats["ess"][1]
    np.testing.assert_allclose(found.u[..., 0].std((0, 1)), width, rtol=0.15)


@dataclasses.dataclass(frozen=True)
class MeanModel(Model):
    """The mean and the spread of the fluxes: a program that is not linear in labels, and has no MAP to start from."""

    possible: bool = True

    def __call__(self, stars, batch_size=None):
        mean = numpyro.sample("mean", dist.Uniform(0.0, 2.0))
        spread = numpyro.sample("spread", dist.HalfNormal(1.0))
        numpyro.deterministic("square", spread**2)
        numpyro.sample("flux", dist.Normal(mean, spread), obs=jnp.asarray(stars.flux.value))
        if not self.possible:
            numpyro.factor("never", -jnp.inf)

    def bind(self, stars):
        return self

    def check(self, stars):
        pass


def test_nuts_on_any_program():
    flux = 1 + 0.1 * np.random.default_rng(0).normal(size=(50, 8))
    stars = Stars(flux=Block(flux, 0.1))
    trained = NUTS(chains=2, draws=300, warmup=150).fit(MeanModel(), stars, 0, False)
    assert trained.moments is None
    assert trained.stats["converged"]
    draws, error = trained.draws, flux.std() / np.sqrt(400)
    assert abs(draws["mean"].mean() - flux.mean()) < 5 * error / np.sqrt(ess(draws["mean"]))
    assert draws["mean"].std() == pytest.approx(error, rel=0.2)
    np.testing.assert_allclose(draws["square"], draws["spread"] ** 2, rtol=1e-12)
    assert draws["spread"].mean() == pytest.approx(flux.std(), rel=0.02)
    with pytest.raises(bl.BadInput, match="no starting point"):
        NUTS(chains=2, draws=5, warmup=5).fit(MeanModel(possible=False), stars, 0, False)
