"""The stars of the Galaxy in space: where a line of sight goes, and how many stars there are along it."""

from __future__ import annotations

from typing import Any

import numpy as np

R_SUN, Z_SUN = 8.2, 0.025
"""The Sun's distance from the centre and height above the plane, kpc (Bland-Hawthorn & Gerhard 2016; Juric+08)."""
POLE = np.array([
    [-0.0548756577125916, -0.8734370519556159, -0.4838350736167155],
    [0.4941094371927268, -0.4448297212232952, 0.7469821839866676],
    [-0.8676661375596576, -0.1980763372730005, 0.4559838136873016],
])  # fmt: skip
"""From equatorial (ICRS) to Galactic axes (as astropy turns them)."""


def galactic(ra: Any, dec: Any, xp: Any = np) -> tuple[Any, Any]:
    """Galactic longitude and latitude of right ascension and declination (ICRS), all in degrees."""
    a, d = xp.deg2rad(ra), xp.deg2rad(dec)
    x, y, z = (xp.cos(d) * xp.cos(a), xp.cos(d) * xp.sin(a), xp.sin(d))
    east, north, up = (row[0] * x + row[1] * y + row[2] * z for row in POLE)
    return xp.rad2deg(xp.arctan2(north, east)) % 360, xp.rad2deg(xp.arcsin(xp.clip(up, -1.0, 1.0)))


def place_of(longitude: Any, latitude: Any, distance: Any, xp: Any = np) -> tuple[Any, Any]:
    """Distance R from the Galaxy's axis and height z above its plane, kpc, of places at a distance [kpc] in a direction
    (l, b) [deg]."""
    longitude, latitude = xp.deg2rad(longitude), xp.deg2rad(latitude)
    along = distance * xp.cos(latitude)
    r = xp.sqrt((R_SUN - along * xp.cos(longitude)) ** 2 + (along * xp.sin(longitude)) ** 2)
    return r, Z_SUN + distance * xp.sin(latitude)
