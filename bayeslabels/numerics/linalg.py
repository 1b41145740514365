"""Float64 on demand, packed symmetric products and batched solves."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from threadpoolctl import ThreadpoolController

from ..process import settings_as_usual

Array: TypeAlias = Any
"""A NumPy or a JAX array: both are taken everywhere."""

F = TypeVar("F", bound=Callable[..., Any])


def in_float64(function: F) -> F:
    """Run `function` with JAX in float64 and otherwise as by default, whatever the caller's settings, which stay."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with settings_as_usual(), jax.enable_x64(True):
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

    On the CPU a batched Cholesky factorisation shares its work out among the threads and waits for them; two at a time
    on two cores wait for each other for ever (JAX 0.10). Those without a dependence of their own are given one.
    """
    return x + 0 * jnp.nan_to_num(before.ravel()[0])


def solve_psd(a: Array, b: Array) -> Array:
    """x of a x = b for symmetric positive definite a (..., k, k) and b (..., k), with one step of refinement."""
    return solve_and_invert(a, b)[0]


def solve_and_invert(a: Array, b: Array) -> tuple[Array, Array]:
    """x of a x = b, with one step of refinement, and a^-1, from one factorisation."""
    inverse = inverse_psd(a)
    x = jnp.einsum("...jk,...k->...j", inverse, b)
    return x + jnp.einsum("...jk,...k->...j", inverse, b - jnp.einsum("...jk,...k->...j", a, x)), inverse


def inverse_psd(a: Array) -> Array:
    """Inverse of symmetric positive definite matrices (..., k, k)."""
    k = a.shape[-1]
    scale = 1 / jnp.sqrt(jnp.maximum(jnp.diagonal(a, axis1=-2, axis2=-1), 1e-300))
    factor = jnp.linalg.cholesky(a * scale[..., :, None] * scale[..., None, :])
    half = jax.scipy.linalg.solve_triangular(factor, jnp.broadcast_to(jnp.eye(k, dtype=a.dtype), a.shape), lower=True)
    return jnp.swapaxes(half, -1, -2) @ half * scale[..., :, None] * scale[..., None, :]


def inverse_observed(covariance: Array, observed: Array) -> Array:
    """Precision (..., m, m) of the observed entries of each row, zero in the rows and columns not observed."""
    both = observed[..., :, None] & observed[..., None, :]
    eye = jnp.eye(covariance.shape[-1], dtype=covariance.dtype)
    return jnp.where(both, inverse_psd(jnp.where(both, covariance, eye)), 0.0)


def leading_directions(x: np.ndarray, n: int) -> np.ndarray:
    """The first n left singular vectors (N, n) of x (N, L), by subspace iteration from a fixed start."""
    start = np.random.default_rng(0).standard_normal((x.shape[1], n + 10))
    with threads_for(x.size):
        basis = np.linalg.qr(x @ start)[0]
        for _ in range(4):
            basis = np.linalg.qr(x @ (x.T @ basis))[0]
        return basis @ np.linalg.svd(basis.T @ x, full_matrices=False)[0][:, :n]


def threads_for(numbers: int) -> AbstractContextManager[Any]:
    """One BLAS thread for a matrix too small to share: the others would spin, at up to ten times the CPU time."""
    return ThreadpoolController().limit(limits=1, user_api="blas") if numbers < SHARED else nullcontext()


SHARED = 5_000_000
"""Numbers in a matrix from which several threads are worth their while."""
