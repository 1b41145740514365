"""Training from sums over stars, which may be more than memory holds: a pass, or a minibatch, and an update.

    S(g) = sum_n S_n(g),   g <- update(g, S)

`Sweeps`: S of all stars, pass after pass, to the fixed point: what training in memory finds. `Stochastic`: of
minibatches, the older forgotten as g moves (stochastic variational inference, Hoffman+13 eq. 26),

    S_t = (1 - rho_t) S_(t-1) + rho_t (n / B) sum_batch S_n(g_(t-1)),   rho_t = max[1 / t, (t + t_0)^-0.8]

from the mode of the sample, which is worth t_0 minibatches; with early stopping by the density of stars that are held
out. Nothing that is kept grows with the number of stars: what belongs to a star alone is solved for again whenever it
comes by.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import jax
import numpy as np

from ..data.batches import Batches, DeviceBlock, Passes, Rows
from ..devices import summed
from ..files.checkpoint import Checkpoint
from ..numerics.compress import STARS
from ..numerics.linalg import in_float64
from ..progress import bar
from .base import Trained
from .minibatch import train
from .svi import SVI

FORGETTING = 0.8
"""Power of the step sizes rho_t: between 1/2 and 1 for convergence."""
PATIENCE = 3
"""Epochs without an improvement of the held-out density after which `Stochastic` ends."""


class BySums(ABC):
    """A training step as sums over stars; g is a pytree of arrays, of what all stars share."""

    tolerance: float
    """Size of the changes that `update` and `watch` report below which training is done."""

    @abstractmethod
    def start(self) -> Any:
        """g, from the sample in memory."""

    @abstractmethod
    def sums(self, g: Any, data: Any, counts: np.ndarray) -> Any:
        """S(g), a pytree of arrays, of the stars that count (B,)."""

    def shared_sums(self, g: Any, data: Any, counts: np.ndarray) -> Any:
        """The same, with a part of the stars on each device."""
        return summed(lambda data, counts: self.sums(g, data, counts), data, counts, STARS)

    @abstractmethod
    def update(self, g: Any, sums: Any) -> tuple[Any, float, float]:
        """g from the sums over all stars; the change, as far as they tell, and the objective at the g before (NaN: not
        known)."""

    def watch(self, before: Any, g: Any) -> tuple[Any, float]:
        """g with what it says of some stars of the sample, and how much that has changed: asked for only where training
        ends by the change."""
        return g, 0.0

    @abstractmethod
    def log_density(self, g: Any, data: Any, counts: np.ndarray) -> float:
        """Sum over the stars that count of ln p(data_n | g), which the sums serve to increase."""

    @abstractmethod
    def trained(self, g: Any, n: int) -> Trained:
        """The result, of n stars; the statistics and traces are added by the caller."""


class Sweeps:
    """The state of passes over all stars, and what a block does to it."""

    def __init__(self, by_sums: BySums, passes: Passes, most: int):
        self.by_sums, self.most = by_sums, most
        g = by_sums.start()
        few = passes.rows.some(passes.size)
        self.blank = jax.tree.map(np.zeros_like, by_sums.sums(g, few, np.zeros(passes.size)))
        self.state: dict[str, Any] = {"g": g, "sums": self.blank, "changes": np.zeros(0), "objectives": np.zeros(0)}

    def take(self, block: DeviceBlock) -> bool:
        """Add a block; at the end of a pass update, and whether all is done."""
        s = self.state
        sums = self.by_sums.shared_sums(s["g"], block.data, block.counts[0, 0].astype(float))
        s["sums"] = jax.tree.map(lambda a, b: a + np.asarray(b), s["sums"], sums)
        if not block.last:
            return False
        g, change, objective = self.by_sums.update(s["g"], s["sums"])
        g, seen = self.by_sums.watch(s["g"], g)
        changes, objectives = np.append(s["changes"], max(change, seen)), np.append(s["objectives"], objective)
        self.state = {"g": g, "sums": self.blank, "changes": changes, "objectives": objectives}
        return self.settled or len(changes) >= self.most

    @property
    def settled(self) -> bool:
        changes, objectives = self.state["changes"], self.state["objectives"]
        if not len(changes) or not changes[-1] < self.by_sums.tolerance:
            return False
        if np.isnan(objectives[-1]):
            return True
        return len(objectives) > 1 and abs(objectives[-1] - objectives[-2]) < 1e-6 * abs(objectives[-1])

    def told(self) -> dict[str, str]:
        return {"change": f"{self.state['changes'][-1]:.1e}"}


class Stochastic:
    """The state of steps by minibatches, and what a block does to it."""

    def __init__(self, by_sums: BySums, batches: Batches, epochs: int):
        self.by_sums, self.batches, self.epochs = by_sums, batches, epochs
        rows = batches.rows
        self.size = batches.size + -batches.size % STARS
        out = batches.out[0]
        self.out = rows.held_out(np.pad(out, (0, -len(out) % STARS), mode="edge"))
        self.kept_out = np.pad(rows.usable[out].astype(float), (0, -len(out) % STARS))
        self.n, self.delay = int(batches.often.sum()), max(1.0, len(rows.stars) / batches.size)
        g = by_sums.start()
        few = rows.some(self.size)
        blank = jax.tree.map(np.zeros_like, by_sums.sums(g, few, np.zeros(self.size)))
        self.extent = -1, 1.0
        self.state: dict[str, Any] = {
            "g": g, "sums": blank, "best": g, "steps": np.zeros((), int),
            "scores": np.zeros(0), "idle": np.zeros((), int),
        }  # fmt: skip

    def take(self, block: DeviceBlock) -> bool:
        """A step for every minibatch of a block; at the end of an epoch, whether all is done."""
        if self.extent[0] != block.epoch:
            self.extent = block.epoch, float(self.batches.extent(block.epoch)[1][0])
        s = self.state
        for order, counts in zip(block.order[0, : block.steps], block.counts[0, : block.steps], strict=True):
            order, counts = (np.pad(x, (0, self.size - len(x))) for x in (order, counts))
            data = jax.tree.map(lambda x, order=order: x[order], block.data)
            new = self.by_sums.shared_sums(s["g"], data, counts.astype(float))
            steps, times = int(s["steps"]) + 1, self.n / self.extent[1]
            rho = max(1 / steps, (steps + self.delay) ** -FORGETTING)
            sums = jax.tree.map(lambda a, b, r=rho, t=times: (1 - r) * a + r * t * np.asarray(b), s["sums"], new)
            s |= {"sums": sums, "steps": np.array(steps)}
            if steps >= self.delay**FORGETTING:  # before, the sums are of fewer stars than they will be
                s["g"] = self.by_sums.update(s["g"], sums)[0]
        return block.last and self.end_epoch(block.epoch)

    def end_epoch(self, epoch: int) -> bool:
        s = self.state
        now = self.by_sums.log_density(s["g"], self.out, self.kept_out) / self.kept_out.sum()
        better = not len(s["scores"]) or now > s["scores"].max()
        s |= {
            "best": s["g"] if better else s["best"], "idle": np.array(0 if better else s["idle"] + 1),
            "scores": np.append(s["scores"], now),
        }  # fmt: skip
        return bool(s["idle"] >= PATIENCE or epoch + 1 >= self.epochs)

    def told(self) -> dict[str, str]:
        return {"held_out": f"{self.state['scores'][-1]:.4g}"}


@in_float64
def by_sweeps(
    by_sums: BySums, rows: Rows, most: int, progress: bool | None, checkpoint: Checkpoint | None = None
) -> Trained:
    """Passes over all stars until nothing changes any more, `most` at most."""
    passes = Passes(rows)
    sweeps = Sweeps(by_sums, passes, most)
    with bar(most, "training step, passes over the stars", progress) as shown:
        train(sweeps, passes, checkpoint, shown)
    trained = by_sums.trained(sweeps.state["g"], passes.n)
    converged = bool(sweeps.settled and trained.stats.get("converged", True))
    trained.stats |= {"converged": converged, "passes": len(sweeps.state["changes"])}
    trained.traces = {"change": sweeps.state["changes"]}
    if np.isfinite(sweeps.state["objectives"]).all():
        trained.traces["objective"] = sweeps.state["objectives"]
    return trained


@in_float64
def by_minibatches(
    by_sums: BySums, rows: Rows, inference: SVI, seed: int, progress: bool | None, checkpoint: Checkpoint | None = None
) -> Trained:
    """Steps of `inference.batch_size` stars for `inference.epochs`, or about `inference.steps`, at most."""
    batches = Batches.of(rows, 1, seed, inference.batch_size or 512)
    epochs = inference.epochs or max(1, round(inference.steps * batches.size / batches.n))
    stochastic = Stochastic(by_sums, batches, epochs)
    with bar(epochs, "training step, passes by minibatches", progress) as shown:
        train(stochastic, batches, checkpoint, shown)
    scores = stochastic.state["scores"]
    trained = by_sums.trained(stochastic.state["best"], stochastic.n)
    trained.stats |= {
        "converged": bool(np.isfinite(scores).all()), "epochs": len(scores), "batch_size": batches.size,
        "held_out_log_density": float(scores.max()),
    }  # fmt: skip
    trained.traces = {"held_out_log_density": scores}
    return trained
