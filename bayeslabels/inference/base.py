"""What every inference is: a frozen value with a training step, a test step, or both."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..model import Model
from ..stars import Stars


class Moments(NamedTuple):
    """Means and covariances of the trained parameters of a linear model: what the test step integrates over.

    coefficients (L, K), coefficient_covariance (L, K, K), scatter (L,) in flux units, NaN for pixels that could not
    be trained; label_scatter (M,) in label units; population_mean (P,), population_covariance (P, P), of the latents;
    label_coefficients (M, K) and label_system_covariance (M, K, M, K): mean and covariance of C, the uncertainty of the
    label system that all stars share, where the true scaled labels are C phi(u), or if the labels are the latents
    u + C phi(u) with C of mean 0, or u + C psi(u) if they are a curve (`label_features`); training_u (N, P): the
    training stars' latents; label_resistance (M, K, M, K), of the training step alone and in no file: the precision
    with which the spectra of the training stars resist a bend of the labels, if they do. fit_quality (4,): what is
    usual of the training stars' reduced chi^2 (`families.linear_stars.fit_quality`), None: not known.
    flux_error_factor (1,): f of the survey, None: 1.
    """

    coefficients: np.ndarray
    coefficient_covariance: np.ndarray
    scatter: np.ndarray
    label_scatter: np.ndarray
    population_mean: np.ndarray
    population_covariance: np.ndarray
    label_coefficients: np.ndarray
    label_system_covariance: np.ndarray
    training_u: np.ndarray
    label_resistance: np.ndarray | None = None
    fit_quality: np.ndarray | None = None
    flux_error_factor: np.ndarray | None = None


@dataclass
class Trained:
    """What a training step returns: draws {site: (chain, draw, ...)}, the family's moments, and diagnostics.

    `stats`: scalars and short strings; `traces`: arrays per iteration or draw, such as the loss; `held_out`: rows
    (E, n_out) of the stars that each member of an ensemble did not train on.
    """

    draws: dict[str, np.ndarray]
    moments: Any
    stats: dict[str, Any] = field(default_factory=dict)
    traces: dict[str, np.ndarray] = field(default_factory=dict)
    held_out: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), int))


@dataclass
class StarDraws:
    """What a test step returns: u (chain, draw, star, P), latents, and per-star diagnostics (star,).

    `mean` and `covariance` where they are known better than from the draws. `failed`: stars without an answer.
    `beside`: what the density of each draw was computed from (`starwise.in_passing`), a pytree of (chain, draw,
    star, ...), where that is known.
    """

    u: np.ndarray
    failed: np.ndarray
    mean: np.ndarray | None = None
    covariance: np.ndarray | None = None
    star_stats: dict[str, np.ndarray] = field(default_factory=dict)
    stats: dict[str, Any] = field(default_factory=dict)
    beside: Any = None


@dataclass(frozen=True)
class Inference:
    """Base of all inferences."""

    trains: ClassVar[type[Model] | None] = None
    """The kind of model that `fit` trains; None: none. Families may train with it in their own way (`Family.train`)."""
    infers: ClassVar[type[Model] | None] = None
    """The kind of model that `infer` serves."""
    many: ClassVar[bool] = False
    """Whether `fit_many` trains on several sets of stars side by side."""

    def fit(self, model: Any, stars: Stars, seed: int, progress: bool | None) -> Trained:
        raise NotImplementedError  # pragma: no cover - guarded by `Family.require`

    def infer(self, problem: Any, seed: int, progress: bool | None) -> StarDraws:
        raise NotImplementedError  # pragma: no cover - guarded by `Family.require`

    def settings(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}
