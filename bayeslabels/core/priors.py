"""Priors as printable data: what a model assumes, readable in its repr and stored in its file.

A scale of None is set from the training data when the model is bound to it (`Frame.flux_scale`). Where a model takes
one of these it takes any distribution of NumPyro, too (`own_priors`), and is then trained by its program.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from ..errors import bad_input
from ..numerics import horseshoe
from ..numerics.by_value import ByValue
from ..numerics.hierarchy import Hyperprior
from ..numerics.linalg import Array, inverse_psd
from ..numerics.regression import CoefficientPrior
from .distance_priors import DistancePrior, ExponentialDisk, Galaxy, NormalModulus
from .own_priors import is_own_scatter
from .reddening_priors import AlongSightline, Exponential, ReddeningPrior

__all__ = [
    "AlongSightline", "DistancePrior", "Exponential", "ExponentialDisk", "Flat", "Galaxy", "HalfNormal", "Horseshoe",
    "LabelMixture", "Laplace", "Learned", "Normal", "NormalModulus", "Prior", "ReddeningPrior", "ScatterPrior",
    "SparsePrior",
]  # fmt: skip

START_WIDTH = 1.0
"""Prior sd of coefficients, in units of the typical flux, from which a learned prior starts."""


@dataclass(frozen=True)
class Flat:
    """No preference: p(theta) constant. Improper, so the model cannot be simulated from it.

    Example:
        >>> import bayeslabels as bl
        >>> bl.Cannon(order=2, label_noise=False, coefficient_prior=bl.priors.Flat()).coefficient_prior
        Flat()
    """

    def sample(self, name: str, n_pixel: int, n_feature: int, scale: float) -> Array:
        improper = dist.ImproperUniform(dist.constraints.real, (), event_shape=(n_pixel, n_feature))
        return numpyro.sample(name, improper)

    def numeric(self, n_feature: int, scale: float) -> CoefficientPrior:
        return _gaussian(np.zeros(n_feature))


@dataclass(frozen=True)
class Normal:
    """Ridge: theta_lk ~ N(0, scale^2) for every feature but the constant, which stays nearly flat.

    scale: in flux units per unit of the scaled labels' monomials; None: 0.3 of the typical flux.

    Example:
        >>> import bayeslabels as bl
        >>> bl.Cannon(order=2, coefficient_prior=bl.priors.Normal(0.1)).coefficient_prior
        Normal(scale=0.1)
    """

    scale: float | None = None

    def _widths(self, n_feature: int, scale: float) -> np.ndarray:
        widths = np.full(n_feature, 0.3 * scale if self.scale is None else self.scale)
        widths[0] = max(widths[0], 100 * scale)
        return widths

    def sample(self, name: str, n_pixel: int, n_feature: int, scale: float) -> Array:
        widths = jnp.asarray(self._widths(n_feature, scale))
        return numpyro.sample(name, dist.Normal(0.0, widths).expand([n_pixel, n_feature]).to_event(2))

    def sample_sparse(self, name: str, n: int) -> Array:
        t = global_scale(self.scale)
        return numpyro.sample(name, dist.Normal(0.0, t).expand([n]).to_event(1))

    def numeric(self, n_feature: int, scale: float) -> CoefficientPrior:
        return _gaussian(self._widths(n_feature, scale) ** -2)


@dataclass(frozen=True)
class Laplace:
    """Sparse (L1): p(theta_lk) ~ exp(-|theta_lk| / scale) for every feature but the constant (Casey+16, eq. 4).

    MAP gives exact zeros. scale: in flux units; None: 0.02 of the typical flux.

    Example:
        >>> import bayeslabels as bl
        >>> bl.Cannon(order=3, coefficient_prior=bl.priors.Laplace()).coefficient_prior
        Laplace(scale=None)
    """

    scale: float | None = None

    def _scales(self, n_feature: int, scale: float) -> np.ndarray:
        scales = np.full(n_feature, 0.02 * scale if self.scale is None else self.scale)
        scales[0] = 1e6 * scale
        return scales

    def sample(self, name: str, n_pixel: int, n_feature: int, scale: float) -> Array:
        scales = jnp.asarray(self._scales(n_feature, scale))
        return numpyro.sample(name, dist.Laplace(0.0, scales).expand([n_pixel, n_feature]).to_event(2))

    def sample_sparse(self, name: str, n: int) -> Array:
        t = global_scale(self.scale)
        return numpyro.sample(name, dist.Laplace(0.0, t).expand([n]).to_event(1))

    def numeric(self, n_feature: int, scale: float) -> CoefficientPrior:
        prior = _gaussian(np.zeros(n_feature))
        return prior._replace(l1=jnp.asarray(1 / self._scales(n_feature, scale)))


@dataclass(frozen=True)
class Learned:
    """theta_l ~ N(m, Sigma), with the mean m (K,) and the full covariance Sigma (K, K) learned across the pixels.

    The one prior under which noisy training labels neither collapse nor rotate: it is equivariant under affine
    maps of the labels. Terms that the spectra do not need get a variance near zero, so that a higher order costs no
    precision. Hyperpriors: m ~ N(0, (10 f)^2), Sigma ~ InverseWishart(K + 2, (scale f)^2 I), f the typical flux.

    Args:
        scale: of the hyperprior of Sigma, in units of f. It is a floor: L pixels give every coefficient a prior sd of
            at least scale f / sqrt(L), and a floor above what terms of high order have makes their noise pass for
            information. Far below that, as by default, it does not matter.

    Example:
        >>> import bayeslabels as bl
        >>> bl.Cannon(order=3, coefficient_prior=bl.priors.Learned()).coefficient_prior
        Learned(scale=0.0001)
    """

    scale: float = 1e-4

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise bad_input(f"Learned(scale={self.scale!r})", "scale > 0", fix="priors.Learned()")

    def hyper(self, n_feature: int, scale: float) -> Hyperprior:
        """Prior of m and Sigma; scale: the typical flux."""
        return Hyperprior(10 * scale, n_feature + 2.0, (self.scale * scale) ** 2 * np.eye(n_feature))

    def sample(self, name: str, n_pixel: int, n_feature: int, scale: float) -> Array:
        width, freedom, matrix = self.hyper(n_feature, scale)
        mean = numpyro.sample(f"{name}_mean", dist.Normal(0.0, width).expand([n_feature]).to_event(1))
        covariance = numpyro.sample(
            f"{name}_covariance", dist.InverseWishart(freedom, scale_matrix=jnp.asarray(matrix))
        )
        with numpyro.plate("pixel", n_pixel):
            return numpyro.sample(name, dist.MultivariateNormal(mean, covariance_matrix=covariance))

    def numeric(self, n_feature: int, scale: float) -> CoefficientPrior:
        """Where training starts: nearly flat."""
        return _gaussian(np.full(n_feature, START_WIDTH**-2 / scale**2))

    def given(self, prior: CoefficientPrior, mean: np.ndarray, covariance: np.ndarray) -> CoefficientPrior:
        """`prior` with these m (K,) and Sigma (K, K)."""
        return prior._replace(precision=inverse_psd(covariance), mean=mean)


@dataclass(frozen=True)
class HalfNormal:
    """A scatter ~ HalfNormal(scale), in the units that the model states; scale None: what is typical of the training
    stars: their flux for s_l, the spread of each label for tau.

    Example:
        >>> import bayeslabels as bl
        >>> bl.Cannon(scatter_distribution=bl.priors.HalfNormal(0.01)).scatter_distribution
        HalfNormal(scale=0.01)
    """

    scale: float | None = None

    def __post_init__(self) -> None:
        if self.scale is not None and not self.scale > 0:
            raise bad_input(f"HalfNormal(scale={self.scale!r})", "scale > 0, or None")

    def width(self, scale: float) -> float:
        return scale if self.scale is None else self.scale

    def sample(self, name: str, n_pixel: int, scale: float) -> Array:
        return numpyro.sample(name, dist.HalfNormal(self.width(scale)).expand([n_pixel]).to_event(1))


def require_scatter_prior(name: str, prior: object) -> None:
    """Refuse, as the argument `name` of a model, what is no prior of a scatter."""
    if not isinstance(prior, HalfNormal) and not is_own_scatter(name, prior):
        fix = f"{name}=bayeslabels.priors.HalfNormal(0.1)"
        raise bad_input(f"{name}={prior!r}", "priors.HalfNormal(scale), or a distribution of NumPyro", fix=fix)


@dataclass(frozen=True)
class Horseshoe:
    """theta_j ~ N(0, t^2 l_j^2), l_j ~ half-Cauchy(1), times a slab N(0, slab^2): most are nothing, some are free.

    scale: t; None: learned, half-Cauchy(1) (Carvalho+2010; the slab as in Piironen & Vehtari 2017).

    Example:
        >>> import bayeslabels as bl
        >>> bl.Parallax(coefficient_prior=bl.priors.Horseshoe()).coefficient_prior
        Horseshoe(scale=None, slab=2.0)
    """

    scale: float | None = None
    slab: float = 2.0

    def sample_sparse(self, name: str, n: int) -> Array:
        t = global_scale(self.scale)
        return numpyro.sample(name, HorseshoeDistribution(jnp.broadcast_to(t, (n,)), self.slab).to_event(1))


class HorseshoeDistribution(dist.Distribution):
    """The local scales integrated out. The density is that of the horseshoe times exp(-theta^2 / (2 slab^2)), up to
    a factor that hardly depends on t while t << slab."""

    arg_constraints = {"t": dist.constraints.positive}
    support = dist.constraints.real

    def __init__(self, t: Array, slab: float):
        self.t, self.slab = t, slab
        super().__init__(batch_shape=jnp.shape(t), validate_args=False)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        at, local = jax.random.split(key)
        shape = (*sample_shape, *self.batch_shape)
        width = self.t * jnp.abs(jax.random.cauchy(local, shape))
        return jax.random.normal(at, shape) / jnp.sqrt(width**-2 + self.slab**-2)

    def log_prob(self, value: Array) -> Array:
        return horseshoe.log_density(value, self.t) - 0.5 * (value / self.slab) ** 2


def global_scale(scale: float | None) -> Array:
    """t, sampled where it is learned."""
    return jnp.asarray(scale) if scale is not None else numpyro.sample("global_scale", dist.HalfCauchy(1.0))


@dataclass(frozen=True)
class LabelMixture(ByValue):
    """A mixture of Gaussians of a star's labels together, in their units and order: sum_k weight_k N(mean_k, cov_k).

    Args:
        mean: (K, L), or (L,) of one Gaussian. covariance: (K, L, L), or (L, L). weight: (K,), in any unit; None: equal.

    Example:
        >>> import bayeslabels as bl
        >>> dwarfs = bl.priors.LabelMixture([5600.0, 4.4, 0.0], [[90000, 0, 0], [0, 0.04, 0], [0, 0, 0.01]])
        >>> bl.Photometry(label_prior=dwarfs).label_prior.mean.shape
        (1, 3)
    """

    mean: Any
    covariance: Any
    weight: Any = None

    def __post_init__(self) -> None:
        mean = np.atleast_2d(np.asarray(self.mean, float))
        covariance = np.asarray(self.covariance, float)
        covariance = covariance[None] if covariance.ndim == 2 else covariance
        k, n = mean.shape
        weight = np.ones(k) if self.weight is None else np.asarray(self.weight, float)
        if covariance.shape != (k, n, n) or weight.shape != (k,) or not (weight > 0).all():
            raise bad_input(
                f"LabelMixture of mean {mean.shape}, covariance {covariance.shape}, weight {weight.shape}",
                "(K, L), (K, L, L) and (K,) above 0",
            )  # fmt: skip
        if not np.isfinite(mean).all() or not (np.linalg.eigvalsh(covariance) > 0).all():
            raise bad_input("LabelMixture with covariances that are not positive definite", "covariances")
        for name, x in (("mean", mean), ("covariance", covariance), ("weight", weight / weight.sum())):
            object.__setattr__(self, name, x)


Prior = Flat | Normal | Laplace | Learned
ScatterPrior = HalfNormal | dist.Distribution
SparsePrior = Normal | Laplace | Horseshoe
"""Priors of the coefficients of log-linear models."""


def _gaussian(precision_diagonal: np.ndarray) -> CoefficientPrior:
    k = len(precision_diagonal)
    infinite = np.full(k, np.inf)
    return CoefficientPrior(np.diag(precision_diagonal), np.zeros(k), np.zeros(k), -infinite, infinite)
