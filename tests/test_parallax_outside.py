"""Stars unlike those of the training set: errors grow, and the far ones are flagged; honest ones are not."""

from __future__ import annotations

import numpy as np
import pytest
from test_parallax import BANDS

import bayeslabels as bl
from bayeslabels.kinds.parallax.frame import leading_directions
from bayeslabels.kinds.parallax.predict import coordinates
from bayeslabels.numerics import surroundings
from bayeslabels.numerics.incomplete import Population
from bayeslabels.results.star_posterior import Flags


def giants(n, seed=0, n_pixel=60):
    """Stars whose spectra saturate in the metallicity and in the temperature, and ln luminosities that do not."""
    rng = np.random.default_rng(seed)
    metal, hot = rng.uniform(-1, 1, n), rng.uniform(-1, 1, n)
    strength, width = rng.normal(size=(2, n_pixel)), rng.uniform(0.5, 2, n_pixel)
    spectra = 0.1 * np.tanh(width * (metal[:, None] * strength[0] + hot[:, None] * strength[1] + 0.3))
    modulus = rng.uniform(9, 13, n)
    ln_l = 0.8 * metal - 0.6 * hot + 0.05 * rng.normal(size=n)
    mag = (modulus - 2.17 * ln_l)[:, None] + hot[:, None] * [0.5, 0.2, 0.0] + 0.02 * rng.normal(size=(n, 3))
    true = 10 ** (-(modulus - 10) / 5)
    flux = np.exp(spectra) * (1 + 0.01 * rng.normal(size=spectra.shape))
    stars = bl.Stars(
        magnitudes=bl.Block(mag, 0.02, names=BANDS, unit="mag"),
        flux=bl.Block(flux, 0.01),
        parallax=bl.Block(true + 0.02 * rng.normal(size=n), 0.02, unit="mas"),
    )
    return stars, true, metal


@pytest.fixture(scope="module")
def cut():
    """Trained on metallicities below 0; the others are 0 to 1 outside."""
    stars, true, metal = giants(3200)
    train = np.flatnonzero(metal < 0)[:800]
    test = np.setdiff1d(np.arange(3200), train)
    posterior = bl.fit(bl.Parallax(), stars[train], progress=False)
    return posterior, stars[test].drop("parallax"), true[test], metal[test]


def test_errors_grow_and_far_stars_are_flagged(cut):
    posterior, stars, true, metal = cut
    s = bl.infer(posterior, stars, progress=False).stars
    off, sd = np.log(true) - s["ln_parallax"].values, s["ln_parallax_error"].values
    flagged = (s["flags"].values & Flags.OUTSIDE_TRAINING) > 0
    honest, far = metal < 0, metal > 0.7
    assert flagged[honest].mean() < 0.03
    assert flagged[far].all()
    assert np.median(sd[far]) > 2 * np.median(sd[honest])
    assert np.sqrt(((off / sd)[far] ** 2).mean()) < 1.5
    assert 0.85 < (off / sd)[honest].std() < 1.12
    still = posterior.with_moments(posterior.moments._replace(growth=np.array(0.0)))
    without = bl.infer(still, stars, progress=False).stars["ln_parallax_error"].values
    assert np.sqrt(((off / without)[far] ** 2).mean()) > 1.6
    np.testing.assert_allclose(np.median(sd[honest] / without[honest]), 1.0, atol=1e-9)


@pytest.mark.slow
def test_every_training_says_where_its_stars_are(cut, tmp_path):
    posterior, stars, _, metal = cut
    far = stars[np.flatnonzero(metal > 0.7)[:50]]
    again = bl.load(posterior.save(tmp_path / "parallax.nc"))
    np.testing.assert_array_equal(
        bl.infer(again, far, progress=False).error, bl.infer(posterior, far, progress=False).error
    )
    few, _, metal = giants(900, seed=1, n_pixel=15)
    train, away = few[metal < 0], few[metal > 0.8].drop("parallax")
    runs = [(bl.MAP(), {}), (bl.SVI(steps=300), {}), (bl.Laplace(draws=5), {"checkpoint": tmp_path / "a.npz"})]
    for inference, settings in runs:
        found = bl.infer(bl.fit(bl.Parallax(), train, inference, progress=False, **settings), away, progress=False)
        assert ((found.flags & Flags.OUTSIDE_TRAINING) > 0).mean() > 0.9


def test_distance_is_that_of_the_best_plane():
    """Against all distances written out; a star of the set is as far as its nearest neighbour."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(200, 3)) * [1.0, 20.0, 0.3] + [5.0, 0.0, -2.0]
    near = surroundings.learn(x)
    scaled = (x - x.mean(0)) / x.std(0)

    def largest(points, k):
        planes = [
            np.sort(np.linalg.norm(points[:, None, at] - scaled[None][..., at], axis=-1), 1)[:, k]
            for at in ([0, 1], [0, 2], [1, 2])
        ]
        return np.max(planes, 0)

    own = largest(scaled, 1)
    np.testing.assert_allclose([near.usual, near.farthest], np.quantile(own, [0.9, 0.99]), rtol=1e-12)
    probe = rng.normal(size=(30, 3)) * [2.0, 40.0, 0.6] + [5.0, 0.0, -2.0]
    want = largest((probe - x.mean(0)) / x.std(0), 0)
    np.testing.assert_allclose(near.distance(probe), want, rtol=1e-12)
    assert surroundings.learn(x[:, :1]).distance(x[:2, :1]) == pytest.approx(0.0, abs=1e-12)


def test_directions_of_noise_do_not_lead():
    rng = np.random.default_rng(4)
    loadings = np.linalg.qr(rng.normal(size=(100, 4)))[0] * [9.0, 5.0, 0.9, 0.5]
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    found = leading_directions(Population(np.zeros(100), loadings @ turn, np.ones(100)), 1000)
    np.testing.assert_allclose(np.abs(found @ turn.T), np.eye(4)[:2], atol=1e-9)


def test_coordinates_add_up(cut):
    posterior, stars, _, _ = cut
    model, theta = posterior.model, posterior.moments.coefficients
    x = model.design(stars[:20])
    found = coordinates(model, theta, x)
    assert found.shape[1] == 2 + len(model.frame.leading)
    np.testing.assert_allclose(found[:, :2].sum(1) + theta[0], x.value @ theta, rtol=1e-9)


@pytest.mark.parametrize("block", ["magnitudes", "flux"])
def test_a_feature_that_never_changes_is_refused(block):
    """Of a star in which it is another, nothing could be said, and nothing would flag it."""
    stars, *_ = giants(60, n_pixel=5)
    value = stars[block].value.copy()
    value[:, 1], value[7, 1] = 3.0, np.nan
    same = stars.with_block(**{block: bl.Block(value, 0.02, names=stars[block].names, unit=stars[block].unit)})
    with pytest.raises(bl.BadInput, match=rf"one value for all training stars.*{block} without that column"):
        bl.fit(bl.Parallax(), same, progress=False)
