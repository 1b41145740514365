"""What is not known of what the model is linear in, given the rest: the magnitude of a star in every channel is

    m_b = phi_b . c_b + ...,   c_b: weights of the last layer, ln R_b at the median labels and its slope, w_b

    F_bc = sum_n phi_nb phi_nc' P_n,bc - d^2 ln p(c) / dc^2,   c ~ N(mode, F^-1)

phi (D,): slopes at the mode. P_n (B, B): the precision of a star's channels, its modulus, reddening, labels and scatter
in luminosity integrated out (Gauss-Newton). The scores of N stars tell of N directions at most; F tells of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import jax.numpy as jnp
import numpy as np

from ...core.collapsed import LinearPart
from ...numerics.dusty import loose, place, project
from ...numerics.linalg import Array
from ...numerics.network import Function
from ...numerics.tangent import as_measured, extinction, slope
from ...numerics.whitening import noise_of
from . import systems
from .rows import PhotometricData

if TYPE_CHECKING:
    from .photometry import Photometry

SITES = ("weights", "reddening_log", "reddening_slope", "reddening_bend")


def slopes(net: Function, theta: Mapping[str, Array], u: Array, e: Array) -> Array:
    """phi (..., B, D) at scaled labels u (..., L) and reddenings E (...)."""
    vector = jnp.exp(theta["reddening_log"] + u @ theta["reddening_slope"].T)
    straight = e[..., None] * vector
    of_log = straight * (1 - 2 * theta["reddening_bend"] * straight)
    h = net.features(theta["weights"], u)[..., None, :]
    h = jnp.broadcast_to(h, (*vector.shape, h.shape[-1]))
    return jnp.concatenate([h, of_log[..., None], of_log[..., None] * u[..., None, :], -(straight**2)[..., None]], -1)


def coefficients(net: Function, spread: np.ndarray, theta: Mapping[str, np.ndarray]) -> np.ndarray:
    """c (..., B, D) of parameters (..., P)."""
    weights = theta["weights"][..., : net.linear].reshape(*theta["weights"].shape[:-1], -1, net.n_out) @ spread
    rest = theta["reddening_log"][..., None], theta["reddening_slope"], theta["reddening_bend"][..., None]
    return np.concatenate([np.swapaxes(weights, -1, -2), *rest], -1)


def deviations_of(model: Photometry, draws: Mapping[str, np.ndarray]) -> np.ndarray:
    """c (E, S, B, D) of draws {site: (E, S, ...)}, less their mean."""
    c = coefficients(model.net, np.asarray(model.require_frame().spread), draws)
    return (c - c.mean(1, keepdims=True)).astype(np.float32)


def about_members(model: Photometry, draws: Mapping[str, np.ndarray], deviation: np.ndarray) -> dict[str, np.ndarray]:
    """Sites {name: (E, S, ...)} of S draws about every member: those of the members, {name: (chain, draw, ...)}, moved
    by draws (E, S, B, D) of c less its mean."""
    net, n = model.net, deviation.shape[:2]
    size = net.linear // net.n_out
    flat = {name: np.asarray(x, float).reshape(-1, 1, *x.shape[2:]) for name, x in draws.items()}
    out = {name: np.broadcast_to(x, (*n, *x.shape[2:])).copy() for name, x in flat.items()}
    weights, log, slope, bend = np.split(deviation.astype(float), [size, size + 1, deviation.shape[-1] - 1], -1)
    weights = np.swapaxes(weights, -1, -2) @ np.linalg.inv(np.asarray(model.require_frame().spread))
    out["weights"][..., : net.linear] += weights.reshape(*n, -1)
    out["reddening_log"] += log[..., 0]
    out["reddening_slope"] += slope
    out["reddening_bend"] += bend[..., 0]
    return out


def unknown(net: Function, theta: Mapping[str, Array], draws: Array | None, u: Array, e: Array) -> Array:
    """Variance (N, B) of magnitudes at u (N, L) and E (N,), of draws (S, B, D) of c less its mean."""
    return jnp.zeros(()) if draws is None else (deviations_at(net, theta, draws, u, e) ** 2).mean(0)


def unknown_vector(vector: Array, draws: Array | None, u: Array) -> Array:
    """The same of R (N, B) at u."""
    if draws is None:
        return jnp.zeros(())
    of_log, of_slope = draws[..., -2 - u.shape[-1]], draws[..., -1 - u.shape[-1] : -1]
    return vector**2 * ((of_log[:, None] + jnp.einsum("nl,sbl->snb", u, of_slope)) ** 2).mean(0)


def deviations_at(net: Function, theta: Mapping[str, Array], draws: Array, u: Array, e: Array) -> Array:
    """Magnitudes (S, N, B) of draws (S, B, D) of c less its mean."""
    return jnp.einsum("nbd,sbd->snb", slopes(net, theta, u, e), draws)


def told(model: Photometry, theta: Mapping[str, Array], data: PhotometricData) -> tuple[Array, Array]:
    """phi (N, B, D), and a root (N, B, B + Q) of the precision P of stars, which single precision leaves positive."""
    x, at, others = data.channels, model.predicted(theta, data), model.others(theta, data)
    spot, _ = place(model.seen_in(theta, data, at), others)
    mu, e, bend = spot.mu, spot.e, theta["reddening_bend"]
    change = as_measured(at.mean + mu[:, None] + extinction(e, at.vector, bend), model.n_magnitude)[1]
    of_mu, of_e = loose(others, mu, at.luminosity)
    free = [at.factors, of_mu[:, None, None] * jnp.ones_like(change)[:, None],
            (of_e[:, None] * slope(e, at.vector, bend))[:, None]]  # fmt: skip
    noise = noise_of(x.noise, theta["scatter"] ** 2 * x.unit**2, x.seen)
    every = jnp.broadcast_to(jnp.eye(change.shape[1], dtype=change.dtype), x.seen.shape + x.seen.shape[1:])
    white = (noise.white(columns * change[:, None]) for columns in (jnp.concatenate(free, 1), every))
    rest = project(*white)[1]
    u = data.label_mean - systems.beyond(model.require_frame(), theta, data.systems)
    return slopes(model.net, theta, u, e), rest


@dataclass(frozen=True)
class ChannelPart(LinearPart):
    """Of `Photometry`: see the head of this file."""

    model: Photometry

    sites: ClassVar[tuple[str, ...]] = SITES

    def told(self, theta: Mapping[str, Array], data: PhotometricData) -> tuple[Array, Array]:
        return told(self.model, theta, data)

    def information(
        self, told: tuple[np.ndarray, np.ndarray], count: np.ndarray, number: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        (phi, root), net = (x.astype(float) for x in told), self.model.net
        of_c, spread = summed(phi, root @ root.swapaxes(1, 2), count), self.model.require_frame().spread
        n_weight = net.linear // net.n_out  # whose c are weights times the spread
        of_c[:, :n_weight] = np.tensordot(spread, of_c[:, :n_weight], 1)
        of_c[..., :n_weight] = np.moveaxis(np.tensordot(of_c[..., :n_weight], spread, (2, 1)), -1, 2)
        index = coefficients(net, np.eye(net.n_out), number).astype(int).ravel()
        return of_c.reshape(len(index), -1), index


def summed(phi: np.ndarray, precision: np.ndarray, count: np.ndarray) -> np.ndarray:
    """sum_n phi_nb phi_nc' P_n,bc (B, D, B, D), each star counted so often (N,)."""
    n, n_band, size = phi.shape
    out = np.empty((n_band, size, n_band, size), phi.dtype)
    for b in range(n_band):
        beside = (precision[:, b, :, None] * phi).reshape(n, -1)
        out[b] = ((count[:, None] * phi[:, b]).T @ beside).reshape(size, n_band, size)
    return out
