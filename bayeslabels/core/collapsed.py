"""Models whose stars' own unknowns can be integrated out, star by star: what they declare, and what they share.

    p(data, theta) = p(theta) prod_n p(data_n | theta),   p(data_n | theta) = int p(data_n | x_n, theta) p(x_n) dx_n

With `log_likelihood` declared, training by minibatches, variational inference and NUTS on the shared parameters theta
alone are a model's own, and nothing grows with the number of stars. `model(stars)` remains the program with every x_n.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import jax
import numpy as np
import numpyro

from ..data.stars import Stars
from ..numerics.compiling import jit
from ..numerics.linalg import Array, constant
from .model import F, Model


@dataclass(frozen=True)
class CollapsedProgram:
    """`CollapsedModel.collapsed` as a function of `CollapsedModel.arrays`."""

    model: CollapsedModel
    template: Stars

    def __call__(self, data: Any) -> None:
        self.model.collapsed(self.template, data=data)

    def data(self, stars: Stars) -> Any:
        return self.model.arrays(stars)


class LinearPart(ABC):
    """Parameters that predictions are linear in, given the rest, and what stars tell of them (Gauss-Newton).

    The scores of N stars know of N directions; where a model has more parameters than there are stars, this knows all.
    """

    sites: ClassVar[tuple[str, ...]]

    @abstractmethod
    def told(self, theta: Mapping[str, Array], data: Any) -> Any:
        """What `information` needs of rows of `CollapsedModel.arrays`: a pytree of arrays with a row per star."""

    @abstractmethod
    def information(
        self, told: Any, count: np.ndarray, number: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Fisher information (K, K) of stars that count so often (N,), without the prior's; and which of the numbers
        {site: ...} of the parameters it is of (K,)."""


@dataclass(frozen=True)
class CollapsedModel(Model[F]):
    """A model with p(data_n | theta) in closed form or by a quadrature that is exact for every purpose."""

    @property
    def members(self) -> int:
        """How many times `MAP` trains it, each with other stars held out and from another start: an ensemble."""
        return 1

    @abstractmethod
    def parameters(self) -> dict[str, Array]:
        """NumPyro program of the shared parameters alone: samples every site of theta and returns their values."""

    @abstractmethod
    def arrays(self, stars: Stars) -> Any:
        """What the likelihood takes of stars that fit the frame: a pytree of arrays with a row per star, no NaN."""

    @abstractmethod
    def log_likelihood(self, theta: Mapping[str, Array], data: Any) -> Array:
        """ln p(data_n | theta) (N,) of rows of `arrays`, the stars' own unknowns integrated out."""

    @abstractmethod
    def start(self, stars: Stars, seed: int) -> dict[str, np.ndarray]:
        """theta to start an optimiser from, another one for another seed."""

    @property
    def polished(self) -> dict[str, Any]:
        """Parts of theta, as indices of its sites, that `MAP` brings to the mode given the rest, all stars at once."""
        return {}

    @property
    def linear_part(self) -> LinearPart | None:
        """Of `polished`, if there is more to know of a part of it than the stars' scores."""
        return None

    def dropped(self, theta: Mapping[str, Array], key: Array) -> Mapping[str, Array]:
        """theta without a random part of it, for the loss of one step of `MAP` by minibatches; by default all of it."""
        return theta

    def held(self, theta: Mapping[str, Array], data: Any) -> Any:
        """`data` with what of the likelihood `MAP` by minibatches may compute once for many steps; by default nothing.

        What is held has no slope: steps then solve an estimating equation whose solution is not quite the mode.
        """
        return data

    @property
    def delayed(self) -> dict[str, np.ndarray]:
        """Which numbers of sites of theta stay where they start while `MAP` has its first learning rate."""
        return {}

    def training_program(self, stars: Stars) -> Callable[..., Any]:
        return functools.partial(self.collapsed, data=self.arrays(stars))

    def program_of_data(self, stars: Stars) -> Any:
        return CollapsedProgram(self, stars)

    def starting_point(self, stars: Stars) -> dict[str, np.ndarray]:
        return self.start(stars, 0)

    def collapsed(self, stars: Stars, batch_size: int | None = None, data: Any = None) -> None:
        """The NumPyro program of theta alone, with p(data | theta) as its likelihood; data: `arrays` of the stars."""
        model = self.bound(stars)
        theta = model.parameters()
        data = jax.tree.map(constant, model.arrays(stars) if data is None else data)
        with numpyro.plate("star", len(stars), subsample_size=batch_size) as rows:
            numpyro.factor("data", model.compiled(theta, jax.tree.map(lambda x: x[rows], data)))

    @cached_property
    def compiled(self) -> Callable[..., Array]:
        """`log_likelihood`, compiled as a whole where NumPyro would run it operation by operation."""
        return jit(self.log_likelihood)
