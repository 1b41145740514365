"""Photometry of spectra and magnitudes at once: the density against grids in float64, and a simulated XP survey."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from numpyro.infer.util import log_density
from scipy.stats import multivariate_normal

import bayeslabels as bl
from bayeslabels.errors import BadInput
from bayeslabels.inference.starwise import in_passing
from bayeslabels.kinds.photometry.stars import moments_of, prepare
from bayeslabels.simulate import simulate_xp

pytestmark = pytest.mark.long

SMALL = {"n_pixel": 7, "bands": ("J", "Ks")}
SHAPE = ("weights", "reddening_log", "reddening_slope")


@pytest.fixture(scope="module")
def survey():
    return simulate_xp(300, seed=1, snr=20.0, **SMALL)


@pytest.fixture(scope="module")
def bound(survey):
    model = bl.Photometry(function="polynomial", order=1, components=1, members=1,
                          distance_prior=bl.priors.NormalModulus())  # fmt: skip
    model = model.bind(survey[0])
    theta = model.start(survey[0], 0) | {"luminosity_scatter": np.array(1e-6), "outlier_fraction": np.array(1e-3)}
    theta["weights"] = 0.02 * np.random.default_rng(0).normal(size=theta["weights"].shape)
    return model, theta


def test_the_simulated_spectra(survey):
    stars, truth = survey
    assert stars["spectrum"].has_covariance
    assert stars["magnitudes"].names == ("J", "Ks")
    assert truth.absolute_magnitudes.shape == truth.reddening_vector.shape == (300, 9)
    off = stars["spectrum"].value / 10 ** (-0.4 * truth.absolute_magnitudes[:, 2:]) - 1
    assert off.max() < 100
    assert np.isfinite(stars["spectrum"].value).all()


def test_the_test_step_is_the_programs_density(survey, bound):
    """Differences of ln p(u | data) are those of the program's joint density, summed over modulus and reddening."""
    model, theta = bound
    index = np.array([3])
    stars = survey[0][index].drop("labels")
    moments = moments_of(model, {name: x[None, None] for name, x in theta.items()})
    many = survey[0][np.full(40, 3)].drop("labels")
    problem = prepare(_posterior(model, moments), many, 0, 4).select(np.arange(1))
    mode = np.asarray(problem.modes.location[0, 0])
    step = np.sqrt(np.diag(np.asarray(problem.modes.covariance[0, 0])))
    points = np.stack([mode, mode + 0.5 * step, mode - step * np.array([1.0, -0.5, 0.5])])
    with jax.enable_x64(True):
        density, told = in_passing(problem, jnp.asarray(points)[None])
        ours = np.asarray(density)[0]
        mu_0, e_0 = (float(np.asarray(x)[0, 0, 0]) for x in (told.place.mu, told.place.e))
        mu = np.linspace(mu_0 - 1.0, mu_0 + 1.0, 161)
        e = np.linspace(1e-4, max(3 * e_0, 0.6), 161)
        grid = [x.ravel() for x in np.meshgrid(mu, e, indexing="ij")]

        def joint(u):
            def at(mu, e):
                latents = {"u": u[None], "distance_modulus": mu[None], "true_reddening": e[None],
                           "luminosity": jnp.zeros(1), "labels": model.frame.physical(u)[None]}  # fmt: skip
                return log_density(model, (stars,), {}, {**theta, **latents})[0]

            return jax.lax.map(lambda x: at(*x), tuple(map(jnp.asarray, grid)), batch_size=2048)

        compiled = jax.jit(joint)
        program = [np.asarray(compiled(jnp.asarray(u))) for u in points]
    sums = np.array([np.log(np.exp(x - x.max()).sum()) + x.max() for x in program])
    np.testing.assert_allclose(ours - ours[0], sums - sums[0], atol=0.05)


def _posterior(model, moments):
    return bl.Posterior(model, None, moments, {})


def test_no_point_far_outside_of_training_is_better_than_the_best(survey, bound):
    """Where a model predicts 10^15 times the flux, chi^2 is a difference of numbers that have no digits in common."""
    model, theta = bound
    stars = survey[0][:40].drop("labels")
    problem = prepare(_posterior(model, moments_of(model, {k: x[None, None] for k, x in theta.items()})), stars, 0, 4)
    rng = np.random.default_rng(0)
    away = rng.normal(size=(40, 128, 3)) * 10 ** rng.uniform(0.5, 3, (40, 128, 1))
    best = np.asarray(problem.modes.location[0])[:, None]
    with jax.enable_x64(True):
        density = np.asarray(in_passing(problem, jnp.asarray(np.concatenate([best, best + away], 1)))[0])
    assert np.isfinite(density[:, 0]).all()
    assert (density[:, 1:] < density[:, :1]).all()


def test_the_training_density_is_the_dense_gaussian(survey, bound):
    """Without a scatter in luminosity and without dust, of labels that are known: N(flux | 10^(-0.4 (M + mu)), C)."""
    model, theta = bound
    stars = survey[0][:4].drop("parallax", "reddening")
    sure = stars.with_block(
        labels=bl.Block(stars.labels.value, 1e-4 * stars.labels.error, names=model.frame.names, unit=model.frame.units)
    )
    model = model.replace(reddening_prior=bl.priors.Exponential(1e-6), outliers=False)
    theta = {name: x for name, x in theta.items() if name != "outlier_fraction"}
    frame, scale = model.frame, model.frame.flux_scale
    with jax.enable_x64(True):
        data = jax.tree.map(jnp.asarray, model.arrays(sure))
        ours = np.asarray(jax.jit(model.log_likelihood)(theta, data)) - np.asarray(data.label_density)
        m = np.asarray(model.absolute(jnp.asarray(theta["weights"]), data.label_mean))
    unit = np.asarray(data.channels.unit)
    for n in range(4):
        mags, flux = stars[n].magnitudes, stars[n].spectrum
        seen = np.r_[mags.observed[0], flux.observed[0]]
        centre = np.median((np.asarray(data.channels.bright[n]) - m[n])[seen])
        mu = centre + np.linspace(-1.5, 1.5, 3001)
        true = m[n] + mu[:, None]
        true[:, 2:] = 10 ** (-0.4 * true[:, 2:])
        c = np.zeros((9, 9))
        c[:2, :2], c[2:, 2:] = np.diag(np.where(seen[:2], mags.error[0], 1.0) ** 2), flux.error[0] / scale**2
        c += np.diag(theta["scatter"] ** 2 * unit[n] ** 2)
        value = np.r_[mags.value[0], flux.value[0] / scale]
        p = multivariate_normal(np.zeros(seen.sum()), c[np.ix_(seen, seen)]).logpdf((value - true)[:, seen])
        p = p + np.asarray(model.distance_prior.log_density(jnp.asarray(mu)))
        dense = np.log(np.exp(p - p.max()).sum() * (mu[1] - mu[0])) + p.max()
        np.testing.assert_allclose(ours[n], dense, rtol=1e-3, atol=0.05)  # a bad fit: chi2 of hundreds
    assert frame.n_flux == 7


def test_the_slope_of_the_training_density_is_its_derivative(survey, bound):
    """Also through the modulus and reddening about which fluxes are taken to be linear, that move with theta."""
    model, theta = bound
    with jax.enable_x64(True):
        data = jax.tree.map(jnp.asarray, model.arrays(survey[0]))
        at = {name: jnp.asarray(x, float) for name, x in theta.items()}
        way = {name: jax.random.normal(jax.random.key(i), x.shape) for i, (name, x) in enumerate(sorted(at.items()))}
        moved = jax.jit(
            lambda step: model.log_likelihood(at | {k: at[k] + step * way[k] for k in SHAPE}, data).sum(),
        )
        (_, slope), h = jax.jvp(moved, (0.0,), (1.0,)), 1e-5
        by_difference = (moved(h) - moved(-h)) / (2 * h)
    np.testing.assert_allclose(slope, by_difference, rtol=2e-3)


def test_an_outlier_is_one_in_both_blocks(survey, bound):
    """The program's two sites together are the mixture of the two kinds of star."""
    model, theta = bound
    theta = theta | {"outlier_fraction": np.array(0.2)}
    stars = survey[0][:3].drop("labels", "parallax", "reddening")

    @jax.jit
    def densities(theta):
        seeded = handlers.seed(handlers.substitute(model, theta), 0)
        found = handlers.trace(seeded).get_trace(stars)
        sites = [(found[k]["fn"], found[k]["value"]) for k in ("magnitudes", "spectrum")]
        return sum(law.log_prob(x) for law, x in sites), [law._each(x) for law, x in sites]

    with jax.enable_x64(True):
        both, each = jax.tree.map(np.asarray, densities(theta))
    good, bad = sum(each)
    np.testing.assert_allclose(both, np.logaddexp(np.log(0.8) + good, np.log(0.2) + bad), rtol=1e-8)


def test_bad_spectra(survey, bound):
    model, _ = bound
    stars = survey[0][:5]
    with pytest.raises(BadInput, match="7 pixels"):
        model.check(stars.with_block(spectrum=stars.spectrum.select(np.arange(3))))
    grid = np.linspace(4000.0, 9000.0, 7)
    at = [bl.Block(stars.spectrum.value, stars.spectrum.error, unit=stars.spectrum.unit, coords={"wavelength": x})
          for x in (grid, grid / 1e4)]  # fmt: skip
    bands = tuple(f"flux_{x}" for x in grid)
    known = model.replace(frame=dataclasses.replace(model.frame, bands=model.frame.bands[:-7] + bands))
    known.check(stars.with_block(spectrum=at[0]))
    with pytest.raises(BadInput, match="wavelength grid"):
        known.check(stars.with_block(spectrum=at[1]))
    with pytest.raises(BadInput, match="magnitudes"):
        bl.fit(bl.Photometry(), stars.drop("magnitudes", "spectrum"))
    with pytest.raises(BadInput, match="scatter_rank"):
        bl.Photometry(scatter_rank=-1)


@pytest.mark.slow
def test_recovers_the_extinction_curve():
    stars, truth = simulate_xp(1500, seed=2, n_pixel=15)
    model = bl.Photometry(function="polynomial", order=3, components=3, members=2)
    posterior = bl.fit(model, stars[:1200], bl.MAP(max_iterations=60), seed=0)
    table = posterior.summary()
    ratio = table["reddening_vector"] / np.median(truth.reddening_vector, 0)
    np.testing.assert_allclose(ratio[:15], np.median(ratio[:15]), rtol=0.03)
    np.testing.assert_allclose(np.median(ratio), 1.0, atol=0.03)
    result = bl.infer(posterior, stars[1200:].drop("labels", "reddening"), bl.Importance(draws=300, rescue=False))
    true = np.column_stack([truth.labels, truth.reddening])[1200:]
    z = (true - result.mean[:, :4]) / result.error[:, :4]
    assert (z.std(0) < 1.25).all()
    assert (z.std(0) > 0.8).all()
