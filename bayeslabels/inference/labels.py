"""What the catalogue's labels tell of the latents in the training step: they measure them, or are outputs of them.

`LatentLabels`: label_n = u_n + noise. `LabelOutputs`: label_n = C phi(u_n) + noise, with C to be learned. The noise has
covariance V_n + diag(tau^2), V_n as stated in the catalogue; all in scaled labels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..linear import LinearModel, Measured
from ..numerics.features import Monomials
from ..numerics.linalg import Array, inverse_observed, inverse_psd
from ..numerics.optimize import linear_posterior, solve_small
from ..numerics.regression import CoefficientPrior
from ..priors import Learned

PINNED = 1e10
"""Precision, in scaled labels, of a label that is exact."""


class CatalogueLabels(ABC):
    """The catalogue's labels in the training step, and what is learned of them.

    Attributes:
        tau2: (M,), square of the label scatter.
        coefficients: C (M, K); 0 where the labels measure the latents themselves.
        noisy: whether there is noise at all; if not, labels that are present are exact.
        width: sd of the Normal prior of C.
    """

    def __init__(self, model: LinearModel, catalogue: Measured):
        self.features, self.catalogue = model.features, catalogue
        self.noisy, self.width = model.integrates_labels, model.label_coefficient_width
        m = catalogue.value.shape[1]
        self.tau2 = np.full(m, 0.09 if self.noisy else 0.0)
        self.coefficients = np.zeros((m, self.features.size))

    @abstractmethod
    def of(self, u: Array) -> np.ndarray:
        """True labels (N, M) at latents (N, P)."""

    @abstractmethod
    def spread(self, covariance: Array) -> np.ndarray:
        """Covariance (N, M, M) of the true labels from that of the latents (N, P, P)."""

    @abstractmethod
    def on_latents(self, precision: Array) -> tuple[Array, Array]:
        """Precision (N, P, P) and information (N, P) that labels of precision (N, M, M) give of the latents."""

    @abstractmethod
    def learn_coefficients(self, phi: Array, second: Array) -> None:
        """Mode of C given E[phi] (N, K) and E[phi phi'] (N, K, K)."""

    @abstractmethod
    def settle(self, u: Array, covariance: Array, prior: CoefficientPrior) -> tuple[Array, Array, CoefficientPrior]:
        """An affine move of the latents that leaves every predicted flux as it is (parameter-expanded EM, Liu+98).

        u (N, P) and covariance (N, P, P) of the latents, and the prior of theta, before and after.
        """

    @abstractmethod
    def system(self, u: np.ndarray, gram: Array, linear: Array) -> np.ndarray:
        """Covariance (M, K, M, K) of the label system.

        u (N, P): latents; gram (N, K, K), linear (N, K): what the spectra say of phi_n.
        """

    def precision(self) -> Array:
        """(N, M, M): of the catalogue labels about the true ones."""
        _, noise, observed = self.catalogue
        eye = np.eye(observed.shape[1])
        if not self.noisy:
            return PINNED * eye * observed[:, :, None]
        return _inverse_observed(noise + eye * self.tau2, observed)

    def log_density(self, u: Array) -> float:
        """ln p(catalogue labels | u) + ln p(C, tau), up to a constant."""
        precision, observed = np.asarray(self.precision()), self.catalogue.observed
        offset = np.where(observed, self.catalogue.value - self.of(u), 0.0)
        full = precision + np.eye(observed.shape[1]) * ~observed[:, :, None]
        density = 0.5 * np.linalg.slogdet(full)[1] - 0.5 * ((offset[:, None] @ precision)[:, 0] * offset).sum(1)
        return float(density.sum()) - 0.5 * float((self.coefficients**2).sum() / self.width**2 + self.tau2.sum())

    def learn_scatter(self, u: np.ndarray, covariance: np.ndarray) -> None:
        """Mode of tau given the latents' means (N, P) and covariances (N, P, P)."""
        if self.noisy:
            value, noise, observed = self.catalogue
            offset = np.where(observed, value - self.of(u), 0.0)
            self.tau2 = np.asarray(scatter_of_labels(self.tau2, offset, self.spread(covariance), noise, observed))


class LatentLabels(CatalogueLabels):
    """Catalogue labels that measure the latents themselves, exactly or with noise."""

    def __init__(self, model: LinearModel, catalogue: Measured):
        super().__init__(model, catalogue)
        features = self.features
        full = set(features.exponents) == set(features.up_to(features.order, features.n_label).exponents)
        bounded = np.isfinite(model.coefficient_bounds()).any() or not model.allowed().all()
        self.movable = self.noisy and full and not bounded and isinstance(model.prior, Learned)

    def of(self, u: Array) -> np.ndarray:
        return np.asarray(u)

    def spread(self, covariance: Array) -> np.ndarray:
        return np.asarray(covariance)

    def on_latents(self, precision: Array) -> tuple[Array, Array]:
        return precision, jnp.einsum("nmk,nk->nm", precision, jnp.asarray(self.catalogue.value))

    def learn_coefficients(self, phi: Array, second: Array) -> None:
        """There are none."""

    def settle(self, u: Array, covariance: Array, prior: CoefficientPrior) -> tuple[Array, Array, CoefficientPrior]:
        if self.movable:
            u, covariance = _affine_move(u, covariance, self.catalogue, self.precision())
        return u, covariance, prior

    def system(self, u: np.ndarray, gram: Array, linear: Array) -> np.ndarray:
        m, k = self.coefficients.shape
        if not self.noisy:
            return np.zeros((m, k, m, k))
        return label_system_covariance(self.features, u, self.precision(), np.asarray(gram).mean(0))


class LabelOutputs(CatalogueLabels):
    """Catalogue labels that are outputs of the latents, as the flux is."""

    def __init__(self, model: LinearModel, catalogue: Measured):
        super().__init__(model, catalogue)
        self.movable = isinstance(model.prior, Learned) and bool(model.allowed().all())
        origin = jnp.zeros(self.features.n_label)
        self.at_zero = np.asarray(self.features(origin))
        self.jacobian = np.asarray(self.features.jacobian(origin))

    @property
    def slope(self) -> np.ndarray:
        """d label / d u, (M, P)."""
        return self.coefficients @ self.jacobian

    def on_latents(self, precision: Array) -> tuple[Array, Array]:
        return outputs_on_latents(self.catalogue.value, precision, self.coefficients, self.at_zero, self.jacobian)

    def of(self, u: Array) -> np.ndarray:
        return np.asarray(self.features(jnp.asarray(u))) @ self.coefficients.T

    def spread(self, covariance: Array) -> np.ndarray:
        return np.asarray(self.slope @ covariance @ self.slope.T)

    def learn_coefficients(self, phi: Array, second: Array) -> None:
        value = jnp.asarray(self.catalogue.value)
        self.coefficients = np.asarray(regress_labels(value, self.precision(), phi, second, self.width)[0])

    def settle(self, u: Array, covariance: Array, prior: CoefficientPrior) -> tuple[Array, Array, CoefficientPrior]:
        """Latents of mean 0 and covariance I, as their prior has it; the coefficients' prior moves along.

        Predicted fluxes and labels stay as they are: parameter-expanded EM (Liu+98).
        """
        if not self.movable:
            return u, covariance, prior
        u, covariance, constant = np.asarray(u), np.asarray(covariance), bool(self.at_zero.any())
        centre = u.mean(0) if constant else np.zeros(u.shape[1])
        offset = u - centre
        move = np.linalg.inv(np.linalg.cholesky(offset.T @ offset / len(u) + covariance.mean(0)))
        nodes = np.concatenate([np.zeros((1, u.shape[1])), np.eye(u.shape[1])])[0 if constant else 1 :]
        before, after = (np.asarray(self.features(x)) for x in (nodes, (nodes - centre) @ move.T))
        forth = np.linalg.solve(before, after).T  # phi(moved) = forth phi
        back = np.linalg.inv(forth)
        self.coefficients = np.asarray(self.coefficients @ back)
        prior = prior._replace(precision=forth @ prior.precision @ forth.T, information=forth @ prior.information)
        return offset @ move.T, move @ covariance @ move.T, prior

    def system(self, u: np.ndarray, gram: Array, linear: Array) -> np.ndarray:
        """Covariance of C, from what the labels say of every star's latents as its flux alone has them.

        label_n | flux_n ~ N(C E[phi_n], V_n + tau^2 + slope Cov(u_n | flux_n) slope'). Given the latents, which the
        labels themselves help to find, they would seem to say more.
        """
        eye = jnp.broadcast_to(jnp.eye(u.shape[1]), (len(u), u.shape[1], u.shape[1]))
        mean, spread = linear_posterior(gram, linear, eye, jnp.zeros(u.shape), self.features)
        phi = self.features(mean)
        value, noise, observed = self.catalogue
        total = noise + np.diag(self.tau2 + 1e-10) + self.slope @ spread @ self.slope.T
        precision = _inverse_observed(total, observed)
        return np.asarray(regress_labels(value, precision, phi, phi[:, :, None] * phi[:, None, :], self.width)[1])


_inverse_observed = jax.jit(inverse_observed)


@jax.jit
def outputs_on_latents(value, precision, coefficients, at_zero, jacobian) -> tuple[Array, Array]:
    """Precision (N, P, P) and information (N, P) of the latents from labels (N, M) of precision (N, M, M)."""
    slope = coefficients @ jacobian
    half = slope.T @ precision
    return half @ slope, jnp.einsum("npm,nm->np", half, value - coefficients @ at_zero)


@jax.jit
def regress_labels(value, precision, phi, second, width):
    """C (M, K) of value_n = C phi_n + N(0, precision_n^-1), C ~ N(0, width^2), and its covariance (M, K, M, K)."""
    m, k = value.shape[1], phi.shape[1]
    total = jnp.einsum("nij,nkl->ikjl", precision, second).reshape(m * k, m * k) + jnp.eye(m * k) / width**2
    right = jnp.einsum("nij,nj,nk->ik", precision, value, phi).reshape(m * k)
    covariance = inverse_psd(total)
    return (covariance @ right).reshape(m, k), covariance.reshape(m, k, m, k)


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
    u, covariance, precision, m = np.asarray(u), np.asarray(covariance), np.asarray(precision), u.shape[1]
    design = np.concatenate([np.ones((len(u), 1)), u], 1)
    weight = np.einsum("nmm->nm", precision) * catalogue.observed
    residual = np.where(catalogue.observed, catalogue.value - u, 0.0)
    gram = np.einsum("ni,nm,nj->mij", design, weight, design, optimize=True)
    right = (weight * residual).T @ design
    g = np.linalg.solve(gram + 1e-9 * np.eye(m + 1), right[..., None])[..., 0]
    slope = np.eye(m) + g[:, 1:]
    return u + design @ g.T, slope @ covariance @ slope.T


@jax.jit
def scatter_of_labels(tau2, offset, covariance, noise, observed):
    """Newton steps in ln tau_m^2 on the expected log density of the catalogue labels, prior HalfNormal(1), scaled.

    offset (N, M) of the labels from the true ones, whose covariance (N, M, M) is given; noise (N, M, M) as stated.
    """
    second = offset[:, :, None] * offset[:, None, :] + covariance
    eye = jnp.eye(len(tau2))

    def step(_, x):
        t = jnp.exp(x)
        precision = inverse_observed(noise + eye * t, observed)
        explained = precision @ second @ precision
        gradient = 0.5 * t * jnp.einsum("nmm->m", precision - explained) + 0.5 * t
        fisher = 0.5 * t**2 * (jnp.einsum("nmm->nm", precision) ** 2).sum(0) + 0.5 * t
        return jnp.clip(x - jnp.clip(gradient / fisher, -1.5, 1.5), np.log(1e-10), 4.0)

    return jnp.exp(jax.lax.fori_loop(0, 8, step, jnp.log(jnp.maximum(tau2, 1e-12))))


def labels_at(u: Array, coefficients: Array, psi: Monomials) -> tuple[Array, Array]:
    """u + C psi(u) at u (N, M), and its slope (N, M, M)."""
    u, c = jnp.asarray(u), jnp.asarray(coefficients)
    return u + psi(u) @ c.T, jnp.eye(u.shape[-1]) + jnp.einsum("mk,nkj->nmj", c, psi.jacobian(u))


def variables_at(labels: Any, coefficients: Array, psi: Monomials) -> Array:
    """u (N, M) of u + C psi(u) = labels, by Newton steps from u = labels; NaN where they do not get there."""
    labels = jnp.asarray(labels)

    def step(_, u):
        at, slope = labels_at(u, coefficients, psi)
        normal = jnp.swapaxes(slope, 1, 2)
        move = solve_small(normal @ slope + 1e-9 * jnp.eye(u.shape[1]), jnp.einsum("nij,nj->ni", normal, labels - at))
        return u + jnp.clip(move, -0.5, 0.5)

    u = jax.lax.fori_loop(0, 40, step, labels)
    off = jnp.abs(labels_at(u, coefficients, psi)[0] - labels).max(1)
    return jnp.where((off < 1e-6)[:, None], u, jnp.nan)
