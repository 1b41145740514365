"""R-hat and effective sample size of many parameters at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin

from ..linear import LinearModel


def rhat(draws: np.ndarray) -> np.ndarray:
    """Split R-hat of draws (chain, draw, ...); NaN for one chain or fewer than four draws, or a constant."""
    if draws.shape[0] < 2 or draws.shape[1] < 4:
        return np.full(draws.shape[2:], np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(split_gelman_rubin(np.asarray(draws)))


def ess(draws: np.ndarray) -> np.ndarray:
    """Effective sample size of draws (chain, draw, ...)."""
    if draws.shape[1] < 4:
        return np.full(draws.shape[2:], np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(effective_sample_size(np.asarray(draws)))


def identified(model: Any, draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The sites that chains can agree on: not latents, and what multiplies them, where any rotation serves as well."""
    if not isinstance(model, LinearModel) or model.labels_are_latent:
        return draws
    hyper = {f"{model.sites['coefficients']}_{what}" for what in ("mean", "covariance")}
    free = {*model.sites.values(), *hyper, "coefficients_mean", "coefficients_covariance"}
    return {name: x for name, x in draws.items() if name not in free}
