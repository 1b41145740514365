"""The translator between surveys: its density, what it recovers, gaps, extrinsic labels, and where it may be used."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer.util import log_density
from scipy.stats import multivariate_normal

import bayeslabels as bl
from bayeslabels.errors import CannotDo
from bayeslabels.kind import kind_of
from bayeslabels.kinds.translator.frame import known_inputs, measured
from bayeslabels.kinds.translator.importances import importances
from bayeslabels.numerics.propagate import scale_mixture
from bayeslabels.results.star_posterior import Flags

NAMES = ("TEFF", "LOGG", "V")
UNITS = ("K", "dex", "km / s")
CENTRE, SPREAD = np.array([5000.0, 3.0, 0.0]), np.array([300.0, 0.5, 30.0])
PLAIN = bl.Translator(function="polynomial", order=2, scatter="constant", members=2, components=2, robust=False)
SHORT = bl.MAP(max_iterations=40)


def surveys(n, seed=0, error=0.0, scatter=0.1, d=3, curve=0.5):
    """Stars, their true inputs and outputs: y = x + SPREAD (0.3 + 0.4 u - 0.2 v + curve (u^2 - 1)), plus scatter."""
    rng = np.random.default_rng(seed)
    u = rng.normal(size=(n, d))
    other = 0.6 * u[:, :1] + 0.8 * u[:, 1:2] if d > 1 else 0.0
    u[:, 1:2] = other
    shift = 0.3 + 0.4 * u[:, :1] - 0.2 * other + curve * (u[:, :1] ** 2 - 1)
    x = CENTRE[:d] + SPREAD[:d] * u
    y = x + SPREAD[:d] * (shift * [1.0, -1.0, 0.5][:d] + scatter * rng.standard_normal((n, d)))
    blocks = {}
    for name, true in (("labels", x), ("target_labels", y)):
        sd = np.full(x.shape, 1.0) * error * SPREAD[:d]
        noisy = true + sd * rng.standard_normal(x.shape)
        blocks[name] = bl.Block(noisy, sd if error else None, names=NAMES[:d], unit=UNITS[:d])
    return bl.Stars(**blocks), x, y


def with_gaps(block, share, seed):
    value = np.where(np.random.default_rng(seed).random(block.value.shape) < share, np.nan, block.value)
    return bl.Block(value, block.error, names=block.names, unit=block.units)


def members(posterior):
    theta = posterior.moments.theta
    return [{k: jnp.asarray(v[e]) for k, v in theta.items()} for e in range(len(theta["coefficients"]))]


def outputs(posterior, x):
    """Means and intrinsic scatters (E, ..., M) of the members at scaled inputs."""
    theta = {k: jnp.asarray(v) for k, v in posterior.moments.theta.items()}
    return [np.asarray(a) for a in jax.jit(jax.vmap(posterior.model.outputs, (0, None)))(theta, jnp.asarray(x))]


def theta_of(model, stars, seed=0):
    """Some values of the shared parameters."""
    rng = np.random.default_rng(seed)
    theta = {k: jnp.asarray(v + 0.3 * rng.normal(size=v.shape)) for k, v in model.start(stars, 0).items()}
    if "error_factor" in theta:
        theta["error_factor"] = jnp.asarray(rng.uniform(0.2, 2.0, theta["error_factor"].shape))
    if "correlation" in theta:
        factor = np.tril(rng.normal(size=theta["correlation"].shape)) * 0.3 + np.eye(len(theta["correlation"]))
        theta["correlation"] = jnp.asarray(factor / np.linalg.norm(factor, axis=1, keepdims=True))
    return theta | ({"freedom": jnp.array(4.0)} if model.robust else {})


@pytest.mark.parametrize("robust", [False, True])
def test_the_likelihood_with_exact_inputs(robust):
    """Against SciPy, outputs missing here and there."""
    stars, _, _ = surveys(40, d=2)
    stars = stars.with_block(target_labels=with_gaps(stars.target_labels, 0.3, 5))
    with jax.enable_x64(True):
        model = PLAIN.replace(robust=robust).bind(stars)
        theta, frame, rows = theta_of(model, stars), model.frame, model.arrays(stars)
        both = jax.jit(lambda theta, rows: (model.log_likelihood(theta, rows), *model.outputs(theta, rows.x)))
        found, mean, s = (np.asarray(a) for a in both(theta, rows))
        logs, lam = scale_mixture(theta.get("freedom", jnp.array(9.0)))
    y = frame.target_centre + frame.target_scale * mean
    np.testing.assert_allclose(rows.x, (stars.labels.value - frame.centre) / frame.scale)
    factor = np.asarray(theta["correlation"])
    correlation = factor @ factor.T
    for n in range(0, 40, 3):
        at = np.flatnonzero(stars.target_labels.observed[n])
        sd = s[n] * frame.target_scale
        covariance = (np.outer(sd, sd) * correlation)[np.ix_(at, at)]
        offset = (np.asarray(stars.target_labels.value)[n] - y[n])[at]
        if not len(at):
            assert found[n] == pytest.approx(0.0, abs=1e-12)
            continue
        want = multivariate_normal(np.zeros(len(at)), covariance).logpdf(offset) + np.log(frame.target_scale[at]).sum()
        if robust:
            want = np.log(sum(
                np.exp(w) * multivariate_normal(np.zeros(len(at)), covariance / p).pdf(offset)
                for w, p in zip(np.asarray(logs), lam, strict=True)
            )) + np.log(frame.target_scale[at]).sum()  # fmt: skip
        assert found[n] == pytest.approx(want, rel=1e-8, abs=1e-8)


def test_what_is_held_for_many_steps_changes_no_density():
    """At the theta that it was computed with; and errors of a thousandth of the labels' spread are not propagated."""
    stars, _, _ = surveys(700, d=2, error=0.2)
    with jax.enable_x64(True):
        model = PLAIN.bind(stars)
        theta, rows = theta_of(model, stars), jax.tree.map(jnp.asarray, model.arrays(stars))
        held = jax.jit(model.held)(theta, rows)
        density = jax.jit(model.log_likelihood)
        assert held.root.shape == (700, 2, 0)
        np.testing.assert_allclose(density(theta, held), density(theta, rows), rtol=1e-10)
    precise, _, _ = surveys(200, d=2, error=1e-3)
    assert PLAIN.bind(precise).arrays(precise).root.shape == (200, 2, 0)


def test_the_program_with_its_true_inputs_integrated_out():
    """One noisy input on a grid: the NumPyro density, integrated, is the likelihood of training."""
    stars, _, _ = surveys(300, d=1, error=0.3, curve=0.2)
    with jax.enable_x64(True):
        model = PLAIN.replace(order=1).bind(stars)
        star = stars[:1]
        theta = theta_of(model, stars)
        grid = np.linspace(-5, 5, 2001)

        @jax.jit
        def densities(theta, rows):
            prior = log_density(model.parameters, (), {}, theta)[0]
            at = lambda x: log_density(model, (star,), {}, {**theta, "true_inputs": x.reshape(1, 1)})[0]  # noqa: E731
            return jax.vmap(at)(grid) - prior, model.log_likelihood(theta, rows)[0]

        each, found = densities(theta, model.arrays(star))
        total = np.trapezoid(np.exp(np.asarray(each)), grid)
        given = measured(model.frame, star)
        evidence = model.frame.mixtures[0].given(*given).log_density[0]
    jacobian = np.log(model.frame.scale[0] * model.frame.target_scale[0])
    assert np.log(total) == pytest.approx(float(found) + evidence - jacobian, abs=0.02)


@pytest.fixture(scope="module")
def exact():
    """Inputs without errors, one member with a Gaussian about it."""
    stars, _, _ = surveys(800, seed=9, d=2)
    return stars, bl.fit(PLAIN.replace(members=1), stars, bl.Laplace(draws=400), seed=0, progress=False)


@pytest.fixture(scope="module")
def noisy():
    stars, x, y = surveys(3000, seed=1, error=0.25, d=2)
    posterior = bl.fit(PLAIN, stars[:2000], SHORT, seed=0, progress=False)
    return stars, x, y, posterior


@pytest.mark.long
def test_noise_does_not_attenuate(noisy):
    """The function at true inputs, where least squares on noisy ones loses a tenth of its curvature."""
    stars, _, _, posterior = noisy
    frame = posterior.model.frame
    u = np.linspace(-1.5, 1.5, 31)
    at = np.column_stack([CENTRE[0] + SPREAD[0] * u, np.full(31, CENTRE[1])])
    mean = outputs(posterior, (at - frame.centre) / frame.scale)[0].mean(0)
    f = ((frame.target_centre + frame.target_scale * mean)[:, 0] - at[:, 0]) / SPREAD[0]
    curve, slope, _ = np.polyfit(u, f, 2)
    assert curve == pytest.approx(0.5, abs=0.04)
    assert slope == pytest.approx(0.4, abs=0.06)
    seen = (stars.labels.value[:, 0] - CENTRE[0]) / SPREAD[0]
    assert np.polyfit(seen, (stars.target_labels.value - stars.labels.value)[:, 0] / SPREAD[0], 2)[0] < 0.46


def test_errors_hold_with_noise_on_both_sides(noisy):
    stars, _, y, posterior = noisy
    result = bl.infer(posterior, stars[2000:].drop("target_labels"), bl.Laplace(draws=200), progress=False)
    z = (y[2000:] - result.mean) / result.error
    assert np.abs(z.std(0) - 1).max() < 0.1
    assert np.abs(z.mean(0)).max() < 0.1
    share = bl.calibration.coverage(result, y[2000:]).share
    assert np.abs(share - 0.6827).max() < 0.05
    parts = sum(result.stars[f"error_{x}"].values ** 2 for x in ("measurement", "function", "intrinsic"))
    np.testing.assert_allclose(np.sqrt(parts), result.error, rtol=1e-6)
    table = result.table()
    low, high = np.percentile(result.draws("TEFF"), [5, 95], axis=0)
    np.testing.assert_allclose((table["TEFF_p95"] - table["TEFF_p5"]).value.mean(), (high - low).mean(), rtol=0.03)
    assert str(table["TEFF_error_function"].unit) == "K"


def test_missing_inputs_are_integrated_over(noisy):
    stars, _, y, posterior = noisy
    test = stars[2000:].drop("target_labels")
    whole = bl.infer(posterior, test, progress=False)
    holes = test.with_block(labels=with_gaps(test.labels, 0.3, 7))
    result = bl.infer(posterior, holes, progress=False)
    gap = ~holes.labels.observed
    assert (result.error[gap] > whole.error[gap]).mean() > 0.95
    z = (y[2000:] - result.mean) / result.error
    assert 0.9 < z.std() < 1.15
    blank = gap.all(1)
    assert blank.any()
    np.testing.assert_allclose(result.mean[blank], np.broadcast_to(result.mean[blank][0], result.mean[blank].shape))
    assert np.abs(result.mean[blank][0] - y.mean(0)).max() / SPREAD[0] < 0.5
    assert all("NO_DATA" in bl.flag_names(flag) for flag in result.flags[blank])
    assert all("MISSING_BAND" in bl.flag_names(flag) for flag in result.flags[gap.any(1)])
    assert (result.stars["n_missing"].values == gap.sum(1)).all()


@pytest.mark.long
def test_the_other_direction_is_bayes_theorem_where_the_function_is_linear():
    """Against the mixture of Gaussians written out, one output missing here and there."""
    stars, _, _ = surveys(400, seed=8, error=0.2, d=2, curve=0.0)
    model = PLAIN.replace(order=1, members=1)
    posterior = bl.fit(model, stars, bl.MAP(max_iterations=15), seed=0, progress=False)
    frame, (theta,) = posterior.model.frame, members(posterior)
    few = stars[:32].drop("labels").with_block(target_labels=with_gaps(stars[:32].target_labels, 0.3, 2))
    result = bl.infer(posterior, few, bl.Laplace(draws=3000), seed=0, progress=False)
    with jax.enable_x64(True):
        mean, s = (a[0] for a in outputs(posterior, np.r_[np.zeros((1, 2)), np.eye(2)]))
    start, slope, s = mean[0], (mean[1:] - mean[0]).T, s[0]
    scatter = s[:, None] * np.asarray(theta["correlation"] @ theta["correlation"].T) * s
    prior = frame.mixtures[0]
    for n in range(0, 32, 3):
        seen = np.flatnonzero(few.target_labels.observed[n])
        y = ((np.asarray(few.target_labels.value[n]) - frame.target_centre) / frame.target_scale)[seen]
        stated = theta["error_factor"] * few.target_labels.error[n] / frame.target_scale
        noise = (scatter + np.diag(stated**2))[np.ix_(seen, seen)]
        a, b = slope[seen], start[seen]
        weight, mean, second = [], [], []
        for w, m, v in zip(*prior, strict=True):
            total = a @ v @ a.T + noise
            gain = v @ a.T @ np.linalg.inv(total) if len(seen) else np.zeros((2, 0))
            centre = m + gain @ (y - b - a @ m)
            weight.append(w * (multivariate_normal(b + a @ m, total).pdf(y) if len(seen) else 1.0))
            mean.append(centre)
            second.append(v - gain @ a @ v + np.outer(centre, centre))
        share = np.array(weight) / sum(weight)
        want = share @ np.array(mean)
        sd = np.sqrt(np.diag(np.einsum("k,kij->ij", share, second) - np.outer(want, want)))
        np.testing.assert_allclose((result.mean[n] - frame.centre) / frame.scale, want, atol=0.12 * sd.max())
        np.testing.assert_allclose(result.error[n] / frame.scale, sd, rtol=0.12)


@pytest.mark.long
def test_the_other_direction_from_one_fit(noisy):
    stars, x, _, posterior = noisy
    test = stars[2000:]
    alone, both = (bl.infer(posterior, s, seed=1, progress=False) for s in (test.drop("labels"), test))
    for result in (alone, both):
        z = (x[2000:] - result.mean) / result.error
        assert np.abs(z.std(0) - 1).max() < 0.1
        assert np.abs(z.mean(0)).max() < 0.1
        assert np.abs((np.abs(z) < 1).mean(0) - 0.6827).max() < 0.05
        assert result.frame.names == stars.labels.names
        assert str(result.table()["TEFF_error"].unit) == "K"
    assert (both.error < alone.error).mean() > 0.95
    assert (alone.stars["khat"] < 0.7).mean() > 0.98
    assert bl.calibration.coverage(alone, test).share.shape == (2,)


@pytest.mark.slow
def test_the_other_direction_is_calibrated_on_simulated_stars(noisy):
    stars, _, _, posterior = noisy
    found = bl.calibration.sbc(posterior, stars[2000:2200].drop("labels"), bl.Laplace(draws=200), 200, seed=2)
    assert found.holds, str(found)


def test_missing_outputs_and_inputs_in_training():
    stars, _, y = surveys(1500, seed=3, d=2)
    holes = stars.with_block(**{name: with_gaps(stars[name], 0.2, i) for i, name in enumerate(stars.blocks)})
    posterior = bl.fit(PLAIN, holes[:1000], SHORT, seed=0, progress=False)
    result = bl.infer(posterior, stars[1000:].drop("target_labels"), progress=False)
    z = (y[1000:] - result.mean) / result.error
    assert 0.85 < z.std() < 1.15
    assert posterior.info["n_without_target_labels"] == int((~holes[:1000].target_labels.observed.any(1)).sum())


@pytest.fixture(scope="module")
def extrinsic():
    stars, _, _ = surveys(300, seed=4, error=0.2)
    return stars, bl.fit(PLAIN.replace(extrinsic=("V",)), stars, bl.MAP(max_iterations=5), seed=0, progress=False)


def test_extrinsic_labels_never_influence_the_others(extrinsic):
    stars, posterior = extrinsic
    model, frame = posterior.model, posterior.model.frame
    assert frame.extrinsic_outputs.tolist() == frame.extrinsic_inputs.tolist() == [False, False, True]
    theta = members(posterior)[0]
    with jax.enable_x64(True):
        x, root = (jnp.asarray(a) for a in known_inputs(frame, measured(frame, stars)))
        both = lambda x, r: jnp.concatenate(  # noqa: E731
            [a.ravel() for a in (model.predictive(theta, x[None], r[None])[0], model.outputs(theta, x)[1])]
        )
        slopes = jax.jit(jax.vmap(jax.jacrev(both, (0, 1))))(x, root)
    assert (np.asarray(slopes[0])[:, [0, 1, 3, 4], 2] == 0).all()
    assert (np.asarray(slopes[1])[:, [0, 1, 3, 4], 2] == 0).all()
    assert (np.asarray(slopes[0])[:, 2, :2] != 0).any()
    test = stars.drop("target_labels")
    changed = np.array(test.labels.value)
    changed[:, 2] = np.nan_to_num(changed[::-1, 2] * 3 + 50)
    changed[::5, 2] = np.nan
    moved = test.with_block(labels=bl.Block(changed, test.labels.error, names=NAMES, unit=UNITS))
    one, two = (bl.infer(posterior, s, progress=False) for s in (test, moved))
    np.testing.assert_array_equal(one.mean[:, :2], two.mean[:, :2])
    np.testing.assert_array_equal(one.error[:, :2], two.error[:, :2])
    assert (one.mean[:, 2] != two.mean[:, 2]).all()


def test_importances_sum_to_the_translation(extrinsic):
    stars, posterior = extrinsic
    values = importances(posterior, stars[:5], background=20)
    assert values.dims == ("star", "labels", "input")
    assert np.abs(values.sel(labels=["TEFF", "LOGG"], input="V")).max() < 1e-9
    frame = posterior.model.frame
    x, _ = known_inputs(frame, measured(frame, stars[:5]))
    with jax.enable_x64(True):
        mean = outputs(posterior, np.r_[x, frame.background[:20]])[0].mean(0)
    want = (mean[:5] - mean[5:].mean(0)) * frame.target_scale
    np.testing.assert_allclose(values.sum("input"), want, atol=1e-10 * np.abs(want).max())


def test_out_of_range_is_flagged_with_the_pair_and_errors_grow():
    stars, _, _ = surveys(800, seed=5, d=2)
    network = bl.Translator(width=16, depth=2)
    posterior = bl.fit(network, stars, bl.MAP(max_iterations=20), seed=0, progress=False)
    u = np.array([[0.0, 0.0], [0.0, 3.2], [4.0, 2.4], [8.0, 4.8], [16.0, 9.6]])
    planted = bl.Stars(labels=bl.Block(CENTRE[:2] + SPREAD[:2] * u, names=NAMES[:2], unit=UNITS[:2]))
    result = bl.infer(posterior, planted, progress=False)
    outside = result.flags & Flags.OUTSIDE_TRAINING > 0
    assert outside.tolist() == [False, True, True, True, True]
    assert result.table()["outside"][1].split()[0] == "TEFF-LOGG"
    function = result.stars["error_function"].values
    assert (function[3] > 3 * function[0]).all()
    assert (np.diff(result.error[[0, 2, 3, 4], :], axis=0) > 0).all()


def test_files_and_seeds(extrinsic, tmp_path):
    stars, posterior = extrinsic
    again = bl.load(posterior.save(tmp_path / "translator.nc"))
    test = stars.drop("target_labels")
    np.testing.assert_array_equal(
        bl.infer(again, test, progress=False).mean, bl.infer(posterior, test, progress=False).mean
    )
    assert again.model == posterior.model
    density = kind_of(posterior.model).log_density(posterior, None, stars)
    np.testing.assert_array_equal(kind_of(again.model).log_density(again, None, stars), density)
    assert np.isfinite(density).all()
    assert list(posterior.summary()["corrects"]) == list(NAMES)
    mean, sd = posterior.predict(test, with_error=True)
    assert mean.shape == sd.shape == (300, 3)
    assert "TEFF, LOGG, V from TEFF, LOGG, V" in repr(posterior)


def test_bad_input(exact):
    stars, posterior = exact
    with pytest.raises(bl.BadInput, match="target_labels"):
        bl.fit(PLAIN, stars.drop("target_labels"))
    kelvin = bl.Block(stars.labels.value / [1000.0, 1.0], names=NAMES[:2], unit=("kK", "dex"))
    with pytest.raises(bl.BadInput, match="one unit"):
        bl.fit(PLAIN, stars.with_block(labels=kelvin))
    bare = bl.Block(stars.labels.value / [1000.0, 1.0], names=NAMES[:2], unit=UNITS[:2])
    with pytest.raises(bl.BadInput, match="same scale"):
        bl.fit(PLAIN, stars.with_block(labels=bare))
    with pytest.raises(bl.BadInput, match="extrinsic"):
        bl.fit(PLAIN.replace(extrinsic=("RV",)), stars)
    with pytest.raises(bl.BadInput, match="all inputs"):
        bl.fit(PLAIN.replace(extrinsic=NAMES[:2]), stars)
    with pytest.raises(bl.BadInput, match="tuple of names"):
        bl.Translator(extrinsic="V")
    with pytest.raises(bl.BadInput, match="function"):
        bl.Translator(function="forest")
    noisy = bl.Block(stars.labels.value, SPREAD[:2], names=NAMES[:2], unit=UNITS[:2])
    with pytest.raises(bl.BadInput, match="as in training"):
        bl.infer(posterior, bl.Stars(labels=noisy))
    with pytest.raises(bl.BadInput, match="select"):
        bl.infer(posterior, bl.Stars(labels=stars.labels.select((1, 0))))
    with pytest.raises(CannotDo, match="Translator"):
        bl.infer(posterior, stars.drop("target_labels"), bl.Importance())


@pytest.mark.slow
def test_dropout_is_of_the_training_step_alone(tmp_path):
    """The same weights by the same seed, others than without; what they translate draws no number."""
    stars, _, _ = surveys(100, d=2)
    model = bl.Translator(
        width=(4, 6, 4), depth=3, dropout=0.3, scatter="constant", members=2, components=1, robust=False
    )
    fits = [
        bl.fit(m, stars, bl.MAP(max_iterations=2), seed=3, progress=False)
        for m in (model, model, model.replace(dropout=0.0))
    ]
    one, again, without = (p.moments.coefficients for p in fits)
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - without).max() > 1e-3
    theta = {name: jnp.asarray(x[0]) for name, x in fits[0].moments.theta.items()}
    bound, key = fits[0].model, jax.random.key(0)
    x = jnp.asarray(bound.frame.background[:5])
    dropped = bound.outputs(bound.dropped(theta, key), x)[0]
    assert (dropped != bound.outputs(theta, x)[0]).any()
    kept = fits[2].model
    assert kept.dropped(theta, key) is theta
    loaded = bl.load(fits[0].save(tmp_path / "translator.nc"))
    assert loaded.model == model
    test = stars.drop("target_labels")
    means = [bl.infer(p, test, seed=i, progress=False).mean for i, p in enumerate((fits[0], loaded))]
    np.testing.assert_array_equal(*means)
    for inference in (bl.NUTS(), bl.SVI(), bl.Laplace()):
        with pytest.raises(CannotDo, match="dropout"):
            bl.fit(model, stars, inference, progress=False)
    with pytest.raises(bl.BadInput, match="depth=2"):
        bl.Translator(width=(64, 128))
    for wrong in (32.0, "wide", [64, 128, 64]):
        with pytest.raises(bl.BadInput, match="one whole number, or a tuple"):
            bl.Translator(width=wrong)
    with pytest.raises(bl.BadInput, match="dropout"):
        bl.Translator(function="polynomial", dropout=0.5)
    with pytest.raises(bl.BadInput, match="dropout"):
        bl.Translator(dropout=1.0)


def test_laplace_is_the_gaussian_of_linear_regression(exact):
    """Of what f is linear in, against (A' A / s^2 + prior)^-1 written out, of the stars that the member trained on."""
    stars, posterior = exact
    model, (theta, *_) = posterior.model, members(posterior)
    with jax.enable_x64(True):
        rows = model.arrays(stars)
        own = {**theta, "scatter_shift": jnp.zeros(2)}
        of = lambda w: model.outputs({**own, "coefficients": w}, jnp.asarray(rows.x))  # noqa: E731
        design, (_, s) = jax.jit(lambda w: (jax.jacfwd(lambda w: of(w)[0])(w), of(w)))(theta["coefficients"])
        design, s, factor = (np.asarray(a) for a in (design, s[0], theta["correlation"]))
    scatter = np.linalg.inv(s[:, None] * factor @ factor.T * s)
    information = 0.9 * np.einsum("nmp,mk,nkq->pq", design, scatter, design) + np.diag(
        model.functions[0].prior_sd ** -2
    )
    want = np.sqrt(np.einsum("nmp,pq,nmq->nm", design, np.linalg.inv(information), design))
    draws = posterior.data["posterior"]["coefficients"].values
    assert draws.shape[:2] == (1, 400)
    sd = np.einsum("nmp,sp->snm", design, draws[0]).std(0)
    np.testing.assert_allclose((sd / want).mean(0), 1.0, atol=0.1)
    with pytest.raises(CannotDo, match="files"):
        bl.fit(PLAIN, "stars.parquet", bl.Laplace())


@pytest.mark.slow
def test_nuts_agrees_with_the_ensemble():
    stars, _, _ = surveys(400, seed=6, d=1)
    by = {}
    for inference in (bl.MAP(), bl.NUTS(chains=2, draws=60, warmup=100)):
        posterior = bl.fit(PLAIN, stars, inference, seed=0, progress=False)
        by[type(inference).__name__] = bl.infer(posterior, stars.drop("target_labels"), progress=False)
    offset = (by["MAP"].mean - by["NUTS"].mean) / by["NUTS"].error
    assert np.abs(offset).mean() < 0.1
    np.testing.assert_allclose(by["MAP"].error, by["NUTS"].error, rtol=0.15)
