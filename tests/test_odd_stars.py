"""One training star among many that is far out, or of an error that is none: right, refused, or told of."""

from __future__ import annotations

import numpy as np
import pytest

import bayeslabels as bl
from bayeslabels.errors import DoubtfulErrors


def exact(training, value):
    labels = np.array(training.labels.value)
    labels[7, 0] = value
    return training.with_block(labels=bl.Block(labels, names=("TEFF", "LOGG"), unit=("K", "dex")))


@pytest.mark.parametrize("value", [4.0, 5.2, 52_000.0])
def test_an_exact_label_far_from_all_others_is_told_of(training, value):
    model = bl.Cannon(order=1, label_noise=False, coefficient_prior=bl.priors.Flat())
    with pytest.warns(DoubtfulErrors, match=rf"1 training stars with an exact TEFF such as {value:g} \(id 7\)"):
        bl.fit(model, exact(training, value))


@pytest.mark.parametrize("value", [4200.0, 6200.0, np.nan])
def test_labels_within_reach_are_not(training, value, recwarn):
    bl.fit(bl.Cannon(order=1, label_noise=False, coefficient_prior=bl.priors.Flat()), exact(training, value))
    assert not [x for x in recwarn if x.category is DoubtfulErrors]


@pytest.mark.parametrize("error", [1e-30, 1e-12, 1e-9])
@pytest.mark.parametrize("block", ["parallax", "magnitudes"])
def test_an_error_that_is_none_of_a_measurement_is_refused(simulated, block, error):
    stars = simulated.stars
    blocks = {"magnitudes": stars.magnitudes, "parallax": stars.parallax}
    errors = np.array(blocks[block].error)
    errors[3, 0] = error
    odd = blocks[block]
    blocks[block] = bl.Block(odd.value, errors, names=odd.names, unit=odd.unit)
    with pytest.raises(bl.BadInput, match=rf"1 stars whose error of .* is {error:g}, where most have"):
        bl.fit(bl.Parallax(("magnitudes",)), bl.Stars(**blocks))


@pytest.mark.parametrize("unit", ["kpc", "K", "1 / kpc"])
def test_a_parallax_is_an_angle(simulated, unit):
    stars = simulated.stars
    parallax = bl.Block(stars.parallax.value, stars.parallax.error, unit=unit)
    with pytest.raises(bl.BadInput, match="an angle, such as mas"):
        bl.fit(bl.Parallax(("magnitudes",)), bl.Stars(magnitudes=stars.magnitudes, parallax=parallax))
