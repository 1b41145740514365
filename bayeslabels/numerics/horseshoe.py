"""The horseshoe's marginal density: a normal of half-Cauchy scale, the scale integrated out.

p(theta | t) = integral N(theta | 0, t^2 l^2) 2 / (pi (1 + l^2)) dl = exp(u) E1(u) / (t sqrt(2 pi^3)),
u = theta^2 / (2 t^2)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import exp1

from .linalg import Array


def log_density(theta: Array, t: Array) -> Array:
    u = jnp.maximum(0.5 * (theta / t) ** 2, 1e-12)
    return log_scaled_exp1(u) - jnp.log(t) - 0.5 * np.log(2 * np.pi**3)


@jax.custom_jvp
def log_scaled_exp1(u: Array) -> Array:
    """ln[exp(u) E1(u)], u > 0; by the asymptotic series where exp(u) would overflow."""
    small, inverse = jnp.minimum(u, 50.0), 1 / jnp.maximum(u, 50.0)
    series = inverse * (1 - inverse * (1 - 2 * inverse * (1 - 3 * inverse * (1 - 4 * inverse))))
    return jnp.where(u < 50, small + jnp.log(exp1(small)), jnp.log(series))


@log_scaled_exp1.defjvp
def _derivative(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (u,), (change,) = primals, tangents
    value = log_scaled_exp1(u)
    return value, (1 - jnp.exp(-value) / u) * change
