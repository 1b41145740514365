"""Extinction that bends, and where a star's measurements are linear in its distance modulus and reddening.

    m = M + mu + A,   A_b = E R_b - w_b (E R_b)^2,   f_b = 10^(-0.4 m_b)

A broad band loses its most reddened photons first: w = 0.46 Var(k) / mean(k)^2 of the extinction k in the band, to
second order (Green+21, appendix B). About mu_0 and E_0 all is linear in x = mu - mu_0 and y = E - E_0, but for
-w (R y)^2, and 0.42 f (x + R y)^2 of a flux: nothing, if mu_0 and E_0 are within their posterior.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from .linalg import Array, module_of

MOST = 0.4
"""Largest w E R about which extinction is linear: beyond it, E is far outside of what any data taught."""
LN10_25 = float(0.4 * np.log(10))
BRIGHTEST = -60.0
"""Magnitudes below which fluxes are no numbers of float32."""
TOO_BRIGHT = 10.0
"""Magnitudes by which what is predicted of a star is brighter than the star at most. 10^4 times its flux is as wrong as
more would be; 10^15 times, which a model predicts far outside of its training, squared, leaves chi^2 no digit."""


def extinction(e: Array, vector: Array, bend: Array, bands: int = -1) -> Array:
    """A (..., B) of E (...), R (..., B) and w (B,), mag; bands 0: all (B, ...), w (B, 1)."""
    straight = (e[..., None] if bands else e) * vector
    return straight * (1 - bend * straight)


def slope(e: Array, vector: Array, bend: Array, bands: int = -1) -> Array:
    """dA / dE (..., B)."""
    return vector * (1 - 2 * bend * (e[..., None] if bands else e) * vector)


def bent_by_most(e: Array, vector: Array, bend: Array) -> Array:
    """E (...), but no more than bends the extinction by a share of `MOST`."""
    return jnp.minimum(e, MOST / jnp.maximum((jnp.abs(bend) * vector).max(-1), 1e-6))


def as_measured(
    m: Array, n_magnitude: int, bands: int = -1, brightest: Array | float = BRIGHTEST
) -> tuple[Array, Array]:
    """What is measured of magnitudes (..., B), the first as they are, the others as fluxes 10^(-0.4 m), and its slope
    in m; bands 0: of (B, ...). brightest: of all bands or of each; fluxes are no larger than at these magnitudes."""
    rest_of = (lambda x: x[..., n_magnitude:]) if bands else (lambda x: x[n_magnitude:])
    first, rest = (m[..., :n_magnitude] if bands else m[:n_magnitude]), rest_of(m)
    least = rest_of(brightest) if jnp.ndim(brightest) else brightest
    flux = jnp.exp(-LN10_25 * jnp.maximum(rest, least))
    return jnp.concatenate([first, flux], bands), jnp.concatenate([jnp.ones_like(first), -LN10_25 * flux], bands)


def brightness(value: Array, sd: Array, n_magnitude: int) -> tuple[Array, Array]:
    """Magnitudes (..., B) of what was measured, a flux not much below its error, and d value / d magnitude there: of
    fluxes that are many errors above 0 exactly, of others a place to begin at."""
    xp = module_of(value)
    flux, error = value[..., n_magnitude:], sd[..., n_magnitude:]
    above = 0.5 * (flux + xp.sqrt(flux**2 + 4 * error**2))
    first = value[..., :n_magnitude]
    bright = xp.concatenate([first, -xp.log(above) / LN10_25], -1)
    return bright, xp.concatenate([xp.ones_like(first), -LN10_25 * above], -1)
