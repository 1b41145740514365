"""Lux: a latent vector per star of which labels, spectrum and any further output are linear functions.

labels_n = A z_n + N(0, sigma_n^2 + tau^2)                        (Horta+25 eq. 1, 3; tau is ours)
flux_n   = B z_n + N(0, sigma_n^2 + s^2)                          (eq. 2, 4)
z_n ~ N(0, I_P),   B_l ~ N(m, Sigma)                              m, Sigma learned; the paper's L2 term, eq. 7, is p(z)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import Distribution

from ...core.own_priors import OwnPrior, is_own
from ...core.priors import Learned, Prior
from ...data.stars import Stars
from ...errors import bad_input
from ...kind import TrainedModel
from ...numerics.features import Features, Monomials
from ...numerics.linalg import beside, in_float64, inverse_observed, left_singular_vectors, module_of
from .model import LinearModel, MeasuredLabels
from .moments import Moments

LADDER = (1, 2, 4, 8)
"""Latent sizes that "auto" compares, in units of the number of labels (Horta+25 section 4)."""


@dataclass(frozen=True)
class Lux(LinearModel):
    """Lux with priors on everything, and every posterior integrated over the latents.

    ::

        labels_n = A z_n + N(0, sigma_n^2 + tau^2)
        flux_n   = B z_n + N(0, sigma_n^2 + s^2),    z_n ~ N(0, I_P)

    ======== ======================== ===================================================================
    symbol   site                     meaning, shape, unit
    ======== ======================== ===================================================================
    z        ``z``                    (N, P)
    A        ``A``                    (M, K), scaled labels; K = P + 1, the constant first
    B        ``B``                    (L, K), flux
    s        ``scatter``              (L,), flux
    tau      ``label_scatter``        (M,), label units: scatter of the true labels about A z
    mu       ``offset``               (N,), label units: an unknown offset that a star's labels share
    ======== ======================== ===================================================================

    z, A and B are only defined up to a rotation of the latents: judge predicted labels and fluxes, not their values.

    Args:
        latent_size: P; "auto": that of 1, 2, 4 and 8 times the number of labels with the highest held-out density of
            the labels given the flux and of the flux given the labels (appendix A).
        outputs: further blocks of stars that are linear in the latents, such as a second survey's labels or
            magnitudes; beside `labels` they are inferred, reported and, where a star has them, data.
        label_scatter: "joint": tau as the training stars have it; "held-out": from stars left out of training, a
            noisier measure that also holds where training overfits.
        scatter: None: learned per pixel; else the fixed s_l, a number or (L,), in flux units.
        coefficient_prior: of B. The default learns its mean and covariance across pixels, so that the widths need no
            tuning and latents that the spectra do not need are switched off. Or a distribution of NumPyro, of one
            coefficient, of a pixel's (K,) or of all (L, K).
        scatter_distribution: prior of the s_l where they are learned; None as its scale: the typical flux.
        label_scatter_distribution: prior of every tau_m, in units of the label's spread among the training stars.
        label_width: A_mp ~ N(0, label_width^2), scaled labels; None: 1 / sqrt(P), with which labels have variance 1.
        intercept: whether the features are (1, z), or z alone as in the paper (where one latent starts at 1).
        offset: (mean, sd) in label units of an offset added to all labels of a star, one draw per star and Gaussian:
            a distance modulus shared by magnitudes, say. All labels then have one unit.
        outlier_sigma: after a first pass drop training stars of which a label is off by more than this many robust
            scatters; None: none.
        nuisances: what else varies from star to star, such as `nuisances.Continuum(0.01)`, in training stars too; of
            the test stars alone: `infer(..., nuisances=...)`.
        flux_error_factor: a factor on the stated errors of the flux, learned beside the scatter: "star" of every star
            or "survey" of all training stars; of the test stars alone: `infer(..., flux_error_factor="star")`.
        masks: {label: (L,) mask of the pixels that it may be inferred from} (section 5). Conditions the test step;
            other labels use all pixels.

    Source: Horta+25 (arXiv:2502.01745).

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Lux(4), train, progress=False)
        >>> result = bl.infer(posterior, test, progress=False)
        >>> result.predict("flux").shape
        (20, 50)
    """

    latent_size: int | Literal["auto"] = "auto"
    outputs: tuple[str, ...] = ()
    label_scatter: Literal["joint", "held-out"] = "joint"
    coefficient_prior: Prior | Distribution = field(default_factory=Learned)
    label_width: float | None = None
    intercept: bool = True
    offset: tuple[float, float] | None = None
    masks: Mapping[str, np.ndarray] | None = None

    global_sites: ClassVar[tuple[str, ...]] = ("A", "B", "scatter", "label_scatter", "flux_error_factor")
    sites: ClassVar[dict[str, str]] = {"coefficients": "B", "latents": "z", "label_coefficients": "A"}
    smaller: ClassVar[str] = "Lux(2)"
    labels_are_latent: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.latent_size != "auto" and not (isinstance(self.latent_size, int) and self.latent_size > 0):
            raise bad_input(f"latent_size={self.latent_size!r}", "a whole number > 0 or 'auto'", fix="Lux(20)")
        if self.label_scatter not in ("held-out", "joint"):
            raise bad_input(f"label_scatter={self.label_scatter!r}", "'held-out' or 'joint'")
        if self.offset is not None and not (len(self.offset) == 2 and self.offset[1] > 0):
            raise bad_input(f"offset={self.offset!r}", "(mean, sd) with sd > 0, in label units", fix="offset=(11, 3)")
        if not is_own("coefficient_prior", self.coefficient_prior) and not isinstance(self.coefficient_prior, Prior):
            raise bad_input(
                f"coefficient_prior={self.coefficient_prior!r}",
                "one of priors.Flat, Normal, Laplace and Learned, or a distribution of NumPyro",
                fix="Lux(coefficient_prior=bayeslabels.priors.Normal())",
            )
        if isinstance(self.outputs, str):
            raise bad_input(f"outputs={self.outputs!r}", "a tuple of block names", fix=f"outputs=({self.outputs!r},)")

    def __call__(self, stars: Stars, batch_size: int | None = None) -> Any:
        """The NumPyro program; every block of labels and `flux` is observed where present."""
        model = self.bound(stars)
        frame, features = model.require_frame(), model.features
        wide = dist.Normal(0.0, model.label_coefficient_width).expand([len(frame.names), features.size]).to_event(2)
        a = numpyro.sample("A", wide)
        b = model.prior.sample("B", frame.n_pixel, features.size, frame.flux_scale)
        scatter, factor = model.scatter_site(), model.error_factor_site("survey")
        tau = model.label_scatter_site()

        with numpyro.plate("star", len(stars), subsample_size=batch_size) as rows:
            z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([features.n_label]).to_event(1))
            labels = features(z) @ a.T
            if model.offset is not None:
                mu = numpyro.sample("offset", dist.Normal(*model.offset))
                labels = labels + mu[:, None] * model.unit_offset
            numpyro.deterministic("true_labels", frame.physical(labels))
            model.label_sites(labels, tau, stars, rows)
            phi = features(z)
            model.flux_site(model.disturbed(phi @ b.T, phi, b), scatter, factor, stars, rows)

    def bind(self, stars: Stars) -> Self:
        """As every model of spectra; the labels' centre leaves to the offset, or to A z, what is theirs."""
        bound = super().bind(stars)
        frame = bound.require_frame()
        centre = frame.centre.copy() if self.intercept else np.zeros(len(frame.names))
        if self.intercept and self.offset is not None:
            centre[frame.columns("labels")] -= self.offset[0]
        return bound.replace(frame=dataclasses.replace(frame, centre=centre))

    def variants(self) -> tuple[Self, ...]:
        if self.latent_size != "auto":
            return (self,)
        m = len(self.require_frame().names)
        return tuple(self.replace(latent_size=size * m) for size in LADDER)

    @cached_property
    def features(self) -> Features:
        if self.latent_size == "auto":
            raise bad_input("Lux with latent_size='auto'", "a latent size, which fit chooses", fix="Lux(20)")
        exponents = Monomials.up_to(1, self.latent_size).exponents
        return Monomials(exponents if self.intercept else exponents[1:])

    @property
    def label_blocks(self) -> tuple[str, ...]:
        return ("labels", *self.outputs)

    @property
    def fixed_population(self) -> tuple[np.ndarray, np.ndarray]:
        p = self.features.n_label
        return np.zeros(p), np.eye(p)

    @property
    def integrates_labels(self) -> bool:
        return True

    @property
    def scatter_from_held_out(self) -> bool:
        return self.label_scatter == "held-out"

    @property
    def choice(self) -> str:
        return f"latent_size={self.latent_size}"

    @cached_property
    def prior(self) -> Prior | OwnPrior:
        own = self.coefficient_prior
        return OwnPrior(own) if isinstance(own, Distribution) else own

    @property
    def label_coefficient_width(self) -> float:
        return self.label_width or self.features.n_label**-0.5

    def allowed(self) -> np.ndarray:
        return np.ones((self.require_frame().n_pixel, self.features.size), bool)

    def coefficient_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        return np.full(self.features.size, -np.inf), np.full(self.features.size, np.inf)

    @property
    def unit_offset(self) -> np.ndarray:
        """What an offset of 1, in label units, adds to every scaled label, (M,)."""
        frame = self.require_frame()
        one = np.zeros(len(frame.names))
        one[frame.columns("labels")] = 1 / frame.scale[frame.columns("labels")]
        return one

    def catalogue(self, stars: Stars) -> MeasuredLabels:
        """The catalogue labels, scaled; an offset is integrated out."""
        measured = super().catalogue(stars)
        if self.offset is None:
            return measured
        mean, sd = self.offset
        observed = measured.observed
        (unit,) = beside(observed, self.unit_offset)
        shared = sd**2 * unit[:, None] * unit
        both = observed[:, :, None] & observed[:, None, :]
        value = module_of(observed).where(observed, measured.value - mean * unit, 0.0)
        return MeasuredLabels(value, measured.covariance + both * shared, observed)

    def pixels_for(self) -> list[tuple[tuple[int, ...], np.ndarray | None]]:
        frame = self.require_frame()
        groups: list[tuple[tuple[int, ...], np.ndarray | None]] = []
        for name, mask in (self.masks or {}).items():
            mask = np.asarray(mask, bool)
            if name not in frame.names or mask.shape != (frame.n_pixel,) or not mask.any():
                raise bad_input(
                    f"masks[{name!r}] of shape {mask.shape}",
                    f"a mask of {frame.n_pixel} pixels, some of them True, for one of {frame.names}",
                )
            groups.append(((frame.names.index(name),), mask))
        rest = tuple(m for m, name in enumerate(frame.names) if name not in (self.masks or {}))
        return [(rest, None), *groups] if rest else groups

    def further(self, moments: Moments, stars: Stars, u: np.ndarray, spread: np.ndarray) -> dict[str, Any]:
        """mu_n given z_n and the labels: normal, with precision 1 / sd^2 + 1' R^-1 1; then averaged over z_n."""
        if self.offset is None or "labels" not in stars:
            return {}
        mean, sd = self.offset
        frame, features, one = self.require_frame(), self.features, self.unit_offset
        value, noise, observed = LinearModel.catalogue(self, stars)
        phi, c = features(u), moments.label_coefficients
        noise = noise + np.diag((moments.label_scatter / frame.scale) ** 2 + 1e-12)
        noise = noise + np.einsum("nk,mkjl,nl->nmj", phi, moments.label_system_covariance, phi, optimize=True)
        weights = inverse_observed(noise, observed) @ one
        precision = sd**-2 + weights @ one
        mu = (mean / sd**2 + ((value - phi @ c.T) * weights).sum(1)) / precision
        slope = weights @ (c @ features.jacobian(np.zeros(u.shape[1]))) / precision[:, None]
        variance = 1 / precision + np.einsum("np,npq,nq->n", slope, spread, slope)
        return {"offset": (mu, np.sqrt(variance), frame.units[0])}

    def first_guess(self, stars: Stars, measured: MeasuredLabels) -> np.ndarray:
        """The leading directions of the spectra, each pixel in units of its typical error."""
        flux, error = self.marginal(stars)
        known = np.isfinite(flux) if error is None else np.isfinite(flux) & np.isfinite(error)
        value = np.where(known, flux, 0.0)
        count = np.maximum(known.sum(0), 1)
        value -= known * (value.sum(0) / count)
        typical = value.std(0) if error is None else np.sqrt(np.where(known, error, 0.0).sum(0) / count)
        return np.sqrt(len(stars)) * left_singular_vectors(
            value / np.where(typical > 0, typical, 1.0), self.features.n_label
        )


@in_float64
def derivative_spectra(
    posterior: TrainedModel[LinearModel, Moments], flux_error: float | np.ndarray, *, draws: int = 100, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """How each label is read off the spectrum: d label / d flux = A B^+ (M, L), label units per flux unit, and its sd.

    The paper (Horta+25 eq. 13) takes the pseudoinverse of B; here it is the map from flux to the latents' posterior
    mean, (I + B' W B)^-1 B' W with W = 1 / (flux_error^2 + s^2): the same where the flux determines all latents, and
    finite where it does not. Pixels that could not be trained have 0.

    Args:
        posterior: of `Lux`.
        flux_error: of the star that is read, a number or (L,), in flux units.
        draws: from the training posterior of A and B, of which mean and sd are taken.
        seed: same seed, same draws.

    Example:
        >>> import bayeslabels as bl
        >>> from bayeslabels.models.lux import derivative_spectra
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Lux(4), train, progress=False)
        >>> slope, error = derivative_spectra(posterior, 0.01)
        >>> slope.shape
        (3, 50)
    """
    model, moments = posterior.model, posterior.moments
    if model.labels_are_latent:
        raise bad_input(f"a posterior of {type(model).__name__}", "one of Lux", fix="fit(Lux(...), stars)")
    rng, scale = np.random.default_rng([seed, 433494437]), model.require_frame().scale
    p, used = model.features.n_label, np.isfinite(moments.scatter)
    weight = np.where(used, 1 / (np.asarray(flux_error, float) ** 2 + np.nan_to_num(moments.scatter) ** 2), 0.0)
    b, spread = moments.coefficients[used], moments.coefficient_covariance[used]
    m, k = moments.label_coefficients.shape
    roots = np.linalg.cholesky(spread), np.linalg.cholesky(moments.label_system_covariance.reshape(m * k, m * k))
    found = np.zeros((draws, m, len(weight)))
    for out in found:
        draw = (b + np.einsum("ljk,lk->lj", roots[0], rng.standard_normal(b.shape)))[:, -p:]
        a = (moments.label_coefficients + (roots[1] @ rng.standard_normal(m * k)).reshape(m, k))[:, -p:]
        weighted = draw.T * weight[used]
        out[:, used] = scale[:, None] * (a @ np.linalg.solve(np.eye(p) + weighted @ draw, weighted))
    return found.mean(0), found.std(0)
