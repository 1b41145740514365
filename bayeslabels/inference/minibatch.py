"""The mode of collapsed models by minibatches, for an ensemble of members at once, with early stopping.

    maximise  sum_n ln p(data_n | theta) + ln p(theta)   over the stars that a member trains on

Every member holds out other stars, starts elsewhere, and keeps the parameters of its best held-out density: what the
members differ by is what the data do not say about the function.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpyro.distributions.transforms import biject_to
from numpyro.handlers import seed as seeded
from numpyro.handlers import trace
from numpyro.infer.util import log_density

from ..collapsed import CollapsedModel
from ..progress import bar
from ..stars import Stars
from .base import Trained
from .finish import Finisher

HELD_OUT = 0.1
"""Share of the stars that a member does not train on."""
STEPS = 48
"""Steps per epoch, at least."""
PATIENCE = 8
"""Epochs without an improvement that a member waits before it goes on with the next learning rate, by default."""
SLOPE = 1.0
"""Of ln p per sd of any direction that is brought to the mode: above it the training step has not converged."""
FALL, STAGES = 0.2, (0.6, 0.85, 1.0)
"""From one learning rate to the next; and the share of the epochs at which each ends at the latest."""


def fit_members(
    model: CollapsedModel,
    stars: Stars,
    seed: int,
    progress: bool | None,
    *,
    epochs: int = 200,
    batch_size: int | None = None,
    learning_rate: float = 3e-3,
    patience: int = PATIENCE,
    bootstrap: bool = False,
) -> Trained:
    """Draws {site: (1, member, ...)}, the mode of each member by Adam; the family adds the moments. In float32.

    Args:
        epochs: passes over the stars, or so many times `STEPS` steps where a pass has fewer, at most.
        learning_rate: the first of `STAGES`, each entered from the best point of the one before.
        patience: epochs without an improvement of the held-out density after which a stage ends before its time.
        batch_size: stars per step; None: 256, or fewer of few stars.
        bootstrap: every member trains on a resample, with replacement, of its stars: what members differ by is then the
            statistical error of all that is learned, not of the function's start and shape alone.
    """
    rows = model.arrays(stars)
    starts = [model.start(stars, seed + 7907 * e) for e in range(model.members)]
    with jax.enable_x64(False):
        return _adam(
            model, rows, starts, len(stars), seed, progress, epochs, batch_size, learning_rate, patience, bootstrap
        )


def _adam(
    model: CollapsedModel,
    arrays: Any,
    starts: list[dict[str, np.ndarray]],
    n: int,
    seed: int,
    progress: bool | None,
    epochs: int,
    batch_size: int | None,
    learning_rate: float,
    patience: int,
    bootstrap: bool,
) -> Trained:
    members = len(starts)
    data = jax.tree.map(jnp.asarray, arrays)
    to_real = _transforms(model)
    first = {k: jnp.stack([to_real[k].inv(jnp.asarray(s[k])) for s in starts]) for k in starts[0]}
    out, kept = split(n, members, seed)
    if bootstrap:
        resample = np.random.default_rng([seed, 32416190071])
        kept = np.stack([row[resample.integers(len(row), size=len(row))] for row in kept])
    size = min(batch_size or min(256, max(16, kept.shape[1] // 12)), kept.shape[1])
    steps = max(STEPS, kept.shape[1] // size)
    optimiser = optax.chain(optax.clip_by_global_norm(10.0), optax.scale_by_adam())

    def constrained(real):
        return {k: to_real[k](x) for k, x in real.items()}

    def loss(real, rows):
        theta = constrained(real)
        prior = log_density(model.parameters, (), {}, theta)[0]
        batch = jax.tree.map(lambda x: x[rows], data)
        return -model.log_likelihood(theta, batch).mean() - prior / n

    @jax.jit
    @jax.vmap
    def epoch(real, state, rows, rate):
        def step(carry, rows):
            real, state = carry
            value, slope = jax.value_and_grad(loss)(real, rows)
            change, state = optimiser.update(slope, state, real)
            return (jax.tree.map(lambda x, dx: x - rate * dx, real, change), state), value

        (real, state), values = jax.lax.scan(step, (real, state), rows)
        return real, state, values.mean()

    @jax.jit
    @jax.vmap
    def held_out_density(real, rows):
        return model.log_likelihood(constrained(real), jax.tree.map(lambda x: x[rows], data)).mean()

    rng = np.random.default_rng([seed, 67867967])
    real, state = first, jax.vmap(optimiser.init)(first)
    best, score = real, np.full(members, -np.inf)
    idle, stage, ends = np.zeros(members, int), np.zeros(members, int), np.array([*STAGES, np.inf])
    losses, scores = [], []
    with bar(epochs, "training step", progress) as shown:
        for e in range(epochs):
            passes = -(-steps * size // kept.shape[1])
            order = np.stack([np.concatenate([rng.permutation(row) for _ in range(passes)]) for row in kept])
            order = order[:, : steps * size].reshape(members, steps, size)
            rate = np.where(stage < len(STAGES), learning_rate * FALL**stage, 0.0)
            real, state, value = epoch(real, state, jnp.asarray(order), jnp.asarray(rate))
            now = np.asarray(held_out_density(real, jnp.asarray(out)))
            better = now > score
            best = jax.tree.map(functools.partial(_where, better), real, best)
            score, idle = np.where(better, now, score), np.where(better, 0, idle + 1)
            late = (stage < len(STAGES)) & ((idle >= patience) | (e + 1 >= epochs * ends[stage]))
            real = jax.tree.map(functools.partial(_where, late), best, real)
            idle, stage = np.where(late, 0, idle), stage + late
            losses.append(np.asarray(value))
            scores.append(now)
            shown.update()
            shown.set_postfix(held_out=f"{score.mean():.4g}")
            if (stage >= len(STAGES)).all():
                break
    slope = 0.0
    if part := model.finished:
        finish = Finisher(model, to_real, part)
        ends_at = [finish(jax.tree.map(operator.itemgetter(e), best), data, kept[e]) for e in range(members)]
        best = jax.tree.map(lambda *x: jnp.stack(x), *[end.real for end in ends_at])
        score, slope = np.asarray(held_out_density(best, jnp.asarray(out))), max(end.slope for end in ends_at)
    theta = {k: np.asarray(x, float) for k, x in constrained(best).items()}
    stats: dict[str, Any] = {
        "converged": bool(np.isfinite(score).all() and slope < SLOPE),
        "epochs": len(losses),
        "batch_size": size,
        "members": members,
        "held_out_log_density": float(score.mean()),
    }
    traces = {"loss": np.array(losses).mean(1), "held_out_log_density": np.array(scores).mean(1)}
    return Trained({k: x[None] for k, x in theta.items()}, None, stats, traces)


def _where(better: np.ndarray, new: Any, old: Any) -> Any:
    return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def split(n: int, members: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Held-out rows (E, n_out) and training rows (E, n - n_out) of every member; as far apart as may be."""
    n_out = max(1, min(int(HELD_OUT * n), n // 2))
    order = np.random.default_rng([seed, 15487469]).permutation(n)
    turned = [np.roll(order, -e * max(n_out, n // max(members, 1))) for e in range(members)]
    return np.stack([x[:n_out] for x in turned]), np.stack([x[n_out:] for x in turned])


def _transforms(model: CollapsedModel) -> dict[str, Any]:
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
