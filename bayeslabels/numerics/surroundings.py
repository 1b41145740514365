"""How far a star is from the nearest of a set of stars, in the two coordinates that show it best.

In many coordinates at once every star is far from every other, and one that lies outside in two of them is not farther
than the rest. So the distance is that to the nearest star in the plane of two coordinates, the largest over all planes,
each coordinate in units of its spread.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

USUAL, FARTHEST = 0.9, 0.99
"""Shares of the stars whose distance from all others is within what is usual, and within what is allowed."""


class Surroundings(NamedTuple):
    """points (B, Q): coordinates of the set, in units of their spread; centre, scale (Q,): of coordinates as given;
    usual, farthest: distances at the shares `USUAL` and `FARTHEST` of the set, each star from the others."""

    points: np.ndarray
    centre: np.ndarray
    scale: np.ndarray
    usual: np.ndarray
    farthest: np.ndarray

    def distance(self, x: np.ndarray) -> np.ndarray:
        """(N,), of stars with coordinates x (N, Q)."""
        return _farthest(self.points, (x - self.centre) / self.scale, 1)


def learn(x: np.ndarray) -> Surroundings:
    """The surroundings that stars with coordinates x (B, Q) make."""
    centre, sd = x.mean(0), x.std(0)
    scale = np.where(sd > 0, sd, 1.0)
    points = (x - centre) / scale
    own = _farthest(points, points, 2)
    return Surroundings(points, centre, scale, *np.quantile(own, [USUAL, FARTHEST]))


def _farthest(points: np.ndarray, x: np.ndarray, nearest: int) -> np.ndarray:
    """Distance to the so-manieth nearest of the points, the largest over all planes."""
    q = points.shape[1]
    planes = [[i, j] for i in range(q) for j in range(i + 1, q)] or [[0]]
    return np.max([cKDTree(points[:, at]).query(x[:, at], [nearest])[0][:, 0] for at in planes], axis=0)
