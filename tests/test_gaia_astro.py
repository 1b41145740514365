"""Published cuts and corrections of Gaia's columns, two extinction laws, and lines of sight out of maps."""

from __future__ import annotations

import numpy as np
import pytest

from bayeslabels.astro import dust, extinction, gaia
from bayeslabels.errors import BadInput


def test_the_excess_factor_is_level_where_its_pieces_meet():
    """Riello+21, table 2: the pieces meet at 0.5 and 4 mag, to 0.005; a star with other light is found out."""
    for at in (0.5, 4.0):
        below, above = gaia.excess_factor([at - 1e-9, at], [1.3, 1.3])
        np.testing.assert_allclose(below, above, atol=5e-3)
    colour = np.array([0.2, 0.8, 2.0, np.nan])
    usual = 1.3 - gaia.excess_factor(colour, 1.3)
    assert gaia.good_colour(colour, usual, 15.0).tolist() == [True, True, True, False]
    assert not gaia.good_colour(colour, usual + 0.1, 15.0).any()
    assert gaia.good_colour(0.8, 1.3 - gaia.excess_factor(0.8, 1.3) + 0.05, 20.5)  # errors are larger there


def test_parallaxes_as_published():
    assert gaia.good_astrometry([1.0, 1.5, np.nan]).tolist() == [True, False, False]
    factor = gaia.parallax_error_factor([8.0, 12.65, 15.0, 20.0, 25.0])
    assert factor[1] > 1.28
    assert (factor[[0, 2, 3]] > 0.999).all()
    assert (factor[[0, 2, 3]] < 1.16).all()
    assert np.isnan(factor[4])
    assert gaia.parallax_system("gaia_dr3") == gaia.parallax_system("gaia_edr3")
    with pytest.raises(BadInput, match="gaia_dr4"):
        gaia.parallax_system("gaia_dr4")


def test_errors_have_a_floor():
    np.testing.assert_allclose(gaia.with_floor([0.0, 0.03], 0.02), [0.02, np.hypot(0.02, 0.03)])
    assert np.isinf(gaia.with_floor([np.nan, 0.3], 0.02, 0.2)).all()
    assert np.isinf(gaia.magnitude_error([-5.0, 0.0], [1.0, 1.0])).all()
    with pytest.raises(BadInput, match="floor"):
        gaia.with_floor(0.1, floor=0.3, most=0.2)


def test_fitzpatricks_law():
    """Fitzpatrick 1999, table 3: A / E(B - V) at R_V = 3.1."""
    wavelength = np.array([0.26, 0.27, 0.411, 0.467, 0.547, 0.600, 1.22, 2.65])[2:]
    published = np.array([4.315, 3.806, 3.055, 2.688, 0.829, 0.265])
    np.testing.assert_allclose(3.1 * extinction.extinction_law(wavelength, law="f99"), published, atol=2e-3)


def test_laws_agree_about_dust_of_other_grains():
    """As R_V grows: at equal A_V less in the blue, more in the red, in much the same proportions by all laws."""
    bands = ("PS1_g", "PS1_r", "PS1_i", "PS1_z", "J", "Ks")
    slopes = {}
    for law in extinction.LAWS:
        low, high = (extinction.band_extinction(6000.0, bands, r_v=r, law=law)[0] for r in (2.6, 3.6))
        slopes[law] = (high - low)[:4]
        assert high[0] < low[0]
        assert (high[2:4] > low[2:4]).all()
    cosine = slopes["ccm89"] @ slopes["f99"] / np.linalg.norm(slopes["ccm89"]) / np.linalg.norm(slopes["f99"])
    assert cosine > 0.9
    with pytest.raises(BadInput, match="law"):
        extinction.extinction_law(0.5, law="f19")


def test_lines_of_sight_out_of_a_map():
    asked = []

    def query(longitude, latitude, distance):
        asked.append((longitude.shape, latitude.shape))
        e = 0.3 * distance / (1 + distance) * np.where(np.abs(latitude) < 5, 1.0, 0.2)
        return np.where((distance > 0.1) & (distance < 8) & (longitude < 350), e, np.nan)

    lines = dust.reddening_along(query, [10.0, 200.0, 355.0], [1.0, 60.0, 1.0])
    assert asked == [((3, 25), (3, 25))]
    np.testing.assert_allclose(lines.reddening[0, 12], 0.15)  # 1 kpc
    np.testing.assert_allclose(lines.error[0, 12], np.hypot(0.1 * 0.15, 0.02))
    assert lines.reddening[0, 0] == lines.reddening[0, 2] > 0  # nearer than the map: as at its beginning
    assert (np.diff(lines.reddening[:2]) >= 0).all()
    assert np.isnan(lines.reddening[2]).all()
    given = dust.reddening_along(
        np.tile([0.0, 0.1], (4, 1)), moduli=[8.0, 12.0], error=np.full((4, 2), 0.05), floor=0.0
    )
    assert given.error.max() == 0.05
    for wrong, message in (
        ({"moduli": [5.0]}, "growing"),
        ({"moduli": [5.0, 6.0, 7.0]}, "a column per modulus"),
        ({"error": np.full((4, 3), 0.1), "moduli": [8.0, 12.0]}, "column per modulus"),
    ):
        with pytest.raises(BadInput, match=message):
            dust.reddening_along(np.zeros((4, 2)), **wrong)
    with pytest.raises(BadInput, match="without places"):
        dust.reddening_along(query)
    with pytest.raises(BadInput, match="negative"):
        dust.reddening_along(np.array([[-0.1, 0.1]]), moduli=[8.0, 12.0])
