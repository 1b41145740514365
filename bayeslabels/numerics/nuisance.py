"""What else varies from star to star, linear in the flux and integrated out of a star's compressed spectrum.

flux_n = theta phi(u_n) + T_n v_n + noise,   v_n ~ N(0, I_Q)

With D_n = T_n' W T_n, X_n = T_n' W theta, c_n = T_n' W y_n (W the weights of the pixels) the spectrum is still a
quartic in the labels alone:

G_n - X_n' (I + D_n)^-1 X_n,   b_n - X_n' (I + D_n)^-1 c_n,   y' W y - c_n' (I + D_n)^-1 c_n
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from .compiling import jit
from .compress import STARS, TILE, Statistics, known, power_of_two
from .linalg import Array, inverse_psd, pack, pairs


class NuisanceSums(NamedTuple):
    """D (N, Q, Q), X (N, Q, K), c (N, Q) of N stars."""

    gram: Array
    cross: Array
    linear: Array

    def given(self, phi: Array) -> tuple[Array, Array]:
        """Mean (N, Q) and covariance (N, Q, Q) of v given the features phi (N, K)."""
        covariance = inverse_psd(self.gram + np.eye(self.gram.shape[-1]))
        rest = self.linear - (self.cross @ phi[..., None])[..., 0]
        return (covariance @ rest[..., None])[..., 0], covariance


def marginalise(statistics: Statistics, sums: NuisanceSums) -> Statistics:
    """The statistics of the labels, v integrated out."""
    covariance = inverse_psd(sums.gram + np.eye(sums.gram.shape[-1]))
    own = (covariance @ sums.linear[..., None])[..., 0]
    across = np.swapaxes(sums.cross, 1, 2)
    gram = statistics.gram - across @ covariance @ sums.cross
    explained = (own * sums.linear).sum(1)
    return Statistics(
        0.5 * (gram + np.swapaxes(gram, 1, 2)),
        statistics.linear - (across @ own[..., None])[..., 0],
        statistics.constant - 0.5 * explained - 0.5 * np.linalg.slogdet(covariance)[1],
        statistics.square - explained,
        statistics.n_pixel,
    )


def compress_nuisances(
    value: Array,
    error: Array | None,
    theta: Array,
    scatter: Array,
    templates: np.ndarray,
    phi: Array,
    *,
    theta_covariance: Array | None = None,
    feature_pairs: Array | None = None,
) -> NuisanceSums:
    """Sums over the pixels of spectra (N, L), with the weights of `compress`.

    Args:
        theta: (L, K). scatter: (L,); a pixel of NaN scatter is left out.
        templates: (Q, L, K): T_nlq = templates_ql . phi_n, for v of unit variance.
        phi: (N, K), the features at which the templates are taken.
        theta_covariance, feature_pairs: as in `compress`.
    """
    n, n_pixel = value.shape
    q, _, k = templates.shape
    use = np.isfinite(scatter)
    unit = power_of_two(np.abs(theta[use]).max(initial=0.0))
    theta = np.where(use[:, None], theta, 0.0) * unit
    shapes = np.where(use[:, None], templates, 0.0) * unit
    scatter2 = (np.asarray(scatter) * unit) ** 2
    trace = None
    pad = -n % STARS
    phi = np.pad(phi, ((0, pad), (0, 0)))
    if theta_covariance is not None and feature_pairs is not None:
        trace = np.where(use[:, None], pack(np.asarray(theta_covariance)), 0.0) * (unit**2 * pairs(k)[2])
        feature_pairs = np.pad(feature_pairs, ((0, pad), (0, 0)))
    found = []
    for first in range(0, n, STARS):
        rows, own = slice(first, min(first + STARS, n)), slice(first, first + STARS)
        empty = STARS - (rows.stop - rows.start)
        total = NuisanceSums(np.zeros((STARS, q, q)), np.zeros((STARS, q, k)), np.zeros((STARS, q)))
        for start in range(0, n_pixel, TILE):
            columns = slice(start, min(start + TILE, n_pixel))
            some = ((0, empty), (0, TILE - (columns.stop - columns.start)))
            y = np.pad(np.asarray(value[rows, columns], float) * unit, some, constant_values=np.nan)
            e = np.zeros(y.shape) if error is None else np.pad(np.asarray(error[rows, columns], float) * unit, some)
            across = (some[1], (0, 0))
            s2 = np.pad(scatter2[columns], some[1], constant_values=np.nan)
            t, products = None, None
            if trace is not None and feature_pairs is not None:
                t, products = np.pad(trace[columns], across), feature_pairs[own]
            shape = np.pad(shapes[:, columns], ((0, 0), *across))
            total = _add(total, y, e, np.pad(theta[columns], across), s2, shape, phi[own], t, products)
        found.append(total)
    return NuisanceSums(*(np.concatenate(x)[:n] for x in zip(*found, strict=True)))


@jit
def _add(
    total: NuisanceSums,
    y: Array,
    e: Array,
    theta: Array,
    scatter2: Array,
    shapes: Array,
    phi: Array,
    trace: Array | None,
    feature_pairs: Array | None,
) -> NuisanceSums:
    value, variance, ok = known(y, e)
    ok &= jnp.isfinite(scatter2)
    if trace is not None:
        variance = variance + feature_pairs @ trace.T
    w = ok / jnp.where(ok, variance + scatter2, 1.0)
    template = jnp.einsum("sk,qlk->qsl", phi, shapes)
    weighted = template * w
    gram = jnp.einsum("qsl,rsl->sqr", weighted, template)
    return NuisanceSums(
        total.gram + gram,
        total.cross + jnp.einsum("qsl,lk->sqk", weighted, theta),
        total.linear + jnp.einsum("qsl,sl->sq", weighted, value),
    )
