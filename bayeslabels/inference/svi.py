"""SVI: stochastic variational inference by minibatches of stars, on the NumPyro program where a family has no other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np
import optax
from numpyro.infer import SVI as NumPyroSVI
from numpyro.infer import Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.initialization import init_to_uniform, init_to_value
from numpyro.optim import optax_to_numpyro

from ..model import Model
from ..numerics.linalg import Array, in_float64
from ..progress import bar
from ..stars import Stars
from .base import Inference, Trained
from .whitened import Start, StartOf, Whitened


@dataclass(frozen=True)
class SVI(Inference):
    """Training step: a Gaussian with independent parameters (mean field), by Adam on the evidence lower bound.

    Approximate: correlations are left out, so standard deviations of correlated parameters come out too small, but for
    models whose program can be whitened (`whitened.Start`; `Parallax` up to 2500 coefficients): independence is of
    the whitened coordinates there. The test step does not use it, see `Laplace`, `Importance` and `NUTS`.

    Not so of models of spectra, whose coefficients and training labels a mean field must not take for independent:
    these are trained by minibatches in natural-gradient steps on sums over stars (`inference.passes`), the latents of
    each star solved for, until a tenth of the stars, held out, gains no more. The result is that of `MAP`, with as much
    noise as the last minibatches leave. `learning_rate`, `draws` and `start` have no part in it. NumPyro's own `SVI`
    takes `model(stars)` as it does any program.

    Args:
        steps: with a cosine learning rate from `learning_rate` to a hundredth of it (Adam).
        batch_size: stars per step; None: all, up to 512.
        epochs: passes over all stars, instead of `steps`.
        draws: from the fitted guide.
        start: "map" starts at the model's MAP where it has one; "cold" at random.
    """

    steps: int = 3000
    batch_size: int | None = None
    learning_rate: float = 5e-3
    draws: int = 200
    start: str = "map"
    epochs: int | None = None

    trains: ClassVar = Model

    @in_float64
    def fit(
        self, model: Model, stars: Stars, seed: int, progress: bool | None, start: StartOf | None = None
    ) -> Trained:
        batch = min(self.batch_size or 512, len(stars))
        steps = self.epochs * -(-len(stars) // batch) if self.epochs else self.steps
        first = Start({})
        if self.start == "map":
            first = start() if start else Start(dict(model.starting_point(stars)))
        whitened = Whitened(model.training_program(stars), first)
        strategy = init_to_value(values=whitened.first) if first.sites else init_to_uniform()

        def program(stars: Stars) -> Any:
            return whitened(stars, batch_size=batch if batch < len(stars) else None)

        guide = AutoNormal(program, init_loc_fn=strategy, init_scale=0.1 if first.names else 0.01)
        schedule = optax.cosine_decay_schedule(self.learning_rate, steps, alpha=0.01)
        engine = NumPyroSVI(program, guide, optax_to_numpyro(optax.adam(schedule)), Trace_ELBO())
        key, key_draws = jax.random.split(jax.random.key(seed))
        state = engine.init(key, stars, init_params=whitened.first_scales(guide.prefix))
        losses: list[np.ndarray] = []
        chunk = max(1, steps // 50)
        run = jax.jit(lambda s: jax.lax.scan(lambda s, _: engine.update(s, stars), s, None, length=chunk))
        with bar(steps, "variational training", progress) as shown:
            while len(losses) < steps // chunk:
                state, loss = run(state)
                losses.append(np.asarray(loss))
                shown.update(chunk)
                shown.set_postfix(loss=f"{np.mean(losses[-1]):.4g}")
        params = engine.get_params(state)
        whole = AutoNormalDraws(guide, params)
        draws = whitened.back(whole(key_draws, self.draws))
        loss = np.concatenate(losses)
        return Trained(draws, None, summary_of(loss) | {"batch_size": batch}, {"loss": loss})


def summary_of(loss: np.ndarray) -> dict[str, Any]:
    """Whether the loss of every step has come to rest, and where."""
    tail = loss[-len(loss) // 10 :]
    before = loss[-len(loss) // 5 : -len(loss) // 10]
    drop = float(np.median(before) - np.median(tail)) if len(before) else np.inf
    converged = bool(np.isfinite(loss).all() and drop < 2 * tail.std())
    return {"converged": converged, "final_loss": float(np.median(tail))}


class AutoNormalDraws:
    """Draws of every site, those of all stars included, from a fitted AutoNormal guide."""

    def __init__(self, guide: AutoNormal, params: dict[str, Any]):
        self.guide, self.params = guide, params

    def __call__(self, key: Array, n: int) -> dict[str, np.ndarray]:
        from numpyro.distributions.transforms import biject_to

        out = {}
        sites = self.guide.prototype_trace
        for index, (name, site) in enumerate(sites.items()):
            if site["type"] != "sample" or site["is_observed"] or f"{name}_auto_loc" not in self.params:
                continue
            loc, scale = self.params[f"{name}_auto_loc"], self.params[f"{name}_auto_scale"]
            noise = jax.random.normal(jax.random.fold_in(key, index), (n, *loc.shape))
            transform = biject_to(site["fn"].support)
            out[name] = np.asarray(jax.vmap(transform)(loc + scale * noise))[None]
        return out
