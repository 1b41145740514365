"""Laplace: a Gaussian at every mode that carries weight."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .base import Inference, StarDraws
from .starwise import StarProblem, draw_mixture


@dataclass(frozen=True)
class Laplace(Inference):
    """Test step: draws from the mixture of Gaussians at the modes of each star's posterior.

    Training step of the `Translator`: the ensemble of `MAP`, and about each member a Gaussian of the weights that its
    function is linear in: the last layer of a network, all of a polynomial.

    Exact where the posterior is Gaussian, which spectra of good signal-to-noise make it; `Importance` checks and
    corrects it.

    Args:
        draws: per star. starts: starting points per star.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
        >>> result = bl.infer(posterior, test, bl.Laplace(draws=100), progress=False)
        >>> result.draws("TEFF").shape
        (100, 20)
    """

    draws: int = 500
    starts: int = 4

    def infer(self, problem: StarProblem, keys: np.ndarray, progress: bool | None) -> StarDraws:
        u, _ = draw_mixture(problem, keys, self.draws)
        modes = problem.modes
        weight = np.asarray(modes.weight)[..., None]
        location = np.asarray(modes.location)
        mean = (weight * location).sum(0)
        offset = location - mean
        spread = np.asarray(modes.covariance) + offset[..., :, None] * offset[..., None, :]
        covariance = (weight[..., None] * spread).sum(0)
        return StarDraws(np.moveaxis(np.asarray(u), 1, 0)[None], ~np.asarray(modes.converged[0]), mean, covariance)
