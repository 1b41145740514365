"""Distributions of NumPyro where a model takes a prior: its program samples them, exact routes and files refuse."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.distributions.transforms import biject_to
from numpyro.infer import init_to_uniform
from numpyro.infer.util import log_density

import bayeslabels as bl
from bayeslabels.core.own_priors import fitted, scaled
from bayeslabels.errors import CannotDo
from bayeslabels.kinds.program.program import OwnProgram
from bayeslabels.kinds.program.sites import Site
from bayeslabels.kinds.program.stars import asked_of
from bayeslabels.numerics.linalg import in_float64

CANNON = bl.Cannon(order=1, label_noise="joint", coefficient_prior=bl.priors.Normal(0.3))
EXACT = bl.Cannon(order=1, label_noise=False, coefficient_prior=bl.priors.Normal(0.3), population="flat")
PHOTOMETRY = bl.Photometry(function="polynomial", order=1, components=1)
PARALLAX = bl.Parallax(features=("magnitudes", "ln flux"), coefficient_prior=bl.priors.Normal(0.1))


def flat():
    """In the precision of the test that asks for it."""
    return dist.MultivariateNormal(jnp.zeros(2), 1e4 * jnp.eye(2))


SAME = {
    "coefficients and scatters": (
        CANNON,
        lambda f: {
            "coefficient_prior": dist.Normal(0.0, np.array([100 * f, 0.3, 0.3])),
            "scatter_distribution": dist.HalfNormal(f),
            "label_scatter_distribution": dist.HalfNormal(1.0),
        },
    ),
    "population": (CANNON.replace(population="flat"), lambda f: {"population": flat()}),
    "population of exact labels": (EXACT, lambda f: {"population": flat()}),
    "Lux": (
        bl.Lux(2, coefficient_prior=bl.priors.Normal(0.3)),
        lambda f: {"coefficient_prior": dist.Normal(0.0, np.array([100 * f, 0.3, 0.3]))},
    ),
    "Parallax": (
        PARALLAX,
        lambda f: {"coefficient_prior": dist.Normal(0.0, 0.1), "scatter_distribution": dist.HalfNormal(1.0)},
    ),
    "distance and reddening": (
        PHOTOMETRY.replace(
            distance_prior=bl.priors.NormalModulus(9.0, 2.0), reddening_prior=bl.priors.Exponential(0.1)
        ),
        lambda f: {"distance_prior": dist.Normal(9.0, 2.0), "reddening_prior": dist.Exponential(10.0)},
    ),
}


@pytest.mark.parametrize("name", SAME)
@in_float64
def test_a_distribution_that_is_a_prior_of_the_package_gives_its_density(name, simulated):
    model, own = SAME[name]
    stars = simulated.stars
    stars = stars.drop(*[block for block in stars.blocks if block not in model.blocks])
    model = model.bind(stars)
    other = model.replace(**own(getattr(model.frame, "flux_scale", 1.0)))

    @jax.jit
    def densities():
        somewhere = handlers.substitute(handlers.seed(model, 0), substitute_fn=init_to_uniform(radius=0.5))
        trace = handlers.trace(somewhere).get_trace(stars)
        sites = {k: x for k, x in trace.items() if x["type"] == "sample"}
        values = {k: x["value"] for k, x in sites.items() if not x["is_observed"]}
        expected = sum(x["fn"].log_prob(x["value"]).sum() for x in sites.values())
        return expected, log_density(other, (stars,), {}, values)[0]

    expected, found = densities()
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert not model.changed_program
    assert other.changed_program
    assert other.with_usual_priors().own_priors == ()


@pytest.mark.parametrize(
    ("setting", "prior", "forms"),
    [
        ("coefficient_prior", dist.StudentT(3.0, 0.0, 0.1), r"priors.Flat, Normal, Laplace or Learned"),
        ("scatter_distribution", dist.LogNormal(-3.0, 1.0), r"priors.HalfNormal"),
        ("label_scatter_distribution", dist.Gamma(2.0, 20.0), r"priors.HalfNormal"),
        ("population", dist.Laplace(0.0, 1.0), r"'learned' or 'flat'"),
    ],
)
def test_exact_routes_say_which_forms_they_take(setting, prior, forms, training):
    model = CANNON.replace(**{setting: prior})
    for inference in (bl.MAP(), bl.Gibbs()):
        with pytest.raises(
            CannotDo, match=rf"Cannon with a {setting} of your own \(not {forms}\): use NUTS\(\) or SVI"
        ):
            bl.fit(model, training, inference)


def test_what_is_no_prior_is_refused(training):
    with pytest.raises(bl.BadInput, match=r"coefficient_prior=Normal, a class.*coefficient_prior=Normal\(...\)"):
        CANNON.replace(coefficient_prior=dist.Normal)
    with pytest.raises(bl.BadInput, match="population=Poisson, which is discrete"):
        CANNON.replace(population=dist.Poisson(1.0))
    with pytest.raises(bl.BadInput, match=r"scatter_distribution=Normal of .*positive numbers"):
        CANNON.replace(scatter_distribution=dist.Normal(0.0, 1.0)).bind(training)
    with pytest.raises(bl.BadInput, match="without to_event"):
        CANNON.replace(label_scatter_distribution=dist.HalfNormal(np.ones(2)).to_event(1)).bind(training)
    with pytest.raises(bl.BadInput, match=r"a prior of u of shape \(3,\), expected \(2,\)"):
        handlers.seed(CANNON.replace(population=dist.Normal(np.zeros(3), 1.0)), 0)(training)
    with pytest.raises(bl.BadInput, match="or a distribution of NumPyro"):
        CANNON.replace(coefficient_prior=0.1)


@pytest.mark.parametrize(
    "own",
    [
        dist.Normal(0.0, 1.0),
        dist.Normal(np.zeros(3), 1.0),
        dist.Normal(np.zeros((4, 1)), 1.0),
        dist.MultivariateNormal(np.zeros(3), np.eye(3)),
        dist.Normal(0.0, 1.0).expand([4, 3]).to_event(2),
        dist.MixtureSameFamily(dist.Categorical(np.ones(2) / 2), dist.Normal(np.array([0.0, 1.0]), 1.0)),
    ],
)
def test_one_number_a_row_or_all_of_them(own):
    wide = fitted("x", own, (4, 3))
    assert (wide.batch_shape, wide.event_shape) == ((), (4, 3))

    @jax.jit
    def drawn(key):
        x = wide.sample(key)
        return x, wide.log_prob(x), own.log_prob(x).sum()

    x, found, expected = drawn(jax.random.key(0))
    assert x.shape == (4, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "own",
    [
        dist.LogNormal(0.0, 1.0),
        dist.Gamma(2.0, 2.0),
        dist.HalfCauchy(1.0),
        dist.Uniform(0.0, 0.5),
        dist.Exponential(2.0),
    ],
)
def test_scatters_in_units_of_the_labels(own):
    scale = jnp.array([300.0, 0.5])
    wide = scaled("tau", own, scale)
    free = biject_to(wide.support)

    @jax.jit
    def drawn(key):
        x = wide.sample(key)
        return x, free(free.inv(x)), wide.log_prob(x), (own.log_prob(x / scale) - jnp.log(scale)).sum()

    x, again, found, expected = drawn(jax.random.key(0))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(again, x, rtol=1e-4)


def test_the_test_step_knows_the_sites_of_scaled_and_shifted_distributions(simulated):
    """Supports that are computed from the stars or the frame are read while the program is traced."""
    stars = simulated.stars.drop("labels", "target_labels", "reddening")
    model = OwnProgram(PARALLAX.replace(scatter_distribution=dist.LogNormal(-2.0, 1.0))).bind(stars)
    assert asked_of(model, stars.drop("parallax"))[0][0].name == "parallax"
    assert model.frame.named(Site("parallax", (1,), True, True)) == (("parallax",), ("mas",))
    stars = bl.Stars(labels=simulated.stars.labels, flux=simulated.stars.flux)
    model = OwnProgram(CANNON.replace(label_scatter_distribution=dist.Gamma(2.0, 20.0))).bind(stars)
    sites, left = asked_of(model, stars.drop("labels"))
    assert ([site.name for site in sites], left) == (["u"], ("labels",))


@pytest.fixture(scope="module")
def mixed(training):
    kinds = dist.MultivariateNormal(jnp.array([[-1.0, -1.0], [1.0, 1.0]]), 0.5 * jnp.eye(2))
    population = dist.MixtureSameFamily(dist.Categorical(jnp.array([0.5, 0.5])), kinds)
    model = CANNON.replace(population=population)
    return bl.fit(model, training, bl.NUTS(chains=1, draws=40, warmup=60, max_tree_depth=6), progress=False)


@pytest.mark.filterwarnings("ignore::bayeslabels.errors.NotConverged")
@pytest.mark.slow
def test_a_population_of_your_own_trains_and_infers(mixed, simulated):
    draws = mixed.data["posterior"].to_dataset()
    assert "population_mean" not in draws
    assert draws["coefficients"].shape == (1, 40, 12, 3)
    result = bl.infer(mixed, simulated.stars.drop(*(b for b in simulated.stars.blocks if b != "flux")), progress=False)
    assert result.info["inference"] == "Importance"
    at = [result.frame.names.index(name) for name in ("TEFF", "LOGG")]
    z = (result.mean[:, at] - simulated.true_labels) / result.error[:, at]
    assert 0.5 < z.std() < 2.0


@pytest.mark.filterwarnings("ignore::bayeslabels.errors.NotConverged")
@pytest.mark.slow
def test_a_distribution_is_refused_where_it_would_be_saved(mixed, tmp_path):
    with pytest.raises(bl.BadInput, match=r"MixtureSameFamily\w* of your own.*keep the code that makes it"):
        mixed.save(tmp_path / "mixed.nc")
    assert not (tmp_path / "mixed.nc").exists()
