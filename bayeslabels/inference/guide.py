"""Variational training: a Gaussian guide of theta alone, by minibatches of stars.

    maximise  E_q[ (n / B) sum_batch ln p(data_n | theta) + ln p(theta) - ln q(theta) ]   (the ELBO)

The program of `CollapsedModel.collapsed`, its stars coming block by block instead of all at once. In float32.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
from jax.flatten_util import ravel_pytree
from numpyro.distributions.transforms import IdentityTransform
from numpyro.infer.initialization import init_to_uniform, init_to_value
from numpyro.infer.util import initialize_model, potential_energy

from ..core.collapsed import CollapsedModel
from ..core.model import Bound
from ..data.batches import Batches, DeviceBlock, Rows
from ..devices import of_all_processes, shared_out
from ..files.checkpoint import Checkpoint
from ..numerics.compiling import jit
from ..numerics.linalg import Array
from ..progress import bar
from .base import Trained
from .minibatch import PATIENCE, STEPS, train, transforms
from .svi import SVI
from .whitened import SITE, Start, StartOf, Whitened

ENOUGH, SHARE = 10_000, 0.02
"""Stars from which on some are held out, and which share: so few that errors are wider by a hundredth at most."""
STABLE, LEAST = 0.6, 0.01
"""Share of the steps at the first learning rate, and to what share of it the rest brings it down."""
PARTICLES = 8
"""Draws, always the same, over which the ELBO of the held-out stars is averaged."""
WIDE, NARROW = 0.1, 0.01
"""First sd of a guide, if some of its sites are whitened, and of all others. Whitened sites have about unit variance;
narrower, they would leave the mode and not find back."""
ADAM = optax.scale_by_adam()
ENTROPY = 0.5 * np.log(2 * np.pi * np.e)
"""Entropy of a unit normal."""


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
        with bar(-(-steps // per_epoch), "training step, variational", progress) as shown:
            train(guided, batches, checkpoint, shown)
        draws = {name: np.asarray(x, float) for name, x in guided.draws(key_draws, inference.draws).items()}
    loss, elbo = (np.asarray(guided.state[name], float) for name in ("losses", "held_out_elbo"))
    traces = {"loss": loss} | ({"held_out_elbo": elbo} if len(elbo) else {})
    return Trained(draws, None, summary_of(loss) | {"steps": len(loss), "batch_size": batches.size}, traces)


class NegativeELBO:
    """The negative ELBO of a guide, whose stars are arguments: compiled once for all sets of them of one shape.

    A guide is {site: (mean, spread)} of theta on the real line, with sd = softplus(spread).
    """

    def __init__(self, bound: Bound[CollapsedModel], names: tuple[str, ...]):
        model = bound.model

        def program(start: Any, rows: Any, counts: Array, width: Array, n: Array) -> dict[str, Array]:
            def on_rows() -> None:
                theta = model.parameters()
                density = jnp.where(counts, model.compiled(theta, rows), 0.0)
                numpyro.factor("data", n / width * density.sum())

            return Whitened(on_rows, Start(start[0], names, start[1]))()

        def loss(real: Any, key: Array, *stars: Any) -> Array:
            flat, back = ravel_pytree({name: mean for name, (mean, _) in real.items()})
            sd = jax.nn.softplus(ravel_pytree({name: spread for name, (_, spread) in real.items()})[0])
            z = back(flat + sd * jax.random.normal(key, flat.shape))
            return potential_energy(program, stars, {}, z) - jnp.log(sd).sum() - len(flat) * ENTROPY

        @jit
        def begin(key: Array, first: dict[str, Array], *stars: Any) -> dict[str, Array]:
            strategy = init_to_value(values=first) if first else init_to_uniform
            return initialize_model(key, program, init_strategy=strategy, model_args=stars)[0].z

        @jit
        def run(
            real: Any,
            moments: Any,
            key: Array,
            data: Any,
            order: Array,
            counts: Array,
            steps: Array,
            rates: Array,
            width: Array,
            start: Any,
            n: Array,
        ) -> tuple[Any, Any, Array]:
            def step(i: Array, carry: tuple[Any, Any, Array]) -> tuple[Any, Any, Array]:
                real, moments, losses = carry
                rows = jax.tree.map(lambda x: x[order[i]], data)
                own = jax.random.fold_in(key, i), start, rows, counts[i], width, n
                value, slope = jax.value_and_grad(loss)(real, *own)
                change, moments = ADAM.update(slope, moments)
                real = jax.tree.map(lambda x, dx: x - rates[i] * dx, real, change)
                return real, moments, losses.at[i].set(value)

            return jax.lax.fori_loop(0, steps, step, (real, moments, jnp.zeros(len(order))))

        @jit
        def elbo(real: Any, key: Array, start: Any, rows: Any, counts: Array, n: Array) -> Array:
            keys = jax.random.split(key, PARTICLES)
            return -jax.vmap(lambda key: loss(real, key, start, rows, counts, counts.sum(), n))(keys).mean() / n

        to_real = {SITE: IdentityTransform(), **transforms(model)}

        @functools.partial(jit, static_argnames="n")
        def drawn(real: Any, key: Array, n: int) -> dict[str, Array]:
            out = {}
            for index, (name, (mean, spread)) in enumerate(real.items()):
                z = jax.random.normal(jax.random.fold_in(key, index), (n, *mean.shape))
                out[name] = jax.vmap(to_real[name])(mean + jax.nn.softplus(spread) * z)
            return out

        self.begin, self.run, self.elbo, self.drawn = begin, of_all_processes(run), elbo, drawn


objective_of = functools.lru_cache(maxsize=4)(NegativeELBO)


class Guided:
    """The state of a guide under training, and what a block of stars does to it."""

    def __init__(self, batches: Batches, first: Start, learning_rate: float, steps: int, key: Array):
        self.batches, self.learning_rate, self.key, self.extent = batches, learning_rate, key, (-1, 1.0)
        self.objective = objective_of(Bound(batches.rows.model), first.names)
        self.first = first
        few = batches.rows.some(batches.size)
        self.n = jnp.asarray(float(batches.often.sum()))
        self.start = jax.tree.map(jnp.asarray, ({name: first.sites[name] for name in first.names}, first.factor))
        stars = jax.tree.map(jnp.asarray, (few, np.ones(batches.size, bool), 1.0))
        mean = self.objective.begin(key, first.first, self.start, *stars, self.n)
        sd = {name: 1.0 if name == SITE else WIDE if first.names else NARROW for name in mean}
        real = {name: (x, jnp.full(x.shape, np.log(np.expm1(sd[name])), x.dtype)) for name, x in mean.items()}
        self.state: dict[str, Any] = {
            "real": real, "moments": ADAM.init(real), "losses": np.zeros(0, np.float32),
            "fall": np.array(round(STABLE * steps)), "end": np.array(steps), "held_out_elbo": np.zeros(0),
        }  # fmt: skip
        out = batches.out[0]
        self.out = jax.tree.map(jnp.asarray, (batches.rows.held_out(out), batches.rows.usable[out])) if len(out) else ()

    def rates(self, steps: np.ndarray) -> np.ndarray:
        """The learning rate of each step."""
        fall, end = int(self.state["fall"]), int(self.state["end"])
        fallen = np.clip((steps - fall) / max(end - fall, 1), 0.0, 1.0)
        return self.learning_rate * (LEAST + (1 - LEAST) * 0.5 * (1 + np.cos(np.pi * fallen)))

    def take(self, block: DeviceBlock) -> bool:
        """Train on a block; whether all is done."""
        if self.extent[0] != block.epoch:
            self.extent = block.epoch, float(self.batches.extent(block.epoch)[1][0])
        s, done = self.state, len(self.state["losses"])
        batches, width = shared_out(block.data, block.order[0], block.counts[0]), jnp.asarray(self.extent[1])
        steps = min(block.steps, int(s["end"]) - done)
        rates = jnp.asarray(self.rates(done + np.arange(block.order.shape[1])))
        key = jax.random.fold_in(self.key, done)
        args = *batches, jnp.asarray(steps), rates, width, self.start, self.n
        real, moments, new = self.objective.run(s["real"], s["moments"], key, *args)
        s |= {"real": real, "moments": moments, "losses": np.concatenate([s["losses"], np.asarray(new)[:steps]])}
        if block.last and self.out:
            self.end_epoch()
        return bool(len(s["losses"]) >= s["end"])

    def end_epoch(self) -> None:
        """Begin the fall of the learning rate where the held-out ELBO gains no more."""
        s, done = self.state, len(self.state["losses"])
        now = float(self.objective.elbo(s["real"], self.key, self.start, *self.out, self.n))
        s["held_out_elbo"] = np.append(s["held_out_elbo"], now)
        idle = len(s["held_out_elbo"]) - 1 - int(s["held_out_elbo"].argmax())
        if idle >= PATIENCE and done < s["fall"]:
            s |= {"fall": np.array(done), "end": np.array(round(done / STABLE))}

    def told(self) -> dict[str, str]:
        return {"loss": f"{self.state['losses'][-100:].mean():.4g}"}

    def draws(self, key: Array, n: int) -> dict[str, np.ndarray]:
        """Draws {site: (1, n, ...)} of the program's sites."""
        found = self.objective.drawn(self.state["real"], key, n)
        return self.first.back({name: np.asarray(x)[None] for name, x in found.items()})


def summary_of(loss: np.ndarray) -> dict[str, Any]:
    """Whether the loss of every step has come to rest, and where."""
    tail = loss[-len(loss) // 10 :]
    before = loss[-len(loss) // 5 : -len(loss) // 10]
    drop = float(np.median(before) - np.median(tail)) if len(before) else np.inf
    converged = bool(np.isfinite(loss).all() and drop < 2 * tail.std())
    return {"converged": converged, "final_loss": float(np.median(tail))}
