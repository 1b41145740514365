"""Modes of any smooth density of a few unknowns, for many stars at once: Levenberg-Marquardt from several starts."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .compiling import jit
from .linalg import Array, inverse_psd, module_of
from .lockstep import solve_small

FIRST_STEPS = 8
"""Evaluations that all starts get together."""
SIDE_BY_SIDE = 64
"""Stars, and starts that are left after the first steps, that are followed side by side: one size, compiled once, and
so no star's numbers depend on how many are beside it."""
ROUNDS = (3, 2, 4, 8, 16, 32)
"""Evaluations after which those that have arrived are left out: most take two or three, the last one twenty."""
TOLERANCE = 1e-6
"""Newton decrement, in nats, of a star that has arrived."""
HOPELESS = 20.0
"""A start that is so many nats further from the best than a mode may be is given up after the first iterations."""
SAME = 0.5
"""In sd: starts that are so close to a better one end where it does."""
DIFFERENCE = 1e-6
"""Step of the differences of slopes that give second derivatives, in float64 to 1e-6."""


class Modes(NamedTuple):
    """Up to J distinct optima per star, best first.

    location (J, N, M); covariance (J, N, M, M), the inverse curvature; objective (J, N), +inf for no such mode;
    converged (J, N).
    """

    location: Array
    covariance: Array
    objective: Array
    converged: Array

    @property
    def weight(self) -> Array:
        """Laplace estimate of the probability of each mode, (J, N)."""
        xp = module_of(self.objective)
        _, logdet = xp.linalg.slogdet(self.covariance)
        score = xp.where(xp.isfinite(self.objective), -self.objective + 0.5 * logdet, -xp.inf)
        share = xp.exp(score - score.max(0))
        return share / share.sum(0)


class Energy(ABC):
    """Minus log density (S,) of points u (S, M) of one star, up to a constant.

    Hashable, equal for equal functions: what it computes with is in `shared`, and in `own` of one star.
    """

    @abstractmethod
    def __call__(self, u: Array, shared: Any, own: Any) -> Array: ...

    def in_passing(self, u: Array, shared: Any, own: Any) -> tuple[Array, Any]:
        """The same, and what it was computed from, a pytree of (S, ...), where a curvature, or a family of every draw
        (`StarDraws.beside`), wants that."""
        return self(u, shared, own), None


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
) -> Modes:
    """Distinct optima reached from starts (N, J, M), at most `keep` per star and `threshold` nats from the best.

    energy and curvature: hashable; arrays that they compute with are in `shared`, and in `own` with a row per star.
    """
    starts = np.asarray(starts)
    n, j, m = starts.shape
    each = jax.tree.map(np.asarray, own)
    # in NumPy: rows are picked and put back thousands of times
    groups = -(-j // (1 + m))  # of as many starts as a row has points
    filled = starts[:, np.minimum(np.arange(groups * (1 + m)), j - 1)].reshape(n * groups, 1 + m, m)
    found = []
    for rows in side_by_side(len(filled)):
        mine = jax.tree.map(lambda x, star=rows // groups: x[star], each)
        found.append(_descend(energy, curvature, shared, mine, _Points.at(filled[rows]), False, FIRST_STEPS)[0])
    parts = (np.concatenate([np.asarray(x) for x in parts])[: len(filled)] for parts in zip(*found, strict=True))
    first = _Points(*(x.reshape(n, -1, *x.shape[2:])[:, :j] for x in parts))
    hopeful = _hopeful(first.u, first.f, first.bend, threshold + HOPELESS)
    fresh = _Points.at(first.u)._replace(bend=first.bend, done=~hopeful)
    points = _Points(*(np.array(x).reshape(n * j, *x.shape[2:]) for x in fresh))
    left = np.flatnonzero(hopeful)
    left = left[np.argsort(~first.done.reshape(-1)[left], kind="stable")]  # those that have arrived take a step or two
    for count in ROUNDS:
        for begin in range(0, len(left), SIDE_BY_SIDE):
            rows = np.resize(left[begin : begin + SIDE_BY_SIDE], SIDE_BY_SIDE)
            mine = jax.tree.map(lambda x, star=rows // j: x[star], each)
            now = _Points(*(np.repeat(x[rows, None], 1 + m, 1) for x in points))
            moved = _descend(energy, curvature, shared, mine, now, True, count)[0]
            for x, y in zip(points, moved, strict=True):
                x[rows] = np.asarray(y)[:, 0]
        left = left[~points.done[left]]
    done = points.done & np.isfinite(points.f)
    by_start = [np.moveaxis(x.reshape(n, j, *x.shape[1:]), 1, 0) for x in (points.u, points.f, points.bend, done)]
    kept = [_distinct(min(keep, j), threshold, *(x[:, rows] for x in by_start)) for rows in side_by_side(n)]
    return Modes(*(np.concatenate([np.asarray(x) for x in parts], 1)[:, :n] for parts in zip(*kept, strict=True)))


def passing(energy: Energy, curvature: Curvature, shared: Any, own: Any, u: Array) -> Any:
    """`Energy.in_passing` at a point u (N, M) of every star, a pytree of (N, ...), by the program of `find_modes`."""
    n, m = u.shape
    each, found = jax.tree.map(np.asarray, own), []
    for rows in side_by_side(n):
        mine, at = jax.tree.map(lambda x, i=rows: x[i], each), np.repeat(np.asarray(u)[rows, None], 1 + m, 1)
        beside = _descend(energy, curvature, shared, mine, _Points.at(at), False, 1)[1]
        found.append(jax.tree.map(lambda x: np.asarray(x)[:, 0], beside))
    return jax.tree.map(lambda *x: np.concatenate(x)[:n], *found)


def side_by_side(n: int) -> list[np.ndarray]:
    """The rows of n stars in parts of one size, the last one filled up with its last star."""
    return [np.minimum(np.arange(x, x + SIDE_BY_SIDE), n - 1) for x in range(0, n, SIDE_BY_SIDE)]


class _Points(NamedTuple):
    """Where descents (N, J) are: u (N, J, M), objective f, slope, curvature bend (N, J, M, M), damping, whether they
    have arrived. f is infinite of points at which nothing has been evaluated."""

    u: Array
    f: Array
    slope: Array
    bend: Array
    damping: Array
    done: Array

    @classmethod
    def at(cls, u: Array) -> _Points:
        one, m = np.ones(u.shape[:-1]), u.shape[-1]
        bend = np.broadcast_to(np.eye(m), (*u.shape, m))
        return cls(u, np.inf * one, np.zeros(u.shape), bend, 0.05 * one, one < 0)


def _hopeful(u: np.ndarray, f: np.ndarray, bend: np.ndarray, threshold: float) -> np.ndarray:
    """Which points (N, J) of objectives f (N, J) are worth following."""
    off = u[:, :, None] - u[:, None]
    near = np.einsum("nijk,nikl,nijl->nij", off, bend, off, optimize=True) < SAME**2
    first = np.triu(np.ones((f.shape[1],) * 2, bool), 1)
    better = (f[:, :, None] < f[:, None]) | ((f[:, :, None] == f[:, None]) & first)
    return ~(near & better).any(1) & (f <= f.min(1, keepdims=True) + threshold)


def definite_or(hessian: Array, instead: Array) -> Array:
    """Hessians (N, M, M), symmetric; `instead` of those that are not positive definite."""
    hessian = 0.5 * (hessian + jnp.swapaxes(hessian, 1, 2))
    definite = jnp.isfinite(jnp.linalg.cholesky(hessian - 1e-3 * instead)).all((1, 2))
    return jnp.where(definite[:, None, None], hessian, instead)


def distinct(
    u: Array, f: Array, done: Array, curvature_at: Callable[[Array, Array], Array], keep: int, threshold: float
) -> Modes:
    """The `keep` best optima, among u (J, N, M) with objectives f (J, N), that are more than a sd from each other.

    curvature_at: (N, M, M) of the optima at (N, M), which are those of index (N,).
    """
    remaining = jnp.where(jnp.isfinite(f), jnp.where(done, f, f + 1e6), jnp.inf)
    best = remaining.min(0)

    def next_best(remaining: Array, _: None) -> tuple[Array, Modes]:
        pick = jnp.argmin(remaining, axis=0)
        at = jnp.take_along_axis(u, pick[None, :, None], 0)[0]
        value = jnp.take_along_axis(remaining, pick[None], 0)[0]
        curvature = curvature_at(at, pick)
        within = jnp.where(value > best + threshold, jnp.inf, value)
        found = Modes(at, inverse_psd(curvature), within, jnp.take_along_axis(done, pick[None], 0)[0])
        distance = jnp.einsum("jnm,nmk,jnk->jn", u - at, curvature, u - at)
        return jnp.where(distance < 1.0, jnp.inf, remaining), found

    return jax.lax.scan(next_best, remaining, None, length=keep)[1]


@functools.partial(jit, static_argnums=(0, 1))
def _distinct(keep: int, threshold: float, u: Array, f: Array, bend: Array, done: Array) -> Modes:
    def curvature_at(_: Array, pick: Array) -> Array:
        return jnp.take_along_axis(bend, pick[None, :, None, None], 0)[0]

    return distinct(u, f, done, curvature_at, keep, threshold)


@functools.partial(jit, static_argnums=(0, 1))
def _descend(
    energy: Energy, curvature: Curvature, shared: Any, own: Any, points: _Points, exact: Array, evaluations: Array
) -> tuple[_Points, Any]:
    """`_Points` (N, 1 + M) after so many evaluations, at most, of energy, slope and curvature, and what the last of
    them was computed from. exact: all points of a star are one, and its second derivatives are differences of slopes at
    points beside it; else the points go their own ways, with the approximate curvature."""
    m = points.u.shape[-1]
    ahead = jnp.where(exact, DIFFERENCE, 0.0) * jnp.eye(1 + m, m, -1)
    first = lambda x: jnp.where(exact, x[:, :1], x)  # noqa: E731

    @jit
    def locally(shared: Any, own: Any, u: Array, bend: Array) -> tuple[tuple[Array, Array, Array], Any]:
        """Objective, slope and curvature, which was `bend` before."""
        at = u + ahead
        values = lambda u: jax.vmap(energy.in_passing, (0, None, 0))(u, shared, own)  # noqa: E731
        f, back, beside = jax.vjp(values, at, has_aux=True)
        slopes = back(jnp.ones_like(f))[0]
        second = (slopes[:, 1:] - slopes[:, :1]) / DIFFERENCE
        second = 0.5 * (second + jnp.swapaxes(second, 1, 2))
        definite = jnp.isfinite(jnp.linalg.cholesky(second - 1e-3 * bend[:, 0])).all((1, 2)) & exact
        second = jnp.broadcast_to(second[:, None], bend.shape)

        def otherwise() -> Array:
            rough = first(jax.vmap(curvature, (0, None, 0, 0))(at, shared, own, beside))
            return jnp.where(definite[:, None, None, None], second, rough)

        return (first(f), first(slopes), jax.lax.cond(definite.all(), lambda: second, otherwise)), beside

    def step(state: tuple[_Points, Any, Array]) -> tuple[_Points, Any, Array]:
        """A new point stays where it is: everything is evaluated in one place, which is compiled once."""
        (u, f, slope, bend, damping, done), _, count = state
        diagonal = jnp.diagonal(bend, axis1=-2, axis2=-1)[..., None] * jnp.eye(m)
        full = (bend + damping[..., None, None] * diagonal).reshape(-1, m, m)
        move = solve_small(full, slope.reshape(-1, m)).reshape(u.shape)
        decrement = (slope * move).sum(-1)
        (f_trial, slope_trial, bend_trial), beside = locally(shared, own, u - move, bend)
        better, new = (f_trial <= f) & ~done, jnp.isinf(f)
        bend = jnp.where(better[..., None, None], bend_trial, bend)
        u, slope = (jnp.where(better[..., None], a, b) for a, b in ((u - move, u), (slope_trial, slope)))
        f = jnp.where(better, f_trial, f)
        damping = jnp.where(better, jnp.maximum(damping * 0.2, 1e-9), jnp.minimum(damping * 6, 1e9))
        done = done | jnp.where(new, ~jnp.isfinite(f), decrement < TOLERANCE * (1 + damping))
        return _Points(u, f, slope, bend, damping, done), beside, count + 1

    points = jax.tree.map(jnp.asarray, points)
    beside = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(locally, shared, own, points.u, points.bend)[1]
    )
    return jax.lax.while_loop(lambda s: ~s[0].done.all() & (s[2] < evaluations), step, (points, beside, 0))[:2]
