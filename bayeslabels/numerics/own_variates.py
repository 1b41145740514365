"""Random numbers of every star from a key of its own: the same whatever stars are beside it, and in whatever order.

Number i of a star is a hash of (i, key), as in counter-based generators (Salmon+11): all stars at once, in any number.
In float32: resolved to 2^-23, normal deviates up to 5.8, and several times cheaper than float64.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np

from .compiling import jit
from .linalg import Array

GOLDEN = np.uint32(0x9E3779B9)
"""2^32 over the golden ratio, odd: the arguments of the hash lie far apart."""


def mixed(x: np.ndarray) -> np.ndarray:
    """Unsigned 64-bit integers, every bit of which depends on all bits of x (SplitMix64, Steele+14)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def shuffled(digests: np.ndarray, seed: int) -> np.ndarray:
    """Random integers (N,) of 64 bits that follow from digests (N,) and the seed."""
    return mixed(digests + np.random.SeedSequence([seed, 15485863]).generate_state(1, np.uint64))


def keys_of(digests: np.ndarray, seed: int) -> np.ndarray:
    """Keys (N, 2), of 32 bits, of stars with these digests (N,) of 64 bits: others for every seed."""
    both = shuffled(digests, seed)
    return np.stack([both & np.uint64(0xFFFFFFFF), both >> np.uint64(32)], 1).astype(np.uint32)


def other_keys(keys: np.ndarray, what: int) -> np.ndarray:
    """Keys for other random numbers of the same stars."""
    return keys ^ np.random.SeedSequence(what).generate_state(2)


def _hash(x: Array) -> Array:
    """Of 32-bit integers, with little bias (Wellons 18)."""
    x = (x ^ (x >> 16)) * np.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * np.uint32(0x735A2D97)
    return x ^ (x >> 15)


def uniform(keys: Array, n: int) -> Array:
    """(N, n), between 0 and 1, of keys (N, 2); neither end is reached."""
    at = GOLDEN * jnp.arange(1, n + 1, dtype=jnp.uint32)
    bits = _hash(_hash(at + keys[:, :1]) + keys[:, 1:])
    return ((bits >> 9).astype(jnp.int32).astype(jnp.float32) + np.float32(0.5)) * np.float32(2.0**-23)


def normal(keys: Array, n: int) -> Array:
    """(N, n), by pairs (Box+58)."""
    half = -(-n // 2)
    u = uniform(keys, 2 * half)
    radius, angle = jnp.sqrt(-2 * jnp.log(u[:, :half])), np.float32(2 * np.pi) * u[:, half:]
    return jnp.concatenate([radius * jnp.cos(angle), radius * jnp.sin(angle)], 1)[:, :n]


def chi_square(keys: Array, n: int, freedom: int) -> Array:
    """(N, n): minus twice the logarithms of freedom // 2 uniform numbers, and the square of a normal one."""
    pairs, odd = divmod(freedom, 2)
    u = uniform(keys, n * (pairs + 2 * odd)).reshape(len(keys), -1, n)
    chi2 = jnp.zeros((len(keys), n), jnp.float32)
    for first in range(0, pairs, 4):  # the product of so few does not underflow
        chi2 = chi2 - 2 * jnp.log(u[:, first : min(first + 4, pairs)].prod(1))
    if odd:
        chi2 = chi2 - 2 * jnp.log(u[:, -2]) * jnp.cos(np.float32(2 * np.pi) * u[:, -1]) ** 2
    return chi2


@functools.partial(jit, static_argnums=1)
def _uniform(keys: Array, n: int) -> Array:
    return uniform(keys, n)


@functools.partial(jit, static_argnums=1)
def _normal(keys: Array, n: int) -> Array:
    return normal(keys, n)


def uniforms(keys: np.ndarray, n: int) -> np.ndarray:
    """`uniform`, in NumPy's float64."""
    return np.asarray(_uniform(keys, n), float)


def normals(keys: np.ndarray, n: int) -> np.ndarray:
    """`normal`, in NumPy's float64."""
    return np.asarray(_normal(keys, n), float)
