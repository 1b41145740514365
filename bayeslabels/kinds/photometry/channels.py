"""Channels: the magnitudes of a star in bands, and beside them its fluxes in the pixels of a spectrum.

    m_b = M_b(u) + mu + A_b,   f_b = 10^(-0.4 m_b)

f in units of the frame's `flux_scale`: the zero point of M_b is that unit's. A measured flux of any sign is data.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...data.stars import Block, Stars
from ...numerics.linalg import Array, module_of
from ...numerics.tangent import brightness


class Channels(NamedTuple):
    """Channels of N stars; numbers that are not there are 0, their variances 1.

    value (N, B): magnitudes, then fluxes. noise: variances (N, B) or covariances (N, B, B). seen (N, B): 1 or 0.
    bright (N, B): all as magnitudes, fluxes not below their errors; unit (N, B): d value / d magnitude there.
    """

    value: np.ndarray
    noise: np.ndarray
    seen: np.ndarray
    bright: np.ndarray
    unit: np.ndarray


def joined(parts: list[tuple[Array, Array, Array]], n_magnitude: int) -> Channels:
    """From value, variance or covariance, and mask, of the blocks in their order."""
    value, seen = (np.concatenate([p[i] for p in parts], 1) for i in (0, 2))
    if all(p[1].ndim == 2 for p in parts):
        noise = variance = np.concatenate([p[1] for p in parts], 1)
    else:
        noise, start = np.zeros((*value.shape, value.shape[1])), 0
        for _, own, _ in parts:
            at = slice(start, start + own.shape[1])
            noise[:, at, at] = own if own.ndim == 3 else own[:, :, None] * np.eye(own.shape[1])
            start = at.stop
        variance = np.diagonal(noise, axis1=1, axis2=2)
    bright, unit = brightness(value, np.sqrt(variance), n_magnitude)
    return Channels(value, noise, seen.astype(float), np.where(seen, bright, 0.0), unit)


def observed(model: object, stars: Stars) -> np.ndarray:
    """Which channels (N, B) of the stars were measured."""
    widths = model.widths  # type: ignore[attr-defined]
    each = [stars[k].observed if k in stars else np.zeros((len(stars), n), bool) for k, n in widths.items()]
    return np.concatenate(each, 1)


def noise_and_value(block: Block, scale: float = 1.0) -> tuple[Array, Array, Array]:
    """Value, variance or covariance, and mask of a block in units of `scale`."""
    value, variance, seen = block.filled()
    xp = module_of(value)
    if block.has_covariance and block.n_dim > 1:
        both = seen[:, :, None] & seen[:, None, :]
        return value / scale, xp.where(both, block.filled_covariance() / scale**2, xp.eye(block.n_dim)), seen
    return value / scale, xp.where(seen, variance / scale**2, 1.0), seen


def flux_scale(block: Block) -> float:
    """The typical flux."""
    return float(np.median(np.abs(block.value[block.observed]))) if block.observed.any() else 1.0
