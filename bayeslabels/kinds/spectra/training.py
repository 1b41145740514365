"""MAP: the mode of what has a mode worth having, integrating over what does not.

Exact training labels: the joint mode of coefficients and scatter, pixel by pixel, by exact solves.
Latents: expectation-maximisation. The E step gives every star's latents (the Cannon's true labels, those of Lux) a
Gaussian posterior from its compressed spectrum, its catalogue labels and the population; the M step solves all pixels
against the latents' first and second moments, with the coefficients themselves integrated out of the scatter and of the
learned prior. The joint mode over thousands of latents overfits; this does not. Affine moves of the latents that leave
every predicted flux unchanged (parameter-expanded EM, Liu+98) replace hundreds of slow iterations.
The test step takes the scatter at the mean of s^2 over its posterior given the rest, which few stars leave open.
Labels that are a curved function of the latents: the curve is learned afterwards (`label_curve`). A prior of the
coefficients that is learned across pixels is at its own mode, given the rest, in every iteration
(`numerics.hierarchy`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...core.priors import HalfNormal, Laplace, Learned
from ...data.stars import Stars
from ...numerics.compiling import jit
from ...numerics.compress import Statistics, known, pad_stars, padded, pixel_blocks, pixels_at_once, power_of_two
from ...numerics.error_factor import error_factors, expected_residual2
from ...numerics.features import feature_moments
from ...numerics.hierarchy import coefficients_given, learn
from ...numerics.linalg import Array, after, inverse_psd, outer_pairs, pack, unpack
from ...numerics.nuisance import compress_nuisances, marginalise
from ...numerics.population import conditioned, gaussian, learned, split, sums_of, total
from ...numerics.quartics import settle
from ...numerics.regression import CoefficientPrior, mean_scatter2, train_block
from .labels import CatalogueLabels, LabelOutputs, LatentLabels
from .model import LinearModel
from .moments import Moments, components_of
from .nuisances import disturbance, shapes_of

MANY = 4_000_000
"""Numbers in the spectra from which a first solution in float32 saves more than it costs."""

ERROR_STEPS = 2
"""Steps of the factor on the flux errors, at most, each time that the pixels are trained."""
FREEDOM = 4.0
"""Stars, at least, beyond those that the coefficients take up, as which a pixel's scatter is known."""
PRIOR_STEPS, LATENT_STEPS = 100, 5
"""Steps of the learned prior, at most, each time that the pixels are trained: with exact labels, and where the latents
change as well."""


class EM:
    """Current values of everything that the training step learns; arrays as in `Moments`."""

    def __init__(self, model: LinearModel, stars: Stars):
        self.model = model
        frame = model.require_frame()
        self.features = model.features
        value, error = self.read(model, stars)
        self.n_star, n_pixel = value.shape
        self.stands_for = self.n_star
        m, k = self.features.n_label, self.features.size
        catalogue = model.catalogue(stars)
        measured = model.of_latents(catalogue)
        self.labels = (LatentLabels if model.labels_are_latent else LabelOutputs)(model, catalogue)
        self.observed = self.value = value
        self.error = self.stated = error
        self.ln_factor = np.zeros(self.n_star)
        ok = np.isfinite(value) & (np.isfinite(error) if error is not None else True)
        self.known = known = measured.observed
        self.has_latents = model.integrates_labels or not known.all()
        self.u = model.first_guess(stars, measured)
        self.seen_labels = self.labels.of(self.u)
        self.u_covariance = np.zeros((self.n_star, m, m))
        self.allowed = model.allowed().astype(float)
        self.flux_scale = frame.flux_scale
        scatter = model.scatter_prior
        self.learn_scatter = isinstance(scatter, HalfNormal)
        self.scatter_scale = scatter.width(self.flux_scale) if isinstance(scatter, HalfNormal) else 1.0
        start = (0.03 * self.flux_scale) ** 2
        self.scatter2 = np.full(n_pixel, start) if isinstance(scatter, HalfNormal) else scatter**2
        low, high = model.coefficient_bounds()
        prior = model.prior.numeric(k, self.flux_scale)
        self.prior: CoefficientPrior = prior._replace(low=low, high=high)
        self.penalised = isinstance(model.prior, Laplace) or bool(np.isfinite([low, high]).any())
        self.learned: dict[str, np.ndarray] = {}
        self.prior_settled, self.prior_evidence = True, 0.0
        needed = 1 if isinstance(model.prior, Learned) else self.allowed.sum(1)
        self.trained = ok.sum(0) > needed
        self.typical_variance = np.zeros(n_pixel)
        if error is not None:
            few = slice(None, None, max(1, self.n_star // 500))
            total = np.square(error[few], where=ok[few], out=np.zeros(error[few].shape)).sum(0)
            self.typical_variance = total / np.maximum(ok[few].sum(0), 1)
        self.pixel_converged, self.scatter_told = np.ones(n_pixel, bool), np.zeros((n_pixel, 3))
        self.theta = np.zeros((n_pixel, k))
        self.covariance = np.zeros((n_pixel, k, k))
        if model.fixed_population is None:
            mean = np.nanmean(np.where(known, self.u, np.nan), 0)
            self.components = gaussian(mean, np.cov(self.u.T).reshape(m, m) + 1e-3 * np.eye(m))
        else:
            self.components = gaussian(*model.fixed_population)
        self.objectives: list[float] = []
        self.nuisances: Any = 0.0

    def read(self, model: LinearModel, stars: Stars) -> tuple[np.ndarray, np.ndarray | None]:
        """Flux and errors (N, L)."""
        return model.output(stars)

    @property
    def mean(self) -> np.ndarray:
        """Of the population, (P,)."""
        return total(self.components)[0]

    @property
    def population(self) -> np.ndarray:
        """Its covariance (P, P)."""
        return total(self.components)[1]

    @property
    def iterates(self) -> bool:
        """Whether one training of all pixels is not all."""
        learned = isinstance(self.model.prior, Learned)
        return self.has_latents or learned or bool(self.model.nuisances) or self.model.flux_error_factor is not None

    @property
    def integrates_coefficients(self) -> bool:
        """Whether the scatter maximises the density with the coefficients integrated out, or that of both."""
        return self.model.integrates_labels or isinstance(self.model.prior, Learned)

    @property
    def knows_objective(self) -> bool:
        """Whether what expectation-maximisation increases is known in closed form."""
        return (
            self.features.linear
            and self.model.fixed_population is not None
            and not (self.model.nuisances or self.model.flux_error_factor)
        )

    def run(self, max_iterations: int, tolerance: float, shown: Any) -> tuple[list[float], bool]:
        """Train from the start until nothing changes by more; the changes, and whether they came to that."""
        changes: list[float] = []
        self.train(start=True)
        settled = False
        while self.iterates and not settled and len(changes) < max_iterations:
            change = self.update_latents() if self.has_latents else 0.0
            change = max(change, self.train())
            changes.append(change)
            settled = change < tolerance and self.prior_settled and self.objective_settled()
            shown.update()
            shown.set_postfix(change=f"{change:.1e}")
        return changes, settled or not self.iterates

    def train_given(self, u: np.ndarray, covariance: np.ndarray, most: int = 8, tolerance: float = 1e-2) -> None:
        """Train all pixels at latents (N, P) with covariance (N, P, P) that stay as they are."""
        self.u, self.u_covariance = u, covariance
        self.train(start=True)
        for _ in range(most):
            if self.train() < tolerance and self.prior_settled:
                break

    def train(self, start: bool = False) -> float:
        """All pixels given the latents' moments; compresses the spectra on the way. Returns the change of ln noise."""
        k = self.features.size
        phi, second = feature_moments(self.features, self.u, self.u_covariance)
        places, which = self.features.products
        wide = jax.device_put([pad_stars(x) for x in (phi, second[:, places])])
        integrate = self.integrates_coefficients
        options = {
            "learn_scatter": self.learn_scatter,
            "integrate": integrate,
            "exact": not self.has_latents,
            "penalised": self.penalised,
            "rough": self.value.size > MANY,
        }
        alternations = 100 if not integrate else (10 if start else 1)
        size = min(pixels_at_once(self.n_star), len(self.theta))
        before, unit = self.scatter2.copy(), power_of_two(self.flux_scale)
        learned = isinstance(self.model.prior, Learned)
        n_kept = len(self.theta) if learned else 0
        gram, linear = np.zeros((n_kept, k, k)), np.zeros((n_kept, k))
        for rows, y, e in pixel_blocks(self.value, self.error, size):
            width = rows.stop - rows.start
            allowed, s2 = padded(rows, size, self.allowed, self.scatter2, fill=1.0)
            present = padded(rows, size, self.theta, self.covariance)
            pixels = y, e, *wide, which, allowed, self.prior, *present, s2, self.scatter_scale
            out = train_block(*pixels, alternations, int(start), unit, **options)
            self.theta[rows], self.covariance[rows] = out.theta[:width], out.covariance[:width]
            self.scatter2[rows], self.pixel_converged[rows] = out.scatter2[:width], out.converged[:width]
            self.scatter_told[rows] = out.told[:width]
            if learned:
                gram[rows], linear[rows] = out.gram[:width], out.linear[:width]
        if integrate and not start:
            self.pixel_converged[:] = True
        if learned:
            self.learn_prior(gram, linear, unit)
        moved = self.correct() if self.model.nuisances else 0.0
        if self.model.flux_error_factor is not None and self.stated is not None:
            moved = max(moved, self.learn_error_factor(phi, second))
        if self.has_latents:
            self.compress(size)
            self.labels.learn_coefficients(phi, unpack(second, k))
        floor = self.typical_variance + 1e-12 * self.flux_scale**2
        ratio = np.log((self.scatter2 + floor) / (before + floor))[self.trained]
        return max(moved, float(np.sqrt(np.mean(ratio**2))) if len(ratio) else 0.0)

    def learn_prior(self, gram: np.ndarray, linear: np.ndarray, unit: float) -> None:
        """m and Sigma, and the coefficients under them, from `Pixels.gram` and `linear` of all pixels."""
        assert isinstance(self.model.prior, Learned)
        steps = LATENT_STEPS if self.has_latents else PRIOR_STEPS
        found = learn_prior(self.model.prior, self.prior, gram, linear, self.trained, self.flux_scale, unit, steps)
        self.prior, self.prior_settled, self.prior_evidence = found.prior, found.converged, found.evidence
        if not self.penalised:
            self.theta, self.covariance = found.theta, found.covariance
        name = self.model.sites["coefficients"]
        self.learned = {f"{name}_mean": found.hyper_mean, f"{name}_covariance": found.hyper_covariance}

    def flux_evidence(self) -> float:
        """ln p(flux | latents, scatter, m, Sigma) of pixels that are trained, the coefficients integrated out."""
        error = np.zeros_like(self.value) if self.error is None else self.error
        ok = np.isfinite(self.value) & np.isfinite(error) & self.trained
        variance = np.where(ok, error**2 + self.scatter2, 1.0)
        residual = np.where(ok, self.value, 0.0)
        return self.prior_evidence - 0.5 * float(np.where(ok, residual**2 / variance + np.log(variance), 0.0).sum())

    def log_evidence(self) -> float:
        """ln p(flux, catalogue labels | scatter, m, Sigma, tau, population), bounded from below by the latents'
        Gaussian posterior; up to a constant of these stars."""
        total = self.flux_evidence()
        if not self.has_latents:
            return total
        prior, offset = np.linalg.inv(self.population), self.u - self.mean
        told = prior + self.labels.on_latents(self.labels.precision())[0]
        total += float(self.labels.log_density(self.u).sum())
        total -= 0.5 * float(((offset @ prior) * offset).sum() + (told * self.u_covariance).sum())
        total += 0.5 * float(np.linalg.slogdet(self.u_covariance)[1].sum())
        return total + 0.5 * len(self.u) * float(np.linalg.slogdet(prior)[1])

    def standardised(self) -> np.ndarray:
        """Residuals (N, L), each in units of its noise; 0 of what is missing."""
        variance = self.scatter2 + (0.0 if self.error is None else self.error**2)
        residual = self.value - np.asarray(self.features(self.u)) @ (self.theta * self.allowed).T
        with np.errstate(invalid="ignore", divide="ignore"):
            residual = residual / np.sqrt(variance)
        return np.where(np.isfinite(residual) & self.trained, residual, 0.0)

    def learn_error_factor(self, phi: np.ndarray, second: np.ndarray) -> float:
        """f of the stars, or of the survey, a step or two towards its mode; returns the change of ln f, in sds."""
        use = self.trained
        assert self.stated is not None
        residual2 = expected_residual2(self.value, phi, second, self.theta * self.allowed, self.covariance)[:, use]
        stars = residual2, self.stated[:, use] ** 2, self.scatter2[use], self.ln_factor
        together = self.model.flux_error_factor == "survey"
        ln_f, sd = error_factors(*stars, together=together, steps=ERROR_STEPS)
        change = float(np.sqrt(np.mean(((ln_f - self.ln_factor) / sd) ** 2)))
        self.ln_factor, self.error = ln_f, self.stated * np.exp(ln_f)[:, None]
        return change

    def correct(self) -> float:
        """Spectra without what is expected of their nuisances; returns the change of these, in prior sds."""
        theta = np.where(self.trained[:, None], self.theta * self.allowed, np.nan)
        scatter = np.where(self.trained, np.sqrt(self.scatter2), np.nan)
        shapes = shapes_of(self.model.nuisances, self.model.require_frame(), theta)
        phi = self.features(self.u)
        self.sums = compress_nuisances(self.observed, self.error, theta, scatter, shapes, phi)
        v = self.sums.given(phi)[0]
        self.value = self.observed - disturbance(v, phi, shapes)
        moved = float(np.sqrt(np.mean((v - self.nuisances) ** 2)))
        self.nuisances = v
        return moved

    def compress(self, size: int) -> None:
        """What the spectra say of every star's latents, coefficients and nuisances integrated out."""
        sums = [np.zeros(())] * 3
        for rows, y, e in pixel_blocks(self.observed, self.error, size):
            pixels = self.theta, self.covariance, self.allowed, self.trained.astype(float)
            theta, covariance, allowed, keep = padded(rows, size, *pixels)
            (s2,) = padded(rows, size, self.scatter2, fill=1.0)
            found = expected_statistics(y, e, theta * allowed, covariance, allowed, s2, keep)
            sums = [x + np.asarray(y) for x, y in zip(sums, found, strict=True)]
        gram, linear, constant = (x[: self.n_star] for x in sums)
        zero = np.zeros(self.n_star)
        self.statistics = Statistics(unpack(gram, self.features.size), linear, constant, zero, zero)
        if self.model.nuisances:
            self.statistics = marginalise(self.statistics, self.sums)

    def update_latents(self) -> float:
        """E step, then population, tau and a move of the latents' system; returns the labels' change in sds."""
        old = self.seen_labels
        prior = np.linalg.inv(self.population)
        u, covariance = latents_given(self.statistics, self.labels, self.mean, prior, self.u)
        if self.knows_objective:
            self.objectives.append(self._objective(u, covariance, prior))
        components = self.components
        if len(components.weight) < self.model.n_component:
            components = split(u, self.model.n_component)
        given = conditioned(components, u, covariance, gaussian(self.mean, self.population))
        u, covariance = given.moments()
        components = learned(sums_of(given, np.ones(len(u))))
        self.u, self.u_covariance, self.prior, components = self.labels.settle(u, covariance, self.prior, components)
        if self.model.fixed_population is None:
            self.components = components
        self.labels.learn_scatter(self.u, self.u_covariance)
        sd = np.sqrt(np.maximum(np.einsum("nmm->nm", self.labels.spread(self.u_covariance)), 1e-8))
        self.seen_labels = self.labels.of(self.u)
        return float(np.sqrt(np.mean(((self.seen_labels - old) / sd) ** 2, axis=0)).max())

    def _objective(self, u: Array, covariance: Array, prior: np.ndarray) -> float:
        """What no step decreases: the log density of scatter, tau, C, m and Sigma, bounded from below over theta.

        ln p = sum_n ln int dz exp E[ln p(flux_n | z, theta)] p(labels_n | z) p(z) - sum_l KL(theta_l || prior)
               + ln p(s, tau, C, m, Sigma), up to a constant; u and covariance: of the latents given all the rest.
        """
        latents = evidence(*self.statistics[:3], self.features(u), u - self.mean, covariance, prior)
        return float(np.asarray(latents).sum() + np.asarray(self.labels.log_density(u)).sum()) + self.log_prior()

    def log_prior(self) -> float:
        """The part of the objective that is no sum over stars."""
        scatter = -0.5 * float((self.scatter2[self.trained] / self.scatter_scale**2).sum()) * self.learn_scatter
        total, theta, spread = (
            self.labels.log_prior() + scatter,
            self.theta[self.trained],
            self.covariance[self.trained],
        )
        if isinstance(self.model.prior, Learned):
            mean, covariance = self.learned.values()
            total += self.model.prior.hyper(len(mean), self.flux_scale).log_density(mean, covariance)
        return total - _divergence(theta, spread, self.prior)

    def objective_settled(self) -> bool:
        last = self.objectives[-2:]
        return not last or (len(last) == 2 and abs(last[1] - last[0]) < 1e-6 * abs(last[1]))

    def scatter(self) -> np.ndarray:
        """Root of the posterior mean of s_l^2 (L,), as draws of s_l have it: what the test step takes it for."""
        if not self.learn_scatter:
            return np.sqrt(self.scatter2)
        slope, weight, weight2 = self.scatter_told.T
        blank = weight2 <= 0
        noise2 = np.where(blank, 0.0, weight) / np.where(blank, 1.0, weight2)  # scatter included
        slope = slope - 0.5 / self.scatter_scale**2  # of the stars alone
        v_0 = noise2 - slope / np.where(blank, 1.0, 0.5 * weight2)
        held = np.einsum("jk,lkj->lj", np.asarray(self.prior.precision), self.covariance)
        n = weight * noise2
        freedom = np.maximum(n - ((1 - held) * self.allowed).sum(1), FREEDOM)
        if not self.integrates_coefficients:
            v_0 = v_0 * np.maximum(n / freedom, 1.0)
        mean2 = mean_scatter2(v_0, np.maximum(noise2 - self.scatter2, 0.0), freedom, self.scatter_scale)
        return np.sqrt(np.where(blank, self.scatter2, mean2))

    def moments(self) -> Moments:
        frame = self.model.require_frame()
        blank = ~self.trained
        effective = self.theta * self.allowed
        both = self.allowed[:, :, None] * self.allowed[:, None, :]
        theta = np.where(blank[:, None], np.nan, effective)
        covariance = np.where(blank[:, None, None], np.nan, self.covariance * both)
        gram, linear = self.statistics[:2] if self.has_latents else [None, None]
        system, resistance = self.labels.system(self.u, gram, linear, self.stands_for)
        latent = self.model.labels_are_latent
        coefficients = np.zeros(system.shape[:2]) if latent else self.labels.coefficients
        of_survey = self.model.flux_error_factor == "survey"
        return Moments(
            theta, covariance, np.where(blank, np.nan, self.scatter()), np.sqrt(self.labels.tau2) * frame.scale,
            self.mean, self.population, coefficients, system, self.u,
            label_resistance=resistance if self.model.label_curve else None,
            flux_error_factor=np.exp(self.ln_factor[:1]) if of_survey else None,
            **components_of(self.components),
        )  # fmt: skip

    def point(self, moments: Moments) -> dict[str, np.ndarray]:
        """The point estimate of every site, of these moments, as one chain of one draw."""
        model, names = self.model, self.model.sites
        sites = {names["coefficients"]: moments.coefficients, **self.learned}
        if model.fixed_population is None:
            weight, mean, covariance = self.components
            one = len(weight) == 1
            sites |= {"population_mean": mean[0], "population_covariance": covariance[0]} if one else {
                "population_weight": weight, "population_mean": mean, "population_covariance": covariance,
            }  # fmt: skip
        if self.learn_scatter:
            sites["scatter"] = np.where(self.trained, np.sqrt(self.scatter2), np.nan)
        if model.flux_error_factor is not None:
            factor = np.exp(self.ln_factor)
            sites["flux_error_factor"] = factor if model.flux_error_factor == "star" else factor[0]
        if "label_coefficients" in names:
            sites[names["label_coefficients"]] = moments.label_coefficients
        if model.integrates_labels:
            labels = model.require_frame().physical(self.labels.of(self.u))
            sites |= {"label_scatter": moments.label_scatter, names["latents"]: self.u, "true_labels": labels}
        elif self.has_latents:
            sites["labels_missing"] = self.u[~self.known]
        return {name: np.asarray(x)[None, None] for name, x in sites.items()}


class LearnedPrior(NamedTuple):
    """The prior at its mode given all that stars say of the pixels, the coefficients (L, K) under it, and their
    covariance (L, K, K)."""

    prior: CoefficientPrior
    hyper_mean: np.ndarray
    hyper_covariance: np.ndarray
    theta: np.ndarray
    covariance: np.ndarray
    converged: bool
    evidence: float


def learn_prior(
    learned: Learned, prior: CoefficientPrior, gram: np.ndarray, linear: np.ndarray, trained: np.ndarray,
    flux_scale: float, unit: float, steps: int,
) -> LearnedPrior:  # fmt: skip
    """From `Pixels.gram` and `linear` of flux times unit, and the prior before; trained (L,): pixels that count.

    All of them: a prior learned from a part does not weigh up what the coefficients' errors do to the latents (the sum
    over pixels of E[theta theta'] Sigma^-1 has to be their number), and these drift along a bend of the labels.
    """
    mean, covariance = np.asarray(prior.mean) * unit, inverse_psd(np.asarray(prior.precision)) * unit**2
    hyper = learned.hyper(len(mean), flux_scale * unit)
    counting = slice(None) if trained.all() else trained
    found = learn(gram[counting], linear[counting], mean, covariance, hyper, steps=steps)
    mean, covariance = found.mean / unit, found.covariance / unit**2
    theta, spread = coefficients_given(gram, linear, found.mean, found.covariance)
    prior = learned.given(prior, mean, covariance)
    return LearnedPrior(prior, mean, covariance, theta / unit, spread / unit**2, found.converged, found.evidence)


def latents_given(
    statistics: Statistics, labels: CatalogueLabels, mean: np.ndarray, prior: np.ndarray, start: np.ndarray,
    iterations: int = 20,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Posterior mean (N, P) and covariance (N, P, P) of the latents, of population N(mean, prior^-1), from spectra
    and catalogue labels; Gaussian at the mode where phi is not linear. start (N, P): where the mode is sought from."""
    precision, information = labels.on_latents(labels.precision())
    return settle(start, statistics, precision + prior, information + prior @ mean, labels.features, iterations)


@jit
def evidence(
    gram: Array, linear: Array, constant: Array, phi: Array, offset: Array, covariance: Array, prior: Array
) -> Array:
    """The log integral (N,) over the latents, from its value at their posterior means; gram (N, K, K)."""
    at_best = (linear * phi).sum(1) - 0.5 * jnp.einsum("nj,njk,nk->n", phi, gram, phi) - constant
    log_det = jnp.linalg.slogdet(prior)[1]
    at_best = at_best - 0.5 * ((offset @ prior) * offset).sum(1) + 0.5 * log_det
    diagonal = jnp.diagonal(jnp.linalg.cholesky(after(covariance, log_det)), axis1=1, axis2=2)
    return at_best + jnp.log(diagonal).sum(1)


def _divergence(theta: np.ndarray, covariance: np.ndarray, prior: CoefficientPrior) -> float:
    """sum_l KL(N(theta_l, covariance_l) || prior), up to a constant; flat directions of the prior left out."""
    precision, offset = np.asarray(prior.precision), theta - np.asarray(prior.mean)
    distance = ((offset @ precision) * offset).sum() + np.einsum("jk,lkj->", precision, covariance)
    values = np.linalg.eigvalsh(precision)
    logs = np.linalg.slogdet(covariance)[1].sum() + len(theta) * np.log(values[values > 0]).sum()
    return 0.5 * float(distance - logs)


@jit
def expected_statistics(
    y: Array, e: Array, theta: Array, covariance: Array, allowed: Array, scatter2: Array, keep: Array
) -> tuple[Array, Array, Array]:
    value, variance, ok = known(y, e)
    w = ok * keep[:, None] / (variance + scatter2[:, None])
    second = outer_pairs(theta) + pack(covariance * allowed[:, :, None] * allowed[:, None, :])
    logs = jnp.where(ok, jnp.log(2 * jnp.pi * (variance + scatter2[:, None])), 0.0)
    constant = 0.5 * (w * value**2 + logs * keep[:, None]).sum(0)
    return w.T @ second, (w * value).T @ theta, constant
