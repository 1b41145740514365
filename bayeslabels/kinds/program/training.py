"""Training of a program: NumPyro's samplers and variational inference on all of it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer import SVI as NumPyroSVI
from numpyro.infer import Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.initialization import init_to_value
from numpyro.optim import Adam

from ...data.stars import Stars
from ...errors import CannotDo
from ...inference.base import Trained
from ...inference.svi import SVI
from ...numerics.compiling import jit
from ...numerics.linalg import Array, in_float64
from ...progress import bar, stretches
from .program import OwnProgram
from .stars import ProgramMoments

KEPT = 32
"""Draws of the shared sites, at most, that the test step averages over."""
SETTLED = 1e-3
"""Share of the loss by which the last fifth of the steps may change it, at most."""


@in_float64
def by_svi(model: OwnProgram, stars: Stars, inference: SVI, seed: int, progress: bool | None) -> Trained:
    """A mean-field Gaussian of all sites, by Adam on the evidence lower bound, all stars in every step."""
    if inference.batch_size is not None or inference.epochs is not None:
        raise CannotDo("SVI of a program of your own takes all stars in every step: SVI(steps=...)")
    guide = AutoNormal(model, init_loc_fn=init_to_value(values=model.starting_point(stars)))
    svi = NumPyroSVI(model, guide, Adam(inference.learning_rate), Trace_ELBO())
    keys = jax.random.split(jax.random.key(seed), 3)
    state, loss = _run(svi, svi.init(keys[0], stars), stars, inference.steps, progress)

    @jit  # operation by operation, every one would be compiled by itself
    def drawn(params: Any) -> dict[str, Array]:
        draws = guide.sample_posterior(keys[1], params, sample_shape=(inference.draws,))
        return {**draws, **Predictive(model, posterior_samples=draws)(keys[2], stars)}

    every = {name: np.asarray(x, float)[None] for name, x in drawn(svi.get_params(state)).items()}
    stats = {"converged": settled(loss), "advice": f"SVI(steps={4 * inference.steps})"}
    return with_moments(model, Trained(every, None, stats, {"loss": loss}))


def _run(svi: NumPyroSVI, state: Any, stars: Stars, steps: int, progress: bool | None) -> tuple[Any, np.ndarray]:
    """The state after so many steps, and the loss of each."""

    @jit
    def run(state: Any, losses: Array, begin: Array, end: Array) -> tuple[Any, Array]:
        def step(i: Array, carry: tuple[Any, Array]) -> tuple[Any, Array]:
            state, loss = svi.update(carry[0], stars)
            return state, carry[1].at[i].set(loss)

        return jax.lax.fori_loop(begin, end, step, (state, losses))

    losses = jnp.zeros(steps)
    with bar(steps, "training step", progress) as shown:
        for begin, end in stretches(steps):
            state, losses = jax.block_until_ready(run(state, losses, begin, end))
            shown.update(end - begin)
            shown.set_postfix(loss=f"{float(losses[end - 1]):.4g}")
    return state, np.asarray(losses)


def settled(loss: np.ndarray) -> bool:
    """Whether the last fifth of the steps no longer changed the loss by more than its noise."""
    half = len(loss) // 10
    if half < 2:
        return False
    before, after = loss[-2 * half : -half], loss[-half:]
    allowed = SETTLED * abs(after.mean()) + 3 * np.hypot(before.std(), after.std()) / np.sqrt(half)
    return bool(abs(before.mean() - after.mean()) < allowed)


def with_moments(model: OwnProgram, trained: Trained) -> Trained:
    """Draws of the sites that the posterior keeps, and moments."""
    frame = model.require_frame()
    known = [name for name, _ in (*frame.shared, *frame.recorded, *frame.star)]
    trained.draws = {name: trained.draws[name] for name in known if name in trained.draws}
    flat = [trained.draws[name].reshape(-1, int(np.prod(shape, dtype=int))) for name, shape in frame.shared]
    n = trained.draws[known[0]].shape[0] * trained.draws[known[0]].shape[1]
    shared = np.concatenate(flat, 1) if flat else np.zeros((n, 0))
    some = np.unique(np.linspace(0, len(shared) - 1, KEPT).astype(int))
    trained.moments = ProgramMoments(np.asarray(shared[some], float))
    return trained
