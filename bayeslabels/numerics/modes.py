"""Modes of any smooth density of a few unknowns, for many stars at once: Levenberg-Marquardt from several starts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

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


class Energy(Protocol):
    """Minus log density of points u (S, M) of one star."""

    def in_passing(self, u: Array, shared: Any, own: Any, /) -> tuple[Array, Any]:
        """The energy (S,) and what it was computed from, a pytree of (S, ...)."""


Curvature = Callable[[Array, Any, Any, Any], Array]
"""A positive definite approximation (S, M, M) of its second derivatives: curvature(u, shared, own, what the energy was
computed from)."""


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
    found = _descend(energy, curvature, FIRST_STEPS, False, first, own, jnp.asarray(starts))
    u, f, bend, done = map(np.array, found)
    f = np.where(_hopeful(u, f, bend, threshold + HOPELESS), f, np.inf)
    # in NumPy: rows are picked and put back thousands of times
    flat = [x.reshape(n * j, *x.shape[2:]) for x in (u, f, bend, done)]
    each = jax.tree.map(np.asarray, own)
    left = np.flatnonzero(np.isfinite(flat[1]))
    left = left[np.argsort(~flat[3][left], kind="stable")]  # those that have arrived take a step or two
    for begin in range(0, len(left), LATE):
        rows = np.resize(left[begin : begin + LATE], LATE)
        mine = jax.tree.map(lambda x, star=rows // j: x[star], each)
        at = _descend(energy, curvature, ITERATIONS, True, shared, mine, flat[0][rows, None])
        for x, y in zip(flat, at, strict=True):
            x[rows] = np.asarray(y)[:, 0]
    by_start = [np.moveaxis(x.reshape(n, j, *x.shape[1:]), 1, 0) for x in flat]
    return _distinct(min(keep, j), threshold, *by_start)


def _hopeful(u: np.ndarray, f: np.ndarray, bend: np.ndarray, threshold: float) -> np.ndarray:
    """Which points (N, J) of objectives f (N, J) are worth following."""
    off = u[:, :, None] - u[:, None]
    near = np.einsum("nijk,nikl,nijl->nij", off, bend, off, optimize=True) < SAME**2
    first = np.triu(np.ones((f.shape[1],) * 2, bool), 1)
    better = (f[:, :, None] < f[:, None]) | ((f[:, :, None] == f[:, None]) & first)
    return ~(near & better).any(1) & (f <= f.min(1, keepdims=True) + threshold)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _distinct(keep, threshold, u, f, bend, done):
    def curvature_at(_, pick):
        return jnp.take_along_axis(bend, pick[None, :, None, None], 0)[0]

    return distinct(u, f, done, curvature_at, keep, threshold)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _descend(energy, curvature, iterations, exact, shared, own, u):
    """u (N, J, M), objective (N, J), curvature (N, J, M, M) and whether they have arrived (N, J)."""
    n, j, m = u.shape
    values, curvatures = jax.vmap(energy.in_passing, (0, None, 0)), jax.vmap(curvature, (0, None, 0, 0))
    ahead = DIFFERENCE * jnp.concatenate([jnp.zeros((1, m)), jnp.eye(m) if exact else jnp.zeros((0, m))])

    def locally(u):
        """Objective, slope and curvature."""
        points = (u[:, :, None] + ahead).reshape(n, -1, m)
        f, back, beside = jax.vjp(lambda u: values(u, shared, own), points, has_aux=True)
        f, slopes = f.reshape(n, j, -1), back(jnp.ones_like(f))[0].reshape(n, j, -1, m)
        bend = curvatures(u, shared, own, jax.tree.map(lambda x: x[:, :: len(ahead)], beside))
        if exact:
            second = (slopes[:, :, 1:] - slopes[:, :, :1]) / DIFFERENCE
            bend = definite_or(second.reshape(-1, m, m), bend.reshape(-1, m, m)).reshape(bend.shape)
        return f[..., 0], slopes[:, :, 0], bend

    def step(state):
        """The first stays where it is: everything is evaluated in one place, which is compiled once."""
        u, f, slope, bend, damping, done, count = state
        diagonal = jnp.diagonal(bend, axis1=-2, axis2=-1)[..., None] * jnp.eye(m)
        full = (bend + damping[..., None, None] * diagonal).reshape(-1, m, m)
        move = solve_small(full, slope.reshape(-1, m)).reshape(u.shape)
        decrement = (slope * move).sum(-1)
        f_trial, slope_trial, bend_trial = locally(u - move)
        better = (f_trial <= f) & ~done
        bend = jnp.where(better[..., None, None], bend_trial, bend)
        u, slope = (jnp.where(better[..., None], a, b) for a, b in ((u - move, u), (slope_trial, slope)))
        f = jnp.where(better, f_trial, f)
        damping = jnp.where(better, jnp.maximum(damping * 0.2, 1e-9), jnp.minimum(damping * 6, 1e9))
        done = done | jnp.where(count == 0, ~jnp.isfinite(f), decrement < TOLERANCE * (1 + damping))
        return u, f, slope, bend, damping, done, count + 1

    none = jnp.zeros(u.shape[:-1], u.dtype)
    bend = jnp.broadcast_to(jnp.eye(m, dtype=u.dtype), (*u.shape, m))
    first = (u, none + jnp.inf, jnp.zeros_like(u), bend, none + 0.05, none > 0, 0)
    u, f, _, bend, _, done, _ = jax.lax.while_loop(lambda s: ~s[5].all() & (s[6] <= iterations), step, first)
    return u, f, bend, done & jnp.isfinite(f)
