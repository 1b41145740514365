"""Gaussians cut off below: their integrals, means and draws, in a form that neither cancels nor underflows.

I(h, p, c) = integral over y >= -c of exp(h y - p y^2 / 2) dy
           = sqrt(2 pi / p) exp(h^2 / 2p) Phi(t),   t = (h + p c) / sqrt(p)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from .linalg import Array

# erfc(z) = s exp(-z^2 + P(s)), s = 2 / (2 + z): Chebyshev coefficients of P (Press+07, Numerical Recipes, 6.2.2)
_CHEBYSHEV = (
    -1.3026537197817094, 6.4196979235649026e-1, 1.9476473204185836e-2, -9.561514786808631e-3, -9.46595344482036e-4,
    3.66839497852761e-4, 4.2523324806907e-5, -2.0278578112534e-5, -1.624290004647e-6, 1.303655835580e-6,
    1.5626441722e-8, -8.5238095915e-8, 6.529054439e-9, 5.059343495e-9, -9.91364156e-10, -2.27365122e-10,
    9.6467911e-11, 2.394038e-12, -6.886027e-12, 8.94487e-13, 3.13092e-13, -1.12708e-13, 3.81e-16, 7.106e-15,
    -1.523e-15, -9.4e-17, 1.21e-16, -2.8e-17,
)  # fmt: skip
SQRT_2PI, SQRT_2 = float(np.sqrt(2 * np.pi)), float(np.sqrt(2))


@jax.custom_jvp
def scaled_log_ndtr(t: Array) -> Array:
    """t^2 / 2 + ln Phi(t) for t <= 0, however far below: JAX's own `log_ndtr` is ten times slower."""
    z = -t / SQRT_2
    s = 2 / (2 + z)
    y = 4 * s - 2
    d = dd = jnp.zeros_like(z)
    used = _CHEBYSHEV if z.dtype == jnp.float64 else _CHEBYSHEV[:14]
    for c in used[:0:-1]:
        d, dd = y * d - dd + c, d
    return jnp.log(0.5 * s) + 0.5 * (used[0] + y * d) - dd


@scaled_log_ndtr.defjvp
def _scaled_slope(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (t,), (change,) = primals, tangents
    out = scaled_log_ndtr(t)
    # where t + phi / Phi cancels, its expansion
    far = t < -50.0
    near = jnp.where(far, 0.0, t) + jnp.exp(-out) / SQRT_2PI
    u = 1 / jnp.where(far, t, -1.0)
    return out, jnp.where(far, -u * (1 - 2 * u**2), near) * change


def log_integral(h: Array, p: Array, c: Array) -> Array:
    """ln I(h, p, c), broadcast; p > 0, c >= 0. c = 0 is exact where h is far below 0, any c where it is not."""
    t = (h + p * c) / jnp.sqrt(p)
    right = h**2 / (2 * p) + jnp.log1p(-0.5 * jax.scipy.special.erfc(jnp.maximum(t, 0.0) / SQRT_2))
    left = scaled_log_ndtr(jnp.minimum(t, 0.0)) - c * (h + 0.5 * p * c)
    return jnp.where(t > 0, right, left) + 0.5 * jnp.log(2 * np.pi / p)


def moments(h: Array, p: Array, c: Array) -> tuple[Array, Array]:
    """Mean of y + c, which is never negative, and variance."""
    root = jnp.sqrt(p)
    t = (h + p * c) / root
    below = jnp.minimum(t, 0.0)
    above = jnp.maximum(t, 0.0)
    right = jnp.exp(-0.5 * above**2) / SQRT_2PI / (1 - 0.5 * jax.scipy.special.erfc(above / SQRT_2))
    ratio = jnp.where(t > 0, right, jnp.exp(-scaled_log_ndtr(below)) / SQRT_2PI)
    far = t < -50.0
    u = 1 / jnp.where(far, t, -1.0)
    mean = jnp.where(far, -u * (1 - 2 * u**2), t + ratio)
    variance = jnp.where(far, u**2 * (1 - 6 * u**2), 1 - ratio * (t + ratio))
    return mean / root, jnp.maximum(variance, 0.0) / p


def draw(h: Array, p: Array, c: Array, uniform: Array) -> Array:
    """y + c at the upper tail probabilities `uniform` of (0, 1)."""
    root = jnp.sqrt(p)
    t = (h + p * c) / root
    # the upper tail beyond 0 has the probability Phi(t): -z is the quantile of uniform Phi(t)
    near = t + -jax.scipy.special.ndtri(jnp.maximum(uniform * jax.scipy.special.ndtr(t), 1e-300))
    exponential = -jnp.log(uniform) / jnp.maximum(-t, 1.0)
    return jnp.maximum(jnp.where(t < -30.0, exponential, near), 0.0) / root
