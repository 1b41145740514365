"""The order of the Cannon's polynomial by the evidence of the flux."""

from __future__ import annotations

import runpy

import numpy as np
import pytest

import bayeslabels as bl
from bayeslabels import Cannon, errors
from bayeslabels.kinds.spectra.order import choose_order

L = 50
NAMES, CENTRE, SPREAD = ("TEFF", "LOGG"), np.array([5000.0, 3.0]), np.array([300.0, 0.5])
LABEL_NOISE = 0.15


def survey(n, seed, order, noisy, error=0.005):
    """Spectra that are a polynomial of this order in two labels, its terms smaller by a factor of three per order."""
    rng = np.random.default_rng(seed)
    powers = [(i, j) for i in range(order + 1) for j in range(order + 1 - i)]
    theta = np.random.default_rng(1).normal(size=(len(powers), L)) * np.array([[0.09 / 3.0 ** sum(p)] for p in powers])
    u = np.clip(rng.normal(size=(n, 2)), -2.2, 2.2)
    flux = 1 + (u[:, None] ** np.array(powers)).prod(-1) @ theta + error * rng.normal(size=(n, L))
    flux[rng.random(flux.shape) < 0.03] = np.nan
    seen = u + noisy * LABEL_NOISE * rng.normal(size=u.shape)
    labels = bl.Block(CENTRE + SPREAD * seen, LABEL_NOISE * SPREAD * np.ones(u.shape) if noisy else None, names=NAMES)
    return bl.Stars(labels=labels, flux=bl.Block(flux, error))


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_order_of_the_spectra_is_found(order, noisy):
    model = Cannon(label_noise=noisy)
    assert choose_order(model, survey(300, order, order, noisy), 0, False)[0] == order


def test_few_stars_are_not_taken_for_a_high_order():
    for seed in range(2):
        assert choose_order(Cannon(), survey(60, seed, 2, True), 0, False)[0] == 2


def test_orders_with_more_terms_than_stars_can_tell_are_not_tried():
    _, scores, _ = choose_order(Cannon(label_noise=False), survey(16, 0, 3, False), 0, False)
    assert max(score["order"] for score in scores) == 2


def test_fit_says_what_was_chosen_and_saves_it(tmp_path):
    posterior = bl.fit(Cannon(label_noise=False), survey(200, 3, 2, False), seed=0)
    assert posterior.model.order == 2
    assert [score["order"] for score in posterior.info["selection"]] == [2, 3]
    assert bl.load(posterior.save(tmp_path / "model.nc")).model.order == 2


def test_a_model_with_terms_has_no_order_to_choose():
    model = Cannon(label_noise=False, terms=[{}, {"TEFF": 1}, {"LOGG": 1}])
    posterior = bl.fit(model, survey(100, 0, 1, False), seed=0)
    assert posterior.info["selection"] == []
    with pytest.raises(errors.BadInput, match="order"):
        Cannon(order=5)
    with pytest.raises(errors.BadInput, match="order"):
        assert Cannon().bind(survey(50, 0, 1, False)).features


@pytest.mark.long
def test_a_lower_order_whose_labels_have_taken_over_what_it_leaves_is_seen(shared_data):
    """100 noisy giants: at the labels that order 1 ends with it seems enough; each order at its own, it is not."""
    path = shared_data.parent / "cases" / "line_spectra.py"
    if not path.exists():
        pytest.skip(f"no {path}")
    made = runpy.run_path(str(path))["make"](400, 300, 3, 0, quadratic=True)
    some = slice(None, 100)
    labels = bl.Block(made["label"][some], made["label_err"][some], names=("TEFF", "LOGG", "FE_H"))
    stars = bl.Stars(labels=labels, flux=bl.Block.from_ivar(made["flux"][some], made["ivar"][some]))
    assert choose_order(Cannon(), stars, 0, False)[0] == 2
