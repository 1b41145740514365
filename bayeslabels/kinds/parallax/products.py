"""Products of features as further features: ln parallax as a polynomial, for dwarfs and giants together.

    eta_n = theta . (x_n, phi(u_n)),   u = (x - centre) / scale,   phi: the monomials of order 2 and more of u

The model stays linear in theta. Errors of u enter to first order: those of (u, phi) are A C_n A', A = (1; d phi / du).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...errors import bad_input
from ...numerics.by_value import ByValue
from ...numerics.entries import Entries
from ...numerics.features import Monomials
from ...numerics.linalg import Array, constant, module_of

SOURCE = "products"
"""What stands for the block of such features."""
MOST = 500
"""Products, at most."""
ROWS = 1024
"""Stars whose matrices are computed at a time."""


@dataclass(frozen=True)
class Products(ByValue):
    """Of the features from `first` on, W in number, up to some order; centre, scale (W,): of u."""

    first: int
    order: int
    centre: np.ndarray
    scale: np.ndarray

    @cached_property
    def monomials(self) -> Monomials:
        every = Monomials.up_to(self.order, len(self.centre)).exponents
        return Monomials(tuple(row for row in every if sum(row) > 1))

    def added(
        self, value: Array, variance: Array, measured: Array, entries: Entries
    ) -> tuple[Array, Array, Array, Entries]:
        """What `raw_features` returns, with the products after it and all W + P features in one block."""
        xp, (first, stop) = module_of(value), (self.first, entries.size)
        size = stop + self.monomials.size
        before = tuple(x for x in entries.blocks if x[1] <= first)
        wider = Entries(size, (*before, (first, size)))
        n_before = Entries(first, before).n_entry - first
        centre, scale = (constant(x) if xp is not np else x for x in (self.centre, self.scale))
        parts = []
        for start in range(0, len(value), ROWS if xp is np else max(len(value), 1)):
            rows = slice(start, start + ROWS) if xp is np else slice(None)
            seen, v = measured[rows, first:], variance[rows]
            u = xp.where(seen, (value[rows, first:] - centre) / scale, 0.0)
            slope = self.monomials.jacobian(u) / scale
            c = xp.where(seen[:, :, None] & seen[:, None, :], self._matrices(v, entries, xp), 0.0)
            across = slope @ c
            own, above = across @ xp.swapaxes(slope, 1, 2), np.triu_indices(size - first, 1)
            whole = xp.concatenate(
                [xp.concatenate([c, xp.swapaxes(across, 1, 2)], 2), xp.concatenate([across, own], 2)], 1
            )
            alone = [v[:, :first], xp.diagonal(whole, axis1=1, axis2=2)]
            beside = [v[:, stop : stop + n_before], whole[:, above[0], above[1]]]
            known = xp.stack([seen[:, np.flatnonzero(row)].all(1) for row in self.monomials.involves], 1)
            parts.append((xp.where(known, self.monomials(u), 0.0), xp.concatenate([*alone, *beside], 1), known))
        phi, spread, known = (xp.concatenate(x) for x in zip(*parts, strict=True))
        return xp.concatenate([value, phi], 1), spread, xp.concatenate([measured, known], 1), wider

    def _matrices(self, variance: Array, entries: Entries, xp: object) -> Array:
        """C_n (N, W, W) of the features from `first` on."""
        i, j, _ = entries.index
        mine = np.flatnonzero(i >= self.first)
        n = entries.size - self.first
        place = np.zeros((n, n), int)
        there = np.zeros((n, n))
        for k, (a, b) in zip(mine, zip(i[mine] - self.first, j[mine] - self.first, strict=True), strict=True):
            place[a, b] = place[b, a] = k
            there[a, b] = there[b, a] = 1.0
        return variance[:, place] * there


def products_of(order: int, first: int, value: np.ndarray, measured: np.ndarray) -> Products:
    """Of training stars' features (N, W)."""
    count = np.maximum(measured.sum(0), 1)
    centre = np.where(measured, value, 0.0).sum(0) / count
    scale = np.sqrt(np.where(measured, (value - centre) ** 2, 0.0).sum(0) / count)
    found = Products(first, order, centre, np.where(scale > 0, scale, 1.0))
    if (n := found.monomials.size) > MOST:
        raise bad_input(
            f"a polynomial of order {order} in {value.shape[1]} features, which has {n} products",
            f"at most {MOST}", "a spectrum among the features of the polynomial",
            'sparse=("ln flux",), whose features stay linear, or a lower order',
        )  # fmt: skip
    return found
