"""Exact Shapley values of a function's arguments (Shapley 1953; Lundberg & Lee 2017, eq. 4 and 9)."""

from __future__ import annotations

from collections.abc import Callable
from math import comb

import numpy as np

MOST = 10
"""Arguments at most: 2^D coalitions are evaluated."""


def shapley_values(function: Callable[[np.ndarray], np.ndarray], x: np.ndarray, background: np.ndarray) -> np.ndarray:
    """How much each argument of function(x) (N, M) moves it from its mean over the background: (N, M, D).

        phi_j = sum_S |S|! (D - |S| - 1)! / D!  [v(S with j) - v(S)],   v(S) = mean_b f(x_S, b_rest)

    over all sets S of the other arguments. Their sum over j is f(x) - mean_b f(b).

    Args:
        x: (N, D), D <= 10. background: (B, D).
    """
    n, d = x.shape
    values = []
    for coalition in range(2**d):
        own = (coalition >> np.arange(d)) & 1 == 1
        mixed = np.where(own, x[:, None], background).reshape(-1, d)
        values.append(np.asarray(function(mixed)).reshape(n, len(background), -1).mean(1))
    out = np.zeros((*values[0].shape, d))
    for coalition, value in enumerate(values):
        size = coalition.bit_count()
        for j in range(d):
            if coalition >> j & 1:
                out[..., j] += value / (d * comb(d - 1, size - 1))
            else:
                out[..., j] -= value / (d * comb(d - 1, size))
    return out
