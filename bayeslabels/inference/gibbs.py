"""Gibbs: the whole training posterior, block by block, of models whose blocks are conjugate."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Inference


@dataclass(frozen=True)
class Gibbs(Inference):
    """Training step: draws from the full posterior of coefficients, scatter, tau, population and true labels.

    The reference for `MAP`'s approximations, at a cost per sweep of a few matrix products; chains start around a short
    `MAP`. Needs a prior Flat, Normal or Learned and no bounds on the coefficients.

    Args:
        chains: run side by side.
        draws: kept per chain, of which every one takes memory (all coefficients and true labels).
        warmup: sweeps before the first draw, in which the random walks are tuned.
        thin: sweeps per draw kept; warmup counts sweeps too.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> model = bl.Cannon(order=1, label_noise="joint")
        >>> posterior = bl.fit(model, train, bl.Gibbs(chains=2, draws=50, warmup=50), progress=False)
        >>> posterior.data["posterior"]["label_scatter"].shape
        (2, 50, 3)
    """

    chains: int = 4
    draws: int = 500
    warmup: int = 500
    thin: int = 1
