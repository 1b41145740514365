"""Variational training: a Gaussian guide of theta alone, by minibatches of stars.

    maximise  E_q[ (n / B) sum_batch ln p(data_n | theta) + ln p(theta) - ln q(theta) ]   (the ELBO)

The program of `CollapsedModel.collapsed`, its stars coming block by block instead of all at once. In float32.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
from numpyro.distributions.transforms import biject_to
from numpyro.infer import SVI as NumPyroSVI
from numpyro.infer import Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.initialization import init_to_value

from ..checkpoint import Checkpoint
from ..devices import of_all_processes, shared_out
from ..numerics.linalg import Array
from ..progress import bar
from .base import Trained
from .batches import Batches, Block, Rows
from .minibatch import PATIENCE, STEPS, train
from .svi import SVI
from .whitened import Start, StartOf, Whitened

ENOUGH, SHARE = 10_000, 0.02
"""Stars from which on some are held out, and which share: so few that errors are wider by a hundredth at most."""
STABLE, LEAST = 0.6, 0.01
"""Share of the steps at the first learning rate, and to what share of it the rest brings it down."""
PARTICLES = 8
"""Draws, always the same, over which the ELBO of the held-out stars is averaged."""


def fit_guide(
    rows: Rows,
    inference: SVI,
    seed: int,
    progress: bool | None,
    checkpoint: Checkpoint | None = None,
    start: StartOf | None = None,
) -> Trained:
    """Draws {site: (1, draw, ...)} of the guide after `inference.epochs`, or `inference.steps`, or when the held-out
    ELBO has come to rest."""
    share = SHARE if int(rows.usable.sum()) >= ENOUGH else 0.0
    batches = Batches.of(rows, 1, seed, inference.batch_size or 512, steps=STEPS, hold_out=share)
    per_epoch = batches.extent(0)[0]
    steps = max(1, inference.epochs * per_epoch // batches.passes if inference.epochs else inference.steps)
    first = Start({})
    if inference.start == "map":
        first = start() if start else Start(dict(rows.model.starting_point(rows.stars)))
    with jax.enable_x64(False):
        key, key_draws = jax.random.split(jax.random.key(seed))
        guided = Guided(batches, first, inference.learning_rate, steps, key)
        with bar(-(-steps // per_epoch), "variational training", progress) as shown:
            train(guided, batches, checkpoint, shown)
        draws = {name: np.asarray(x, float) for name, x in guided.draws(key_draws, inference.draws).items()}
    loss, elbo = (np.asarray(guided.state[name], float) for name in ("losses", "held_out_elbo"))
    traces = {"loss": loss} | ({"held_out_elbo": elbo} if len(elbo) else {})
    return Trained(draws, None, summary_of(loss) | {"steps": len(loss), "batch_size": batches.size}, traces)


class Guided:
    """The state of a guide under training, and what a block of stars does to it."""

    def __init__(self, batches: Batches, first: Start, learning_rate: float, steps: int, key: Array):
        self.batches, self.learning_rate, self.key, self.extent = batches, learning_rate, key, (-1, 1.0)
        model, n = batches.rows.model, int(batches.often.sum())

        def program(rows, counts, width):
            theta = model.parameters()
            density = jnp.where(counts, model.compiled(theta, rows), 0.0)
            numpyro.factor("data", n / width * density.sum())

        self.whitened = Whitened(program, first)
        strategy = {"init_loc_fn": init_to_value(values=self.whitened.first)} if first.sites else {}
        self.guide = AutoNormal(self.whitened, init_scale=0.1 if first.names else 0.01, **strategy)
        adam, elbo = optax.scale_by_adam(), Trace_ELBO()
        engine = NumPyroSVI(self.whitened, self.guide, optax.sgd(1.0), elbo)
        few = batches.rows.take([(0, 1)], batches.size)
        arguments = jax.tree.map(jnp.asarray, (few, np.ones(batches.size, bool), 1.0))
        begun = engine.init(key, *arguments, init_params=self.whitened.first_scales(self.guide.prefix))
        real = engine.optim.get_params(begun.optim_state)
        self.constrained = engine.constrain_fn
        self.state: dict[str, Any] = {
            "real": real, "moments": adam.init(real), "losses": np.zeros(0, np.float32),
            "fall": np.array(round(STABLE * steps)), "end": np.array(steps), "held_out_elbo": np.zeros(0),
        }  # fmt: skip
        out = batches.out[0]
        self.out = jax.tree.map(jnp.asarray, (batches.rows.held_out(out), batches.rows.usable[out])) if len(out) else ()

        def loss(real, key, *rows):
            return elbo.loss(key, engine.constrain_fn(real), self.whitened, self.guide, *rows)

        @jax.jit
        def run(real, moments, key, data, order, counts, steps, rates, width):
            def step(i, carry):
                real, moments, losses = carry
                rows = jax.tree.map(lambda x: x[order[i]], data)
                value, slope = jax.value_and_grad(loss)(real, jax.random.fold_in(key, i), rows, counts[i], width)
                change, moments = adam.update(slope, moments)
                real = jax.tree.map(lambda x, dx: x - rates[i] * dx, real, change)
                return real, moments, losses.at[i].set(value)

            return jax.lax.fori_loop(0, steps, step, (real, moments, jnp.zeros(len(order))))

        @jax.jit
        def elbo_of(real, rows, counts):
            keys = jax.random.split(key, PARTICLES)
            return -jax.vmap(lambda key: loss(real, key, rows, counts, counts.sum()))(keys).mean() / n

        self.run, self.elbo_of = of_all_processes(run), elbo_of

    def rates(self, steps: np.ndarray) -> np.ndarray:
        """The learning rate of each step."""
        fall, end = int(self.state["fall"]), int(self.state["end"])
        fallen = np.clip((steps - fall) / max(end - fall, 1), 0.0, 1.0)
        return self.learning_rate * (LEAST + (1 - LEAST) * 0.5 * (1 + np.cos(np.pi * fallen)))

    def take(self, block: Block) -> bool:
        """Train on a block; whether all is done."""
        if self.extent[0] != block.epoch:
            self.extent = block.epoch, float(self.batches.extent(block.epoch)[1][0])
        s, done = self.state, len(self.state["losses"])
        batches, width = shared_out(block.data, block.order[0], block.counts[0]), jnp.asarray(self.extent[1])
        steps = min(block.steps, int(s["end"]) - done)
        rates = jnp.asarray(self.rates(done + np.arange(block.order.shape[1])))
        key = jax.random.fold_in(self.key, done)
        real, moments, new = self.run(s["real"], s["moments"], key, *batches, steps, rates, width)
        s |= {"real": real, "moments": moments, "losses": np.concatenate([s["losses"], np.asarray(new)[:steps]])}
        if block.last and self.out:
            self.end_epoch()
        return bool(len(s["losses"]) >= s["end"])

    def end_epoch(self) -> None:
        """Begin the fall of the learning rate where the held-out ELBO gains no more."""
        s, done = self.state, len(self.state["losses"])
        s["held_out_elbo"] = np.append(s["held_out_elbo"], float(self.elbo_of(s["real"], *self.out)))
        idle = len(s["held_out_elbo"]) - 1 - int(s["held_out_elbo"].argmax())
        if idle >= PATIENCE and done < s["fall"]:
            s |= {"fall": np.array(done), "end": np.array(round(done / STABLE))}

    def told(self) -> dict[str, str]:
        return {"loss": f"{self.state['losses'][-100:].mean():.4g}"}

    def draws(self, key: Array, n: int) -> dict[str, np.ndarray]:
        """Draws {site: (1, n, ...)} of the program's sites."""
        params, sites, out = self.constrained(self.state["real"]), self.guide.prototype_trace, {}
        for index, (name, site) in enumerate(sites.items()):
            if site["type"] != "sample" or site["is_observed"] or f"{name}_auto_loc" not in params:
                continue
            loc, scale = params[f"{name}_auto_loc"], params[f"{name}_auto_scale"]
            noise = jax.random.normal(jax.random.fold_in(key, index), (n, *loc.shape))
            transform = biject_to(site["fn"].support)
            out[name] = np.asarray(jax.vmap(transform)(loc + scale * noise))[None]
        return self.whitened.back(out)


def summary_of(loss: np.ndarray) -> dict[str, Any]:
    """Whether the loss of every step has come to rest, and where."""
    tail = loss[-len(loss) // 10 :]
    before = loss[-len(loss) // 5 : -len(loss) // 10]
    drop = float(np.median(before) - np.median(tail)) if len(before) else np.inf
    converged = bool(np.isfinite(loss).all() and drop < 2 * tail.std())
    return {"converged": converged, "final_loss": float(np.median(tail))}
