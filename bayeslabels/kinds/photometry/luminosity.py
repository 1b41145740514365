"""The scatter in luminosity that all bands share, a smooth function of the labels: giants differ more than dwarfs.

ln s_M(u) = ln s + 3 tanh((phi(u) . c) / 3),   phi: u_i and u_i u_j
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from ...numerics.features import Monomials
from ...numerics.linalg import Array

LARGEST = 3.0
"""Of |ln s_M - ln s|: far from the training stars a polynomial leads nowhere."""


def size(n_label: int) -> int:
    """Number of coefficients c."""
    return Monomials.up_to(2, n_label).size - 1


def prior_sd(n_label: int) -> np.ndarray:
    """Of the coefficients' Normal prior: linear terms, then quadratic ones."""
    return np.where(np.arange(size(n_label)) < n_label, 0.5, 0.2)


def luminosity_sd(sd: Array, slope: Array, u: Array) -> Array:
    """s_M (...) of s (), c (P,) and scaled labels u (..., L)."""
    return sd * jnp.exp(LARGEST * jnp.tanh(Monomials.up_to(2, u.shape[-1])(u)[..., 1:] @ slope / LARGEST))
