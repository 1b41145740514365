"""What the likelihood of photometry takes of stars: arrays with a row per star."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...data.stars import Stars
from ...numerics.dusty import Distance, Reddening
from ...numerics.linalg import Array, beside, module_of
from .channels import Channels, joined, noise_and_value
from .systems import Systems, known_of, systems_of

if TYPE_CHECKING:
    from .photometry import Photometry


class PhotometricData(NamedTuple):
    """What the likelihood takes of N stars; numbers that are not there are 0, their variances 1.

    label_mean (N, L), label_root (N, L, L): of the labels without their errors, as their survey has them less
    `frame.offsets`, covariance root root';
    label_density (N,): ln p(catalogue labels). reddening_guess (N,): a first estimate. distance, dust: the stars' own
    priors of modulus and reddening. systems: of the labels and the parallax.
    """

    channels: Channels
    label_mean: Array
    label_root: Array
    label_density: Array
    parallax: Array
    parallax_weight: Array
    reddening: Array
    reddening_weight: Array
    reddening_guess: Array
    distance: Distance
    dust: Reddening
    systems: Systems


def measured(model: Photometry, stars: Stars) -> dict[str, tuple[Array, Array, Array]]:
    """Value, variance or covariance, and mask of the stars' blocks; labels scaled, with covariances."""
    frame, out = model.require_frame(), {}
    for name in model.measured_blocks:
        if name not in stars:
            continue
        value, variance, observed = stars[name].filled()
        if name == "labels":
            (scale,), where = beside(value, frame.scale), module_of(value).where
            value = where(observed, frame.scaled(value), 0.0)
            both = observed[:, :, None] & observed[:, None, :]
            variance = stars[name].filled_covariance() / where(both, scale[:, None] * scale, 1.0)
        elif name in ("magnitudes", "spectrum"):
            unit = frame.flux_scale if name == "spectrum" else 1.0
            value, variance, observed = noise_and_value(stars[name], unit)
        out[name] = (value, variance, observed)
    return out


def rows_of(model: Photometry, stars: Stars) -> PhotometricData:
    frame, seen, n = model.require_frame(), measured(model, stars), len(stars)
    n_label = model.shape[0]
    none = np.zeros((n, n_label)), np.tile(np.eye(n_label), (n, 1, 1)), np.zeros((n, n_label), bool)
    of = systems_of(frame, stars)
    u, noise, observed = seen.get("labels", none)
    if frame.offsets is not None:
        u = np.where(observed, u - of.survey[:, 1:] @ frame.offsets, 0.0)
    given = known_of(frame.mixture, frame.component_survey, of.survey, u, noise, observed)
    mean, covariance = given.moments()
    value, vector = np.linalg.eigh(covariance)
    root = vector * np.sqrt(np.maximum(value, 0.0))[:, None, :]
    dark = {k: (np.zeros((n, b)), np.ones((n, b)), np.zeros((n, b), bool)) for k, b in model.widths.items()}
    channels = joined([seen.get(name, none) for name, none in dark.items()], model.n_magnitude)
    w, w_weight = _one(seen.get("parallax"), n)
    e, e_weight = _one(seen.get("reddening"), n)
    distance = model.distance_prior.at(stars)
    dust = model.reddening_prior.at(stars, frame.reddening_scale)
    usual = dust.typical  # a prior as wide as that, about it: good enough for a place to be linear at
    guess = np.maximum((e * e_weight**2 + 1 / usual) / (e_weight**2 + usual**-2), 0.0)
    return PhotometricData(
        channels, mean, root, given.log_density,
        w, w_weight, e, e_weight, guess, distance, dust, of,
    )  # fmt: skip


def _one(block: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Value and 1 / error (N,) of a block of one column, 0 where it was not measured."""
    if block is None:
        return np.zeros(n), np.zeros(n)
    value, variance, observed = (x[:, 0] for x in block)
    return np.where(observed, value, 0.0), observed / np.sqrt(variance)
