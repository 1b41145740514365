"""The mode of collapsed models by minibatches, for an ensemble of members at once, with early stopping.

    maximise  sum_n ln p(data_n | theta) + ln p(theta)   over the stars that a member trains on

Every member holds out other stars, starts elsewhere, and keeps the parameters of its best held-out density: what the
members differ by is what the data do not say about the function. What is judged and kept is the mean of the parameters
over the steps of a block of stars: as near to the mode as a learning rate several times lower would come.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpyro.distributions.transforms import biject_to
from numpyro.handlers import seed as seeded
from numpyro.handlers import trace
from numpyro.infer.util import log_density

from ..core.collapsed import CollapsedModel
from ..core.model import Bound
from ..data.batches import Batches, DeviceBlock, Passes, Rows
from ..devices import of_all_processes, shared_out
from ..files.checkpoint import Checkpoint
from ..numerics.compiling import jit
from ..numerics.linalg import Array
from ..progress import bar
from .base import Trained
from .polish import Polisher, covariance_of, draws_about, polish

STEPS = 48
"""Steps per epoch, about, at least."""
PATIENCE = 8
"""Epochs without an improvement that a member waits before it goes on with the next learning rate, by default."""
SLOPE = 1.0
"""Slope of ln p per sd of any direction that is brought to the mode: above it the training step has not converged."""
FALL, STAGES = 0.2, (0.6, 0.85, 1.0)
"""From one learning rate to the next; and the share of the epochs at which each ends at the latest."""
OPTIMISER = optax.chain(optax.clip_by_global_norm(10.0), optax.scale_by_adam())


def fit_members(
    rows: Rows,
    seed: int,
    progress: bool | None,
    *,
    epochs: int = 200,
    batch_size: int | None = None,
    learning_rate: float = 3e-3,
    patience: int = PATIENCE,
    bootstrap: bool = False,
    checkpoint: Checkpoint | None = None,
) -> Trained:
    """Draws {site: (1, member, ...)}, the mode of each member by Adam; the family adds the moments. In float32.

    Of stars in memory, all serve to bring the part of theta that `model.polished` names to the mode.

    Args:
        epochs: passes over the stars, or about so many times `STEPS` steps where a pass has fewer, at most.
        learning_rate: the first of `STAGES`, each entered from the best point of the one before.
        patience: epochs without an improvement of the held-out density after which a stage ends before its time.
        batch_size: stars per step; None: 256, or fewer of few stars.
        bootstrap: every member trains on a resample, with replacement, of its stars: what members differ by is then the
            statistical error of all that is learned, not of the function's start and shape alone.
        checkpoint: where the state is kept, and taken up from.
    """
    model = rows.model
    starts = [model.start(rows.stars, seed + 7907 * e) for e in range(model.members)]
    batches = Batches.of(rows, len(starts), seed, batch_size, steps=STEPS, bootstrap=bootstrap)
    with jax.enable_x64(False):
        objective = objective_of(Bound(model))
        members = Members(objective, batches, starts, epochs, learning_rate, patience)
        with bar(epochs, "training step", progress) as shown:
            train(members, batches, checkpoint, shown)
        best, score, slope = members.state["best"], members.state["score"], 0.0
        if model.polished and rows.whole is not None:
            best, slope = polish(objective.polisher, best, rows.whole, batches.often)
            score = objective.held_out_density(best, members.out)
        theta = {k: np.asarray(x, float) for k, x in objective.constrained(best).items()}
    score, losses, scores = (np.asarray(x, float) for x in (score, members.state["losses"], members.state["scores"]))
    stats: dict[str, Any] = {
        "converged": bool(np.isfinite(score).all() and slope < SLOPE),
        "epochs": len(losses),
        "batch_size": batches.size,
        "members": len(starts),
        "held_out_log_density": float(score.mean()),
    }
    traces = {"loss": losses.mean(1), "held_out_log_density": scores.mean(1)}
    return Trained({k: x[None] for k, x in theta.items()}, None, stats, traces, batches.out)


def train(trainer: Any, batches: Batches | Passes, checkpoint: Checkpoint | None, shown: Any) -> None:
    """Block after block until `trainer.take` says that it is done; from the checkpoint on, if there is one.

    A trainer has a `state`, arrays that with the place in the order of the blocks are all that the rest follows from.
    """
    epoch = index = 0
    if checkpoint is not None and (found := checkpoint.load()) is not None:
        trainer.state, (epoch, index, done) = found.restore(trainer.state), found.place
        shown.update(epoch)
        if done:
            return
    with closing(batches.blocks(epoch, index)) as blocks:
        for block in blocks:
            done = trainer.take(block)
            if block.last:
                shown.update()
                shown.set_postfix(trainer.told())
            if checkpoint is not None and (done or checkpoint.due()):
                epoch, index = (block.epoch + 1, 0) if block.last else (block.epoch, block.number + 1)
                checkpoint.save(trainer.state, (epoch, index, int(done)))
            if done:
                return


def fit_part(rows: Rows, trained: Trained, n: int, seed: int, part: dict[str, Any] | None = None) -> Trained:
    """Draws {site: (member, n, ...)} of a part of theta about its mode at each member of `fit_members`, the rest as it
    is there; by default of `model.polished`, of which the members are the mode.

    Every member is as sure as the stars that it was trained on make it; of stars in memory.
    """
    model, slope = rows.model, 0.0
    members = {name: x[0] for name, x in trained.draws.items()}
    often = np.repeat(rows.usable[None].astype(np.uint8), len(trained.held_out), 0)
    np.put_along_axis(often, trained.held_out, 0, 1)
    with jax.enable_x64(False):
        objective = objective_of(Bound(model))
        to_real, (mode, _) = objective.to_real, objective.begin(members)
        polisher = objective.polisher
        if part is not None:
            polisher = Polisher(model, to_real, part)
            mode, slope = polish(polisher, mode, rows.whole, often)
        found = draws_about(polisher, mode, rows.whole, often, n, seed)
        draws = {name: np.asarray(x, float) for name, x in objective.constrained(found).items()}
    converged = bool(trained.stats["converged"] and slope < SLOPE)
    return Trained(draws, None, trained.stats | {"converged": converged}, trained.traces, trained.held_out)


def covariance_about(rows: Rows, trained: Trained, sites: Sequence[str]) -> np.ndarray | None:
    """Covariance (K, K) of some sites' numbers, one after the other, about the first member of `fit_members`: that of
    F^-1 (`polish`), `model.polished` being free, of all stars or of the sample that is in memory.

    sites: unbounded ones; those that the model has not are left out. None: training went astray.
    """
    model = rows.model
    there = [name for name in sites if name in model.polished]
    if rows.whole is not None:
        data, often = rows.whole, rows.usable[None].astype(float)
    else:
        data, often = model.arrays(rows.stars), np.full((1, len(rows.stars)), rows.usable.sum() / len(rows.stars))
    with jax.enable_x64(False):
        objective = objective_of(Bound(model))
        real, _ = objective.begin({k: x[0] for k, x in trained.draws.items()})
        return covariance_of(objective.polisher, real, data, often, there)


class Objective:
    """What the members of an ensemble minimise, with the stars as arguments: compiled once for all sets of them of one
    shape."""

    def __init__(self, bound: Bound[CollapsedModel]):
        model = self.model = bound.model
        self.to_real = to_real = transforms(model)
        waiting = model.delayed

        def constrained(real: Any) -> dict[str, Array]:
            return {k: to_real[k](x) for k, x in real.items()}

        def loss(real: Any, rows: Any, counts: Array, width: Array, key: Array, n: Array) -> Array:
            theta = constrained(real)
            prior = log_density(model.parameters, (), {}, theta)[0]
            density = model.log_likelihood(model.dropped(theta, key), rows)
            return -jnp.where(counts, density, 0.0).sum() / width - prior / n

        @jit
        def run(
            real: Any,
            state: Any,
            data: Any,
            order: Array,
            counts: Array,
            steps: Array,
            rate: Array,
            late: Array,
            width: Array,
            seeds: tuple[int, int, int],
            n: Array,
        ) -> tuple[Any, Any, Any, Array]:
            def of_member(
                real: Any, state: Any, order: Array, counts: Array, rate: Array, late: Array, width: Array, key: Array
            ) -> tuple[Any, Any, Any, Array]:
                held = jax.lax.stop_gradient(model.held(constrained(real), data))
                free = {k: jnp.where(waiting[k], late, rate) if k in waiting else rate for k in real}

                def step(i: Array, carry: tuple[Any, Any, Any, Array]) -> tuple[Any, Any, Any, Array]:
                    real, mean, state, total = carry
                    rows = jax.tree.map(lambda x: x[order[i]], held)
                    own = counts[i], width, jax.random.fold_in(key, i), n
                    value, slope = jax.value_and_grad(loss)(real, rows, *own)
                    change, state = OPTIMISER.update(slope, state, real)
                    real = {k: x - free[k] * change[k] for k, x in real.items()}
                    mean = jax.tree.map(lambda m, x: m + (x - m) / (i + 1), mean, real)
                    return real, mean, state, total + value

                return jax.lax.fori_loop(0, steps, step, (real, real, state, jnp.zeros(())))

            keys = jax.random.split(
                functools.reduce(jax.random.fold_in, seeds[1:], jax.random.key(seeds[0])), len(rate)
            )
            return jax.vmap(of_member)(real, state, order, counts, rate, late, width, keys)

        @jit
        def begin(start: Any) -> tuple[Any, Any]:
            real = {k: to_real[k].inv(x) for k, x in start.items()}
            return real, jax.vmap(OPTIMISER.init)(real)

        @jit
        @jax.vmap
        def held_out_density(real: Any, out: tuple[Any, Array]) -> Array:
            rows, usable = out
            return jnp.where(usable, model.log_likelihood(constrained(real), rows), 0.0).sum() / usable.sum()

        self.loss, self.run = loss, of_all_processes(run)
        self.held_out_density, self.constrained, self.begin = held_out_density, jit(constrained), begin

    @functools.cached_property
    def polisher(self) -> Polisher:
        return Polisher(self.model, self.to_real, self.model.polished)


objective_of = functools.lru_cache(maxsize=4)(Objective)


class Members:
    """The state of an ensemble under training, and what a block of stars does to it."""

    def __init__(
        self, objective: Objective, batches: Batches, starts: list[dict[str, np.ndarray]], epochs: int,
        learning_rate: float, patience: int,
    ):  # fmt: skip
        self.objective, self.batches, self.epochs = objective, batches, epochs
        self.learning_rate, self.patience = learning_rate, patience
        self.ends = np.array([*STAGES, np.inf])
        real, moments = objective.begin({k: np.stack([s[k] for s in starts]) for k in starts[0]})
        e = len(starts)
        self.state: dict[str, Any] = {
            "real": real, "mean": real, "moments": moments, "best": real, "score": np.full(e, -np.inf),
            "idle": np.zeros(e, int), "stage": np.zeros(e, int), "losses": np.zeros((0, e)), "scores": np.zeros((0, e)),
            "sum": np.zeros(e), "steps": np.zeros((), int),
        }  # fmt: skip
        self.extent = -1, np.ones(e)
        out = batches.rows.held_out(batches.out)
        self.out = jax.device_put((out, batches.rows.usable[batches.out]))

    def take(self, block: DeviceBlock) -> bool:
        """Train on a block; whether all is done."""
        if self.extent[0] != block.epoch:
            self.extent = block.epoch, self.batches.extent(block.epoch)[1]
        s = self.state
        rate = np.where(s["stage"] < len(STAGES), self.learning_rate * FALL ** s["stage"], 0.0)
        late = np.where(s["stage"] == 0, 0.0, rate / FALL)
        batches = shared_out(block.data, block.order, block.counts)
        each = (np.asarray(x, np.float32) for x in (rate, late, self.extent[1]))
        seeds = self.batches.seed, block.epoch, block.number
        args = *batches, block.steps, *each, seeds, np.float32(self.batches.n)
        real, mean, moments, total = self.objective.run(s["real"], s["moments"], *args)
        s |= {"real": real, "mean": mean, "moments": moments}
        s |= {"sum": s["sum"] + np.asarray(total), "steps": s["steps"] + block.steps}
        return block.last and self.end_epoch(block.epoch)

    def end_epoch(self, epoch: int) -> bool:
        """Keep what is best on the held-out stars; go on to the next learning rate where it is time."""
        s = self.state
        now = np.asarray(self.objective.held_out_density(s["mean"], self.out))
        better = now > s["score"]
        best = jax.tree.map(functools.partial(_where, better), s["mean"], s["best"])
        score, idle = np.where(better, now, s["score"]), np.where(better, 0, s["idle"] + 1)
        stage = s["stage"]
        late = (stage < len(STAGES)) & ((idle >= self.patience) | (epoch + 1 >= self.epochs * self.ends[stage]))
        s |= {
            "real": jax.tree.map(functools.partial(_where, late), best, s["real"]), "best": best, "score": score,
            "idle": np.where(late, 0, idle), "stage": stage + late,
            "losses": np.vstack([s["losses"], s["sum"] / s["steps"]]), "scores": np.vstack([s["scores"], now]),
            "sum": np.zeros_like(s["sum"]), "steps": np.zeros((), int),
        }  # fmt: skip
        return bool((s["stage"] >= len(STAGES)).all() or epoch + 1 >= self.epochs)

    def told(self) -> dict[str, str]:
        return {"held_out": f"{self.state['score'].mean():.4g}"}


def _where(better: np.ndarray, new: Any, old: Any) -> Any:
    return np.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def transforms(model: CollapsedModel) -> dict[str, Any]:
    """From the real line to the support of every site of theta."""
    sites: dict[str, Any] = {}

    def read() -> int:
        sites.update(trace(seeded(model.parameters, rng_seed=0)).get_trace())
        return 0

    jax.eval_shape(read)  # without drawing a number, for which every operation would be compiled
    return {
        name: biject_to(site["fn"].support)
        for name, site in sites.items()
        if site["type"] == "sample" and not site["is_observed"]
    }
