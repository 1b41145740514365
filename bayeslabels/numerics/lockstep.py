"""Small matrices, one for each of many stars, factored and solved in lockstep: unrolled over their size M, so that
every operation is arithmetic with arrays of a number per star."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from .linalg import Array


def cholesky(a: Array) -> list[list[Any]]:
    """Rows of the lower factor of small matrices (M, M, N), each entry (N,): arithmetic for all stars at once."""
    out: list[list[Any]] = []
    for i in range(a.shape[0]):
        row: list[Any] = []
        for j in range(i + 1):
            rest = a[i, j] - sum(row[k] * (out[j] if j < i else row)[k] for k in range(j))
            row.append(jnp.sqrt(rest) if i == j else rest / out[j][j])
        out.append(row)
    return out


def forward(factor: list[list[Any]], right: Array) -> Array:
    """factor^-1 right, (M, N)."""
    out: list[Any] = []
    for i, row in enumerate(factor):
        out.append((right[i] - sum(row[k] * out[k] for k in range(i))) / row[i])
    return jnp.stack(out)


def back(factor: list[list[Any]], right: Array) -> Array:
    """factor'^-1 right, (M, N)."""
    m = len(factor)
    out: list[Any] = [None] * m
    for i in reversed(range(m)):
        out[i] = (right[i] - sum(factor[k][i] * out[k] for k in range(i + 1, m))) / factor[i][i]
    return jnp.stack(out)


def up(factor: list[list[Any]], x: Array) -> Array:
    """factor' x, (M, N)."""
    m = len(factor)
    return jnp.stack([sum(factor[k][i] * x[k] for k in range(i, m)) for i in range(m)])


def solve_small(a: Array, b: Array) -> Array:
    """x of a x = b for positive definite a (N, M, M), unrolled over the small M: all stars in lockstep."""
    m = a.shape[-1]
    rows = [[a[:, i, j] for j in range(m)] for i in range(m)]
    right = [b[:, i] for i in range(m)]
    for i in range(m):
        for r in range(i + 1, m):
            factor = rows[r][i] / rows[i][i]
            for c in range(i, m):
                rows[r][c] = rows[r][c] - factor * rows[i][c]
            right[r] = right[r] - factor * right[i]
    out = [jnp.zeros(())] * m
    for i in reversed(range(m)):
        out[i] = (right[i] - sum(rows[i][c] * out[c] for c in range(i + 1, m))) / rows[i][i]
    return jnp.stack(out, -1)
