"""theta' C_n theta of many stars by one product, with covariances C_n that are diagonal but for some blocks.

    theta' C_n theta = sum_v c_nv m_v theta_i(v) theta_j(v)

v runs over the D diagonal entries (m = 1) and then over the pairs i < j of every block (m = 2): V entries in all. What
is linear in the variances c_nd of independent features stays so.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .linalg import Array


@dataclass(frozen=True)
class Entries:
    """Which entries of D x D covariances are kept; hashable.

    Args:
        size: D.
        blocks: first and last column + 1 of each block of features that have covariances.
    """

    size: int
    blocks: tuple[tuple[int, int], ...] = ()

    @cached_property
    def index(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows i, columns j and multiplicity m of the entries, (V,) each."""
        i, j = ([np.arange(self.size)], [np.arange(self.size)])
        for first, stop in self.blocks:
            above = np.triu_indices(stop - first, 1)
            i, j = [*i, first + above[0]], [*j, first + above[1]]
        rows, columns = np.concatenate(i), np.concatenate(j)
        return rows, columns, np.where(rows == columns, 1.0, 2.0)

    @property
    def n_entry(self) -> int:
        """V"""
        return self.size + sum((stop - first) * (stop - first - 1) // 2 for first, stop in self.blocks)

    def products(self, theta: Array) -> Array:
        """m theta_i theta_j (V,) of theta (D,): the weights of c_nv in theta' C_n theta."""
        i, j, times = self.index
        return times * theta[i] * theta[j]

    def expected(self, theta: np.ndarray, covariance: np.ndarray, some: np.ndarray) -> np.ndarray:
        """Those of theta with a covariance (D, D), of which some coefficients (D,) have a part: 0 or 1."""
        i, j, times = self.index
        return times * (theta[i] * theta[j] + some[i] * some[j] * covariance[i, j])

    def applied(self, pull: np.ndarray, theta: np.ndarray) -> np.ndarray:
        """P theta (D,) of the symmetric matrix P with the entries `pull` (V,)."""
        i, j, times = self.index
        out = pull[: self.size] * theta
        np.add.at(out, i[times > 1], pull[times > 1] * theta[j[times > 1]])
        np.add.at(out, j[times > 1], pull[times > 1] * theta[i[times > 1]])
        return out

    def add_positive(self, a: np.ndarray, pull: np.ndarray) -> None:
        """Add to `a` (D, D), or the corner of a larger matrix, the part of P without negative eigenvalues."""
        alone, start = np.ones(self.size, bool), self.size
        for first, stop in self.blocks:
            p = np.diag(pull[first:stop])
            above = np.triu_indices(stop - first, 1)
            p[above] = p[above[::-1]] = pull[start : start + len(above[0])]
            start += len(above[0])
            values, vectors = np.linalg.eigh(p)
            a[first:stop, first:stop] += (vectors * np.maximum(values, 0.0)) @ vectors.T
            alone[first:stop] = False
        at = np.flatnonzero(alone)
        a[at, at] += np.maximum(pull[at], 0.0)
