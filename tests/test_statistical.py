"""What a photometric model does not know of what it is linear in: against products written out, and few stars."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binom

import bayeslabels as bl
from bayeslabels.inference import polish
from bayeslabels.inference.minibatch import transforms
from bayeslabels.kinds.photometry.statistical import SITES, about_members, coefficients, deviations_at
from bayeslabels.numerics.dusty import LN10_5, parallax_at, place
from bayeslabels.numerics.tangent import as_measured, extinction, slope
from bayeslabels.simulate import simulate_xp

pytestmark = pytest.mark.long

SMALL = {"n_pixel": 9, "bands": ("J", "Ks")}


@pytest.fixture(scope="module")
def survey():
    return simulate_xp(520, seed=3, **SMALL)


@pytest.fixture(scope="module")
def bound(survey):
    model = bl.Photometry(width=5, depth=1, components=1, members=1).bind(survey[0][:40])
    theta, rng = model.start(survey[0], 0), np.random.default_rng(1)
    theta["weights"] = 0.3 * rng.normal(size=theta["weights"].shape)
    theta["reddening_slope"] = 0.05 * rng.normal(size=theta["reddening_slope"].shape)
    return model, theta


def magnitudes(model, theta, u, e):
    return model.absolute(theta["weights"], u) + extinction(e, model.vector(theta, u), theta["reddening_bend"])


def test_the_slopes_are_those_of_the_magnitudes(bound):
    model, theta = bound
    rng = np.random.default_rng(2)
    u, e = rng.normal(size=(4, 3)), rng.uniform(0, 1, 4)
    with jax.enable_x64(True):
        point = {name: jnp.asarray(x) for name, x in theta.items()}
        step = {name: jnp.asarray(rng.normal(size=theta[name].shape)) for name in SITES}
        step["weights"] = step["weights"].at[model.net.linear :].set(0.0)
        at = lambda free: magnitudes(model, point | free, u, e)  # noqa: E731
        expected = jax.jvp(at, ({name: point[name] for name in SITES},), (step,))[1]
        c = coefficients(model.net, model.frame.spread, jax.tree.map(lambda x: np.asarray(x)[None], step))
        np.testing.assert_allclose(deviations_at(model.net, point, c, u, e)[0], expected, rtol=1e-9, atol=1e-12)


def test_simulations_draw_what_members_do_not_know(bound):
    """Sites about the members differ from these by the deviations that they were made from."""
    model, theta = bound
    members = {name: np.stack([x, 1.1 * x])[None] for name, x in theta.items()}
    of_members = coefficients(model.net, model.frame.spread, {name: x[0] for name, x in members.items()})
    deviation = 0.01 * np.random.default_rng(3).normal(size=(2, 5, *of_members.shape[1:]))
    sites = about_members(model, members, deviation)
    assert all(x.shape[:2] == (2, 5) for x in sites.values())
    found = coefficients(model.net, model.frame.spread, sites)
    np.testing.assert_allclose(found - of_members[:, None], deviation, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(
        sites["scatter"], np.broadcast_to(members["scatter"][0][:, None], (2, 5, found.shape[2]))
    )


def test_the_information_is_that_of_dense_matrices(survey, bound):
    """sum_n J_n' C_n^-1 J_n with Jacobians by JAX and covariances put together and inverted, in float64."""
    model, theta = bound
    data = jax.tree.map(np.asarray, model.arrays(survey[0][:6]))
    count = np.array([1.0, 2.0, 0.0, 1.0, 3.0, 1.0])
    free = {name: np.asarray(theta[name]) for name in SITES}
    free["weights"] = free["weights"][: model.net.linear]
    flat, back = polish._raveled(free)
    with jax.enable_x64(True):
        point = {name: jnp.asarray(x) for name, x in theta.items()}
        told = jax.tree.map(np.asarray, model.linear_part.told(point, data))
        found, index = model.linear_part.information(told, count, back(np.arange(len(flat))))
        assert sorted(index) == list(range(len(flat)))
        at, others = model.predicted(point, data), model.others(point, data)
        spot = jax.tree.map(np.asarray, place(model.seen_in(point, data, at), others)[0])

        def of_star(x, n):
            own = {name: jnp.asarray(x[name]) for name in SITES}
            own["weights"] = jnp.concatenate([own["weights"], point["weights"][model.net.linear :]])
            return magnitudes(model, point | own, data.label_mean[n], spot.e[n])

        expected = np.zeros(found.shape)
        for n, times in enumerate(count):
            jacobian = jax.jacobian(lambda x, n=n: of_star(x, n))(free)
            each = np.concatenate([np.asarray(jacobian[name]).reshape(model.shape[1], -1) for name in sorted(free)], 1)
            change = np.asarray(as_measured(at.mean[n] + spot.mu[n] + extinction(
                spot.e[n], at.vector[n], theta["reddening_bend"]), model.n_magnitude)[1])  # fmt: skip
            each = each * change[:, None]
            own = np.diag(theta["scatter"] ** 2 * data.channels.unit[n] ** 2) + data.channels.noise[n]
            tangent = LN10_5 * parallax_at(spot.mu[n]) * others.parallax_weight[n]
            of_mu = at.luminosity[n] ** 2 + 1 / (tangent**2 + 1 / 25)
            of_e = 1 / (others.reddening_weight[n] ** 2 + np.asarray(others.dust.rough(spot.mu)[0])[n])
            along = np.asarray(slope(spot.e[n], at.vector[n], theta["reddening_bend"])) * change
            wide = np.asarray(at.factors[n]) * change
            covariance = own + wide.T @ wide + of_mu * np.outer(change, change) + of_e * np.outer(along, along)
            seen = data.channels.seen[n] > 0
            expected += times * each[seen].T @ np.linalg.inv(covariance[np.ix_(seen, seen)]) @ each[seen]
    scale = np.sqrt(np.diag(expected))[index]
    np.testing.assert_allclose(found / np.outer(scale, scale), expected[np.ix_(index, index)] / np.outer(scale, scale),
                               atol=1e-6)  # fmt: skip


def test_draws_have_the_inverse_of_the_information(survey):
    model = bl.Photometry(function="polynomial", order=1, components=1, members=1).bind(survey[0][:128])
    polisher = polish.Polisher(model, transforms(model), model.polished)
    with jax.enable_x64(False):
        start = {name: np.asarray(x, np.float32) for name, x in model.start(survey[0], 0).items()}
        real = {name: np.asarray(transforms(model)[name].inv(x))[None] for name, x in start.items()}
        mode, chunks = next(polish._members(real, model.arrays(survey[0][:128]), np.ones((1, 128))))
        root = polisher.root({n: mode[n][at] for n, at in polisher.part.items()}, mode, chunks, apart=True)
        draws = polisher.draw(mode, chunks, 4000, np.random.default_rng(0))
    flat = np.stack([polish._raveled({n: draws[n][i][at] for n, at in polisher.part.items()})[0] for i in range(4000)])
    white = (flat - flat.mean(0)) @ root
    np.testing.assert_allclose(white.T @ white / 4000, np.eye(len(root)), atol=0.12)


@pytest.fixture(scope="module")
def few(survey):
    model = bl.Photometry(function="polynomial", order=2, members=1, components=2)
    return bl.fit(model, survey[0][:120], progress=False)


def z_of(posterior, survey):
    stars, truth = survey
    told = bl.infer(posterior, stars[120:].drop("labels"), bl.Laplace(), progress=False)
    true = np.concatenate([truth.labels, truth.reddening[:, None]], 1)[120:]
    return (told.mean[:, :4] - true) / told.error[:, :4]


def test_errors_hold_of_few_training_stars(survey, few):
    """120 stars for 11 channels. What the model does not know is common to all of the 400 test stars: shares of them
    are allowed what as many as the training stars would be."""
    assert few.info["converged"]
    inside = np.abs(z_of(few, survey)) < 1
    low, high = binom.interval(0.999, 120, 0.6827)
    assert (inside.mean(0) > low / 120).all()
    assert (inside.mean(0) < high / 120).all()
    sure = few.with_moments(few.moments._replace(deviation=0 * few.moments.deviation))
    assert (np.abs(z_of(sure, survey)) < 1).mean() < inside.mean() - 0.05


def test_what_is_not_known_is_in_the_table_and_in_predictions(survey, few):
    sure = few.with_moments(few.moments._replace(deviation=0 * few.moments.deviation))
    table = few.summary()
    for name in ("reddening_vector", "reddening_bend"):
        error = np.asarray(table[f"{name}_error"])
        assert ((error > 1e-4) & (error < 0.5)).all()
        assert not np.asarray(sure.summary()[f"{name}_error"]).any()
    for name in ("absolute_magnitudes", "reddening_vector", "magnitudes", "spectrum"):
        stars = survey[0][120:160]
        error, less = (x.predict(stars, name, with_error=True)[1] for x in (few, sure))
        assert (error > less).all()
    true = survey[1].reddening_vector[120:].mean(0)
    found, error = few.predict(survey[0][120:], "reddening_vector", with_error=True)
    assert (np.abs(found.mean(0) - true) < 3.5 * error.mean(0)).all()
