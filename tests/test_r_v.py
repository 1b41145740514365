"""R_V of a second dust vector: curves of a law give the R_V that they were made with."""

from __future__ import annotations

import numpy as np

from bayeslabels.astro.extinction import band_extinction
from bayeslabels.kinds.photometry.r_v import MEAN, alignment, r_v_of, sign

BANDS = ("G", "BP", "RP", "g", "r", "i", "z", "J", "K", "W9")


def vectors(low=2.6, high=3.6, law="ccm89"):
    """R, and R_2 of one unit of R_V; a last band that nobody knows."""
    known = BANDS[:-1]
    r = 2.7 * band_extinction(5500.0, known, r_v=MEAN, law=law)[0]

    def turned(x):
        k = band_extinction(5500.0, known, r_v=x, law=law)[0]
        return k * (r @ r) / (k @ r)

    second = (turned(high) - turned(low)) / (high - low)
    return np.append(r, 0.5), np.append(second, 0.3), turned


def test_the_curves_of_a_law_have_its_r_v():
    r, second, turned = vectors()
    np.testing.assert_allclose(
        r_v_of(BANDS, r, second, np.array([-0.4, 0.0, 0.4])), MEAN + np.array([-0.4, 0.0, 0.4]), atol=0.1
    )
    # of a real curve, far from the mean, where d is not along R_2 alone
    for true in (2.5, 4.0):
        x = second[:-1] @ (turned(true) - turned(MEAN)) / (second[:-1] @ second[:-1])
        assert abs(r_v_of(BANDS, r, second, x) - true) < 0.25
    wide = r_v_of(BANDS, r, second, np.linspace(-4, 4, 50))
    assert (np.diff(wide) >= 0).all()


def test_what_is_grey_says_nothing_of_r_v():
    """A luminosity that goes with dust is in all bands alike, and may be more than all colours together."""
    r, second, _ = vectors()
    x = np.array([-0.4, 0.0, 0.4])
    for grey in (-0.3, 0.3):
        other = second + grey
        other = other - r * (other @ r) / (r @ r)  # as the model has it, at right angles to R
        assert sign(BANDS, r, other) == 1
        assert alignment(BANDS, r, other, "ccm89") > 0.99
        np.testing.assert_allclose(r_v_of(BANDS, r, other, x), r_v_of(BANDS, r, second, x), atol=0.06)


def test_the_sign_is_that_of_r_v():
    r, second, _ = vectors()
    assert sign(BANDS, r, second) == 1
    assert sign(BANDS, r, -second) == -1
    assert alignment(BANDS, r, second, "ccm89") > 0.99
    assert 0.7 < alignment(BANDS, r, second, "f99") < 1
    # of bands that nobody knows: the bluest is dimmed more where R_V is small
    unknown = tuple(f"band {i}" for i in range(len(BANDS)))
    assert r_v_of(unknown, r, second, np.zeros(3)) is None
    blue = int(r.argmax())
    assert sign(unknown, r, -np.sign(second[blue]) * second) == 1
    assert np.isnan(alignment(unknown, r, second, "f99"))
