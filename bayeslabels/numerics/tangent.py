"""Extinction that bends, and where a star's measurements are linear in its distance modulus and reddening.

    m = M + mu + A,   A_b = E R_b - w_b (E R_b)^2

A broad band loses its most reddened photons first: w = 0.46 Var(k) / mean(k)^2 of the extinction k in the band, to
second order (Green+21, appendix B). About mu_0 and E_0 all is linear in x = mu - mu_0 and y = E - E_0, but for
-w (R y)^2, which is nothing if E_0 is within the posterior of E.
"""

from __future__ import annotations

import jax.numpy as jnp

from .linalg import Array

MOST = 0.4
"""Largest w E R about which extinction is linear: beyond it, E is far outside of what any data taught."""


def extinction(e: Array, vector: Array, bend: Array) -> Array:
    """A (..., B) of E (...), R (..., B) and w (B,), mag."""
    straight = e[..., None] * vector
    return straight * (1 - bend * straight)


def slope(e: Array, vector: Array, bend: Array) -> Array:
    """dA / dE (..., B)."""
    return vector * (1 - 2 * bend * e[..., None] * vector)


def bent_by_most(e: Array, vector: Array, bend: Array) -> Array:
    """E (...), but no more than bends the extinction by a share of `MOST`."""
    return jnp.minimum(e, MOST / jnp.maximum((jnp.abs(bend) * vector).max(-1), 1e-6))
