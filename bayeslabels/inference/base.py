"""What every inference is: a frozen value with a training step, a test step, or both."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

T = TypeVar("T")
"""Moments of a kind: what the test step integrates over."""


@dataclass
class Trained(Generic[T]):
    """What a training step returns: draws {site: (chain, draw, ...)}, the kind's moments, and diagnostics.

    `stats`: scalars and short strings; `traces`: arrays per iteration or draw, such as the loss; `held_out`: rows
    (E, n_out) of the stars that each member of an ensemble did not train on.
    """

    draws: dict[str, np.ndarray]
    moments: T
    stats: dict[str, Any] = field(default_factory=dict)
    traces: dict[str, np.ndarray] = field(default_factory=dict)
    held_out: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), int))


@dataclass
class StarDraws:
    """What a test step returns: u (chain, draw, star, P), latents, and per-star diagnostics (star,).

    `mean` and `covariance` where they are known better than from the draws. `failed`: stars without an answer.
    `beside`: what the density of each draw was computed from (`starwise.in_passing`), a pytree of (chain, draw,
    star, ...), where that is known.
    """

    u: np.ndarray
    failed: np.ndarray
    mean: np.ndarray | None = None
    covariance: np.ndarray | None = None
    star_stats: dict[str, np.ndarray] = field(default_factory=dict)
    beside: Any = None


@dataclass(frozen=True)
class Inference:
    """Base of all inferences: the settings of a step, or of both."""

    many: ClassVar[bool] = False
    """Whether `fit_many` trains on several sets of stars side by side."""
    draws = 1
    """Draws of a star or of the parameters."""
    starts = 4
    """Starting points per star in the test step."""

    def infer(self, problem: Any, seed: int, progress: bool | None) -> StarDraws:
        """Solve a `starwise.StarProblem`: the test step, where a subclass has one."""
        raise NotImplementedError  # pragma: no cover - guarded by `Kind.require`

    @classmethod
    def answers(cls) -> bool:
        """Whether it has a test step."""
        return cls.infer is not Inference.infer

    def settings(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}
