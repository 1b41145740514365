"""Models of a positive quantity whose logarithm is linear in features of the stars, measured with Gaussian noise.

    parallax_n = exp(eta_n + s_n eps_n) + zero_n + N(0, sigma_n^2),   eta_n = theta . x_n,   eps_n ~ N(0, 1)
    s_n^2 = s^2 + theta' C_n theta

x_n: measured features with errors of covariance C_n. What is missing of x_n has the mean and covariance that the
features' Gaussian population gives it, conditional on what is measured: never a filled value.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from ...core.model import Model
from ...core.own_priors import OwnPrior, fitted
from ...core.priors import HalfNormal, ScatterPrior, SparsePrior
from ...data.columns import is_angle, require_same_grid, same_unit
from ...data.stars import Block, Stars
from ...errors import bad_input
from ...numerics.compiling import jit
from ...numerics.entries import Entries
from ...numerics.incomplete import Population
from ...numerics.linalg import Array, constant, is_traced, module_of
from ...numerics.lognormal import cold_start, log_likelihood
from .frame import FeatureFrame, learn_frame, raw_features
from .products import SOURCE, Products

WRONG_FREEDOM = 2.0
"""Degrees of freedom of measured parallaxes that are wrong."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ScaledFeatures:
    """Scaled features of N stars.

    value (N, D): measured, or of what is missing the population's mean given the measured; variance (N, V): the
    `entries` of the covariances C_n of the errors, of what is missing the diagonal of its covariance; measured (N, D);
    spread (N, Q, Q): covariance of the population's factors given the measured, (1, Q, Q) if nothing is missing;
    factors (N, Q): their mean.
    """

    value: Array
    variance: Array
    measured: Array
    spread: Array
    factors: Array
    entries: Entries = field(metadata={"static": True})

    def rows(self, index: Any) -> ScaledFeatures:
        turn = constant if is_traced(index) else lambda x: x
        return jax.tree.map(lambda x: x if len(x) == 1 else turn(x)[index], self)

    def noise(self, theta: Array) -> Array:
        """theta' C_n theta (N,), of what is missing with its own variance alone."""
        return self.variance @ self.entries.products(theta)

    @property
    def complete(self) -> bool:
        """Whether nothing is missing of any star."""
        return len(self.spread) < len(self.value)

    @property
    def distance(self) -> Array:
        """Mahalanobis distance^2 (N,) of the factors."""
        return (self.factors**2).sum(1)


class Regression(NamedTuple):
    """Data of N stars: features (`spread` of every star), parallax less its known zero point, error, and whether it is
    measured."""

    features: ScaledFeatures
    y: Array
    sigma: Array
    seen: Array


@dataclass(frozen=True)
class LogLinearModel(Model[FeatureFrame]):
    """parallax_n = exp(theta . x_n + s_n eps_n) + zero_n + N(0, sigma_n^2), with features x_n from any blocks."""

    stored: ClassVar[tuple[type, ...]] = (FeatureFrame, Products)

    @property
    def blocks(self) -> tuple[str, ...]:
        return (*(spec.removeprefix("ln ") for spec in self.feature_blocks), self.predicted, "zero_point")

    @property
    def widths(self) -> dict[str, int]:
        source = self.require_frame().source
        return {name: source.count(name) for name in source[1:] if name != SOURCE}

    @property
    @abstractmethod
    def feature_blocks(self) -> tuple[str, ...]:
        """The blocks that features come from, "ln " before those whose logarithm is taken."""

    @property
    @abstractmethod
    def sparse_blocks(self) -> tuple[str, ...]:
        """Those of them whose coefficients have the sparse prior."""

    @property
    def degree(self) -> int:
        """Up to which products of the features that are not sparse are features, too; these are the last then."""
        return 1

    @property
    @abstractmethod
    def predicted(self) -> str:
        """The block that is predicted."""

    @property
    @abstractmethod
    def sparse_prior(self) -> SparsePrior | OwnPrior: ...

    @property
    def at_mode(self) -> SparsePrior | OwnPrior:
        """The prior of the coefficients of which the mode is sought."""
        return self.sparse_prior

    @property
    @abstractmethod
    def wide_precision(self) -> np.ndarray:
        """(D,) 1 / sd^2 of the Normal prior of the coefficients that are not sparse."""

    @property
    @abstractmethod
    def zero_prior(self) -> tuple[float, float]:
        """Mean and sd of the zero point; sd 0: fixed."""

    @property
    @abstractmethod
    def has_outliers(self) -> bool:
        """Whether some measured parallaxes are taken to be wrong."""

    @property
    @abstractmethod
    def fixed_scatter(self) -> float | None: ...

    @property
    def improper(self) -> str:
        return "wide=1.0" if (self.wide_precision == 0).any() else ""

    def bind(self, stars: Stars) -> Self:
        for name in (self.predicted, *(spec.removeprefix("ln ") for spec in self.feature_blocks)):
            if name not in stars:
                raise bad_input(
                    f"stars with the blocks {', '.join(stars.blocks)}",
                    f"a block {name!r}, which the training step needs",
                    fix=f"Stars({name}=..., ...), or {type(self).__name__}(features=(...)) without it",
                )  # fmt: skip
        target = stars[self.predicted]
        if self.predicted == "parallax" and target.units[0] and not is_angle(target.units[0]):
            raise bad_input(
                f"parallax in {target.units[0]!r}", "an angle, such as mas", "distances",
                "1 / distance, with error / distance**2: of errors that are small",
            )  # fmt: skip
        self._require_one(target)
        if (n := int(target.observed.sum())) < 3:
            raise bad_input(f"{n} stars with a {self.predicted}", "at least 3")
        return self.replace(frame=learn_frame(self, stars))

    def _require_one(self, target: Block) -> None:
        """Refuse a target that is no number with its error for every star."""
        if target.n_dim != 1 or target.error is None:
            raise bad_input(
                f"{self.predicted} of {target.n_dim} columns{'' if target.error is not None else ' without errors'}",
                "one number per star and its error",
            )

    def check(self, stars: Stars) -> None:
        frame = self.require_frame()
        sizes = self.widths
        columns = dict(zip(sizes, frame.columns, strict=True))
        for name, size in sizes.items():
            if name not in stars:
                raise bad_input(
                    f"stars without {name}", "the blocks of the features; what is missing in them is NaN",
                    fix=f"stars.with_block({name}=Block(np.full(({len(stars)}, {size}), np.nan), names=...))",
                )  # fmt: skip
            if stars[name].n_dim != size or stars[name].names != columns[name]:
                raise bad_input(
                    f"{name} {stars[name].names or f'of {stars[name].n_dim} columns'}",
                    f"{columns[name] or f'{size} columns'}, as in training", "columns swapped or renamed",
                    f"{name}.select({columns[name]!r})" if columns[name] else "",
                )  # fmt: skip
            units = tuple(u for u, s in zip(frame.taken_in or frame.units, frame.source, strict=False) if s == name)
            known = bool(frame.taken_in) or not frame.log[frame.source.index(name)]
            if known and not all(map(same_unit, stars[name].units, units)):
                raise bad_input(f"{name} in {stars[name].units}", f"{units}, as in training")
            own = [x for x, source in zip(frame.names, frame.source, strict=True) if source == name]
            require_same_grid(name, stars[name].coords, [x.removeprefix("ln ").removeprefix(f"{name} ") for x in own])
        if self.predicted in stars:
            self._require_one(stars[self.predicted])
        if self.predicted in stars and stars[self.predicted].units[0] != frame.unit:
            raise bad_input(
                f"{self.predicted} in {stars[self.predicted].units[0]!r}", f"{frame.unit!r}, as in training"
            )

    def design(self, stars: Stars) -> ScaledFeatures:
        """The scaled features of stars that fit the frame."""
        frame = self.require_frame()
        value, variance, measured, entries = raw_features(self.feature_blocks, stars, frame.products)
        if is_traced(value):
            return self._traced_design(value, variance, measured, entries)
        value -= frame.centre
        value /= frame.scale
        value[~measured] = 0.0
        variance /= frame.scale[entries.index[0]] * frame.scale[entries.index[1]]
        population = frame.population
        z, spread = population.factors(value[:, 1:], measured[:, 1:])
        if not measured.all():
            own = np.einsum("jq,nqr,jr->nj", population.loadings, spread, population.loadings, optimize=True)
            value[:, 1:] = np.where(measured[:, 1:], value[:, 1:], population.expected(z))
            alone = slice(1, entries.size)
            variance[:, alone] = np.where(measured[:, 1:], variance[:, alone], own + population.noise)
        return ScaledFeatures(value, variance, measured, spread, z, entries)

    def _traced_design(self, value: Array, variance: Array, measured: Array, entries: Entries) -> ScaledFeatures:
        """`design` of raw features whose numbers JAX is tracing: any of them may be missing."""
        frame = self.require_frame()
        value = jnp.where(measured, (value - constant(frame.centre)) / constant(frame.scale), 0.0)
        population = Population(*map(constant, frame.population))
        z, spread = population.factors(value[:, 1:], measured[:, 1:])
        own = jnp.einsum("jq,nqr,jr->nj", population.loadings, spread, population.loadings) + population.noise
        first = jnp.zeros((len(value), 1))
        expected, doubt = (jnp.concatenate([first, x], 1) for x in (population.expected(z), own))
        value = jnp.where(measured, value, expected)
        i, j, _ = entries.index
        variance = variance / constant(frame.scale[i] * frame.scale[j])
        alone = jnp.where(measured, variance[:, : entries.size], doubt)
        variance = jnp.concatenate([alone, variance[:, entries.size :]], 1)
        return ScaledFeatures(value, variance, measured, spread, z, entries)

    def arrays(self, stars: Stars) -> Regression:
        """What a step of the training takes of stars that fit the frame: arrays with a row per star."""
        features = self.design(stars)
        spread = module_of(features.spread).broadcast_to(features.spread, (len(stars), *features.spread.shape[1:]))
        return Regression(replace(features, spread=spread), *self.target(stars))

    def target(self, stars: Stars) -> tuple[Array, Array, Array]:
        """Measured value less its known zero point, error and mask, (N,) each; missing are 0 with error 1."""
        value, variance, observed = (x[:, 0] for x in stars[self.predicted].filled())
        xp = module_of(value)
        return xp.where(observed, value - self.offset(stars), 0.0), xp.sqrt(variance), observed

    def offset(self, stars: Stars) -> Array:
        """The known part of the zero point (N,): the block `zero_point`, 0 where there is none."""
        if "zero_point" not in stars:
            return np.zeros(len(stars))
        return stars["zero_point"].filled()[0][:, 0]

    def coefficient_sites(self) -> Array:
        """theta (D,), scaled; the sites are `wide`, `sparse` and what the sparse prior adds."""
        frame = self.require_frame()
        sparse = np.flatnonzero(frame.penalised)
        wide = np.flatnonzero(~frame.penalised)
        sd = jnp.asarray(self.wide_precision[wide] ** -0.5)
        theta = jnp.zeros(len(frame.names)).at[wide].set(numpyro.sample("wide", dist.Normal(0.0, sd).to_event(1)))
        if len(sparse):
            theta = theta.at[sparse].set(self.sparse_prior.sample_sparse("sparse", len(sparse)))
        return numpyro.deterministic("coefficients", theta / constant(frame.scale)) * constant(frame.scale)

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """Program of what the stars share: "theta" (D,), scaled, "scatter", "zero_point" and "outlier_fraction", None
        for none."""

    def log_likelihood(self, shared: dict[str, Any], data: Regression) -> Array:
        """ln p(parallax_n | shared) (N,) of rows of `arrays`."""
        theta, s, zero, wrong = (shared[x] for x in ("theta", "scatter", "zero_point", "outlier_fraction"))
        s_n = jnp.sqrt(s**2 + self.feature_variance(theta, data.features))
        measured = MeasuredParallax(
            data.features.value @ theta, s_n, zero, data.sigma, wrong, self.require_frame().outlier
        )
        return jnp.where(data.seen, measured.log_prob(data.y), 0.0)

    @cached_property
    def compiled(self) -> Callable[..., Array]:
        """`log_likelihood`, compiled as a whole."""
        return jit(self.log_likelihood)

    def feature_variance(self, theta: Array, features: ScaledFeatures) -> Array:
        """theta' C_n theta (N,): errors of what is measured, the covariance of what is missing."""
        frame, xp = self.require_frame(), module_of(theta, features.measured)
        theta, measured, loadings, noise = (
            x if xp is np else constant(x) for x in (theta, features.measured, frame.loadings, frame.noise)
        )
        if features.complete:
            return features.noise(theta)
        one = xp.ones((len(measured), features.entries.n_entry - features.entries.size), bool)
        seen = xp.concatenate([measured, one], 1)  # of what is missing there are no entries but the diagonal
        variance = xp.where(seen, features.variance, 0.0) @ features.entries.products(theta)
        missing = xp.where(measured, 0.0, theta)[:, 1:]
        along = missing @ loadings
        return variance + xp.einsum("nq,nqr,nr->n", along, features.spread, along) + missing**2 @ noise

    def starting_point(self, stars: Stars) -> dict[str, np.ndarray]:
        """Values of the sites near the good optimum, away from where exp(eta) underflows."""
        frame, features = self.require_frame(), self.design(stars)
        y, sigma, seen = self.target(stars)
        ridge = np.where(frame.penalised, 100.0, np.maximum(self.wide_precision, 1e-8))
        theta = cold_start(features.value[seen], y[seen] - self.zero_prior[0], sigma[seen], 0 * ridge, ridge)
        zero = np.array(float(self.zero_prior[0]))
        point = {"wide": theta[~frame.penalised], "scatter": np.array(0.1), "zero_point": zero}
        if frame.penalised.any():
            point |= {"sparse": theta[frame.penalised], "global_scale": np.array(0.1)}
        return point


class MeasuredParallax(dist.Distribution):
    """exp(eta + s eps) + zero + N(0, sigma^2): the lognormal integrated out of its density.

    fraction: of values that are of `outlier_density` instead; draws are of those that are right.
    """

    arg_constraints = {name: dist.constraints.real for name in ("eta", "s", "zero", "sigma")}
    support = dist.constraints.real

    def __init__(self, eta: Array, s: Array, zero: Array, sigma: Array, fraction: Any = None, outlier: Any = None):
        self.fraction, self.outlier = fraction, outlier
        self.eta, self.s, self.zero, self.sigma = jnp.broadcast_arrays(eta, s, zero, sigma)
        super().__init__(batch_shape=jnp.shape(self.eta), validate_args=False)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        z = jax.random.normal(key, (2, *sample_shape, *self.batch_shape))
        return jnp.exp(self.eta + self.s * z[0]) + self.zero + self.sigma * z[1]

    def log_prob(self, value: Array) -> Array:
        good = log_likelihood(value - self.zero, self.sigma, self.eta, self.s)
        if self.fraction is None:
            return good
        bad = outlier_density(value, self.sigma, self.outlier)
        return jnp.logaddexp(good + jnp.log1p(-self.fraction), bad + jnp.log(self.fraction))


@jit
def outlier_density(value: Array, sigma: Array, outlier: Array) -> Array:
    """ln p of a measured value that is wrong: Student-t of `WRONG_FREEDOM` about outlier[0], with the scale
    sqrt(outlier[1]^2 + sigma^2). No value is so far off that a right one would be likelier to make it."""
    scale = jnp.sqrt(outlier[1] ** 2 + sigma**2)
    return dist.StudentT(WRONG_FREEDOM, outlier[0], scale).log_prob(value)


def scatter_site(fixed: float | None, prior: ScatterPrior) -> Array:
    """s, sampled where it is learned."""
    if fixed is not None:
        return jnp.asarray(fixed)
    if isinstance(prior, HalfNormal):
        return numpyro.sample("scatter", dist.HalfNormal(prior.width(1.0)))
    return numpyro.sample("scatter", fitted("scatter", prior, ()))
