"""What every inference is: a frozen value with a training step, a test step, or both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np

from ..errors import bad_input

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

    def reordered(self, rows: np.ndarray, dims: Mapping[str, Sequence[str]]) -> Self:
        """With the draws of the training stars in another order; dims: of every site after chain and draw, its stars'
        called "star"."""
        draws = {
            name: np.take(x, rows, axis=2 + dims[name].index("star")) if "star" in dims.get(name, ()) else x
            for name, x in self.draws.items()
        }
        return replace(self, draws=draws)


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


WHOLE, REAL = int | np.integer, int | float | np.number
RANGES: dict[str, tuple[Any, float, float]] = {
    **dict.fromkeys(("batch_size", "chains", "draws", "epochs", "freedom", "max_iterations", "max_tree_depth", "starts",
                     "steps", "thin"), (WHOLE, 1, np.inf)),
    "warmup": (WHOLE, 0, np.inf), "tolerance": (REAL, 0, 1e9), "learning_rate": (REAL, 0, 1e9),
    "target_accept": (REAL, 0, 1),
}  # fmt: skip
"""Kind of number, least and greatest, of the settings that inferences share."""


@dataclass(frozen=True)
class Inference:
    """Base of all inferences: the settings of a step, or of both."""

    many: ClassVar[bool] = False
    """Whether `fit_many` trains on several sets of stars side by side."""
    draws = 1
    """Draws of a star or of the parameters."""
    starts = 4
    """Starting points per star in the test step."""

    def __post_init__(self) -> None:
        """Refuse counts that are no whole numbers, and numbers out of their range."""
        for name, (kind, least, most) in RANGES.items():
            value = getattr(self, name, None)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, kind) or not least <= value <= most:
                what = "a whole number" if kind is WHOLE else "a number"
                to = f"{least:g} or more" if most == np.inf else f"{least:g} to {most:g}"
                raise bad_input(f"{type(self).__name__}({name}={value!r})", f"{what}, {to}")

    def infer(self, problem: Any, keys: np.ndarray, progress: bool | None) -> StarDraws:
        """Solve a `starwise.StarProblem`: the test step, where a subclass has one; keys (N, 2): of each star's random
        numbers (`numerics.own_variates`)."""
        raise NotImplementedError  # pragma: no cover - guarded by `Kind.require`

    @classmethod
    def answers(cls) -> bool:
        """Whether it has a test step."""
        return cls.infer is not Inference.infer

    def settings(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}
