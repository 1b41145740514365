"""The Cannon: spectra as polynomials in stellar labels, pixel by pixel, with noisy training labels.

flux_nl = theta_l . phi(u_n) + N(0, sigma_nl^2 + s_l^2)          (Ho+17 eq. 3-6; Ness+15)
label_nm = true label_nm + N(0, sigma_nm^2 + tau_m^2)            u_n = (true label - centre) / scale
u_n ~ N(mu, Lambda),   theta_l ~ N(m, Sigma)                     mu, Lambda, m, Sigma learned
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from ..errors import bad_input
from ..model import FLAT_POPULATION, Frame, LinearModel, Measured
from ..numerics.features import Monomials
from ..priors import Flat, HalfNormal, Learned, Prior
from ..stars import Stars

LabelNoise = bool | Literal["joint", "cut"]


@dataclass(frozen=True)
class Cannon(LinearModel):
    """The Cannon with priors on coefficients, scatter and true labels.

    ======== ============================== =============================================
    symbol   site                           meaning, shape, unit
    ======== ============================== =============================================
    theta    ``coefficients``               (L, K), flux
    s        ``scatter``                    (L,), flux
    tau      ``label_scatter``              (M,), label units: noise beyond the stated errors
    u        ``u``                          (N, M), scaled true labels
    mu       ``population_mean``            (M,), scaled
    Lambda   ``population_covariance``      (M, M), scaled
    ======== ============================== =============================================

    Args:
        order: of the polynomial phi, all monomials of the labels up to it (1, 2 or 3; Ho+17 eq. 6 is 2).
        terms: instead of `order`, the monomials one by one: ``[{}, {"TEFF": 1}, {"TEFF": 1, "LOGG": 2}]``; ``{}`` is
            the constant. The powers are those of the scaled labels u.
        label_noise: True: the catalogue's labels are noisy. Whether the spectra may then move the training labels is
            decided by held-out density between "joint" (the full posterior) and "cut" (coefficients learned at the
            catalogue's labels, no feedback from the spectra: better where the spectra hold more variance than the
            labels explain); tau is learned in both. False: the classic Cannon, training labels exact.
        scatter: None: learned per pixel; else the fixed s_l, a number or (L,), in flux units.
        coefficient_prior: `priors.Flat()`, `Normal` (ridge), `Laplace` (sparse), `Learned`; None: flat. By default
            `Learned` where labels are latent ("joint"), flat otherwise.
        scatter_distribution: prior of the s_l where they are learned.
        population: prior of the true labels: "learned", a Gaussian of learned mean and covariance, or "flat"; "auto":
            flat for the classic Cannon, learned otherwise.
        censor: {label: (L,) mask of the pixels that the label may act on}; its monomials are zero elsewhere
            (Casey+16 section 2.3).
        bounds: {monomial, as in `feature_names`: (low, high)} on coefficients, in flux units.
        outlier_sigma: after a first pass drop training stars of which a label is off by more than this many robust
            scatters (Ho+17 section 3: 4); None: none.

    Sources: Ness+15 (ApJ 808, 16), Ho+17 (ApJ 836, 5; equations above), Casey+16 (arXiv:1603.03040).
    """

    order: int = 2
    terms: Sequence[Mapping[str, int]] | None = None
    label_noise: LabelNoise = True
    scatter: float | np.ndarray | None = None
    coefficient_prior: Prior | Literal["auto"] | None = "auto"
    scatter_distribution: HalfNormal = field(default_factory=HalfNormal)
    population: Literal["auto", "learned", "flat"] = "auto"
    censor: Mapping[str, np.ndarray] | None = None
    bounds: Mapping[str, tuple[float, float]] | None = None

    global_sites: ClassVar[tuple[str, ...]] = (
        "coefficients",
        "scatter",
        "label_scatter",
        "population_mean",
        "population_covariance",
    )

    def __post_init__(self) -> None:
        if self.terms is None and self.order not in (1, 2, 3):
            raise bad_input(
                f"order={self.order!r}", "1, 2 or 3", fix="Cannon(order=2), or name the monomials in terms="
            )
        if self.label_noise not in (True, False, "joint", "cut"):
            raise bad_input(f"label_noise={self.label_noise!r}", "True, False, 'joint' or 'cut'")
        if self.population not in ("auto", "learned", "flat"):
            raise bad_input(f"population={self.population!r}", "'auto', 'learned' or 'flat'")

    def __call__(self, stars: Stars, batch_size: int | None = None) -> Any:
        """The NumPyro program; `u` is observed where labels are present and exact, `flux` where present."""
        model = self.bound(stars)
        frame = model.require_frame()
        features, m = model.features, len(frame.names)

        theta = model.prior.sample("coefficients", frame.n_pixel, features.size, frame.flux_scale)
        theta = theta * model.allowed()
        fixed = model.scatter_prior
        if isinstance(fixed, np.ndarray):
            scatter = jnp.asarray(fixed)
        else:
            scatter = fixed.sample("scatter", frame.n_pixel, frame.flux_scale)
        mean, covariance = jnp.zeros(m), FLAT_POPULATION * jnp.eye(m)
        if not model.flat_population:
            mean = numpyro.sample("population_mean", dist.Normal(0.0, 10.0).expand([m]).to_event(1))
            covariance = numpyro.sample("population_covariance", dist.InverseWishart(m + 2.0, scale_matrix=jnp.eye(m)))
        population = dist.MultivariateNormal(mean, covariance_matrix=covariance)
        tau = None
        if model.integrates_labels:
            tau = numpyro.sample("label_scatter", dist.HalfNormal(jnp.asarray(frame.scale)).to_event(1))

        exact = _completed(model.measured(stars)) if tau is None and "labels" in stars else None

        with numpyro.plate("star", len(stars), subsample_size=batch_size) as rows:
            measured = model.measured(stars)
            if batch_size is not None:
                measured = measured.rows(rows)
            u = numpyro.sample("u", population, obs=None if exact is None else exact[rows])
            labels = numpyro.deterministic("true_labels", frame.centre + frame.scale * u)
            if tau is not None and "labels" in stars:
                noise = measured.covariance + jnp.eye(m) * (tau / frame.scale) ** 2
                both = measured.observed[:, :, None] & measured.observed[:, None, :]
                noise = jnp.where(both, noise, jnp.eye(m))
                value = jnp.where(measured.observed, measured.value, u)
                numpyro.sample("labels", dist.MultivariateNormal(u, covariance_matrix=noise), obs=value)
            elif tau is not None:
                numpyro.sample("labels", dist.Normal(labels, tau).to_event(1))

            flux = features(u) @ theta.T
            if "flux" not in stars:
                numpyro.sample("flux", dist.Normal(flux, scatter).to_event(1))
            else:
                value, variance, observed = (jnp.asarray(x)[rows] for x in stars["flux"].filled())
                sigma = jnp.sqrt(variance + scatter**2)
                numpyro.sample("flux", dist.Normal(flux, sigma).mask(observed).to_event(1), obs=value)

    # ---- what the training stars decide ----

    def bind(self, stars: Stars) -> Self:
        for name in ("labels", "flux"):
            if name not in stars:
                raise bad_input(
                    f"stars with the blocks {', '.join(stars.blocks)}",
                    f"a block {name!r}, which the training step needs",
                    fix=f"Stars(labels=..., flux=...) or Stars.from_table(table, {name}=...)",
                )
        labels, flux = stars["labels"], stars["flux"]
        value = np.where(labels.observed, labels.value, np.nan).astype(float)
        names = labels.names or tuple(str(i) for i in range(labels.n_dim))
        for column, name in zip(value.T, names, strict=True):
            known = column[np.isfinite(column)]
            if len(known) < 2 or np.ptp(known) == 0:
                raise bad_input(
                    f"label {name!r} with {len(known)} values of which all are equal"
                    if len(known)
                    else f"no value of label {name!r}",
                    "a label that varies between the training stars",
                    "a constant or empty column",
                    f"labels={tuple(n for n in names if n != name)}",
                )
        low, centre, high = np.nanpercentile(value, [2.5, 50, 97.5], axis=0)
        scale = np.where(high > low, (high - low) / 4, np.nanstd(value, axis=0))
        if not flux.observed.any():
            raise bad_input("flux without a single known value", "spectra", "all errors infinite or all ivar zero")
        few = flux[:: max(1, flux.value.size // 10**6)]
        typical = float(np.nanmedian(np.abs(np.where(few.observed, few.value, np.nan)))) or 1.0
        coordinate = next(iter(flux.coords.items()), (None, None))
        frame = Frame(
            names, labels.units, centre, scale, flux.n_dim, typical,
            flux.units[0], coordinate[1], coordinate[0],
        )  # fmt: skip
        model = self.replace(frame=frame)
        n_free = model.features.size
        if isinstance(model.prior, Flat) and len(stars) <= n_free:
            raise bad_input(
                f"{len(stars)} training stars for {n_free} coefficients a pixel", f"at least {n_free + 1}",
                "too high an order for this training set", "Cannon(order=1) or coefficient_prior=priors.Normal()",
            )  # fmt: skip
        if len(stars) < 3:
            raise bad_input(f"{len(stars)} training star(s)", "at least 3")
        model.allowed(), model.coefficient_bounds(), model.scatter_prior
        return model

    def check(self, stars: Stars) -> None:
        frame = self.require_frame()
        if "flux" in stars:
            flux = stars["flux"]
            if flux.n_dim != frame.n_pixel:
                raise bad_input(
                    f"spectra of {flux.n_dim} pixels", f"{frame.n_pixel}, as in training",
                    "another wavelength grid", "bayeslabels.astro.spectra.resample(wavelength, flux, ivar, grid)",
                )  # fmt: skip
            grid = flux.coords.get(frame.coordinate_name) if frame.coordinate_name else None
            if (
                grid is not None
                and frame.coordinate is not None
                and not np.allclose(grid, frame.coordinate, rtol=1e-6, atol=0)
            ):
                worst = np.argmax(np.abs(grid - frame.coordinate))
                raise bad_input(
                    f"pixel {worst} at {grid[worst]:.6g}", f"{frame.coordinate[worst]:.6g}, as in training",
                    "another wavelength grid", "bayeslabels.astro.spectra.resample(wavelength, flux, ivar, grid)",
                )  # fmt: skip
        if "labels" in stars:
            labels = stars["labels"]
            if labels.names != frame.names:
                raise bad_input(
                    f"labels {labels.names}", f"{frame.names}, as in training", "columns swapped or renamed",
                    f"labels.select({frame.names!r}), or stars.drop('labels') to infer them",
                )  # fmt: skip
            if labels.units != frame.units:
                raise bad_input(
                    f"labels in {labels.units}", f"{frame.units}, as in training", "other units than in training",
                    "Block(value, error, names=..., unit=...) with Quantities, which are converted",
                )  # fmt: skip

    def variants(self) -> tuple[Self, ...]:
        if self.label_noise is True:
            return (self.replace(label_noise="joint"), self.replace(label_noise="cut"))
        return (self,)

    # ---- the linear structure ----

    @cached_property
    def features(self) -> Monomials:
        names = self.require_frame().names
        if self.terms is None:
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
        return self.label_noise in (True, "joint")

    @property
    def flat_population(self) -> bool:
        return self.population == "flat" or (self.population == "auto" and self.exact_labels)

    @property
    def exact_labels(self) -> bool:
        return self.label_noise is False

    @property
    def scatter_from_held_out(self) -> bool:
        return self.label_noise == "cut"

    @property
    def choice(self) -> str:
        return f"label_noise={self.label_noise!r}"

    @property
    def prior(self) -> Prior:
        if isinstance(self.coefficient_prior, str):
            return Learned() if self.integrates_labels else Flat()
        return self.coefficient_prior or Flat()

    @property
    def scatter_prior(self) -> HalfNormal | np.ndarray:
        if self.scatter is None:
            return self.scatter_distribution
        fixed = np.asarray(self.scatter, float)
        n_pixel = self.require_frame().n_pixel
        if (fixed.ndim and fixed.shape != (n_pixel,)) or not (fixed >= 0).all():
            raise bad_input(f"scatter of shape {fixed.shape}", f"one number >= 0, or {n_pixel}, one per pixel")
        return np.broadcast_to(fixed, (n_pixel,)).copy()

    def allowed(self) -> np.ndarray:
        frame, exponents = self.require_frame(), np.array(self.features.exponents)
        out = np.ones((frame.n_pixel, self.features.size), bool)
        for name, mask in (self.censor or {}).items():
            mask = np.asarray(mask, bool)
            if name not in frame.names or mask.shape != (frame.n_pixel,):
                raise bad_input(
                    f"censor[{name!r}] of shape {mask.shape}",
                    f"a mask of {frame.n_pixel} pixels for one of {frame.names}",
                )
            out &= mask[:, None] | (exponents[:, frame.names.index(name)] == 0)
        return out

    def coefficient_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        low, high = np.full(self.features.size, -np.inf), np.full(self.features.size, np.inf)
        for name, (a, b) in (self.bounds or {}).items():
            if name not in self.feature_names or not a < b:
                raise bad_input(f"bounds[{name!r}] = ({a}, {b})", f"low < high for one of {self.feature_names}")
            k = self.feature_names.index(name)
            low[k], high[k] = a, b
        return low, high

    def measured(self, stars: Stars) -> Measured:
        frame = self.require_frame()
        n, m = len(stars), len(frame.names)
        if "labels" not in stars:
            return Measured(np.zeros((n, m)), np.zeros((n, m, m)), np.zeros((n, m), bool))
        block = stars["labels"]
        value, variance, observed = block.filled()
        covariance = np.zeros((n, m, m))
        if block.has_covariance:
            both = observed[:, :, None] & observed[:, None, :]
            covariance = np.where(both, block.error, 0.0) / (frame.scale[:, None] * frame.scale)
        elif block.error is not None:
            covariance[:, range(m), range(m)] = np.where(observed, variance, 0.0) / frame.scale**2
        return Measured(np.where(observed, frame.scaled(value), 0.0), covariance, observed)

    def output(self, stars: Stars) -> tuple[np.ndarray, np.ndarray | None]:
        block = stars["flux"]
        if block.has_covariance:
            raise bad_input(
                "flux with covariances", "one error a pixel", "correlated pixels", "flux_error=sqrt of the diagonal"
            )
        return block.value, block.error


def _completed(measured: Measured) -> Any:
    """Exact labels (N, M), those that are missing free: of all stars, since a subsample never holds the same ones."""
    missing = np.nonzero(~np.asarray(measured.observed))
    u = jnp.asarray(measured.value)
    if not len(missing[0]):
        return u
    improper = dist.ImproperUniform(dist.constraints.real, (), event_shape=missing[0].shape)
    return u.at[missing].set(numpyro.sample("labels_missing", improper))
