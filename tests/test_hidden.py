"""Labels that no catalogue states: found where spectra have something in common beside the labels, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

import bayeslabels as bl
from bayeslabels import Cannon, errors
from bayeslabels.results.about import selection

pytestmark = pytest.mark.long

L, NAMES, NOISE, ERROR = 120, ("TEFF", "LOGG"), 0.15, 0.01


def survey(n, seed, size):
    """Spectra quadratic in two labels and, times `size`, in a third that is left out."""
    rng, of_spectra = np.random.default_rng(seed), np.random.default_rng(1)
    theta = of_spectra.normal(size=(3, L)) * np.array([[0.03], [0.03], [0.03 * size]])
    bends = of_spectra.normal(size=(3, 3, L)) * 0.004 * np.array([1, 1, size])[:, None, None]
    w = np.clip(rng.normal(size=(n, 3)), -2.5, 2.5)
    flux = 1 + w @ theta + np.einsum("ni,ijl,nj->nl", w, bends, w * [1, 1, size]) + ERROR * rng.normal(size=(n, L))
    flux[rng.random(flux.shape) < 0.03] = np.nan
    labels = bl.Block(w[:, :2] + NOISE * rng.normal(size=(n, 2)), np.full((n, 2), NOISE), names=NAMES)
    return bl.Stars(labels=labels, flux=bl.Block(flux, ERROR)), w


@pytest.fixture(scope="module")
def stars():
    return survey(400, 0, 1.0)[0]


@pytest.fixture(scope="module")
def posterior(stars):
    return bl.fit(Cannon(order=2, hidden="auto"), stars)


@pytest.fixture(scope="module")
def held_out():
    return survey(500, 1, 1.0)


def test_a_label_that_was_left_out_is_found(posterior, held_out):
    stars, w = held_out
    assert posterior.model.hidden == ("hidden_0",)
    result = bl.infer(posterior, stars.drop("labels"))
    assert result.frame.names == (*NAMES, "hidden_0")
    assert abs(np.corrcoef(result.mean[:, 2], w[:, 2])[0, 1]) > 0.95
    assert (result.flags > 0).mean() < 0.05


def test_errors_hold_where_a_label_was_left_out(posterior, stars, held_out):
    test, w = held_out[0].drop("labels"), held_out[1]
    plain = bl.infer(bl.fit(Cannon(order=2, label_noise="free"), stars), test)
    found = bl.infer(posterior, test)
    z = [(x.mean[:, :2] - w[:, :2]) / x.error[:, :2] for x in (plain, found)]
    rms = [np.sqrt(((x.mean[:, :2] - w[:, :2]) ** 2).mean(0)) for x in (plain, found)]
    assert z[0].std(0).max() > 1.3  # the test can fail
    assert (np.abs(z[1].std(0) - 1) < 0.15).all()
    assert (rms[1] < rms[0]).all()


def test_no_label_is_found_where_none_was_left_out():
    for seed in range(3):
        assert bl.fit(Cannon(order=2, hidden="auto"), survey(200, seed, 0.0)[0]).model.hidden == ()


def test_scores_are_told_and_all_is_kept(posterior, held_out, tmp_path):
    first, second = (s for s in posterior.info["selection"] if "hidden" in s)
    assert first["excess"] > 1.2 > 1.05 > second["excess"]
    assert any("hidden label 1" in line for line in selection(posterior.info))
    posterior.save(tmp_path / "model.nc")
    loaded, some = bl.load(tmp_path / "model.nc"), held_out[0][:20].drop("labels")
    assert loaded.model.hidden == ("hidden_0",)
    np.testing.assert_array_equal(bl.infer(loaded, some).mean, bl.infer(posterior, some).mean)


def test_catalogue_labels_of_the_test_star_help(posterior, held_out):
    alone, both = (bl.infer(posterior, x) for x in (held_out[0][:50].drop("labels"), held_out[0][:50]))
    assert (both.error[:, :2] <= alone.error[:, :2] * 1.01).all()


@pytest.mark.parametrize("hidden", [True, -1, 11, "some", 1.5])
def test_a_number_is_asked_for(hidden):
    with pytest.raises(errors.BadInput, match="hidden"):
        Cannon(hidden=hidden)


@pytest.mark.parametrize("label_noise", [False, "cut"])
def test_training_labels_must_be_latent(label_noise):
    with pytest.raises(errors.BadInput, match="label_noise"):
        Cannon(hidden="auto", label_noise=label_noise)


def test_by_minibatches_none_are_found(stars):
    with pytest.raises(errors.CannotDo, match="hidden=0"):
        bl.fit(Cannon(order=2, hidden=1), stars, bl.SVI())
