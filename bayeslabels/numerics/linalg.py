"""Float64 on demand, packed symmetric products and batched solves.

What is called on arrays of NumPy is computed by NumPy: compiling would take longer than the work, and a program for
every number of stars.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from ..process import settings_as_usual
from .threads import one_thread, threads_for

Array: TypeAlias = Any
"""A NumPy or a JAX array: both are taken everywhere."""

F = TypeVar("F", bound=Callable[..., Any])


def in_float64(function: F) -> F:
    """Run `function` with JAX in float64 and otherwise as by default, whatever the caller's settings, which stay; NumPy
    with one thread for its linear algebra (`threads`).

    NaN marks what is missing or cannot be computed, and is flagged: NumPy passes it on without a word, as JAX does.
    """

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with settings_as_usual(), one_thread(), jax.enable_x64(True), np.errstate(over="ignore", invalid="ignore"):
            return function(*args, **kwargs)

    return wrapped  # type: ignore[return-value]


def constant(x: Array) -> Array:
    """x as an array of JAX, floats in its present precision.

    `jnp.asarray` takes a NumPy array that a compiled function has held as it was then, rounded to float32 or in a
    precision that is not the present one.
    """
    if isinstance(x, jax.Array):
        return x
    x = np.asarray(x)
    return jnp.asarray(x, float if x.dtype.kind == "f" else None)


def beside(x: Array, *constants: np.ndarray) -> tuple[Array, ...]:
    """The constants as arrays of JAX where x is one, as NumPy's where it is not."""
    return tuple(map(constant, constants)) if isinstance(x, jax.Array) else constants


def pairs(k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and multiplicity of the k (k + 1) / 2 distinct entries of a symmetric k x k matrix."""
    i, j = np.triu_indices(k)
    return i, j, np.where(i == j, 1.0, 2.0)


def pack(a: Array) -> Array:
    """(..., k, k) symmetric -> (..., k (k + 1) / 2)."""
    i, j, _ = pairs(a.shape[-1])
    return a[..., i, j]


def unpack(packed: Array, k: int) -> Array:
    """(..., k (k + 1) / 2) -> (..., k, k) symmetric."""
    i, j, _ = pairs(k)
    index = np.empty((k, k), int)
    index[i, j] = index[j, i] = np.arange(len(i))
    return packed[..., index]


def outer_pairs(x: Array) -> Array:
    """(..., k) -> the packed products x_i x_j, (..., k (k + 1) / 2)."""
    i, j, _ = pairs(x.shape[-1])
    return x[..., i] * x[..., j]


def after(x: Array, before: Array) -> Array:
    """x, computed once `before` is.

    On the CPU a factorisation (Cholesky, LU, of one matrix too) shares its work out among the threads and waits for
    them; two at a time on two cores wait for each other for ever (JAX 0.10). Those without a dependence of their own
    are given one.
    """
    return x + 0 * jnp.nan_to_num(before.ravel()[0])


def solve_and_invert(a: Array, b: Array) -> tuple[Array, Array]:
    """x of a x = b, with one step of refinement, and a^-1, from one factorisation."""
    inverse = inverse_psd(a)
    x = jnp.einsum("...jk,...k->...j", inverse, b)
    return x + jnp.einsum("...jk,...k->...j", inverse, b - jnp.einsum("...jk,...k->...j", a, x)), inverse


def module_of(*arrays: Array) -> Any:
    """The module that computes with arrays: `jax.numpy` if one is of JAX, or `numpy`."""
    return jnp if any(isinstance(x, jax.Array) for x in arrays) else np


def is_traced(tree: Any) -> bool:
    """Whether JAX is tracing a function of these arrays, so that their numbers are not known yet."""
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree))


def placed(array: Array, index: Any, value: Array) -> Array:
    """The array with this value at the index: the same array where both are of NumPy, else a new one of JAX."""
    if isinstance(array, jax.Array) or isinstance(value, jax.Array):
        return constant(array).at[index].set(value)
    array[index] = value
    return array


def inverse_psd(a: Array) -> Array:
    """Inverse of symmetric positive definite matrices (..., k, k); NaN of others."""
    xp = module_of(a)
    scale = 1 / xp.sqrt(xp.maximum(xp.diagonal(a, axis1=-2, axis2=-1), 1e-300))
    both = scale[..., :, None] * scale[..., None, :]
    if xp is np:
        half: Array = np.linalg.inv(cholesky(a * both))
    else:
        factor, eye = jnp.linalg.cholesky(a * both), jnp.eye(a.shape[-1], dtype=a.dtype)
        half = jax.scipy.linalg.solve_triangular(factor, jnp.broadcast_to(eye, a.shape), lower=True)
    return xp.swapaxes(half, -1, -2) @ half * both


def cholesky(a: np.ndarray) -> np.ndarray:
    """Lower factors of matrices (..., k, k) of NumPy; NaN of those that are not positive definite."""
    try:
        return np.linalg.cholesky(a)
    except np.linalg.LinAlgError:
        if a.ndim == 2:
            return np.full(a.shape, np.nan)
        return np.stack([cholesky(x) for x in a])


def inverse_observed(covariance: Array, observed: Array) -> Array:
    """Precision (..., m, m) of the observed entries of each row, zero in the rows and columns not observed."""
    xp = module_of(covariance)
    both = observed[..., :, None] & observed[..., None, :]
    eye = xp.eye(covariance.shape[-1], dtype=covariance.dtype)
    return xp.where(both, inverse_psd(xp.where(both, covariance, eye)), 0.0)


def random_sums(x: np.ndarray, n: int) -> np.ndarray:
    """n random sums (L, n) of the rows of x (N, L), from which its leading directions are sought.

    Rows are numbered by their length, so that neither their order nor that of the columns matters.
    """
    weights = np.empty((len(x), n))
    weights[np.argsort(np.einsum("nl,nl->n", x, x))] = np.random.default_rng(0).standard_normal(weights.shape)
    return x.T @ weights


def left_singular_vectors(x: np.ndarray, n: int) -> np.ndarray:
    """The first n (N, n) of x (N, L), 0 beyond its rank, by subspace iteration from random sums of rows."""
    with threads_for(x.size):
        basis = np.linalg.qr(x @ random_sums(x, n + 10))[0]
        for _ in range(4):
            basis = np.linalg.qr(x @ (x.T @ basis))[0]
        found = basis @ np.linalg.svd(basis.T @ x, full_matrices=False)[0][:, :n]
    return np.pad(found, ((0, 0), (0, n - found.shape[1])))
