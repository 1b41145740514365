"""Variational training of collapsed models: a Gaussian guide of theta alone, by minibatches of stars.

    maximise  E_q[ (n / B) sum_batch ln p(data_n | theta) + ln p(theta) - ln q(theta) ]

The program of `CollapsedModel.collapsed`, its stars coming block by block instead of all at once. In float32.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
from numpyro.infer import SVI as NumPyroSVI
from numpyro.infer import Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.initialization import init_to_value
from numpyro.optim import optax_to_numpyro

from ..checkpoint import Checkpoint
from ..devices import of_all_processes, shared_out
from ..progress import bar
from .base import Trained
from .batches import Batches, Block, Rows
from .minibatch import train
from .svi import SVI, AutoNormalDraws, summary_of
from .whitened import Start, StartOf, Whitened


def fit_guide(
    rows: Rows,
    inference: SVI,
    seed: int,
    progress: bool | None,
    checkpoint: Checkpoint | None = None,
    start: StartOf | None = None,
) -> Trained:
    """Draws {site: (1, draw, ...)} of the guide after `inference.epochs`, or `inference.steps`."""
    batches = Batches.of(rows, 1, seed, inference.batch_size or 512, hold_out=False)
    per_epoch = batches.extent(0)[0]
    steps = inference.epochs * per_epoch if inference.epochs else inference.steps
    first = Start({})
    if inference.start == "map":
        first = start() if start else Start(dict(rows.model.starting_point(rows.stars)))
    with jax.enable_x64(False):
        key, key_draws = jax.random.split(jax.random.key(seed))
        guided = Guided(batches, first, inference, steps, key)
        with bar(-(-steps // per_epoch), "variational training", progress) as shown:
            train(guided, batches, checkpoint, shown)
        draws = {name: np.asarray(x, float) for name, x in guided.draws(key_draws, inference.draws).items()}
    loss = np.asarray(guided.state["losses"], float)
    return Trained(draws, None, summary_of(loss) | {"batch_size": batches.size}, {"loss": loss})


class Guided:
    """The state of a guide under training, and what a block of stars does to it."""

    def __init__(self, batches: Batches, first: Start, inference: SVI, steps: int, key: Any):
        self.batches, self.steps, self.extent = batches, steps, (-1, 1.0)
        model, n = batches.rows.model, batches.n

        def program(rows, counts, width):
            theta = model.parameters()
            density = jnp.where(counts, model.compiled(theta, rows), 0.0)
            numpyro.factor("data", n / width * density.sum())

        self.whitened = Whitened(program, first)
        strategy = {"init_loc_fn": init_to_value(values=self.whitened.first)} if first.sites else {}
        self.guide = AutoNormal(self.whitened, init_scale=0.1 if first.names else 0.01, **strategy)
        schedule = optax.cosine_decay_schedule(inference.learning_rate, steps, alpha=0.01)
        engine = NumPyroSVI(self.whitened, self.guide, optax_to_numpyro(optax.adam(schedule)), Trace_ELBO())
        few = batches.rows.take([(0, 1)], batches.size)
        arguments = jax.tree.map(jnp.asarray, (few, np.ones(batches.size, bool), 1.0))
        begun = engine.init(key, *arguments, init_params=self.whitened.first_scales(self.guide.prefix))
        self.state: dict[str, Any] = {"svi": begun, "losses": np.zeros(0, np.float32)}
        self.engine = engine

        @jax.jit
        def run(state, data, order, counts, steps, width):
            def step(i, carry):
                state, losses = carry
                state, value = engine.update(state, jax.tree.map(lambda x: x[order[i]], data), counts[i], width)
                return state, losses.at[i].set(value)

            return jax.lax.fori_loop(0, steps, step, (state, jnp.zeros(len(order))))

        self.run = of_all_processes(run)

    def take(self, block: Block) -> bool:
        """Train on a block; whether all is done."""
        if self.extent[0] != block.epoch:
            self.extent = block.epoch, float(self.batches.extent(block.epoch)[1][0])
        losses = self.state["losses"]
        steps = min(block.steps, self.steps - len(losses))
        batches = shared_out(block.data, block.order[0], block.counts[0])
        state, new = self.run(self.state["svi"], *batches, steps, jnp.asarray(self.extent[1]))
        self.state = {"svi": state, "losses": np.concatenate([losses, np.asarray(new)[:steps]])}
        return len(self.state["losses"]) >= self.steps

    def told(self) -> dict[str, str]:
        return {"loss": f"{self.state['losses'][-100:].mean():.4g}"}

    def draws(self, key: Any, n: int) -> dict[str, np.ndarray]:
        return self.whitened.back(AutoNormalDraws(self.guide, self.engine.get_params(self.state["svi"]))(key, n))
