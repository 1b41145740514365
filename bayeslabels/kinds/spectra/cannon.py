"""The Cannon: spectra as polynomials in stellar labels, pixel by pixel, with noisy training labels.

flux_nl = theta_l . phi(u_n) + N(0, sigma_nl^2 + s_l^2)          (Ho+17 eq. 3-6; Ness+15)
label_nm = true label_nm + N(0, sigma_nm^2 + tau_m^2)            u_n = (true label - centre) / scale
u_n ~ N(mu, Lambda),   theta_l ~ N(m, Sigma)                     mu, Lambda, m, Sigma learned
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import Distribution
from numpyro.distributions.transforms import AffineTransform

from ...core.own_priors import OwnPrior, fitted, is_own
from ...core.priors import Flat, Learned, Prior
from ...data.stars import Stars
from ...errors import bad_input
from ...numerics.features import Features, Monomials
from ...numerics.linalg import constant, is_traced
from ...numerics.population import MOST
from .model import FLAT_POPULATION, LinearModel, MeasuredLabels

LabelNoise = bool | Literal["joint", "free", "cut"]

CURVE = 3
"""Order of the polynomial psi that takes the variables of the spectra to labels."""
MOST_HIDDEN = 10
"""Hidden labels."""
ORDERS = (1, 2, 3, 4)
"""Orders of the polynomial phi among which "auto" chooses."""


@dataclass(frozen=True)
class Cannon(LinearModel):
    """The Cannon with priors on coefficients, scatter and true labels.

    ::

        flux_nl  = theta_l . phi(u_n) + N(0, sigma_nl^2 + s_l^2),    u_n = (true label_n - centre) / scale
        label_nm = true label_nm + N(0, sigma_nm^2 + tau_m^2)

    ======== ============================== =============================================
    symbol   site                           meaning, shape, unit
    ======== ============================== =============================================
    theta    ``coefficients``               (L, K), flux
    s        ``scatter``                    (L,), flux
    tau      ``label_scatter``              (M,), label units: noise beyond the stated errors
    u        ``u``                          (N, M), scaled true labels
    w        ``population_weight``          (J,), if there are J components
    mu       ``population_mean``            (M,) or (J, M), scaled
    Lambda   ``population_covariance``      (M, M) or (J, M, M), scaled
    C        ``label_curve``                (M, K'), scaled; "free" only
    ======== ============================== =============================================

    Args:
        order: order of the polynomial phi, which has all monomials of the labels up to it (1 to 4; Ho+17 eq. 6 has 2).
            "auto" takes the order that the evidence of the flux asks for. The misfit of too low an order is common to
            many pixels, too small to be seen in any of them, and makes error bars too small.
        terms: instead of `order`, the monomials one by one: ``[{}, {"TEFF": 1}, {"TEFF": 1, "LOGG": 2}]``; ``{}`` is
            the constant. The powers are those of the scaled labels u.
        label_noise: how noisy training labels are taken into account. With True, the catalogue's labels scatter by tau
            beyond their stated errors, and the true labels are u + C psi(u), psi a cubic and C shrunk towards 0 as far
            as the catalogue allows. The spectra may then move the training stars' u ("free"), unless held-out labels
            are better predicted where they may not ("cut"), as where spectra hold more variance than the labels
            explain. "joint" is "free" without the curve, the full posterior that `Gibbs` and `NUTS` sample. False is
            the classic Cannon, which takes the training labels for exact.
        scatter: None: learned per pixel; else the fixed s_l, a number or (L,), in flux units.
        coefficient_prior: `priors.Learned()` by default: terms that the spectra do not need are shrunk to nothing.
            `Flat()` or None (the textbook's), `Normal` (ridge), `Laplace` (sparse). Or a distribution of NumPyro, of
            one coefficient, of a pixel's (K,) or of all (L, K): the constant's, about the mean flux, included.
        scatter_distribution: prior of the s_l where they are learned, in flux units.
        label_scatter_distribution: prior of every tau_m, ``priors.HalfNormal(scale)`` in units of the label's spread
            among the training stars: 1 by default, less for a catalogue that is known to be good.
        population: prior of the true labels: "learned", a mixture of Gaussians (`components`), or "flat"; "auto": flat
            for the classic Cannon, learned otherwise. Or a distribution of NumPyro, of the scaled labels u (M,).
        components: Gaussians of a learned population. "auto": as many as the training stars ask for by the Bayesian
            information criterion, up to 6. A population of another shape than the stars' bends the labels of all.
            `Gibbs` and `NUTS` train with one.
        censor: {label: (L,) mask of the pixels that the label may act on}; its monomials are zero elsewhere
            (Casey+16 section 2.3).
        nuisances: what else varies from star to star, such as `nuisances.Continuum(0.01)`, in training stars too; of
            the test stars alone: `infer(..., nuisances=...)`.
        flux_error_factor: a factor on the stated errors of the flux, learned beside the scatter: "star" of every star
            or "survey" of all training stars; of the test stars alone: `infer(..., flux_error_factor="star")`.
        hidden: labels that no catalogue states (an abundance that is left out, a drift of the instrument), learned from
            what the training spectra have in common beside the labels; their number, or "auto": as many as the
            residuals ask for, up to 4. They follow the labels in results: columns hidden_0, ..., in units of their own.
            After training: their names.
        bounds: {monomial, as in `feature_names`: (low, high)} on coefficients, in flux units.
        outlier_sigma: after a first pass drop training stars of which a label is off by more than this many robust
            scatters (Ho+17 section 3: 4); None: none.

    Sources: Ness+15 (ApJ 808, 16), Ho+17 (ApJ 836, 5; eq. 3 to 6), Casey+16 (arXiv:1603.03040).

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
        >>> result = bl.infer(posterior, test, progress=False)
        >>> dict(zip(result.frame.names, result.frame.units))
        {'TEFF': 'K', 'LOGG': 'dex', 'FE_H': 'dex'}
    """

    order: int | Literal["auto"] = "auto"
    terms: Sequence[Mapping[str, int]] | None = None
    label_noise: LabelNoise = True
    coefficient_prior: Prior | Distribution | Literal["auto"] | None = "auto"
    population: Distribution | Literal["auto", "learned", "flat"] = "auto"
    components: int | Literal["auto"] = "auto"
    censor: Mapping[str, np.ndarray] | None = None
    bounds: Mapping[str, tuple[float, float]] | None = None
    hidden: int | Literal["auto"] | tuple[str, ...] = 0

    surely: ClassVar[float] = 2.0  # "cut" takes tau for an error of the star's own
    global_sites: ClassVar[tuple[str, ...]] = (
        "coefficients",
        "scatter",
        "label_scatter",
        "flux_error_factor",
        "population_weight",
        "population_mean",
        "population_covariance",
    )

    def __post_init__(self) -> None:
        if self.terms is None and self.order not in (*ORDERS, "auto"):
            raise bad_input(
                f"order={self.order!r}", "1, 2, 3, 4 or 'auto'", fix="Cannon(order=2), or name the monomials in terms="
            )
        if self.label_noise not in (True, False, "joint", "free", "cut"):
            raise bad_input(f"label_noise={self.label_noise!r}", "True, False, 'joint', 'free' or 'cut'")
        if isinstance(self.hidden, list):
            object.__setattr__(self, "hidden", tuple(self.hidden))
        number = len(self.hidden) if isinstance(self.hidden, tuple) else self.hidden
        if number != "auto" and (isinstance(number, bool) or number not in range(MOST_HIDDEN + 1)):
            raise bad_input(f"hidden={self.hidden!r}", f"'auto', or a number of labels from 0 to {MOST_HIDDEN}")
        if self.hidden and self.label_noise in (False, "cut"):
            raise bad_input(
                f"hidden={self.hidden!r} with label_noise={self.label_noise!r}", "training labels that are latent",
                fix='label_noise=True, "free" or "joint"; labels that are exact: errors of 0',
            )  # fmt: skip
        c = self.components
        if c != "auto" and (isinstance(c, bool) or c not in range(1, MOST + 1)):
            raise bad_input(f"components={c!r}", f"'auto', or a number from 1 to {MOST}")
        if not is_own("population", self.population) and self.population not in ("auto", "learned", "flat"):
            raise bad_input(f"population={self.population!r}", "'auto', 'learned', 'flat' or a distribution of NumPyro")
        own = self.coefficient_prior in (None, "auto") or is_own("coefficient_prior", self.coefficient_prior)
        if not own and not isinstance(self.coefficient_prior, Prior):
            raise bad_input(
                f"coefficient_prior={self.coefficient_prior!r}",
                "'auto', None (flat) or one of priors.Flat, Normal, Laplace and Learned; or a distribution of NumPyro",
                fix="Cannon(coefficient_prior=bayeslabels.priors.Normal())",
            )

    def __call__(self, stars: Stars, batch_size: int | None = None) -> Any:
        """The NumPyro program; `labels` and `flux` are observed where present, `u` is sampled if labels are inexact."""
        model = self.bound(stars)
        frame = model.require_frame()
        features, m = model.features, len(frame.names)

        theta = model.prior.sample("coefficients", frame.n_pixel, features.size, frame.flux_scale)
        theta = theta * model.allowed()
        scatter, factor = model.scatter_site(), model.error_factor_site("survey")
        population, in_units = model.population_site()
        tau = None
        if model.integrates_labels:
            tau = model.label_scatter_site()

        curve = None
        if model.label_curve and model.integrates_labels:
            wide = dist.Normal(0.0, 1.0).expand([m, model.label_features.size]).to_event(2)
            curve = numpyro.sample("label_curve", wide)

        exact = _completed(model.of_latents(model.catalogue(stars))) if tau is None and "labels" in stars else None

        with numpyro.plate("star", len(stars), subsample_size=batch_size) as rows:
            if exact is None:
                u = numpyro.sample("u", population)
            else:
                u = frame.scaled(numpyro.sample("labels", in_units, obs=frame.physical(exact[rows])))
            true = u if curve is None else u + model.label_features(u) @ curve.T
            numpyro.deterministic("true_labels", frame.physical(true))
            if tau is not None:
                model.label_sites(true, tau, stars, rows)
            phi = features(u)
            model.flux_site(model.disturbed(phi @ theta.T, phi, theta), scatter, factor, stars, rows)

    def population_site(self) -> tuple[Distribution, Distribution]:
        """The distribution of scaled true labels, its parameters sampled where they are learned, and that of the labels
        in their units."""
        frame, c = self.require_frame(), self.n_component
        m, scale = len(frame.names), constant(frame.scale)

        def both(mean: Any, covariance: Any) -> tuple[Distribution, Distribution]:
            in_units = dist.MultivariateNormal(frame.physical(mean), scale[:, None] * covariance * scale)
            return dist.MultivariateNormal(mean, covariance_matrix=covariance), in_units

        if isinstance(self.population, Distribution):
            own = fitted("u", self.population, (m,))
            return own, dist.TransformedDistribution(own, AffineTransform(constant(frame.centre), scale))
        if self.fixed_population is not None:
            return both(*map(constant, self.fixed_population))
        wide, spread = dist.Normal(0.0, 10.0), dist.InverseWishart(m + 2.0, scale_matrix=jnp.eye(m) / c**2)
        if c == 1:
            mean = numpyro.sample("population_mean", wide.expand([m]).to_event(1))
            return both(mean, numpyro.sample("population_covariance", spread))
        weight = dist.Categorical(numpyro.sample("population_weight", dist.Dirichlet(jnp.ones(c))))
        mean = numpyro.sample("population_mean", wide.expand([c, m]).to_event(2))
        covariance = numpyro.sample("population_covariance", spread.expand([c]).to_event(1))
        own, in_units = (dist.MixtureSameFamily(weight, x) for x in both(mean, covariance))
        return own, in_units

    @property
    def label_blocks(self) -> tuple[str, ...]:
        return ("labels", "hidden") if self.hidden and not self.asks_hidden else ("labels",)

    @property
    def asks_hidden(self) -> int | Literal["auto"]:
        return 0 if isinstance(self.hidden, tuple) else self.hidden

    def with_hidden(self, names: tuple[str, ...]) -> Self:
        return self.replace(hidden=names)

    @property
    def orders(self) -> tuple[int, ...]:
        return ORDERS if self.terms is None and self.order == "auto" else ()

    def of_order(self, order: int) -> Self:
        return self.replace(order=order)

    @property
    def n_component(self) -> int:
        mixed = self.integrates_labels and isinstance(self.population, str) and self.population != "flat"
        return self.components if mixed and self.components != "auto" else 1

    @property
    def asks_components(self) -> bool:
        return self.components == "auto" and self.replace(components=2).n_component > 1

    def variants(self) -> tuple[Self, ...]:
        kinds: tuple[Any, ...] = (self.label_noise,)
        if self.label_noise is True:
            kinds = ("free",) if self.hidden else ("free", "cut")
        return tuple(self.replace(label_noise=kind) for kind in kinds)

    def of_pixels(self, pixels: np.ndarray) -> Self:
        censor = {name: np.asarray(mask)[pixels] for name, mask in (self.censor or {}).items()} or None
        return super().of_pixels(pixels).replace(censor=censor)

    def sampled(self) -> Self:
        model = self.replace(label_noise="joint") if self.label_noise is True else self
        return model.replace(components=1) if model.asks_components else model

    @property
    def label_curve(self) -> bool:
        return self.label_noise in (True, "free", "cut")

    @cached_property
    def label_features(self) -> Features:
        return Monomials.up_to(CURVE, len(self.require_frame().names)) if self.label_curve else self.features

    @cached_property
    def features(self) -> Features:
        names = self.require_frame().names
        if self.terms is None:
            if self.order == "auto":
                raise bad_input("Cannon with order='auto'", "an order, which fit chooses", fix="Cannon(order=2)")
            return Monomials.up_to(self.order, len(names))
        unknown = {name for term in self.terms for name in term} - set(names)
        if unknown:
            raise bad_input(f"terms of {sorted(unknown)}", f"labels among {names}", "a misspelled label")
        return Monomials(tuple(tuple(int(term.get(name, 0)) for name in names) for term in self.terms))

    @property
    def feature_names(self) -> tuple[str, ...]:
        return self.features.names(self.require_frame().names)

    @property
    def integrates_labels(self) -> bool:
        return self.label_noise in (True, "joint", "free")

    @property
    def fixed_population(self) -> tuple[np.ndarray, np.ndarray] | None:
        if not isinstance(self.population, str) or self.population == "learned":
            return None
        if self.population == "auto" and not self.exact_labels:
            return None
        m = len(self.require_frame().names)
        return np.zeros(m), FLAT_POPULATION * np.eye(m)

    @property
    def exact_labels(self) -> bool:
        return self.label_noise is False

    @property
    def scatter_from_held_out(self) -> bool:
        return self.label_noise in ("free", "cut")

    @property
    def scatter_is_own(self) -> bool:
        return self.label_noise == "cut"

    @property
    def choice(self) -> str:
        return f"label_noise={self.label_noise!r}"

    @cached_property
    def prior(self) -> Prior | OwnPrior:
        if isinstance(self.coefficient_prior, str):
            return Learned()
        if isinstance(self.coefficient_prior, Distribution):
            return OwnPrior(self.coefficient_prior)
        return self.coefficient_prior or Flat()

    def allowed(self) -> np.ndarray:
        frame, involves = self.require_frame(), self.features.involves
        out = np.ones((frame.n_pixel, len(involves)), bool)
        for name, mask in (self.censor or {}).items():
            mask = np.asarray(mask, bool)
            if name not in frame.names or mask.shape != (frame.n_pixel,):
                raise bad_input(
                    f"censor[{name!r}] of shape {mask.shape}",
                    f"a mask of {frame.n_pixel} pixels for one of {frame.names}",
                )
            out &= mask[:, None] | ~involves[:, frame.names.index(name)]
        return out

    def coefficient_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        high = np.full(self.features.size, np.inf)
        low = -high
        for name, (a, b) in (self.bounds or {}).items():
            if name not in self.feature_names or not a < b:
                raise bad_input(f"bounds[{name!r}] = ({a}, {b})", f"low < high for one of {self.feature_names}")
            k = self.feature_names.index(name)
            low[k], high[k] = a, b
        return low, high


def _completed(measured: MeasuredLabels) -> Any:
    """Exact labels (N, M), those that are missing free: of all stars, since a subsample never holds the same ones.

    How many are missing is not known while JAX traces the stars: the density of those with a missing label is NaN.
    """
    if is_traced(measured):
        return jnp.where(measured.observed, measured.value, jnp.nan)
    missing = np.nonzero(~np.asarray(measured.observed))
    u = jnp.asarray(measured.value)
    if not len(missing[0]):
        return u
    improper = dist.ImproperUniform(dist.constraints.real, (), event_shape=missing[0].shape)
    return u.at[missing].set(numpyro.sample("labels_missing", improper))
