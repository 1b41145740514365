"""A program in coordinates in which its posterior is nearly a unit normal: for samplers and variational families.

Coefficients of correlated features have posteriors as long and narrow as their normal matrix is ill-conditioned. Where
their mean and covariance are known roughly beforehand, theta = centre + F z makes z easy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from ..numerics.linalg import Array

SITE = "whitened"


class Start(NamedTuple):
    """Where a sampler or an optimiser begins: {site: value}.

    names: of real sites without bounds whose joint posterior has about the covariance F F', with F = `factor` (d, d).
    """

    sites: dict[str, Array]
    names: tuple[str, ...] = ()
    factor: np.ndarray = np.zeros((0, 0))

    @property
    def first(self) -> dict[str, Array]:
        """The starting point in the coordinates of `Whitened`."""
        kept = {name: jnp.asarray(x) for name, x in self.sites.items() if name not in self.names}
        return {**kept, SITE: jnp.zeros(len(self.factor))} if self.names else kept

    def split(self, z: Array) -> dict[str, Array]:
        """z (..., d) -> {site: value (..., *shape)}."""
        shapes = [np.shape(self.sites[name]) for name in self.names]
        centre = jnp.concatenate([jnp.ravel(self.sites[name]) for name in self.names])
        flat = centre + z @ self.factor.T
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
        parts = jnp.split(flat, ends, axis=-1)
        return {
            name: part.reshape(*part.shape[:-1], *shape)
            for name, part, shape in zip(self.names, parts, shapes, strict=True)
        }

    def back(self, draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Draws {site: (chain, draw, ...)} of the program's own sites, from those of `Whitened`."""
        if not self.names:
            return draws
        own = self.split(jnp.asarray(draws[SITE]))
        return {name: x for name, x in draws.items() if name != SITE} | {k: np.asarray(x) for k, x in own.items()}


def narrowed(start: Start, times: float) -> Start:
    """The start for so many times as many stars: a narrower posterior."""
    return start._replace(factor=start.factor / np.sqrt(times))


StartOf = Callable[[], Start]
"""Computed by those who use it: it may take a fit."""


@dataclass(frozen=True)
class Whitened:
    """`program` with the sites `start.names` replaced by z, of the site `whitened`: centre + F z.

    The density is the program's, up to a constant.
    """

    program: Callable[..., Any]
    start: Start

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.start.names:
            return self.program(*args, **kwargs)
        size = len(self.start.factor)
        z = numpyro.sample(SITE, dist.ImproperUniform(dist.constraints.real_vector, (), (size,)))
        with numpyro.handlers.condition(data=self.start.split(jnp.asarray(z))):
            return self.program(*args, **kwargs)
