"""Priors of a star's reddening. Each is bound to stars, `prior.at(stars, typical)`, as those of the distance are.

What is bound says p(E | mu) = exp(log_norm + pull E - precision E^2 / 2), E >= 0, by `given(mu)`: the integral over E
is then in closed form, whatever the prior.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from ..data.stars import Stars
from ..errors import bad_input
from ..numerics import truncated
from ..numerics.along import line, resampled
from ..numerics.linalg import Array, module_of


class ReddeningPrior(ABC):
    """A prior of the reddening; `blocks`: those of the stars that it reads."""

    blocks: ClassVar[tuple[str, ...]] = ()
    scale: float | None

    @abstractmethod
    def at(self, stars: Stars, typical: float) -> Any:
        """p(E | mu) of N stars, arrays with a row per star; typical: the mean reddening of the training stars, mag."""

    def check(self, stars: Stars) -> None:
        """Refuse stars whose blocks it cannot read; by default it reads none."""
        return


@dataclass(frozen=True)
class Exponential(ReddeningPrior):
    """p(E) = exp(-E / scale) / scale for E >= 0, mag; scale None: the mean reddening of the training stars.

    Stars with a block `reddening_scale` (one column, mag, without errors) have a scale of their own, such as the
    reddening of a map in their direction.

    Example:
        >>> import bayeslabels as bl
        >>> bl.Photometry(reddening_prior=bl.priors.Exponential(0.2)).reddening_prior
        Exponential(scale=0.2)
    """

    blocks: ClassVar[tuple[str, ...]] = ("reddening_scale",)

    scale: float | None = None

    def __post_init__(self) -> None:
        _require_scale(self)

    def at(self, stars: Stars, typical: float) -> Falling:
        return Falling(1 / _scales(stars, typical if self.scale is None else self.scale))

    def check(self, stars: Stars) -> None:
        if (name := self.blocks[0]) not in stars:
            return
        block = stars[name]
        if block.n_dim != 1:
            raise bad_input(f"{name} of {block.n_dim} columns", "one number per star")
        if wrong := set(block.units) - {"mag", ""}:
            raise bad_input(f"{name} in {sorted(wrong)}", "mag", fix="Block(..., unit='mag')")
        value, _, observed = block.filled()
        if isinstance(value, np.ndarray) and (wrong_ones := observed & (value <= 0)).any():
            raise bad_input(f"{name} = {value[wrong_ones][0]:g}", "scales above 0, NaN where there is none of its own",
                            "a star in front of all dust", "np.maximum(scale, 0.005)")  # fmt: skip


@dataclass(frozen=True)
class AlongSightline(ReddeningPrior):
    """E ~ Normal(E_map(mu), error(mu)^2), E >= 0: the reddening grows with distance as a map of the dust says.

    The block `sightline` of the stars is the map along the line of sight of each: reddening [mag] at the distance
    moduli ``coords["modulus"]`` (K,), and its errors (N, K). Between them both are straight lines in mu, beyond the
    ends they stay as they are there. A star without a sightline has the prior of `Exponential`, with this `scale`.
    `astro.dust.reddening_along` makes the block from a map.

    Example:
        >>> import numpy as np
        >>> import bayeslabels as bl
        >>> mu = np.arange(4.0, 16.0, 0.5)
        >>> wall = 0.5 / (1 + np.exp(-3 * (mu - 9)))  # a cloud at 630 pc
        >>> sightline = bl.Block(wall[None], 0.05, unit="mag", coords={"modulus": mu})
        >>> bound = bl.priors.AlongSightline().at(bl.Stars(sightline=sightline), 0.1)
        >>> [round(float(x), 2) for x in bound.rough(np.array([7.0, 11.0]))[1]]
        [0.0, 0.5]
    """

    blocks: ClassVar[tuple[str, ...]] = ("sightline", "reddening_scale")

    scale: float | None = None

    def __post_init__(self) -> None:
        _require_scale(self)

    def at(self, stars: Stars, typical: float) -> Mapped:
        rate = 1 / _scales(stars, typical if self.scale is None else self.scale)
        n = len(stars)
        if "sightline" not in stars:
            no = np.zeros((n, 2))
            return Mapped(rate, np.zeros(n), no, no + 1, np.zeros(n), np.ones(n))
        value, variance, observed = stars["sightline"].filled()
        xp = module_of(value)
        to_even, first, step = resampled(*_moduli(stars))
        e, sd = value @ to_even, xp.sqrt(variance) @ to_even
        known = observed.all(1).astype(float)
        return Mapped(rate, known, e, sd, np.full(n, first), np.full(n, step))

    def check(self, stars: Stars) -> None:
        Exponential.check(Exponential(), stars.drop("sightline") if "sightline" in stars else stars)
        if "sightline" not in stars:
            return
        block = stars["sightline"]
        if block.error is None:
            raise bad_input("a block sightline without errors", "an error for every number", "a map without them",
                            "Block(e, 0.1 * e + 0.02, ...)")  # fmt: skip
        if wrong := set(block.units) - {"mag", ""}:
            raise bad_input(f"a block sightline in {sorted(wrong)}", "mag", fix="Block(..., unit='mag')")
        _moduli(stars)


EVEN = 48
"""Even steps of a sightline whose own are not."""


def _moduli(stars: Stars) -> tuple[np.ndarray, int]:
    """Distance moduli of the block `sightline`, and how many even steps stand for them."""
    block = stars["sightline"]
    moduli = block.coords.get("modulus")
    if moduli is None or block.n_dim < 2 or not (np.diff(moduli) > 0).all():
        got = "no moduli" if moduli is None else f"the moduli {np.round(moduli[:4], 2)}"
        raise bad_input(f"a block sightline with {got}", "at least 2 growing distance moduli, one per column",
                        fix='sightline=Block(e, error, unit="mag", coords={"modulus": moduli})')  # fmt: skip
    even = np.ptp(np.diff(moduli)) < 1e-6 * np.ptp(moduli)
    return np.asarray(moduli, float), len(moduli) if even else max(EVEN, len(moduli))


def _scales(stars: Stars, scale: float) -> Array:
    """Of the exponential prior (N,): of the stars' own, else this."""
    if "reddening_scale" not in stars:
        return np.full(len(stars), float(scale))
    value, _, observed = stars["reddening_scale"].filled()
    return module_of(value).where(observed[:, 0], value[:, 0], float(scale))


def _require_scale(prior: ReddeningPrior) -> None:
    given = prior.scale
    if given is not None and not (np.ndim(given) == 0 and given > 0):
        fix = "stars.with_block(reddening_scale=Block(scale, unit='mag'))" if np.ndim(given) else "scale=0.1"
        raise bad_input(f"{type(prior).__name__}(scale={given!r})", "one number > 0, or None", fix=fix)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Falling:
    """E ~ Exponential(rate), whatever the distance."""

    rate: Array

    def given(self, mu: Array) -> tuple[Array, Array, Array]:
        """Precision, pull and log_norm at mu."""
        return 0.0 * self.rate, -self.rate, jnp.log(self.rate)

    def rough(self, mu: Array) -> tuple[Array, Array]:
        """Precision and mean of a Gaussian that is about as wide."""
        return self.rate**2, 1 / self.rate

    @property
    def typical(self) -> Array:
        """A reddening (...) that is usual for the star."""
        return 1 / self.rate

    def distribution(self, mu: Array) -> dist.Distribution:
        return dist.Exponential(self.rate)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mapped:
    """E ~ Normal(e(mu), sd(mu)^2), E >= 0, tables (..., K); where `known` is 0 as `Falling`."""

    rate: Array
    known: Array
    e: Array
    sd: Array
    first: Array
    step: Array

    def given(self, mu: Array) -> tuple[Array, Array, Array]:
        """Precision, pull and log_norm at mu."""
        precision, mean = self._normal(mu)
        t, known = mean * jnp.sqrt(precision), self.known > 0
        below = jnp.minimum(t, 0.0)  # e is never negative but by rounding
        log_share = jnp.log1p(-0.5 * jax.scipy.special.erfc(jnp.maximum(t, 0.0) / truncated.SQRT_2))
        log_share = jnp.where(t < 0, truncated.scaled_log_ndtr(below) - 0.5 * below**2, log_share)
        log_norm = 0.5 * jnp.log(precision) - float(np.log(truncated.SQRT_2PI)) - 0.5 * t**2 - log_share
        pick = lambda a, b: jnp.where(known, a, b)  # noqa: E731
        return pick(precision, 0.0), pick(precision * mean, -self.rate), pick(log_norm, jnp.log(self.rate))

    def rough(self, mu: Array) -> tuple[Array, Array]:
        """Precision and mean of a Gaussian that is about as wide."""
        precision, mean = self._normal(mu)
        known = self.known > 0
        return jnp.where(known, precision, self.rate**2), jnp.where(known, mean, 1 / self.rate)

    def _normal(self, mu: Array) -> tuple[Array, Array]:
        sd = line(self.sd, self.first, self.step, mu)
        return sd**-2, line(self.e, self.first, self.step, mu)

    @property
    def typical(self) -> Array:
        """A reddening (...) that is usual for the star."""
        return module_of(self.e).where(self.known > 0, self.e.mean(-1), 1 / self.rate)

    def distribution(self, mu: Array) -> dist.Distribution:
        return Reddened(*self.given(mu))


class Reddened(dist.Distribution):
    """p(E) = exp(log_norm + pull E - precision E^2 / 2), E >= 0."""

    support = dist.constraints.positive
    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, precision: Array, pull: Array, log_norm: Array):
        self.precision, self.pull, self.log_norm = precision, pull, log_norm
        super().__init__(batch_shape=jnp.shape(pull), validate_args=False)

    def log_prob(self, value: Array) -> Array:
        return self.log_norm + value * (self.pull - 0.5 * self.precision * value)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        uniform = jax.random.uniform(key, (*sample_shape, *self.batch_shape), minval=1e-7)
        return truncated.draw(self.pull, jnp.maximum(self.precision, 1e-12), 0.0, uniform)
