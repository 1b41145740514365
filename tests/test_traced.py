"""Programs as functions of their stars: JAX compiles them and maps them over stars, missing numbers included."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO, init_to_uniform
from numpyro.infer.autoguide import AutoDelta
from numpyro.infer.util import log_density
from numpyro.optim import Adam

import bayeslabels as bl
from bayeslabels.numerics.linalg import in_float64

EXAMPLES = {
    "Cannon": bl.Cannon(order=1, label_noise="joint", coefficient_prior=bl.priors.Normal()),
    "Cannon, free": bl.Cannon(order=1, label_noise="free", flux_error_factor="star"),
    "Cannon, exact": bl.Cannon(order=1, label_noise=False, coefficient_prior=bl.priors.Normal()),
    "Lux": bl.Lux(3, coefficient_prior=bl.priors.Normal(), nuisances=(bl.nuisances.Continuum(0.01, 1),)),
    "Parallax": bl.Parallax(features=("magnitudes", "ln flux", "labels"), outliers=True),
    "Photometry": bl.Photometry(function="polynomial", order=1, components=2),
    "Translator": bl.Translator(function="polynomial", order=1, scatter="constant", components=2),
    "Translator, exact": bl.Translator(function="polynomial", order=1, scatter="constant", robust=False),
}
NAMES = list(EXAMPLES)
FIVE = ("Cannon", "Lux", "Parallax", "Photometry", "Translator")
N = 10


def with_gaps(block, seed):
    """A tenth of the values and of the errors are missing."""
    rng = np.random.default_rng(seed)
    value, error = block.value.copy(), None if block.error is None else block.error.copy()
    value[rng.random(value.shape) < 0.1] = np.nan
    if error is not None:
        error[rng.random(error.shape) < 0.1] = np.inf
    return bl.Block(value, error, names=block.names, unit=block.unit, coords=block.coords)


@pytest.fixture(scope="module")
def bound(simulated):
    """A model, bound to 40 stars, and 10 of these, with gaps where labels are not exact."""

    @functools.cache
    def of(name):
        model, stars = EXAMPLES[name], simulated.stars
        stars = stars.drop(*[block for block in stars.blocks if block not in model.blocks])
        if name == "Translator, exact":
            labels = stars.labels
            stars = stars.with_block(labels=bl.Block(labels.value, names=labels.names, unit=labels.unit))
        gappy = [b for b in stars.blocks if not ("exact" in name and b == "labels")]
        stars = stars.with_block(**{b: with_gaps(stars[b], i) for i, b in enumerate(gappy)})
        return model.bind(stars), stars[:N]

    return of


def drawn(model, stars):
    """Values of the latent sites, the names of those that are the stars', and ln p of the others and of all sites.

    Values anywhere in the supports: those who draw from gammas and Wisharts take longer to compile than all else.
    """
    star = set()

    @jax.jit
    def values():
        somewhere = handlers.substitute(handlers.seed(model, 0), substitute_fn=init_to_uniform(radius=0.5))
        trace = handlers.trace(somewhere).get_trace(stars)
        sites = {k: x for k, x in trace.items() if x["type"] == "sample"}
        latent = {k: x for k, x in sites.items() if not x["is_observed"]}
        star.update(k for k, x in latent.items() if any(frame.name == "star" for frame in x["cond_indep_stack"]))
        ln_p = {k: x["fn"].log_prob(x["value"]).sum() for k, x in sites.items()}
        prior = sum(ln_p[k] for k in latent if k not in star)
        return {k: x["value"] for k, x in latent.items()}, prior, sum(ln_p.values())

    found, prior, known = values()
    return found, star, prior, known


@pytest.mark.parametrize("name", NAMES)
@in_float64
def test_compiled_in_the_stars_the_density_is_the_same(name, bound):
    model, stars = bound(name)
    values, star_sites, prior, known = drawn(model, stars)
    assert np.isfinite(known)

    @jax.jit
    def densities(stars, values):
        shared, own = ({k: x for k, x in values.items() if (k in star_sites) == of_star} for of_star in (False, True))

        def of_one(star, own):
            star, own = jax.tree.map(lambda x: x[None], (star, own))
            return log_density(model, (star,), {}, {**shared, **own})[0]

        return log_density(model, (stars,), {}, values)[0], jax.vmap(of_one)(stars, own)

    density, each = densities(stars, values)
    np.testing.assert_allclose(density, known, rtol=1e-6)
    np.testing.assert_allclose((each - prior).sum() + prior, known, rtol=1e-6)


@pytest.mark.parametrize("name", [pytest.param(x, marks=[pytest.mark.slow] * (x != "Parallax")) for x in NAMES])
def test_numpyro_samples_programs_compiled_in_their_stars(name, bound):
    model, stars = bound(name)

    @jax.jit
    def sampled(key, stars):
        sampler = MCMC(NUTS(model, max_tree_depth=2), num_warmup=2, num_samples=2, progress_bar=False)
        sampler.run(key, stars)
        return sampler.get_samples()

    assert all(np.isfinite(x).all() for x in sampled(jax.random.key(0), stars).values())


@pytest.mark.parametrize("name", [pytest.param(x, marks=[pytest.mark.slow] * (x != "Cannon")) for x in FIVE])
def test_svi_that_is_compiled_once_serves_other_stars(name, bound):
    model, stars = bound(name)

    @jax.jit
    def losses(key, stars):
        svi = SVI(model, AutoDelta(model, init_loc_fn=init_to_uniform), Adam(0.01), Trace_ELBO())
        return svi.run(key, 2, stars, progress_bar=False).losses

    for some in (stars, stars[::-1]):
        assert np.isfinite(losses(jax.random.key(0), some)).all()
    assert losses._cache_size() == 1


def test_a_model_without_a_frame_says_that_it_needs_stars_with_numbers(simulated):
    model = bl.Cannon(order=1)
    stars = simulated.stars.drop("parallax", "magnitudes", "reddening", "target_labels")
    with pytest.raises(bl.BadInput, match=r"not seen training stars.*model.bind\(stars\)"):
        jax.eval_shape(lambda stars: handlers.seed(model, 0)(stars), stars)
    trained, short = model.bind(stars), stars.with_block(flux=stars.flux.select(slice(5)))
    with pytest.raises(bl.BadInput, match="spectra of 5 pixels"):
        jax.eval_shape(lambda stars: handlers.seed(trained, 0)(stars), short)


@in_float64
def test_exact_labels_that_are_missing_are_not_made_up(simulated):
    """How many are missing is not known while JAX traces: their density is NaN, and no number."""
    stars = bl.Stars(labels=simulated.stars.labels, flux=simulated.stars.flux)
    model = EXAMPLES["Cannon, exact"].bind(stars)
    values, *_ = drawn(model, stars)
    gappy = stars.with_block(labels=with_gaps(stars.labels, 0))
    density = jax.jit(lambda stars: log_density(model, (stars,), {}, values)[0])
    assert np.isfinite(density(stars))
    assert np.isnan(density(gappy))
