"""Modes of any smooth density of a few unknowns, for many stars at once: Levenberg-Marquardt from several starts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .linalg import Array
from .optimize import Modes, definite_or, distinct, solve_small

FIRST_STEPS = 8
"""Iterations that all starts get together."""
ITERATIONS = 60
LATE = 64
"""Of the others so many side by side: one size, compiled once."""
TOLERANCE = 1e-6
"""Newton decrement, in nats, of a star that has arrived."""
HOPELESS = 20.0
"""A start that is so many nats further from the best than a mode may be is given up after the first iterations."""
SAME = 0.5
"""In sd: starts that are so close to a better one end where it does."""
DIFFERENCE = 1e-6
"""Step of the differences of slopes that give second derivatives, in float64 to 1e-6."""

Energy = Callable[[Array, Any, Any], Array]
"""Minus log density (S,) of points u (S, M) of one star: energy(u, shared, own)."""
Curvature = Callable[[Array, Any, Any], Array]
"""A positive definite approximation (S, M, M) of its second derivatives."""


def find_modes(
    energy: Energy,
    curvature: Curvature,
    shared: Any,
    own: Any,
    starts: Array,
    keep: int = 3,
    threshold: float = 12.0,
    rough: Any = None,
) -> Modes:
    """Distinct optima reached from starts (N, J, M), at most `keep` per star and `threshold` nats from the best.

    energy and curvature: hashable; arrays that they compute with are in `shared`, and in `own` with a row per star.
    rough: `shared` in lower precision, if there is one, with which the first iterations are done.
    """
    n, j, _ = starts.shape
    first = shared if rough is None else rough
    u, f, done = _descend(energy, curvature, FIRST_STEPS, False, first, own, jnp.asarray(starts))
    f = _hopeful(curvature, threshold + HOPELESS, first, own, u, f)
    # in NumPy: rows are picked and put back thousands of times
    found = [np.array(x).reshape(n * j, *x.shape[2:]) for x in (u, f, done)]
    each = jax.tree.map(np.asarray, own)
    late = np.flatnonzero(~found[2] & np.isfinite(found[1]))
    for begin in range(0, len(late), LATE):
        rows = np.resize(late[begin : begin + LATE], LATE)
        mine = jax.tree.map(lambda x, star=rows // j: x[star], each)
        at = _descend(energy, curvature, ITERATIONS, True, shared, mine, found[0][rows, None])
        for x, y in zip(found, at, strict=True):
            x[rows] = np.asarray(y)[:, 0]
    u, f, done = (jnp.asarray(x).reshape(n, j, *x.shape[1:]) for x in found)
    return _kept(energy, curvature, min(keep, j), threshold, shared, own, u, f, done)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _hopeful(curvature, threshold, shared, own, u, f):
    """Objectives f (N, J), infinite for starts that are not worth following."""
    bend = jax.vmap(curvature, (0, None, 0))(u, shared, own)
    off = u[:, :, None] - u[:, None]
    near = jnp.einsum("nijk,nikl,nijl->nij", off, bend, off) < SAME**2
    first = np.triu(np.ones((f.shape[1],) * 2, bool), 1)
    better = (f[:, :, None] < f[:, None]) | ((f[:, :, None] == f[:, None]) & first)
    again = (near & better).any(1)
    return jnp.where(again | (f > f.min(1, keepdims=True) + threshold), jnp.inf, f)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _descend(energy, curvature, iterations, exact, shared, own, u):
    """u (N, J, M), objective (N, J) and whether they have arrived (N, J)."""
    value_and_slope = functools.partial(_value_and_slope, energy, shared, own)
    m = u.shape[-1]

    def curvatures(u, slope):
        if exact:
            return _exact(energy, curvature, shared, own, u, slope)
        return jax.vmap(curvature, (0, None, 0))(u, shared, own)

    def step(state):
        u, f, slope, bend, damping, done, count = state
        diagonal = jnp.diagonal(bend, axis1=-2, axis2=-1)[..., None] * jnp.eye(m)
        full = (bend + damping[..., None, None] * diagonal).reshape(-1, m, m)
        move = solve_small(full, slope.reshape(-1, m)).reshape(u.shape)
        decrement = (slope * move).sum(-1)
        trial = u - move
        f_trial, slope_trial = value_and_slope(trial)
        better = (f_trial <= f) & ~done
        bend = jnp.where(better[..., None, None], curvatures(trial, slope_trial), bend)
        u, slope = (jnp.where(better[..., None], a, b) for a, b in ((trial, u), (slope_trial, slope)))
        f = jnp.where(better, f_trial, f)
        damping = jnp.where(better, jnp.maximum(damping * 0.2, 1e-9), jnp.minimum(damping * 6, 1e9))
        return u, f, slope, bend, damping, done | (decrement < TOLERANCE * (1 + damping)), count + 1

    f, slope = value_and_slope(u)
    bend = curvatures(u, slope)
    first = (u, f, slope, bend, jnp.full(f.shape, 1e-2), ~jnp.isfinite(f), 0)
    u, f, _, _, _, done, _ = jax.lax.while_loop(lambda s: ~s[5].all() & (s[6] < iterations), step, first)
    return u, f, done & jnp.isfinite(f)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _kept(energy, curvature, keep, threshold, shared, own, u, f, done):
    known, slope = _value_and_slope(energy, shared, own, u)
    bend = _exact(energy, curvature, shared, own, u, slope)
    # what rough iterations have left
    m = u.shape[-1]
    move = solve_small(bend.reshape(-1, m, m), slope.reshape(-1, m)).reshape(u.shape)
    decrement = (slope * move).sum(-1)
    near = done & (decrement < 0.01)
    u = jnp.where(near[..., None], u - move, u)
    f = jnp.where(jnp.isfinite(f), jnp.where(near, known - 0.5 * decrement, known), f)
    curvatures = jnp.moveaxis(bend, 0, 1)

    def curvature_at(_, pick):
        return jnp.take_along_axis(curvatures, pick[None, :, None, None], 0)[0]

    return distinct(jnp.moveaxis(u, 0, 1), f.T, done.T, curvature_at, keep, threshold)


def _value_and_slope(energy, shared, own, u):
    f, back = jax.vjp(lambda u: jax.vmap(energy, (0, None, 0))(u, shared, own), u)
    return f, back(jnp.ones_like(f))[0]


def _exact(energy, curvature, shared, own, u, slope):
    """Second derivatives (N, J, M, M) at u (N, J, M), or their approximation where they are not positive definite."""
    n, j, m = u.shape
    around = (u[:, :, None] + DIFFERENCE * jnp.eye(m)).reshape(n, -1, m)
    _, slopes = _value_and_slope(energy, shared, own, around)
    second = (slopes.reshape(n, j, m, m) - slope[:, :, None]) / DIFFERENCE
    instead = jax.vmap(curvature, (0, None, 0))(u, shared, own)
    return definite_or(second.reshape(-1, m, m), instead.reshape(-1, m, m)).reshape(n, j, m, m)
