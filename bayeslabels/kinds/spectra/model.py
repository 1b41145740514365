"""Models of spectra that are linear in features of each star's latents: what they declare, and what they share.

flux_nl = theta_l . phi(u_n) + N(0, sigma_nl^2 + s_l^2),    u_n ~ sum_c w_c N(mu_c, Lambda_c)

With this structure declared, every exact fast route (compression, block solves, Gibbs) is a model's own.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Self

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from ...core.model import Frame, Model
from ...core.own_priors import fitted, scaled
from ...core.priors import Flat, HalfNormal, ScatterPrior, require_scatter_prior
from ...data.stars import Stars
from ...errors import CannotDo, bad_input
from ...numerics.error_factor import WIDTH
from ...numerics.features import Features
from ...numerics.linalg import Array, after, beside, constant, is_traced, module_of, placed
from .frame import check_flux, check_labels, frame_of
from .moments import Moments
from .nuisances import Broadening, Continuum, Nuisance, Templates, Velocity, require_nuisances

FLAT_POPULATION = 1e4
"""Variance, in scaled labels, of a label prior that is flat for every purpose."""
HOPELESS = 1e8
"""Typical fluxes: an error above says nothing, and its weight would drown in rounding."""


class MeasuredLabels(NamedTuple):
    """Catalogue labels of N stars in scaled units: value (N, M), covariance (N, M, M), observed (N, M).

    Values that are not observed are 0, and so are their covariances.
    """

    value: Array
    covariance: Array
    observed: Array

    @property
    def stated(self) -> np.ndarray:
        """(M,): labels of which the catalogue states errors."""
        return np.einsum("nmm->nm", self.covariance).sum(0) > 0

    def rows(self, index: Array) -> MeasuredLabels:
        return MeasuredLabels(*(constant(x)[index] for x in self))


class Spectra(NamedTuple):
    """Spectra of N stars: flux value and error (N, L), missing where either is not finite, and the catalogue labels."""

    value: Array
    error: Array
    labels: MeasuredLabels


@dataclass(frozen=True)
class LinearModel(Model[Frame]):
    """flux_nl = theta_l . phi(u_n) + N(0, sigma_nl^2 + s_l^2), with latents u_n ~ N(mu, Lambda) of size P.

    The catalogue's labels either measure the latents themselves (`labels_are_latent`, P = M) or are outputs of them
    beside the flux, labels_n = C phi(u_n) + noise. Declares what the exact routes need: the features phi, the priors,
    the catalogue labels and the flux.

    Args:
        scatter: None: learned per pixel; else the fixed s_l, a number or (L,), in flux units.
        scatter_distribution: prior of the s_l where they are learned, in flux units; or a distribution of NumPyro.
        label_scatter_distribution: prior of every tau_m, in units of the label's spread in training (`Frame.scale`); or
            a distribution of NumPyro.
        outlier_sigma: leave out training stars whose labels are off by more robust scatters than this in a first pass.
        nuisances: what else varies from star to star (`bayeslabels.nuisances`), integrated out of every spectrum.
        flux_error_factor: a factor f on the stated errors of the flux, sigma_nl -> f sigma_nl, to be learned: "star":
            every star's own, "survey": one of all training stars, for the test stars too; None: 1.
    """

    flux_error_factor: Literal["star", "survey"] | None = field(default=None, kw_only=True)
    nuisances: tuple[Nuisance, ...] = field(default=(), kw_only=True)
    scatter: float | np.ndarray | None = field(default=None, kw_only=True)
    scatter_distribution: ScatterPrior = field(default_factory=HalfNormal, kw_only=True)
    label_scatter_distribution: ScatterPrior = field(default_factory=HalfNormal, kw_only=True)
    outlier_sigma: float | None = field(default=None, kw_only=True)

    stored: ClassVar[tuple[type, ...]] = (Continuum, Velocity, Broadening, Templates)
    sites: ClassVar[dict[str, str]] = {"coefficients": "coefficients", "latents": "u"}
    """What the model's program calls theta, u and (where labels are outputs) C, "label_coefficients"."""
    exact_priors: ClassVar[dict[str, str]] = {
        "coefficient_prior": "priors.Flat, Normal, Laplace or Learned",
        "scatter_distribution": "priors.HalfNormal",
        "label_scatter_distribution": "priors.HalfNormal",
        "population": "'learned' or 'flat'",
    }
    smaller: ClassVar[str] = "Cannon(order=1)"
    """What to write for a model of fewer coefficients."""
    surely: ClassVar[float] = 0.0
    """Standard errors by which the held-out density of another variant must be above that of the first."""
    labels_are_latent: ClassVar[bool] = True
    """Whether the latents are the true labels, scaled. If not, tau is the scatter of the true labels about C phi."""

    @property
    def blocks(self) -> tuple[str, ...]:
        return (*self.label_blocks, "flux")

    @property
    def widths(self) -> dict[str, int]:
        return {"flux": self.require_frame().n_pixel}

    @property
    @abstractmethod
    def features(self) -> Features:
        """phi, of the latents; of first order where labels are outputs."""

    @property
    def label_curve(self) -> bool:
        """Whether the true labels are a curved function u + C psi(u) of latents that they would be otherwise."""
        return False

    @property
    def label_features(self) -> Features:
        """The functions in which the labels, or the errors that all stars' labels share, are linear: psi, else phi."""
        return self.features

    @property
    @abstractmethod
    def prior(self) -> Any:
        """The coefficients' prior, one of `Prior` or an `OwnPrior`."""

    @property
    def scatter_prior(self) -> ScatterPrior | np.ndarray:
        """The scatter's prior, or its fixed values (L,)."""
        if self.scatter is None:
            return self.scatter_distribution
        fixed = np.asarray(self.scatter, float)
        n_pixel = self.require_frame().n_pixel
        if (fixed.ndim and fixed.shape != (n_pixel,)) or not (fixed >= 0).all():
            raise bad_input(f"scatter of shape {fixed.shape}", f"one number >= 0, or {n_pixel}, one per pixel")
        return np.broadcast_to(fixed, (n_pixel,)).copy()

    @property
    def label_scatter_width(self) -> float:
        """Width of the prior of tau, scaled labels."""
        assert isinstance(self.label_scatter_distribution, HalfNormal)
        return self.label_scatter_distribution.width(1.0)

    @property
    def label_coefficient_width(self) -> float:
        """Width of the Normal prior of C, scaled labels; where labels are outputs."""
        return 1.0

    @property
    @abstractmethod
    def integrates_labels(self) -> bool:
        """Whether the training labels are noisy measurements of latent true labels."""

    @property
    def fixed_population(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Mean (P,) and covariance (P, P) of the latents' prior where they are not learned."""
        return None

    def comparable(self, draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Not latents that are no labels, and what multiplies them, where any rotation serves as well."""
        if self.labels_are_latent:
            return draws
        free = {*self.sites.values(), *(f"{self.sites['coefficients']}_{what}" for what in ("mean", "covariance"))}
        return {name: x for name, x in draws.items() if name not in free}

    @property
    def improper(self) -> str:
        if isinstance(self.prior, Flat):
            return "coefficient_prior=priors.Normal(0.1) or priors.Learned()"
        flat = self.fixed_population is not None and self.fixed_population[1][0, 0] >= FLAT_POPULATION
        return 'population="learned"' if flat else ""

    @property
    def exact_labels(self) -> bool:
        """Whether a label that is present is the true one, in the test step too."""
        return False

    @property
    def scatter_from_held_out(self) -> bool:
        """Whether tau is learned from held-out labels, because the training labels say too little of it."""
        return False

    @property
    def scatter_is_own(self) -> bool:
        """Whether tau is taken for an error of every star's inferred labels, not for noise of the catalogue."""
        return not self.labels_are_latent

    @property
    def orders(self) -> tuple[int, ...]:
        """Orders of the features that the settings leave open, to be ranked by the evidence of the flux."""
        return ()

    def of_order(self, order: int) -> Self:
        """The model with features of this order; where `orders` are open."""
        raise NotImplementedError  # pragma: no cover - guarded by `orders`

    @property
    def n_component(self) -> int:
        """Gaussians of which a population that is learned is a mixture."""
        return 1

    @property
    def asks_components(self) -> bool:
        """Whether their number is still to be found."""
        return False

    @property
    def asks_hidden(self) -> int | Literal["auto"]:
        """The number of labels that no catalogue states and that are still to be found, or "auto"."""
        return 0

    def with_hidden(self, names: tuple[str, ...]) -> Self:
        """The model with hidden labels of these names, in a block "hidden" of training stars; where it asks."""
        raise NotImplementedError  # pragma: no cover - guarded by `asks_hidden`

    def of_pixels(self, pixels: np.ndarray) -> Self:
        """The model, not bound, of some of the pixels."""
        own = None if self.scatter is None or np.ndim(self.scatter) == 0 else np.asarray(self.scatter)[pixels]
        return self.replace(frame=None, scatter=self.scatter if own is None else own)

    def sampled(self) -> Self:
        """The model whose whole posterior samplers draw from, where these settings leave that open."""
        return self

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

    def pixels_for(self) -> list[tuple[tuple[int, ...], np.ndarray | None]]:
        """Groups of labels with the mask (L,) of the pixels that they are inferred from, None: all."""
        return [(tuple(range(len(self.require_frame().names))), None)]

    def further(self, moments: Moments, stars: Stars, u: np.ndarray, spread: np.ndarray) -> dict[str, Any]:
        """What a star has beside its labels, {name: (mean (N,), sd (N,), unit)}, given its latents' posterior."""
        return {}

    @property
    def label_blocks(self) -> tuple[str, ...]:
        """The blocks whose columns together are the M labels."""
        return ("labels",)

    def bind(self, stars: Stars) -> Self:
        for name in ("scatter_distribution", "label_scatter_distribution"):
            require_scatter_prior(name, getattr(self, name))
        require_error_factor(self.flux_error_factor)
        bound = self.replace(nuisances=require_nuisances(self.nuisances), frame=frame_of(stars, self.label_blocks))
        model = bound.variants()[0]
        if model.orders:
            model = model.of_order(min(model.orders))
        n_free = model.features.size
        if isinstance(model.prior, Flat) and len(stars) <= n_free:
            raise bad_input(
                f"{len(stars)} training stars for {n_free} coefficients a pixel", f"at least {n_free + 1}",
                "too high an order for this training set", f"{self.smaller} or coefficient_prior=priors.Normal()",
            )  # fmt: skip
        if len(stars) < 3:
            raise bad_input(f"{len(stars)} training star(s)", "at least 3")
        model.allowed(), model.coefficient_bounds(), model.scatter_prior
        return bound

    def check(self, stars: Stars) -> None:
        frame = self.require_frame()
        if "flux" in stars:
            check_flux(stars["flux"], frame)
        for name in self.label_blocks:
            if name in stars:
                check_labels(stars[name], name, frame)

    def catalogue(self, stars: Stars) -> MeasuredLabels:
        """The catalogue labels, scaled; unobserved those of blocks that the stars have not."""
        frame = self.require_frame()
        n, m = len(stars), len(frame.names)
        values, covariance, masks = np.zeros((n, m)), np.zeros((n, m, m)), np.zeros((n, m), bool)
        for name in self.label_blocks:
            if name not in stars:
                continue
            block, at = stars[name], frame.columns(name)
            value, variance, observed = block.filled()
            where = module_of(value).where
            centre, scale = beside(value, frame.centre[at], frame.scale[at])
            if block.has_covariance:
                both = observed[:, :, None] & observed[:, None, :]
                own = where(both, block.error, 0.0) / (scale[:, None] * scale)
                covariance = placed(covariance, np.s_[:, at, at], own)
            elif block.error is not None:
                own = where(observed, variance, 0.0)[:, :, None] * module_of(value).diag(scale**-2)
                covariance = placed(covariance, np.s_[:, at, at], own)
            values = placed(values, np.s_[:, at], where(observed, (value - centre) / scale, 0.0))
            masks = placed(masks, np.s_[:, at], observed)
        return MeasuredLabels(values, covariance, masks)

    def output(self, stars: Stars) -> tuple[Array, Array | None]:
        """Flux (N, L) and error (N, L) or None; a number is missing where either is not finite, or says nothing."""
        if self.has_covariance(stars):
            raise CannotDo(
                "flux with covariances is trained on by MAP() of stars in memory or by NUTS(), not by Gibbs(), SVI() "
                "or from files; any inference of the test step takes it. Or leave the correlations out: "
                "Block(flux, np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)))"
            )
        return self.marginal(stars)

    def has_covariance(self, stars: Stars) -> bool:
        """Whether the errors of the flux are correlated between pixels."""
        return stars["flux"].has_covariance and stars["flux"].n_dim > 1

    def marginal(self, stars: Stars) -> tuple[Array, Array | None]:
        """Flux (N, L) and error (N, L) or None of every pixel by itself."""
        block = stars["flux"]
        error = block.error
        if error is None:
            return block.value, None
        xp = module_of(error)
        if block.has_covariance:
            variance = xp.diagonal(error, axis1=1, axis2=2)
            error = xp.sqrt(xp.where(variance > 0, variance, np.nan))
        hopeless = error > HOPELESS * self.require_frame().flux_scale
        if not is_traced(hopeless) and not hopeless.any():
            return block.value, error
        return block.value, xp.where(hopeless, np.nan, error)

    def arrays(self, stars: Stars) -> Spectra:
        """What a step of the training takes of stars that fit the frame: arrays with a row per star."""
        value, error = self.output(stars)
        return Spectra(value, np.zeros(value.shape) if error is None else error, self.catalogue(stars))

    def scatter_site(self) -> Array:
        """s_l (L,), sampled where it is learned."""
        fixed, frame = self.scatter_prior, self.require_frame()
        if isinstance(fixed, np.ndarray):
            return constant(fixed)
        if isinstance(fixed, HalfNormal):
            return fixed.sample("scatter", frame.n_pixel, frame.flux_scale)
        return numpyro.sample("scatter", fitted("scatter", fixed, (frame.n_pixel,)))

    def error_factor_site(self, of: str) -> Array | None:
        """f of "star", (N,), or "survey", (), where it is learned."""
        if self.flux_error_factor != of:
            return None
        return numpyro.sample("flux_error_factor", dist.LogNormal(0.0, WIDTH))

    def label_scatter_site(self) -> Array:
        """tau (M,), in label units."""
        scale, own = constant(self.require_frame().scale), self.label_scatter_distribution
        if not isinstance(own, HalfNormal):
            return numpyro.sample("label_scatter", scaled("label_scatter", own, scale))
        return numpyro.sample("label_scatter", dist.HalfNormal(self.label_scatter_width * scale).to_event(1))

    def label_sites(self, true: Array, tau: Array, stars: Stars, rows: Array) -> None:
        """Catalogue labels about true scaled labels (N, M), observed where present: N(true, V_n + diag(tau^2))."""
        frame = self.require_frame()
        catalogue = LinearModel.catalogue(self, stars).rows(rows)
        for name in self.label_blocks:
            at = frame.columns(name)
            labels, scale = frame.physical(true)[:, at], constant(frame.scale)[at]
            if name not in stars:
                numpyro.sample(name, dist.Normal(labels, tau[at]).to_event(1))
                continue
            eye, observed = jnp.eye(at.stop - at.start), catalogue.observed[:, at]
            noise = catalogue.covariance[:, at, at] * (scale[:, None] * scale) + eye * tau[at] ** 2
            noise = jnp.where(observed[:, :, None] & observed[:, None, :], noise, eye)
            value = jnp.where(observed, frame.physical(catalogue.value)[:, at], labels)
            numpyro.sample(name, dist.MultivariateNormal(labels, covariance_matrix=noise), obs=value)

    def disturbed(self, flux: Array, phi: Array, theta: Array) -> Array:
        """flux (N, L) with what nuisances add to it: sum_q v_nq t_ql . phi_n, v_n ~ N(0, I)."""
        if not self.nuisances:
            return flux
        frame = self.require_frame()
        shapes = jnp.concatenate([x.shapes(frame, theta) for x in self.nuisances])
        v = numpyro.sample("nuisances", dist.Normal(0.0, 1.0).expand([len(shapes)]).to_event(1))
        return flux + jnp.einsum("nq,nk,qlk->nl", v, phi, shapes)

    def flux_site(self, flux: Array, scatter: Array, factor: Array | None, stars: Stars, rows: Array) -> None:
        """flux_nl ~ N(flux_nl, f_n^2 sigma_nl^2 + s_l^2), observed where present; factor: that of the survey. With
        covariances: flux_n ~ N(flux_n, f_n^2 C_n + diag(s^2))."""
        own = self.error_factor_site("star")
        if "flux" not in stars:
            numpyro.sample("flux", dist.Normal(flux, scatter).to_event(1))
            return
        value, variance, observed = (constant(x)[rows] for x in stars["flux"].filled())
        times = jnp.ones(()) if own is None else own[:, None] ** 2
        times = times if factor is None else times * factor**2
        if self.has_covariance(stars):
            covariance = constant(stars["flux"].filled_covariance())[rows] * times[..., None]
            noise = covariance + jnp.diag(scatter**2)
            noise = jnp.where(observed[:, :, None] & observed[:, None, :], noise, jnp.eye(len(scatter)))
            joint = dist.MultivariateNormal(flux, covariance_matrix=after(noise, flux))
            numpyro.sample("flux", joint, obs=jnp.where(observed, value, flux))
            return
        if own is not None or factor is not None:
            variance = variance * times
        numpyro.sample("flux", dist.Normal(flux, jnp.sqrt(variance + scatter**2)).mask(observed).to_event(1), obs=value)

    def first_guess(self, stars: Stars, measured: MeasuredLabels) -> np.ndarray:
        """Latents (N, P) that the training step starts from; measured: `of_latents` of these stars."""
        return np.array(measured.value)

    def of_latents(self, catalogue: MeasuredLabels) -> MeasuredLabels:
        """What of `catalogue` measures the latents themselves, with its shapes for P latents."""
        if self.labels_are_latent:
            return catalogue
        n, p = len(catalogue.value), self.features.n_label
        return MeasuredLabels(np.zeros((n, p)), np.zeros((n, p, p)), np.zeros((n, p), bool))


def require_error_factor(of: str | None) -> None:
    if of not in (None, "star", "survey"):
        raise bad_input(f"flux_error_factor={of!r}", "None, 'star' or 'survey'")
