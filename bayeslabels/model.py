"""The contract of a model: a frozen value that is a NumPyro program, and what the fast routes may rely on.

A model is called with stars: a block present in them is observed, a block absent is sampled. Nothing else is needed
for `numpyro.infer.MCMC`, `SVI`, `Predictive` or `numpyro.render_model`. Models that are linear in features of each
star's latent labels (`LinearModel`) declare that structure, and with it every exact fast route is theirs.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Self

import jax.numpy as jnp
import numpy as np

from .errors import bad_input
from .numerics.features import Monomials
from .numerics.linalg import Array
from .priors import HalfNormal, Prior
from .stars import Stars

MODELS: dict[str, type[Model]] = {}
"""Every model class by name: what `load`, the command line and the contract test go through."""


FLAT_POPULATION = 1e4
"""Variance, in scaled labels, of a label prior that is flat for every purpose."""


@dataclass(frozen=True, eq=False)
class Frame:
    """What a model takes from its training stars: names, units and scales, kept with the posterior.

    u = (label - centre) / scale with centre the median and scale = (p97.5 - p2.5) / 4 of the training labels.

    Attributes:
        names, units: of the labels (M).
        centre, scale: (M,), in label units.
        n_pixel: L. coordinate: (L,) wavelengths or None, named `coordinate_name`.
        flux_scale: the typical absolute flux, which sets the scale of the priors.
        flux_unit: unit of the flux, "" for none.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    centre: np.ndarray
    scale: np.ndarray
    n_pixel: int
    flux_scale: float
    flux_unit: str = ""
    coordinate: np.ndarray | None = None
    coordinate_name: str | None = None

    def scaled(self, labels: np.ndarray) -> np.ndarray:
        return (labels - self.centre) / self.scale

    def physical(self, u: np.ndarray) -> np.ndarray:
        return self.centre + self.scale * u


class Measured(NamedTuple):
    """Catalogue labels of N stars in scaled units: value (N, M), covariance (N, M, M), observed (N, M)."""

    value: Array
    covariance: Array
    observed: Array

    def rows(self, index: Array) -> Measured:
        return Measured(*(jnp.asarray(x)[index] for x in self))


@dataclass(frozen=True)
class Model(ABC):
    """Base of all models: hyperparameters and priors in, NumPyro program out."""

    frame: Frame | None = field(default=None, kw_only=True, repr=False, compare=False)
    global_sites: ClassVar[tuple[str, ...]] = ()
    """Names of the sites shared by all stars."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "Model" not in cls.__name__:
            MODELS[cls.__name__] = cls

    @abstractmethod
    def __call__(self, stars: Stars, batch_size: int | None = None) -> Any:
        """The NumPyro program. batch_size: subsample the plate of stars, for stochastic optimisation."""

    @abstractmethod
    def bind(self, stars: Stars) -> Self:
        """This model with the frame of these training stars; refuses stars it cannot be trained on."""

    @abstractmethod
    def check(self, stars: Stars) -> None:
        """Refuse stars that do not fit the frame of a bound model."""

    def bound(self, stars: Stars) -> Self:
        if self.frame is None:
            return self.bind(stars)
        self.check(stars)
        return self

    def variants(self) -> tuple[Self, ...]:
        """The models that these settings leave open, to be ranked by held-out density."""
        return (self,)

    def require_frame(self) -> Frame:
        if self.frame is None:
            raise bad_input(
                f"a {type(self).__name__} that has not seen training stars", "a bound model", fix="model.bind(stars)"
            )
        return self.frame

    def replace(self, **changes: Any) -> Self:
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class LinearModel(Model):
    """output_nl = theta_l . phi(u_n) + N(0, sigma_nl^2 + s_l^2), with u_n ~ N(mu, Lambda) seen through noisy labels.

    Declares what the exact routes need: the features phi, the prior of theta, the catalogue labels and the output.

    outlier_sigma: after a first pass drop training stars of which a label is off by more than this many robust
    scatters; None: none.
    """

    outlier_sigma: float | None = field(default=None, kw_only=True)

    @property
    @abstractmethod
    def features(self) -> Monomials:
        """phi, of the scaled labels."""

    @property
    @abstractmethod
    def prior(self) -> Prior:
        """The coefficients' prior."""

    @property
    @abstractmethod
    def scatter_prior(self) -> HalfNormal | np.ndarray:
        """The scatter's prior, or its fixed values (L,)."""

    @property
    @abstractmethod
    def integrates_labels(self) -> bool:
        """Whether the training labels are noisy measurements of latent true labels."""

    @property
    def flat_population(self) -> bool:
        """Whether the labels' prior is flat, N(0, FLAT_POPULATION I) in scaled labels, instead of learned."""
        return False

    @property
    def exact_labels(self) -> bool:
        """Whether a label that is present is the true one, in the test step too."""
        return False

    @property
    def scatter_from_held_out(self) -> bool:
        """Whether tau is learned from held-out labels, because the training step takes the labels as they are."""
        return False

    @property
    def choice(self) -> str:
        """What distinguishes this variant from the others, for the record."""
        return ""

    @abstractmethod
    def allowed(self) -> np.ndarray:
        """(L, K): False where a coefficient is censored, that is, zero."""

    @abstractmethod
    def coefficient_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest value of each coefficient, (K,) each; infinite where free."""

    @abstractmethod
    def measured(self, stars: Stars) -> Measured:
        """The catalogue labels, scaled; all unobserved if the stars have none."""

    @abstractmethod
    def output(self, stars: Stars) -> tuple[np.ndarray, np.ndarray | None]:
        """Value (N, L) and error (N, L) or None; a number is missing where either is not finite."""
