"""Dust-aware photometry: densities against independent float64 oracles, recovery of simulated truth, calibration, and
what pictures draw."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from numpyro.infer.util import log_density
from scipy.stats import binom, multivariate_normal, norm

import bayeslabels as bl
from bayeslabels import plots
from bayeslabels.astro.extinction import band_extinction, extinction_law
from bayeslabels.data.batches import Batches, RowsInMemory
from bayeslabels.data.digests import digests, in_order
from bayeslabels.errors import BadInput
from bayeslabels.inference.starwise import in_passing
from bayeslabels.kinds.photometry.stars import prepare
from bayeslabels.numerics.density import BANDWIDTH
from bayeslabels.simulate import simulate_photometry

BANDS = ("G", "BP", "RP", "J", "Ks")
MODEL = bl.Photometry(
    function="polynomial", order=2, members=2, components=3, distance_prior=bl.priors.ExponentialDisk(0.6)
)

N_TRAIN = 512
MANY = 40
"""Stars of small tests."""


@pytest.fixture(scope="module")
def survey():
    return simulate_photometry(1200, BANDS, seed=1, length=0.6)


@pytest.fixture(scope="module")
def posterior(survey):
    return bl.fit(MODEL, survey[0][:N_TRAIN], bl.MAP(max_iterations=30), seed=0)


@pytest.fixture(scope="module")
def told(survey, posterior):
    new = survey[0][800:].drop("labels", "reddening")
    return bl.infer(posterior, new, bl.Importance(draws=400, rescue=False), seed=0)


def theta_of(model, seed=0):
    """Parameters of a model that is linear in its labels."""
    rng = np.random.default_rng(seed)
    start = model.start(None, 0)
    start["weights"] = 0.1 * rng.normal(size=start["weights"].shape)
    start["reddening_slope"] = np.zeros(start["reddening_slope"].shape)
    start["reddening_bend"] = np.zeros(start["reddening_bend"].shape)
    return start


def test_the_collapsed_density_is_the_integral_of_the_programs(survey):
    """One Gaussian population, M linear in the labels, R constant: labels integrate by hand, mu and E on a grid."""
    stars = survey[0][:6]
    model = bl.Photometry(function="polynomial", order=1, components=1, distance_prior=bl.priors.ExponentialDisk(0.6))
    model = model.bind(survey[0])
    theta = theta_of(model)
    with jax.enable_x64(True):
        ours = np.asarray(jax.jit(model.log_likelihood)(theta, jax.tree.map(jnp.asarray, model.arrays(stars))))
        frame = model.frame
        base = np.asarray(model.absolute(jnp.asarray(theta["weights"]), jnp.zeros((1, 3))))[0]
        slope = np.asarray(model.absolute(jnp.asarray(theta["weights"]), jnp.eye(3))) - base
    _, (mean,), (population,) = frame.population
    vector = np.exp(theta["reddening_log"])
    nodes, weights = np.polynomial.legendre.leggauss(160)
    e, e_weight = 0.6 * (nodes + 1), 0.6 * weights
    for n in range(len(stars)):
        u, noise = (
            (stars.labels.value[n] - frame.centre) / frame.scale,
            np.diag(stars.labels.error[n] / frame.scale) ** 2,
        )
        at_labels = multivariate_normal(mean, population + noise).logpdf(u)
        gain = population @ np.linalg.inv(population + noise)
        centre, spread = mean + gain @ (u - mean), population - gain @ population
        seen = stars.magnitudes.observed[n]
        residual = (stars.magnitudes.value[n] - base - centre @ slope)[seen]
        middle = np.mean(residual - 0.15 * vector[seen])
        mu, mu_weight = middle + 4 * nodes, 4 * weights
        total = -np.inf
        for wide, share in ((0.0, 1 - 0.02), (model.outlier_width, 0.02)):
            sd2 = stars.magnitudes.error[n] ** 2 + theta["scatter"] ** 2 + wide**2
            covariance = np.diag(sd2) + slope.T @ spread @ slope + theta["luminosity_scatter"] ** 2
            inverse = np.linalg.inv(covariance[np.ix_(seen, seen)])
            off = residual - mu[:, None, None] - e[:, None] * vector[seen]
            p = -0.5 * np.einsum("abi,ij,abj->ab", off, inverse, off) + 0.5 * np.linalg.slogdet(inverse / 2 / np.pi)[1]
            p += norm(stars.reddening.value[n, 0], stars.reddening.error[n, 0]).logpdf(e) - e / frame.reddening_scale
            p += norm(stars.parallax.value[n, 0], stars.parallax.error[n, 0]).logpdf(10 ** (0.2 * (10 - mu)))[:, None]
            d = 10 ** (0.2 * (mu - 10))
            p += np.log(d**3 * np.exp(-d / 0.6) / (2 * 0.6**3) * np.log(10) / 5 / frame.reddening_scale)[:, None]
            total = np.logaddexp(total, np.log(share) + np.log((np.exp(p) * mu_weight[:, None] * e_weight).sum()))
        np.testing.assert_allclose(ours[n], total + at_labels, atol=0.01)


@pytest.mark.long
def test_the_test_step_is_the_programs_density(survey, posterior):
    """ln p(u | data) differs between two labels as the program's joint density does, once integrated over the rest."""
    model, same = posterior.model, [0, 0]  # members that agree are one
    moments = posterior.moments._replace(
        coefficients=posterior.moments.coefficients[same], reddening_log=posterior.moments.reddening_log[same],
        reddening_slope=posterior.moments.reddening_slope[same], zero_point_error=np.array(0.0),
        luminosity_scatter=np.array(1e-6), outlier_fraction=np.array(4e-5), deviation=None,
    )  # fmt: skip
    one = bl.Posterior(model, posterior.data, moments, {})
    # a band is off: near the mode the star is none of the outliers, rare as they are, further off it is
    stars = survey[0][np.full(MANY, 900)].drop("labels")
    off = stars.magnitudes.value + np.array([0.0, 0.0, 0.0, 0.12, 0.0])
    stars = stars.with_block(magnitudes=bl.Block(off, stars.magnitudes.error, names=BANDS, unit="mag"))
    problem, stars = prepare(one, stars, 0, 4).select(np.arange(1)), stars[:1]
    mode = np.asarray(problem.modes.location[0, 0])
    points = np.stack([mode, mode + np.array([0.1, -0.05, 0.1]), mode - np.array([0.6, -0.4, 0.8])])
    theta = {"weights": moments.coefficients[0], "reddening_log": moments.reddening_log[0],
             "reddening_slope": moments.reddening_slope[0], "scatter": moments.scatter,
             "luminosity_scatter": moments.luminosity_scatter, "zero_point": moments.zero_point,
             "reddening_bend": moments.reddening_bend, "luminosity_scatter_slope": moments.luminosity_scatter_slope,
             "outlier_fraction": moments.outlier_fraction}  # fmt: skip
    with jax.enable_x64(True):
        density, told = in_passing(problem, jnp.asarray(points)[None])
        assert told.log_odds.min() < -1
        assert told.log_odds.max() > 1
        ours = np.asarray(density)[0]
        around = 10 + 5 * np.log10(survey[1].distance[900])
        mu = around + np.linspace(-3, 3, 601)
        e = np.linspace(1e-4, 2.0, 201)
        grid = [x.ravel() for x in np.meshgrid(mu, e, indexing="ij")]

        def joint(u):
            def at(mu, e):
                latents = {"u": u[None], "distance_modulus": mu[None], "true_reddening": e[None],
                           "luminosity": jnp.zeros(1), "labels": jnp.zeros((1, 3))}  # fmt: skip
                return log_density(model, (stars,), {}, {**theta, **latents})[0]

            return jax.vmap(at)(*map(jnp.asarray, grid))

        program = [np.asarray(jax.jit(joint)(jnp.asarray(u))) for u in points]
    labels = np.array([norm(model.frame.physical(u), model.frame.label_error).logpdf(0.0).sum() for u in points])
    sums = [np.log(np.exp(x - x.max()).sum()) + x.max() for x in program] - labels
    np.testing.assert_allclose(ours - ours[0], np.array(sums) - sums[0], atol=0.05)


@pytest.mark.long
def test_recovers_the_truth(survey, posterior):
    stars, truth = survey
    test = slice(800, None)
    absolute, error = posterior.predict(stars[test].drop("magnitudes"), "absolute_magnitudes", with_error=True)
    off = absolute - truth.absolute_magnitudes[test]
    colour, true = absolute[:, 1] - absolute[:, 2], (truth.absolute_magnitudes[:, 1] - truth.absolute_magnitudes[:, 2])
    assert np.abs(np.median(colour - true[test])) < 0.01
    assert np.abs(np.median(off)) < 0.04
    # the error is that of one star, with the scatter that the truth is without
    assert 0.5 < np.median(np.abs(off) / error) / 0.6745 < 1.1
    vector = posterior.predict(stars[test], "reddening_vector")
    off = np.median(vector - truth.reddening_vector[test], axis=0)
    # which stars a member draws follows from the data's last bits: its sd over ten trainings is at most .09 in a band,
    # mostly grey, and .036 between two bands
    assert np.abs(off).max() < 3 * 0.09
    assert np.abs(np.diff(off)).max() < 3 * 0.036
    table = posterior.summary()
    np.testing.assert_allclose(table["d_ln_R_d_TEFF"][:2], 0.06 / 1000 * np.array([0.52 / 0.64, 1.0]), atol=1e-4)
    assert 0.03 < posterior.moments.luminosity_scatter < 0.2  # of resamples of 512 stars: .083, sd .018
    magnitudes = posterior.predict(stars[test], "magnitudes")
    assert np.nanmedian(np.abs(magnitudes - stars[test].magnitudes.value)) < 0.4


@pytest.mark.long
def test_training_ends_at_the_mode(survey, posterior):
    """Slope of ln p per sd, of the function and of the reddening vector, on the stars that a member trained on."""
    model, stars = posterior.model, survey[0][:N_TRAIN]
    stars = stars[in_order(digests(stars, model.blocks), 0)]
    often = Batches.of(RowsInMemory(model, stars), 2, 0, None).often
    draws = posterior.data["posterior"].to_dataset()
    with jax.enable_x64(True):
        data = jax.tree.map(jnp.asarray, model.arrays(stars))

        @jax.jit
        def slopes(free, theta):
            def of_star(free, row):
                return model.log_likelihood({**theta, **free}, jax.tree.map(lambda x: x[None], row))[0]

            def of_prior(free):
                return log_density(model.parameters, (), {}, {**theta, **free})[0]

            return jax.vmap(jax.grad(of_star), (None, 0))(free, data), jax.grad(of_prior)(free)

        for e, weight in enumerate(often):
            theta = {k: jnp.asarray(draws[k].values.reshape(-1, *draws[k].shape[2:])[e]) for k in model.polished}
            free = {k: theta.pop(k) for k in ("weights", "reddening_log")}
            each, prior = slopes(free, theta)
            for name, scores in each.items():
                slope = weight @ np.asarray(scores) + prior[name]
                assert np.abs(slope / np.sqrt(weight @ np.asarray(scores) ** 2)).max() < 0.3, name


@pytest.mark.long
def test_posteriors_hold_the_truth(survey, told):
    truth = survey[1]
    true = np.column_stack([truth.labels[800:], truth.reddening[800:], 10 + 5 * np.log10(truth.distance[800:])])
    low, high = (told.stars[name].values[:, :5] for name in ("p16", "p84"))
    inside = ((true > low) & (true < high)).sum(0)
    band = binom.interval(0.999, len(true), 0.6827)
    assert (inside > band[0] - 12).all()
    assert (inside < band[1] + 12).all()
    z = (true - told.mean[:, :5]) / told.error[:, :5]
    np.testing.assert_allclose(z.std(0), 1.0, atol=0.25)
    assert np.abs(z.mean(0)).max() < 0.3
    assert told.frame.names == ("TEFF", "LOGG", "FE_H", "reddening", "distance_modulus", "distance")
    assert str(told.table()["distance"].unit) == "kpc"
    assert (told.draws("reddening") >= 0).all()


@pytest.mark.long
def test_an_outlier_is_flagged_and_not_wrong_in_silence(survey, posterior, told):
    """One band of every star off by 0.6 to 1.2 mag, either way."""
    stars, truth = survey[0][800:].drop("labels", "reddening"), survey[1]
    rng = np.random.default_rng(5)
    off = rng.choice([-1.0, 1.0], len(stars)) * rng.uniform(0.6, 1.2, len(stars))
    value = stars.magnitudes.value + off[:, None] * np.eye(5)[rng.integers(5, size=len(stars))]
    wrong = stars.with_block(magnitudes=bl.Block(value, stars.magnitudes.error, names=BANDS, unit="mag"))
    result = bl.infer(posterior, wrong, bl.Importance(draws=400, rescue=False), seed=0)
    probability = result.stars["outlier_probability"].values
    hit = np.isfinite(value[np.arange(len(stars)), :]).all(1)  # the band that is off was measured
    flagged = np.array(["OUTLIER" in bl.flag_names(x) for x in result.flags])
    assert (flagged == (probability > 0.5)).all()
    assert flagged[hit].mean() > 0.85
    assert np.median(told.stars["outlier_probability"].values) < 0.05
    z = (truth.labels[800:] - result.mean[:, :3]) / result.error[:, :3]
    assert np.median(np.abs(z[hit])) < 1.5
    silent = (np.abs(z) > 5).any(1) & ~flagged
    assert silent.mean() < 0.02
    # the metals are little more than the prior says either way
    assert (np.median(result.error[hit, :2], 0) > 1.2 * np.median(told.error[:, :2], 0)).all()


@pytest.mark.slow
def test_what_is_measured_narrows(survey, posterior, told):
    stars = survey[0][800:840]
    with_labels = bl.infer(posterior, stars, bl.Laplace(draws=200), seed=0)
    assert (np.median(with_labels.error[:, :3], 0) < np.median(told.error[:40, :3], 0)).all()
    assert (np.median(with_labels.error[:, :3] / stars.labels.error, 0) < 1.0).all()
    without = bl.infer(posterior, stars.drop("labels", "reddening", "parallax"), bl.Laplace(draws=200), seed=0)
    assert np.median(without.error[:, 4]) > np.median(told.error[:40, 4])


@pytest.mark.long
def test_missing_is_missing(survey, posterior):
    """A band of infinite error says what an absent one says; a star without data has NaN and a flag."""
    stars = survey[0][800 : 800 + MANY].drop("labels", "reddening")
    value, error = stars.magnitudes.value.copy(), stars.magnitudes.error.copy()
    value[1:4, 2] = np.nan
    value[4] = np.nan
    gone = stars.with_block(magnitudes=bl.Block(value, error, names=BANDS, unit="mag"))
    error[1:4, 2] = np.inf
    loud = gone.with_block(magnitudes=bl.Block(np.where(np.isnan(value), 99.0, value), np.where(np.isnan(value), np.inf,
                           error), names=BANDS, unit="mag"))  # fmt: skip
    first, second = (bl.infer(posterior, x, bl.Laplace(draws=400), seed=0) for x in (gone, loud))
    np.testing.assert_allclose(first.mean, second.mean)
    assert np.isnan(first.mean[4]).all()
    assert "NO_DATA" in bl.flag_names(first.flags[4])
    assert "MISSING_BAND" in bl.flag_names(first.flags[1])


def test_negative_parallaxes_are_data(survey, posterior):
    stars = survey[0][800 : 800 + MANY].drop("labels", "reddening")
    w = np.resize([-0.3, 0.0, 0.3], MANY)
    far = stars.with_block(parallax=bl.Block(w, np.full(MANY, 0.1), unit="mas"))
    assert np.isfinite(bl.infer(posterior, far, bl.Laplace(draws=400), seed=0).mean).all()


@pytest.mark.slow
def test_other_priors(survey, posterior):
    stars = survey[0][800:830].drop("labels", "reddening", "parallax")
    near = posterior.with_model(distance_prior=bl.priors.ExponentialDisk(0.05))
    at = [bl.infer(p, stars, bl.Laplace(draws=200), seed=0) for p in (posterior, near)]
    assert np.median(at[1].mean[:, 5]) < np.median(at[0].mean[:, 5])
    assert "0.05" in at[1].info["distance_prior"]


def test_save_and_load(tmp_path, survey, posterior):
    stars = survey[0][800 : 800 + MANY].drop("labels")
    again = bl.load(posterior.save(tmp_path / "photometry.nc"))
    assert again.model == posterior.model
    first, second = (bl.infer(p, stars, bl.Laplace(draws=400), seed=3) for p in (posterior, again))
    np.testing.assert_array_equal(first.mean, second.mean)


def test_bad_input(survey, posterior):
    stars = survey[0][:50]
    with pytest.raises(BadInput, match="magnitudes"):
        bl.fit(MODEL, stars.drop("magnitudes"))
    with pytest.raises(BadInput, match="without errors"):
        bl.fit(MODEL, stars.with_block(magnitudes=bl.Block(stars.magnitudes.value, names=BANDS, unit="mag")))
    with pytest.raises(BadInput, match="mas"):
        bl.infer(posterior, stars.with_block(parallax=bl.Block(stars.parallax.value, 0.1, unit="arcsec")))
    with pytest.raises(BadInput, match="as in training"):
        bl.infer(posterior, stars.with_block(magnitudes=stars.magnitudes.select(["G", "BP"])))
    with pytest.raises(BadInput, match="absolute_magnitudes"):
        posterior.predict(stars, "flux")
    for wrong in ({"function": "spline"}, {"zero_point": (0.0, -1.0)}, {"label_prior": "wide"}, {"members": 0},
                  {"distance_prior": "disk"}):  # fmt: skip
        with pytest.raises(BadInput):
            bl.Photometry(**wrong)


def test_the_extinction_law():
    """Cardelli+89, table 3: A(lambda) / A(V) at J, K; and 1 at V."""
    np.testing.assert_allclose(extinction_law([0.55, 1.25, 2.2]), [1.0, 0.282, 0.114], atol=0.01)
    r = band_extinction([4000.0, 7000.0], ("G", "BP", "Ks"))
    assert r[1, 0] > 1.05 * r[0, 0]
    assert r[1, 1] > r[0, 1]
    np.testing.assert_allclose(r[1, 2], r[0, 2], rtol=5e-3)


@pytest.fixture(scope="module")
def pictured(survey, posterior):
    """What pictures are drawn of: the labels and the reddening are measured, and the parallax is not looked at."""
    new = survey[0][800:1000]
    result = bl.infer(posterior, new.drop("parallax"), bl.Importance(draws=400, rescue=False), progress=False)
    return posterior, new, result, survey[1]


def drawn(figure, tmp_path):
    assert isinstance(figure, Figure)
    figure.savefig(tmp_path / "figure.png", dpi=50)
    assert (tmp_path / "figure.png").stat().st_size > 3000


def test_colour_magnitude(pictured, tmp_path):
    posterior, stars, result, truth = pictured
    figure = plots.colour_magnitude(posterior, stars, result, magnitude="G")
    drawn(figure, tmp_path)
    before, after = (np.asarray(ax.collections[0].get_offsets()) for ax in figure.axes[:2])
    seen = stars["magnitudes"].observed[:, :3].all(1)
    assert len(before) == len(after) == seen.sum()
    mu = result.mean[seen, result.frame.names.index("distance_modulus")]
    np.testing.assert_allclose(before[:, 1], stars["magnitudes"].value[seen, 0] - mu)
    true = truth.absolute_magnitudes[800:1000][seen]
    off = before[:, 0] - (true[:, 1] - true[:, 2]), after[:, 0] - (true[:, 1] - true[:, 2])
    assert np.mean(off[0]) > 0.1  # the dust reddens
    assert abs(np.mean(off[1])) < 0.03
    assert np.std(off[1]) < 0.5 * np.std(off[0])
    assert figure.axes[0].get_ylim()[0] > figure.axes[0].get_ylim()[1]  # bright stars on top
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
    assert figure.axes[0].get_xlabel() == "BP - RP [mag]"
    with pytest.raises(BadInput, match="there is no band 'V'"):
        plots.colour_magnitude(posterior, stars, result, colour=("BP", "V"))


def test_reddening_vector(pictured, tmp_path):
    posterior = pictured[0]
    figure = plots.reddening_vector(posterior)
    drawn(figure, tmp_path)
    ax, table = figure.axes[0], posterior.summary()
    points = ax.containers[0]
    np.testing.assert_allclose(points.lines[0].get_ydata(), table["reddening_vector"])
    np.testing.assert_allclose(points.lines[0].get_xdata(), [0.64, 0.52, 0.785, 1.241, 2.165])
    bars = [segment[:, 1] for segment in points.lines[2][0].get_segments()]
    np.testing.assert_allclose([np.ptp(x) / 2 for x in bars], table["reddening_vector_error"], rtol=1e-6)
    assert [text.get_text() for text in ax.texts] == list(BANDS)
    frame = dataclasses.replace(posterior.model.frame, bands=("a", "b", "c", "d", "e"))
    named = posterior.model.replace(frame=frame)
    ax = plots.reddening_vector(bl.Posterior(named, posterior.data, posterior.moments, posterior.info)).axes[0]
    assert [x.get_text() for x in ax.get_xticklabels()] == ["a", "b", "c", "d", "e"]
    assert ax.get_xscale() == "linear"


def test_magnitude_residuals(pictured, tmp_path):
    posterior, stars, result, _ = pictured
    value = stars["magnitudes"].value + np.array([0.0, 0.0, 0.0, 0.0, 1.0]) * (result.mean[:, :1] > 5200)
    off = stars.with_block(magnitudes=bl.Block(value, stars["magnitudes"].error, names=BANDS, unit="mag"))
    figure = plots.magnitude_residuals(posterior, off, result, bins=6)
    drawn(figure, tmp_path)
    assert [ax.get_xlabel().split(" ")[0] for ax in figure.axes] == ["TEFF", "LOGG", "FE_H", "reddening"]
    lines = {x.get_label(): x.lines[0].get_xydata() for x in figure.axes[0].containers}
    assert tuple(lines) == BANDS
    assert all(np.abs(lines[band][:, 1]).max() < 0.07 for band in BANDS[:4])
    hot = lines["Ks"][:, 0] > 5400
    assert 0.9 < lines["Ks"][hot, 1].min() < lines["Ks"][hot, 1].max() < 1.1  # put there
    assert np.abs(lines["Ks"][lines["Ks"][:, 0] < 5000, 1]).max() < 0.1
    with pytest.raises(BadInput, match="200 stars with magnitudes whose result this is"):
        plots.magnitude_residuals(posterior, stars[:5], result)


def test_distance_ladder(pictured, tmp_path):
    """Parallaxes that are 10 per cent too small, and have a zero point that is told: moduli 0.23 mag larger."""
    _, stars, result, _ = pictured
    w = stars["parallax"]
    parallax = bl.Block(0.9 * w.value - 0.05, w.error, unit="mas")
    figure = plots.distance_ladder(result, stars.with_block(parallax=parallax), zero_point=-0.05, bins=5)
    drawn(figure, tmp_path)
    bars = figure.axes[1].containers[0]
    off = bars.lines[0].get_ydata()
    error = np.array([np.ptp(segment[:, 1]) / 2 for segment in bars.lines[2][0].get_segments()])
    assert len(off) == 5
    assert (np.abs(off + 5 * np.log10(0.9)) < 4 * error + 0.03).all()
    assert error.max() < 0.2
    assert abs(np.average(off, weights=error**-2.0) - 0.23) < 0.08
    top = figure.axes[0].containers[0].lines[0].get_xydata()
    np.testing.assert_allclose(5 * np.log10(top[:, 1] / top[:, 0]), off)
    with pytest.raises(BadInput, match="its 200 stars with parallaxes"):
        plots.distance_ladder(result, stars.drop("parallax"))


@pytest.mark.long
def test_the_density_of_training_stars_with_parallaxes(survey, posterior):
    """A column of its own: where no training star has a parallax, colours are known, and distances are not."""
    stars = survey[0][:N_TRAIN]
    far = stars.labels.value[:, 1] < np.median(stars.labels.value[:, 1])
    parallax = np.where(far[:, None], np.nan, stars["parallax"].value)
    stars = stars.with_block(parallax=bl.Block(parallax, stars["parallax"].error, unit="mas"))
    frame = MODEL.bind(stars).frame
    told = bl.infer(
        posterior.with_model(frame=frame), survey[0][800:900].drop("labels"), bl.MAP(), progress=False
    ).stars
    u = frame.scaled(np.stack([told["mean"].values[:, i] for i in range(3)], 1))
    training = frame.training_u[frame.training_distant]
    sums = lambda x: np.exp(-0.5 * ((x[:, None] - training) ** 2).sum(-1) / BANDWIDTH**2).sum(1)  # noqa: E731
    np.testing.assert_allclose(told["distance_density"], sums(u) / sums(training).max(), atol=0.01)
    assert len(training) == (~far).sum()
