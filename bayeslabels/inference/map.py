"""MAP: the mode of what has a mode worth having, integrating over what does not.

Exact training labels: the joint mode of coefficients and scatter, pixel by pixel, by exact solves.
Noisy training labels: expectation-maximisation. The E step gives every star's true labels a Gaussian (Laplace)
posterior from its compressed spectrum, its catalogue labels and the population; the M step solves all pixels against
the labels' first and second moments, with the coefficients themselves integrated out of the scatter and of the learned
prior. The joint mode over thousands of noisy labels overfits; this does not. An affine move of the label system
that leaves every predicted flux unchanged (parameter-expanded EM, Liu+98) replaces hundreds of slow iterations.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ..model import FLAT_POPULATION, LinearModel, Measured
from ..numerics.compress import PIXELS, Statistics, known, pad_stars, padded, pixel_blocks
from ..numerics.features import Monomials
from ..numerics.linalg import Array, in_float64, inverse_observed, inverse_psd, outer_pairs, pack, unpack
from ..numerics.optimize import descend, newton_curvature
from ..numerics.regression import CoefficientPrior, train_block
from ..priors import HalfNormal, Laplace, Learned
from ..progress import bar
from ..stars import Stars
from .base import Inference, Moments, Trained
from .starwise import PINNED, StarProblem, modes_of


@dataclass(frozen=True)
class MAP(Inference):
    """Training step: mode of scatter, tau and population; posterior mean and covariance of the coefficients.

    Test step: the best of several modes per star, with the inverse curvature as covariance (one draw, the mode).

    Args:
        max_iterations: of expectation-maximisation.
        tolerance: largest root mean square change of the true labels in an iteration, in posterior sds.
        starts: starting points per star in the test step.
    """

    max_iterations: int = 100
    tolerance: float = 3e-3
    starts: int = 4

    trains: ClassVar = LinearModel
    infers: ClassVar = LinearModel

    @in_float64
    def fit(self, model: LinearModel, stars: Stars, seed: int, progress: bool | None) -> Trained:
        state = EM(model, stars)
        iterate = state.has_latents or isinstance(model.prior, Learned)
        changes: list[float] = []
        with bar(self.max_iterations if iterate else None, "training step", progress) as shown:
            state.train(start=True)
            while iterate and len(changes) < self.max_iterations:
                change = state.update_labels() if state.has_latents else 0.0
                change = max(change, state.train())
                changes.append(change)
                shown.update()
                shown.set_postfix(change=f"{change:.1e}")
                if change < self.tolerance:
                    break
        converged = not iterate or changes[-1] < self.tolerance
        stats: dict[str, Any] = {
            "converged": bool(converged and state.pixel_converged.all()),
            "iterations": len(changes),
            "n_star": len(stars),
            "n_pixel_trained": int(state.trained.sum()),
            "n_pixel_dropped": int((~state.trained).sum()),
            "n_pixel_not_converged": int((~state.pixel_converged).sum()),
        }
        if not converged:
            stats["advice"] = f"MAP(max_iterations={4 * self.max_iterations})"
        return Trained(state.point(), state.moments(), stats, {"change": np.array(changes)})

    def infer(self, problem: StarProblem, seed: int, progress: bool | None) -> Any:
        return modes_of(problem)


class EM:
    """Current values of everything that the training step learns; arrays as in `Moments`."""

    def __init__(self, model: LinearModel, stars: Stars):
        self.model = model
        frame = model.require_frame()
        self.features = model.features
        value, error = model.output(stars)
        self.catalogue: Measured = model.measured(stars)
        self.n_star, n_pixel = value.shape
        m, k = len(frame.names), self.features.size
        self.value, self.error = value, error
        ok = np.isfinite(value) & (np.isfinite(error) if error is not None else True)
        self.noisy = model.integrates_labels
        self.has_latents = self.noisy or not self.catalogue.observed.all()
        self.u = np.array(self.catalogue.value)
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
        self.prior: CoefficientPrior = prior._replace(low=jnp.asarray(low), high=jnp.asarray(high))
        self.penalised = isinstance(model.prior, Laplace) or bool(np.isfinite([low, high]).any())
        self.learned: dict[str, np.ndarray] = {}
        needed = 1 if isinstance(model.prior, Learned) else self.allowed.sum(1)
        self.trained = ok.sum(0) > needed
        self.pixel_converged = np.ones(n_pixel, bool)
        self.theta = np.zeros((n_pixel, k))
        self.covariance = np.zeros((n_pixel, k, k))
        seen = np.where(self.catalogue.observed, self.u, np.nan)
        self.mean = np.nanmean(seen, 0)
        self.population = np.cov(self.u.T).reshape(m, m) + 1e-3 * np.eye(m)
        if model.flat_population:
            self.mean, self.population = np.zeros(m), FLAT_POPULATION * np.eye(m)
        self.tau2 = np.full(m, 0.09 if self.noisy else 0.0)
        self.affine = isinstance(model.prior, Learned) and not self.penalised and bool(self.allowed.all())
        order = self.features.order
        self.affine &= set(self.features.exponents) == set(self.features.up_to(order, m).exponents)

    def train(self, start: bool = False) -> float:
        """All pixels given the labels' moments; compresses the spectra on the way. Returns the change of ln s."""
        k = self.features.size
        phi, second = _moments(self.features, *map(pad_stars, (self.u, self.u_covariance)))
        integrate = self.noisy or isinstance(self.model.prior, Learned)
        options = {
            "learn_scatter": self.learn_scatter,
            "integrate": integrate,
            "exact": not self.has_latents,
            "penalised": self.penalised,
            "alternations": 100 if not integrate else (10 if start else 1),
        }
        size = min(PIXELS, len(self.theta))
        gram = linear = jnp.zeros(())
        before = self.scatter2.copy()
        for rows, y, e in pixel_blocks(self.value, self.error, size):
            width = rows.stop - rows.start
            allowed = padded(self.allowed, rows, size, 1.0)
            s2 = padded(self.scatter2, rows, size, 1.0)
            out = train_block(y, e, phi, second, allowed, self.prior, s2, self.scatter_scale, **options)
            self.theta[rows], self.covariance[rows] = out.theta[:width], out.covariance[:width]
            self.scatter2[rows], self.pixel_converged[rows] = out.scatter2[:width], out.converged[:width]
            if self.has_latents:
                keep = padded(self.trained.astype(float), rows, size)
                g, b = _expected_statistics(y, e, out.theta * allowed, out.covariance, allowed, out.scatter2, keep)
                gram, linear = gram + g, linear + b
        if integrate and not start:
            self.pixel_converged[:] = True
        if isinstance(self.model.prior, Learned):
            theta, covariance = self.theta[self.trained], self.covariance[self.trained].mean(0)
            prior, mean, sigma = self.model.prior.update(theta, covariance, self.flux_scale)
            self.prior = self.prior._replace(precision=prior.precision, information=prior.information)
            self.learned = {"coefficients_mean": mean, "coefficients_covariance": sigma}
        if self.has_latents:
            zero = jnp.zeros(len(linear))
            self.statistics = Statistics(unpack(gram, k), linear, zero, zero, zero)
        used = self.trained & (self.scatter2 > 1e-12 * self.flux_scale**2)
        ratio = np.log(self.scatter2[used] / before[used])
        return float(np.sqrt(np.mean(ratio**2))) if len(ratio) else 0.0

    def label_precision(self) -> Array:
        """(N, M, M): of the catalogue labels about the true ones."""
        observed = jnp.asarray(self.catalogue.observed)
        eye = jnp.eye(observed.shape[1])
        if not self.noisy:
            return PINNED * eye * observed[:, :, None]
        return inverse_observed(jnp.asarray(self.catalogue.covariance) + eye * self.tau2, observed)

    def update_labels(self) -> float:
        """E step for the true labels, then the population, tau and the affine move; returns the change in sds."""
        old = self.u
        prior = np.linalg.inv(self.population)
        seen = self.label_precision()
        precision = seen + prior
        information = jnp.einsum("nmk,nk->nm", seen, jnp.asarray(self.catalogue.value)) + prior @ self.mean
        terms = (self.statistics, pad_stars(precision, prior), pad_stars(information), self.features)
        u, *_ = descend(pad_stars(old), *terms, 20)
        covariance = inverse_psd(newton_curvature(u, *terms))[: self.n_star]
        u = u[: self.n_star]
        if self.noisy and self.affine:
            u, covariance = _affine_move(u, covariance, self.catalogue, seen)
        self.u, self.u_covariance = np.array(u), np.array(covariance)
        n, m = self.u.shape
        if not self.model.flat_population:
            self.mean = self.u.mean(0)
            offset = self.u - self.mean
            self.population = (offset.T @ offset + self.u_covariance.sum(0) + np.eye(m)) / (n + 2 * m + 3)
        if self.noisy:
            self.tau2 = _scatter_of_labels(self.tau2, self.u, self.u_covariance, self.catalogue)
        sd = np.sqrt(np.maximum(np.einsum("nmm->nm", self.u_covariance), 1e-8))
        return float(np.sqrt(np.mean(((self.u - old) / sd) ** 2, axis=0)).max())

    def moments(self) -> Moments:
        frame = self.model.require_frame()
        m, k = len(frame.names), self.features.size
        blank = ~self.trained
        effective = self.theta * self.allowed
        both = self.allowed[:, :, None] * self.allowed[:, None, :]
        theta = np.where(blank[:, None], np.nan, effective)
        covariance = np.where(blank[:, None, None], np.nan, self.covariance * both)
        system = np.zeros((m, k, m, k))
        if self.noisy:
            gram = np.asarray(self.statistics.gram).sum(0) / self.n_star
            system = label_system_covariance(self.features, self.u, self.label_precision(), gram)
        return Moments(
            theta, covariance, np.where(blank, np.nan, np.sqrt(self.scatter2)), np.sqrt(self.tau2) * frame.scale,
            self.mean, self.population, system, self.u,
        )  # fmt: skip

    def point(self) -> dict[str, np.ndarray]:
        """The point estimate of every site, as one chain of one draw."""
        frame, moments = self.model.require_frame(), self.moments()
        sites = {
            "coefficients": moments.coefficients,
            **self.learned,
        }
        if not self.model.flat_population:
            sites |= {"population_mean": self.mean, "population_covariance": self.population}
        if self.learn_scatter:
            sites["scatter"] = moments.scatter
        if self.noisy:
            sites |= {"label_scatter": moments.label_scatter, "u": self.u}
            sites["true_labels"] = frame.physical(self.u)
        elif self.has_latents:
            sites["labels_missing"] = self.u[~self.catalogue.observed]
        return {name: np.asarray(x)[None, None] for name, x in sites.items()}


def label_system_covariance(features: Monomials, u: np.ndarray, precision: Any, flux_gram: Any = None) -> np.ndarray:
    """Covariance (M, K, M, K) of the label system: of g_m where every true label is u_m + g_m . phi(u).

    However many pixels a spectrum has, the system of labels is only as well known as N noisy catalogue labels fix it.
    This uncertainty is common to all stars, and what per-pixel coefficient errors leave out. Its precision is

        sum_n P_nm phi_n phi_n'  +  sum_n h_n' [W - W J_n (J_n' W J_n + P_n)^-1 J_n' W] h_n,

    the first term from the catalogue, the second from the spectra: h_n (K, M K) is the change of phi(u_n) under a move
    of the label system, less what new coefficients absorb; the bracket leaves out what star n's own labels absorb.

    u (N, M): training labels; precision P (N, M, M) of the catalogue labels; flux_gram W = sum_l w_l theta_l theta_l'
    (K, K), None where the spectra do not move the training labels.
    """
    step = max(1, len(u) // 1500)
    u, precision = u[::step], np.asarray(precision)[::step]
    n, m = u.shape
    phi, jacobian = np.asarray(features(jnp.asarray(u))), np.asarray(features.jacobian(jnp.asarray(u)))
    k = phi.shape[1]
    curves = np.zeros((m, k, m, k))
    weight = np.einsum("nmm->nm", precision)
    curves[range(m), :, range(m), :] = np.einsum("nk,nm,nl->mkl", phi, weight, phi, optimize=True)
    total = curves.reshape(m * k, m * k)
    if flux_gram is not None:
        move = np.einsum("njm,nk->njmk", jacobian, phi).reshape(n, -1)
        move -= phi @ np.linalg.lstsq(phi, move, rcond=None)[0]
        move = move.reshape(n, k, m * k)
        along = np.einsum("njm,jk->nmk", jacobian, flux_gram)
        own = np.einsum("nmk,nkl->nml", along, jacobian) + precision + 1e-9 * np.eye(m)
        total += np.einsum("nja,jk,nkb->ab", move, flux_gram, move, optimize=True)
        shift = np.einsum("nmk,nka->nma", along, move, optimize=True)
        total -= np.einsum("nma,nmb->ab", shift, np.linalg.solve(own, shift), optimize=True)
    ridge = 1e-10 * np.trace(total) / len(total) + 1e-10
    return np.linalg.inv(total * step + ridge * np.eye(len(total))).reshape(m, k, m, k)


def _affine_move(u, covariance, catalogue: Measured, precision):
    """u -> u + g (1, u), each g the weighted least-squares fit to the catalogue; the fluxes stay as they are."""
    m = u.shape[1]
    design = jnp.concatenate([jnp.ones((len(u), 1)), u], 1)
    weight = jnp.diagonal(precision, axis1=1, axis2=2) * jnp.asarray(catalogue.observed)
    residual = jnp.where(jnp.asarray(catalogue.observed), jnp.asarray(catalogue.value) - u, 0.0)
    gram = jnp.einsum("ni,nm,nj->mij", design, weight, design)
    right = jnp.einsum("ni,nm->mi", design, weight * residual)
    g = jnp.linalg.solve(gram + 1e-9 * jnp.eye(m + 1), right[..., None])[..., 0]
    slope = jnp.eye(m) + g[:, 1:]
    return u + design @ g.T, slope @ covariance @ slope.T


def _scatter_of_labels(tau2: np.ndarray, u: np.ndarray, covariance: np.ndarray, catalogue: Measured) -> np.ndarray:
    """Newton steps in ln tau_m^2 on the expected log density of the catalogue labels, prior HalfNormal(1), scaled."""
    m = len(tau2)
    offset = np.where(catalogue.observed, catalogue.value - u, 0.0)
    second = offset[:, :, None] * offset[:, None, :] + covariance
    x = np.log(np.maximum(tau2, 1e-12))
    for _ in range(8):
        precision = np.asarray(
            inverse_observed(
                jnp.asarray(catalogue.covariance) + jnp.eye(m) * np.exp(x), jnp.asarray(catalogue.observed)
            )
        )
        explained = precision @ second @ precision
        t = np.exp(x)
        gradient = 0.5 * t * np.einsum("nmm->m", precision - explained) + 0.5 * t
        fisher = 0.5 * t**2 * (np.einsum("nmm->nm", precision) ** 2).sum(0) + 0.5 * t
        x = np.clip(x - np.clip(gradient / fisher, -1.5, 1.5), np.log(1e-10), 4.0)
    return np.exp(x)


@jax.jit
def _expected_statistics(y, e, theta, covariance, allowed, scatter2, keep):
    value, variance, ok = known(y, e)
    w = ok * keep[:, None] / (variance + scatter2[:, None])
    second = outer_pairs(theta) + pack(covariance * allowed[:, :, None] * allowed[:, None, :])
    return w.T @ second, (w * value).T @ theta


def _moments(features, u, covariance):
    """E[phi] and packed E[phi phi']; plain products where the labels are exact."""
    if not np.any(covariance):
        phi = features(u)
        return phi, outer_pairs(phi)
    phi, second = _gaussian_moments(features, u, covariance)
    return phi, pack(second)


@functools.partial(jax.jit, static_argnums=0)
def _gaussian_moments(features, u, covariance):
    return features.moments(u, covariance)
