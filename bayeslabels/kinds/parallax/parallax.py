"""Spectrophotometric parallaxes: a regression in parallax space, with negative parallaxes as data.

parallax_n = exp(theta . x_n + s_n eps_n) + zero_n + N(0, sigma_n^2)     (Hogg+19 eq. 1-2; s and zero_n are ours)
x_n = (1, magnitudes, ln flux, ...)                                      (eq. 11)
s_n^2 = s^2 + theta' C_n theta                                           (eq. 5; C_n the errors of x_n)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import Distribution
from numpyro.distributions.transforms import AffineTransform, ExpTransform

from ...core.own_priors import OwnPrior, is_own
from ...core.priors import HalfNormal, Laplace, Normal, ScatterPrior, SparsePrior, require_scatter_prior
from ...data.stars import Stars
from ...errors import bad_input
from ...numerics.linalg import constant
from .model import LogLinearModel, MeasuredParallax, scatter_site


@dataclass(frozen=True)
class Parallax(LogLinearModel):
    """Parallaxes from magnitudes, spectra and labels, trained on measured parallaxes of any sign and any S/N.

    ::

        parallax_n = exp(theta . x_n + s_n eps_n) + zero_n + N(0, sigma_n^2),    x_n = (1, magnitudes, ln flux, ...)

    No cut on the parallax or its S/N, no logarithm or inverse of a measured one: cuts bias the coefficients.

    ======== ====================== =======================================================================
    symbol   site                   meaning, shape, unit
    ======== ====================== =======================================================================
    theta    ``coefficients``       (D,), ln parallax per unit of each feature; the constant at their means
    s        ``scatter``            scatter of ln parallax at given features, errors of the features aside
    zero     ``zero_point``         parallax unit: measured - true
    ======== ====================== =======================================================================

    A result's ln parallax from the features alone is N(eta, v). Its columns are ``parallax_sp``, the mean of that
    log-normal, exp(eta + v / 2), with its standard deviation ``parallax_sp_error``; ``parallax_sp_p50``, its median
    exp(eta), which is the spectrophotometric parallax of Hogg+19 eq. 4; ``ln_parallax`` and ``ln_parallax_error``, eta
    and sqrt(v), in which eq. 5 is exact. ``parallax_combined`` is the mean together with the star's own measured
    parallax, ``distance`` the mean distance of both.

    Args:
        features: blocks of the stars, ``"ln flux"`` for the logarithm of ``flux``. Their errors may be covariances, as
            of bands that share a calibration. Numbers that are missing (NaN;
            fluxes that are not positive) are integrated over, given the others, with the features' Gaussian population.
        sparse: those of them whose coefficients have the sparse prior; None: the logarithms.
        coefficient_prior: of the sparse ones, in units of 1 / feature (per ln flux, mag or scaled label):
            `priors.Laplace` (exact zeros by `MAP`; scale None: chosen by cross-validated density), `Horseshoe` or
            `Normal` (scale None: learned). "auto": `Laplace` for `MAP`, else `Normal`. Or a distribution of NumPyro.
        function: of the features that are not sparse: "linear", or "polynomial" of this `order`: their products are
            features, too. For dwarfs and giants together, by labels; errors of the features enter to first order.
        wide: sd of the Normal prior of all others, in the same units; inf: flat.
        zero_point: mean and sd of the zero point's Normal prior, in the parallax's unit; sd 0: fixed. What is known of
            it star by star (`astro.parallax.gaia_zero_point`) goes into a block ``zero_point`` of the stars.
        scatter: None: learned; else fixed.
        outliers: whether some of the measured parallaxes (bad astrometry, dwarfs among giants) have nothing to do with
            the features; their fraction is learned, they are left out of the training and of `parallax_combined`.
        scatter_distribution: prior of the scatter where it is learned, HalfNormal(1) by default, or a distribution of
            NumPyro.

    Source: Hogg, Eilers & Rix 2019 (arXiv:1810.09468).

    Example:
        >>> import bayeslabels as bl
        >>> stars, truth = bl.simulate.simulate_photometry(100, seed=1)
        >>> posterior = bl.fit(bl.Parallax(features=("magnitudes",)), stars, progress=False)
        >>> result = bl.infer(posterior, stars.drop("parallax"), progress=False)
        >>> result.frame.names[0]
        'parallax_sp'
    """

    features: tuple[str, ...] = ("magnitudes", "ln flux")
    sparse: tuple[str, ...] | None = None
    coefficient_prior: SparsePrior | Distribution | Literal["auto"] = "auto"
    function: Literal["linear", "polynomial"] = "linear"
    order: int = 2
    wide: float = 10.0
    zero_point: tuple[float, float] = (0.0, 0.05)
    scatter: float | None = None
    outliers: bool = False
    scatter_distribution: ScatterPrior = field(default_factory=lambda: HalfNormal(1.0))

    exact_priors: ClassVar[dict[str, str]] = {
        "coefficient_prior": "priors.Laplace, Horseshoe or Normal",
        "scatter_distribution": "priors.HalfNormal",
    }
    global_sites: ClassVar[tuple[str, ...]] = (
        "wide",
        "sparse",
        "global_scale",
        "zero_point",
        "scatter",
        "outlier_fraction",
    )

    def __post_init__(self) -> None:
        for name in ("features", "sparse"):
            if isinstance(given := getattr(self, name), str):
                raise bad_input(f"{name}={given!r}", "a tuple of block names", fix=f"{name}=({given!r},)")
        if not self.features or len(set(self.features)) < len(self.features):
            raise bad_input(
                f"features={self.features}", "at least one block, each once", fix='features=("magnitudes",)'
            )
        if self.function not in ("linear", "polynomial"):
            raise bad_input(
                f"function={self.function!r}", "'linear' or 'polynomial'",
                "all training steps solve for coefficients, and need a ln parallax that is linear in them",
                'Parallax(function="polynomial", order=2), or Photometry(function="network")',
            )  # fmt: skip
        if not 1 <= self.order <= 5:
            raise bad_input(f"order={self.order!r}", "1 to 5", fix='function="polynomial", order=2')
        if unknown := set(self.sparse or ()) - set(self.features):
            raise bad_input(f"sparse={self.sparse}", f"some of features={self.features}", f"{sorted(unknown)}")
        if not (len(self.zero_point) == 2 and self.zero_point[1] >= 0):
            raise bad_input(f"zero_point={self.zero_point!r}", "(mean, sd) with sd >= 0", fix="zero_point=(0.0, 0.05)")
        own = is_own("coefficient_prior", self.coefficient_prior)
        if not own and self.coefficient_prior != "auto" and not isinstance(self.coefficient_prior, SparsePrior):
            raise bad_input(
                f"coefficient_prior={self.coefficient_prior!r}", "'auto' or a prior",
                fix="coefficient_prior=priors.Laplace(), priors.Horseshoe() or priors.Normal()",
            )  # fmt: skip
        require_scatter_prior("scatter_distribution", self.scatter_distribution)
        if not self.wide > 0:
            raise bad_input(f"wide={self.wide!r}", "a standard deviation > 0", fix="wide=10.0")

    def __call__(self, stars: Stars, batch_size: int | None = None) -> Any:
        """The NumPyro program; `parallax` is observed where present."""
        model = self.bound(stars)
        design, frame = model.design(stars), model.require_frame()
        theta, s, zero, wrong = model.parameters().values()

        with numpyro.plate("star", len(stars), subsample_size=batch_size) as rows:
            x = design.rows(rows)
            eta = (x.value @ theta)[:, None]
            s_n = jnp.sqrt(s**2 + model.feature_variance(theta, x))[:, None]
            zero_n = zero + constant(model.offset(stars))[rows][:, None]
            if "parallax" not in stars:
                shift = AffineTransform(zero_n, 1.0, domain=dist.constraints.positive)
                numpyro.sample(
                    "parallax", dist.TransformedDistribution(dist.Normal(eta, s_n), [ExpTransform(), shift]).to_event(1)
                )
                return
            value, variance, observed = (constant(a)[rows] for a in stars["parallax"].filled())
            measured = (
                MeasuredParallax(eta, s_n, zero_n, jnp.sqrt(variance), wrong, frame.outlier).mask(observed).to_event(1)
            )
            numpyro.sample("parallax", measured, obs=value)

    def parameters(self) -> dict[str, Any]:
        theta = self.coefficient_sites()
        s, wrong = scatter_site(self.scatter, self.scatter_distribution), None
        if self.outliers:
            wrong = numpyro.sample("outlier_fraction", dist.Beta(1.0, 20.0))
        mean, sd = self.zero_point
        zero = numpyro.sample("zero_point", dist.Normal(mean, sd)) if sd > 0 else jnp.asarray(mean)
        return {"theta": theta, "scatter": s, "zero_point": zero, "outlier_fraction": wrong}

    @property
    def feature_blocks(self) -> tuple[str, ...]:
        if self.function == "linear":
            return self.features
        return tuple(sorted(self.features, key=lambda x: x not in self.sparse_blocks))  # what has products is the last

    @property
    def degree(self) -> int:
        return self.order if self.function == "polynomial" else 1

    @property
    def sparse_blocks(self) -> tuple[str, ...]:
        return tuple(x for x in self.features if x.startswith("ln ")) if self.sparse is None else self.sparse

    @property
    def predicted(self) -> str:
        return "parallax"

    @property
    def sparse_prior(self) -> SparsePrior | OwnPrior:
        if isinstance(self.coefficient_prior, Distribution):
            return OwnPrior(self.coefficient_prior)
        return Normal() if isinstance(self.coefficient_prior, str) else self.coefficient_prior

    @property
    def at_mode(self) -> SparsePrior | OwnPrior:
        return Laplace() if isinstance(self.coefficient_prior, str) else self.sparse_prior

    @cached_property
    def wide_precision(self) -> np.ndarray:
        precision = np.full(len(self.require_frame().names), self.wide**-2)
        precision[0] = min(precision[0], 1e-2)
        return precision

    @property
    def zero_prior(self) -> tuple[float, float]:
        return self.zero_point

    @property
    def has_outliers(self) -> bool:
        return self.outliers

    @property
    def fixed_scatter(self) -> float | None:
        return self.scatter
