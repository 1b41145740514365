"""SVI: stochastic variational inference by minibatches of stars; how, is said in `guide` and `passes`."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Inference


@dataclass(frozen=True)
class SVI(Inference):
    """Training step: a Gaussian with independent parameters (mean field), by Adam on the evidence lower bound (ELBO).

    Approximate: correlations are left out, so standard deviations of correlated parameters come out too small, but for
    models whose program can be whitened (`whitened.Start`; `Parallax` up to 2500 coefficients): independence is of
    the whitened coordinates there. The test step does not use it, see `Laplace`, `Importance` and `NUTS`.

    The learning rate stays for three fifths of the steps, and falls to a hundredth in the rest. Of 10,000 stars and
    more a fiftieth, 8192 at most, is held out: where their ELBO has gained nothing for 8 passes, the fall begins at
    once, and takes two thirds of the steps that were taken until then.

    Not so of models of spectra, whose coefficients and training labels a mean field must not take for independent:
    these are trained by minibatches in natural-gradient steps on sums over stars (`inference.passes`), the latents of
    each star solved for, until a tenth of the stars, held out, gains no more. The result is that of `MAP`, with as much
    noise as the last minibatches leave. `learning_rate`, `draws` and `start` have no part in it. NumPyro's own `SVI`
    takes `model(stars)` as it does any program.

    Args:
        steps: at most.
        batch_size: stars per step; None: all, up to 512.
        learning_rate: the first, of Adam.
        epochs: passes over all stars, instead of `steps`.
        draws: from the fitted guide.
        start: "map" starts at the model's MAP where it has one; "cold" at random.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, bl.SVI(epochs=20), progress=False)
        >>> posterior.info["inference"]
        'SVI'
    """

    steps: int = 3000
    batch_size: int | None = None
    learning_rate: float = 5e-3
    draws: int = 200
    start: str = "map"
    epochs: int | None = None
