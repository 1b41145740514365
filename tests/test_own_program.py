"""A NumPyro program of the user's own: trained, asked, kept and judged like a model of the package."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from scipy.special import logsumexp
from scipy.stats import binom, norm

import bayeslabels as bl
from bayeslabels.errors import CannotDo
from bayeslabels.kinds.program.stars import ProgramEnergy, asked_of, prepare, unflattened
from bayeslabels.numerics.linalg import in_float64

QUICK = bl.NUTS(chains=2, draws=500, warmup=150)
N, LAPLACE = 32, bl.Laplace(draws=200)
"""Stars and inference of most test steps here: every other number would be compiled anew."""
SLOPE, NOISE, LABEL_NOISE = np.array([0.5, -0.3, 0.2]), 0.1, 0.2


def seen(stars, name):
    """A block's values where it is present; what is missing of them has no weight: see `precision`."""
    return jnp.nan_to_num(jnp.asarray(stars[name].value)) if name in stars else None


def wide_where_missing(stars, name, sd):
    if name not in stars:
        return sd
    return jnp.where(jnp.isnan(jnp.asarray(stars[name].value)), 1e6, sd)


def line(stars):
    """flux = 1 + slope x + noise, label = x + noise."""
    slope = numpyro.sample("slope", dist.Normal(0, 1).expand([3]).to_event(1))
    with numpyro.plate("star", len(stars)):
        x = numpyro.sample("true_labels", dist.Normal(0.0, 1.0))[:, None]
        sd = wide_where_missing(stars, "labels", LABEL_NOISE) * jnp.ones((len(stars), 1))
        numpyro.sample("labels", dist.Normal(x, sd).to_event(1), obs=seen(stars, "labels"))
        sd = wide_where_missing(stars, "flux", NOISE) * jnp.ones((len(stars), 3))
        numpyro.sample("flux", dist.Normal(1 + x * slope, sd).to_event(1), obs=seen(stars, "flux"))


def of_line(n, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    flux = 1 + x[:, None] * SLOPE + NOISE * rng.normal(size=(n, 3))
    labels = (x + LABEL_NOISE * rng.normal(size=n))[:, None]
    labels = bl.Block(labels, np.full(labels.shape, LABEL_NOISE), names=("X",), unit="dex")
    return bl.Stars(labels=labels, flux=bl.Block(flux, np.full(flux.shape, NOISE))), x


@pytest.fixture(scope="module")
def trained():
    return bl.fit(line, of_line(60)[0], QUICK, seed=1, progress=False)


def exact(slopes, flux):
    """The oracle: mean and variance (N,) of x, the average over slopes (G, 3), of equal weight but for p(flux)."""
    variance = 1 / (1 + (slopes**2).sum(1) / NOISE**2)  # (G,)
    mean = variance[:, None] * ((flux - 1) @ slopes.T).T / NOISE**2  # (G, N)
    spread = np.eye(3) * NOISE**2 + slopes[:, :, None] * slopes[:, None, :]
    off = flux - 1
    fit = np.einsum("ni,gij,nj->gn", off, np.linalg.inv(spread), off)
    weight = np.exp(-0.5 * (fit - fit.min(0))) / np.sqrt(np.linalg.det(spread))[:, None]
    weight /= weight.sum(0)
    centre = (weight * mean).sum(0)
    return centre, (weight * (variance[:, None] + (mean - centre) ** 2)).sum(0)


def at_the_mode(slopes, flux):
    """The oracle of Laplace's method: the mode (N,) of the same density, and minus its inverse curvature there."""
    x, h = np.linspace(-5.0, 5.0, 4001, retstep=True)
    chi2 = np.stack([(((each - 1 - x[:, None, None] * slopes) / NOISE) ** 2).sum(-1) for each in flux])  # (N, x, G)
    log_p = logsumexp(-0.5 * chi2, axis=-1) - 0.5 * x**2
    top = log_p.argmax(1)
    low, middle, high = (log_p[np.arange(len(flux)), top + i] for i in (-1, 0, 1))
    bend = 2 * middle - low - high
    return x[top] + 0.5 * h * (high - low) / bend, h**2 / bend


@pytest.mark.long
@pytest.mark.parametrize("inference", [bl.Importance(draws=4000), bl.Laplace(draws=4000), bl.MAP()], ids=str)
def test_the_test_step_is_the_closed_form(trained, inference):
    stars, _ = of_line(N, seed=2)
    result = bl.infer(trained, stars.drop("labels"), inference, seed=0, progress=False)
    oracle = at_the_mode if isinstance(inference, bl.Laplace) else exact
    mean, variance = oracle(trained.moments.shared, stars.flux.value)
    assert result.frame.names == ("X",)
    assert result.frame.units == ("dex",)
    near = 0.25 if isinstance(inference, bl.MAP) else 0.08
    assert np.abs(result.mean[:, 0] - mean).max() < near * np.sqrt(variance.min())
    np.testing.assert_allclose(result.error[:, 0], np.sqrt(variance), rtol=near)


def test_errors_hold(trained):
    """Coverage of 320 stars by the exact test step, within 99.9 per cent of what chance allows."""
    stars, truth = of_line(10 * N, seed=3)
    inside = 0
    for first in range(0, len(stars), N):
        some = slice(first, first + N)
        result = bl.infer(trained, stars[some].drop("labels"), LAPLACE, seed=first, progress=False)
        inside += (np.abs(result.mean[:, 0] - truth[some]) < result.error[:, 0]).sum()
    low, high = binom.interval(0.999, len(stars), 0.6827)
    assert low <= inside <= high


def test_parameters_are_recovered(trained):
    summary = trained.summary()
    assert list(summary["site"]) == ["slope[0]", "slope[1]", "slope[2]"]
    assert (np.abs(summary["mean"] - SLOPE) < 4 * summary["sd"]).all()
    assert trained.info["converged"]
    assert trained.model.name == "line"
    told = trained.data["sample_stats"].to_dataset()
    assert {"diverging", "energy", "lp", "acceptance_rate", "n_steps", "tree_depth"} == set(told)
    assert told["diverging"].shape == told["lp"].shape == (2, 500)
    assert 0.5 < told["acceptance_rate"].mean() <= 1
    assert (told["energy"] >= -told["lp"]).all()


@pytest.mark.long
def test_variational_inference_finds_the_same(trained):
    posterior = bl.fit(line, of_line(60)[0], bl.SVI(steps=1500, learning_rate=0.02), seed=0, progress=False)
    np.testing.assert_allclose(posterior.summary()["mean"], trained.summary()["mean"], atol=0.02)


def test_a_star_with_less_data_has_a_wider_posterior_and_one_without_any_is_flagged(trained):
    stars, _ = of_line(N, seed=4)
    flux = stars.flux.value.copy()
    flux[1, :2], flux[2] = np.nan, np.nan
    gappy = bl.Stars(flux=bl.Block(flux, stars.flux.error))
    result = bl.infer(trained, gappy, LAPLACE, seed=0, progress=False)
    assert result.error[1, 0] > 1.5 * result.error[0, 0]
    assert "NO_DATA" in bl.flag_names(result.flags[2])
    assert np.isnan(result.mean[2, 0])


def test_labels_that_are_present_are_data(trained):
    stars, truth = of_line(N, seed=5)
    both = bl.infer(trained, stars, LAPLACE, seed=0, progress=False)
    alone = bl.infer(trained, stars.drop("labels"), LAPLACE, seed=0, progress=False)
    assert both.error.mean() < alone.error.mean()
    assert ((both.mean[:, 0] - truth) / both.error[:, 0]).std() < 1.4


def test_saved_and_loaded_with_the_program_beside_it(trained, tmp_path):
    path = trained.save(tmp_path / "line.nc")
    with pytest.raises(bl.BadInput, match=r"program of your own, .*test_own_program:line"):
        bl.load(path)
    with pytest.raises(bl.BadInput, match=r"other.*expected .*line, which was trained"):
        bl.load(path, model=other)
    again = bl.load(path, model=line)
    stars = of_line(N, seed=6)[0].drop("labels")
    a, b = (bl.infer(x, stars, LAPLACE, seed=0, progress=False) for x in (trained, again))
    np.testing.assert_array_equal(a.mean, b.mean)


def other(stars):
    line(stars)


@pytest.mark.long
def test_cross_validated():
    stars, _ = of_line(2 * N)
    quick = bl.NUTS(chains=1, draws=60, warmup=60)
    found = bl.cross_validate(line, stars, quick, folds=2, infer_with=LAPLACE, progress=False)
    assert np.isfinite(found.log_density).all()


def test_simulated_from(trained):
    judged = bl.calibration.sbc(trained, of_line(N)[0].drop("labels"), LAPLACE, 60, n_draw=49)
    assert judged.p_value > 1e-3
    assert judged.names == ("X",)


def without_plate(stars):
    numpyro.sample("x", dist.Normal(0, 1))


def discrete(stars):
    with numpyro.plate("star", len(stars)):
        numpyro.sample("kind", dist.Bernoulli(0.5))


def test_what_cannot_be_is_refused():
    stars, _ = of_line(10)
    with pytest.raises(CannotDo, match=r"MAP has no fit step for the program line: use NUTS\(\) or SVI\(\)"):
        bl.fit(line, stars, bl.MAP())
    with pytest.raises(bl.BadInput, match=r'plate\("star"'):
        bl.fit(without_plate, stars)
    with pytest.raises(CannotDo, match="'kind' is discrete"):
        bl.fit(discrete, stars)
    with pytest.raises(bl.BadInput, match="the class Cannon, expected a model"):
        bl.fit(bl.Cannon, stars)
    with pytest.raises(CannotDo, match="all stars in every step"):
        bl.fit(line, stars, bl.SVI(batch_size=5))


@in_float64
def test_the_energy_is_the_programs_density(trained):
    """ln p of the star's sites, from the program's own trace; of labels, on which nothing depends, there is none."""
    stars, _ = of_line(N, seed=7)
    problem = prepare(trained.model, trained.moments, stars.drop("labels"), 0, 1)
    u = np.array([[0.3], [-1.0]])
    assert [site.name for site in problem.energy.sites] == ["true_labels"]
    assert problem.energy.left == ("labels",)
    star = stars.drop("labels")[1]

    def log_p(theta, point):
        given = {"slope": theta, "true_labels": point, "labels": np.zeros((1, 1))}
        trace = handlers.trace(handlers.substitute(line, given)).get_trace(star)
        return sum(trace[name]["fn"].log_prob(trace[name]["value"]).sum() for name in ("flux", "true_labels"))

    each = jax.jit(jax.vmap(jax.vmap(log_p, (None, 0)), (0, None)))(trained.moments.shared, u)
    own = jax.tree.map(lambda x: jnp.asarray(x)[1], problem.own)
    found = jax.jit(problem.energy)(u, problem.shared, own)
    np.testing.assert_allclose(found, -np.log(np.exp(np.array(each)).mean(0)), rtol=1e-5)


class TwoKinds(bl.Cannon):
    """A Cannon of two kinds of stars, each a Gaussian in the labels."""

    def __call__(self, stars, batch_size=None):
        model = self.bound(stars)
        frame, features = model.require_frame(), model.features
        m = len(frame.names)
        theta = model.prior.sample("coefficients", frame.n_pixel, features.size, frame.flux_scale)
        scatter, tau = model.scatter_site(), model.label_scatter_site()
        share = numpyro.sample("share", dist.Beta(2.0, 2.0))
        low = numpyro.sample("low", dist.Normal(-1.0, 1.0).expand([m]).to_event(1))
        gap = numpyro.sample("gap", dist.Gamma(4.0, 2.0).expand([m]).to_event(1))
        width = numpyro.sample("width", dist.HalfNormal(1.0).expand([2, m]).to_event(2))
        numpyro.deterministic("high", low + gap)
        kinds = dist.Normal(jnp.stack([low, low + gap]), width).to_event(1)
        population = dist.MixtureSameFamily(dist.Categorical(jnp.stack([share, 1 - share])), kinds)
        with numpyro.plate("star", len(stars), subsample_size=batch_size) as rows:
            u = numpyro.sample("u", population)
            numpyro.deterministic("true_labels", frame.physical(u))
            model.label_sites(u, tau, stars, rows)
            model.flux_site(features(u) @ theta.T, scatter, None, stars, rows)


TWO_KINDS = TwoKinds(order=1, label_noise="joint", coefficient_prior=bl.priors.Normal())


def of_two_kinds(n, seed, n_pixel=12):
    """Stars of two kinds, 40 per cent of the first, some pixels missing; and their true labels."""
    rng = np.random.default_rng(seed)
    theta = np.random.default_rng(1).normal(size=(n_pixel, 3)) * 0.05 + [1.0, 0.0, 0.0]
    u = np.where(rng.random((n, 1)) < 0.4, -1.0, 0.8) + 0.3 * rng.normal(size=(n, 2))
    flux = np.column_stack([np.ones(n), u]) @ theta.T + 0.01 * rng.normal(size=(n, n_pixel))
    flux[rng.random(flux.shape) < 0.03] = np.nan
    true, error = [5000.0, 3.0] + u * [300.0, 0.5], np.tile([60.0, 0.1], (n, 1))
    labels = bl.Block(true + error * rng.normal(size=true.shape), error, names=("TEFF", "LOGG"), unit=("K", "dex"))
    return bl.Stars(labels=labels, flux=bl.Block(flux, np.full(flux.shape, 0.01))), true


@pytest.fixture(scope="module")
def begun():
    shortest = bl.NUTS(chains=1, draws=10, warmup=10, max_tree_depth=3)
    return bl.fit(TWO_KINDS, of_two_kinds(30, 0)[0], shortest, progress=False)


@pytest.fixture(scope="module")
def two_kinds():
    quick = bl.NUTS(chains=2, draws=100, warmup=200, max_tree_depth=7)
    return bl.fit(TWO_KINDS, of_two_kinds(30, 0)[0], quick, progress=False)


@pytest.mark.long
def test_a_subclass_with_a_program_of_its_own_keeps_its_sites(begun):
    draws = begun.data["posterior"].to_dataset()
    assert {"coefficients", "scatter", "label_scatter", "share", "low", "gap", "width", "high", "u"} <= set(draws)
    np.testing.assert_allclose(draws["high"], draws["low"].values + draws["gap"].values)
    assert draws["coefficients"].shape == (1, 10, 12, 3)
    assert {"share", "high[0]"} <= set(begun.summary()["site"])
    assert begun.model.name == "TwoKinds"


@pytest.mark.slow
def test_what_a_subclass_learns_is_recovered(two_kinds):
    share = two_kinds.data["posterior"]["share"].values
    assert abs(share.mean() - 0.4) < 4 * share.std()


@pytest.mark.slow
def test_labels_of_a_subclass_have_their_names_and_units_and_errors_that_hold(two_kinds):
    stars, truth = of_two_kinds(60, 5)
    result = bl.infer(two_kinds, stars.drop("labels"), progress=False)
    assert result.info["inference"] == "Importance"
    at = [result.frame.names.index(name) for name in ("TEFF", "LOGG")]
    assert [result.frame.units[i] for i in at] == ["K", "dex"]
    z = (result.mean[:, at] - truth) / result.error[:, at]
    low, high = binom.interval(0.999, z.size, 0.6827)
    assert low <= (np.abs(z) < 1).sum() <= high
    assert result.table()["TEFF"].unit == "K"


@in_float64
def test_labels_of_a_subclass_are_data_where_present(begun):
    """What they add to the density of a star under each draw of the training is that of the catalogue, by hand."""
    star, model = of_two_kinds(1, 6)[0], begun.model
    with_labels, without = (
        ProgramEnergy(model, tuple(x.blocks), *asked_of(model, x)) for x in (star, star.drop("labels"))
    )
    assert [site.name for site in with_labels.sites] == [site.name for site in without.sites] == ["u"]
    frame = TWO_KINDS.bind(of_two_kinds(30, 0)[0]).frame
    u, own = np.array([[-1.0, -0.5], [0.3, 0.8], [1.5, -1.0]]), jax.tree.map(lambda x: jnp.asarray(x)[0], star)
    found = jax.jit(jax.vmap(lambda g: without(u, g[None], own.drop("labels")) - with_labels(u, g[None], own)))
    tau = unflattened(begun.moments.shared, model.frame.shared)["label_scatter"]
    sd = np.hypot(star.labels.error, tau)[:, None]
    expected = norm.logpdf(star.labels.value, frame.physical(u), sd).sum(-1)
    np.testing.assert_allclose(found(begun.moments.shared), expected, rtol=1e-8)


@pytest.mark.long
def test_a_subclass_is_saved_by_its_name_and_loaded_where_it_is_imported(begun, tmp_path):
    path = begun.save(tmp_path / "two.nc")
    again = bl.load(path)
    assert type(again.model.program) is TwoKinds
    assert again.model.program == TWO_KINDS
    stars = of_two_kinds(5, 7)[0].drop("labels")
    a, b = (bl.infer(x, stars, LAPLACE, progress=False) for x in (begun, again))
    np.testing.assert_array_equal(a.mean, b.mean)


def test_exact_routes_and_settings_that_a_changed_program_would_ignore_are_refused():
    stars, _ = of_two_kinds(10, 0)
    with pytest.raises(CannotDo, match=r"MAP has no fit step for TwoKinds: use NUTS\(\) or SVI\(\)"):
        bl.fit(TWO_KINDS, stars, bl.MAP())
    with pytest.raises(CannotDo, match=r"NUTS of TwoKinds takes no checkpoints"):
        bl.fit(TWO_KINDS, stars, bl.NUTS(), checkpoint="x.npz")
    with pytest.raises(CannotDo, match=r"TwoKinds, .* outliers \(outlier_sigma=None\)"):
        bl.fit(TWO_KINDS.replace(outlier_sigma=4.0), stars, bl.NUTS())
    with pytest.raises(CannotDo, match=r"TwoKinds, .* hidden labels \(hidden=0\)"):
        bl.fit(TWO_KINDS.replace(hidden=1), stars, bl.NUTS())


def two(stars):
    """As `line`, but that the labels are near -1 or near 1, and the spectra often do not tell which."""
    slope = numpyro.sample("slope", dist.Normal(0, 1).expand([3]).to_event(1))
    near = dist.Normal(jnp.array([-1.0, 1.0]), 0.2)
    with numpyro.plate("star", len(stars)):
        x = numpyro.sample("true_labels", dist.MixtureSameFamily(dist.Categorical(probs=jnp.array([0.3, 0.7])), near))
        numpyro.sample("labels", dist.Normal(x[:, None], LABEL_NOISE).to_event(1), obs=seen(stars, "labels"))
        numpyro.sample("flux", dist.Normal(1 + x[:, None] * slope, 0.6).to_event(1), obs=seen(stars, "flux"))


@pytest.mark.long
def test_no_solution_of_a_star_is_missed():
    """Means and errors against a sum over a grid, of stars half of which have a second solution."""
    rng, n = np.random.default_rng(8), 60 + N
    x = np.where(rng.random(n) < 0.3, -1, 1) + 0.2 * rng.normal(size=n)
    flux = 1 + x[:, None] * SLOPE + 0.6 * rng.normal(size=(n, 3))
    labels = bl.Block((x + LABEL_NOISE * rng.normal(size=n))[:, None], LABEL_NOISE, names=("X",))
    stars = bl.Stars(labels=labels, flux=bl.Block(flux, 0.6))
    quick = bl.NUTS(chains=1, draws=60, warmup=60)  # whatever draws there are, the sum is over them
    trained = bl.fit(two, stars[:60], quick, seed=1, progress=False)
    spectra = stars[60:].drop("labels")
    result = bl.infer(trained, spectra, bl.Importance(draws=2000), seed=0, progress=False)
    grid = np.linspace(-2, 2, 801)
    log_prior = np.log(0.3 * np.exp(-0.5 * ((grid + 1) / 0.2) ** 2) + 0.7 * np.exp(-0.5 * ((grid - 1) / 0.2) ** 2))
    expected = 1 + grid[:, None] * trained.moments.shared[:, None]  # (G, S, 3)
    log_p = -0.5 * (((spectra.flux.value[:, None, None] - expected) / 0.6) ** 2).sum(-1)  # (N, G, S)
    weight = np.exp(log_p - log_p.max((1, 2), keepdims=True)).sum(1) * np.exp(log_prior)
    weight /= weight.sum(1, keepdims=True)
    mean = weight @ grid
    error = np.sqrt(weight @ grid**2 - mean**2)
    assert (result.stars["second_mode"].values > 0.05).mean() > 0.375
    np.testing.assert_allclose(result.error[:, 0], error, rtol=0.15)
    assert (np.abs(result.mean[:, 0] - mean) < 0.2 * error).all()
