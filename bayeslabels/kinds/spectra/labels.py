"""What the catalogue's labels tell of the latents in the training step: they measure them, or are outputs of them.

`LatentLabels`: label_n = u_n + noise. `LabelOutputs`: label_n = C phi(u_n) + noise, with C to be learned. The noise has
covariance V_n + diag(tau^2), V_n as stated in the catalogue; all in scaled labels.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import NamedTuple, Self

import numpy as np

from ...core.priors import Learned
from ...numerics.compress import Statistics
from ...numerics.features import Features
from ...numerics.linalg import Array, inverse_observed, inverse_psd
from ...numerics.mixture import Mixture
from ...numerics.population import moved
from ...numerics.quartics import settle
from ...numerics.regression import CoefficientPrior
from .model import LinearModel, MeasuredLabels

PINNED = 1e10
"""Precision, in scaled labels, of a label that is exact."""


class Moving(NamedTuple):
    """Sums over stars from which a move of the latents follows, and their population.

    n: of the stars; first (P,), second (P, P): of E[u] and E[u u']; gram (M, P + 1, P + 1), right (M, P + 1): normal
    equations of what the catalogue has beyond u on (1, u), where labels are latents.
    """

    n: Array
    first: Array
    second: Array
    gram: Array
    right: Array


System = tuple[np.ndarray, np.ndarray | None]


class LabelSums(NamedTuple):
    """Sums over stars from which tau and C follow.

    slope, fisher (M,): of the expected log density of the labels, in tau^2, less its prior; total (M, K, M, K), linear
    (M, K): normal equations of C, where labels are outputs.
    """

    slope: Array
    fisher: Array
    total: Array
    linear: Array

    def moved(self, forth: np.ndarray) -> LabelSums:
        """The same sums for the features forth phi."""
        total = np.einsum("ka,iajb,lb->ikjl", forth, self.total, forth, optimize=True)
        return self._replace(total=total, linear=self.linear @ forth.T)


class CatalogueLabels(ABC):
    """The catalogue's labels in the training step, and what is learned of them.

    Attributes:
        tau2: (M,), square of the label scatter.
        coefficients: C (M, K); 0 where the labels measure the latents themselves.
        noisy: whether there is noise at all; if not, labels that are present are exact.
        width: sd of the Normal prior of C; scatter_width: of the half-normal one of tau.
    """

    def __init__(self, model: LinearModel, catalogue: MeasuredLabels):
        self.features, self.catalogue = model.features, catalogue
        self.noisy, self.width = model.integrates_labels, model.label_coefficient_width
        self.scatter_width = model.label_scatter_width
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
    def move(self, sums: Moving) -> tuple[np.ndarray, np.ndarray] | None:
        """u -> A u + c, A (P, P) and c (P,), that leaves every predicted flux as it is, the coefficients moving along,
        and is nearer to the mode (parameter-expanded EM, Liu+98); None: no move."""

    @abstractmethod
    def carry(self, forth: np.ndarray, prior: CoefficientPrior) -> CoefficientPrior:
        """The prior of theta after a move of the latents under which phi(u) becomes forth phi(u); C moves along."""

    def moving(self, u: Array, covariance: Array, counts: Array) -> Moving:
        """Over the stars that count (N,); labels of the others are not observed."""
        m, p = self.catalogue.observed.shape[1], u.shape[1]
        second = (u * counts[:, None]).T @ u + np.einsum("n,npq->pq", counts, covariance)
        return Moving(counts.sum(), counts @ u, second, np.zeros((m, p + 1, p + 1)), np.zeros((m, p + 1)))

    def sums(self, u: Array, covariance: Array, phi: Array, second: Array) -> LabelSums:
        """phi (N, K), second (N, K, K): E[phi], E[phi phi']."""
        _, noise, observed = self.catalogue
        m, k = self.coefficients.shape
        slope = fisher = np.zeros(m)
        if self.noisy:
            slope, fisher = _scatter_slopes(self.tau2, self._second(u, covariance), noise, observed)
        return LabelSums(slope, fisher, np.zeros((m, k, m, k)), np.zeros((m, k)))

    @abstractmethod
    def system(self, u: np.ndarray, gram: Array, linear: Array, n_star: int) -> System:
        """Covariance (M, K, M, K) of the label system; and the part of its precision, of these N stars alone, that the
        spectra tell, None: nothing.

        u (N, P): latents; gram (N, K, K), linear (N, K): what the spectra say of phi_n; n_star: of the training stars,
        for which these N stand.
        """

    def of_stars(self, catalogue: MeasuredLabels) -> Self:
        """The same of other stars."""
        other = copy.copy(self)
        other.catalogue = catalogue
        return other

    def seen(self, u: Array, covariance: Array, slope: np.ndarray, offset: np.ndarray) -> tuple[Array, Array]:
        """Latents of which `of` gives the labels after a move: theirs before it, where C moves along."""
        return u, covariance

    def settle(
        self, u: Array, covariance: Array, prior: CoefficientPrior, population: Mixture
    ) -> tuple[Array, Array, CoefficientPrior, Mixture]:
        """The `move` of latents u (N, P) with covariance (N, P, P), and prior of theta and population after it."""
        move = self.move(self.moving(u, covariance, np.ones(len(u))))
        if move is None:
            return u, covariance, prior, population
        slope, offset = move
        prior = self.carry(moved_features(self.features, slope, offset), prior)
        return u @ slope.T + offset, slope @ covariance @ slope.T, prior, moved(population, slope, offset)

    def precision(self) -> Array:
        """(N, M, M): of the catalogue labels about the true ones."""
        _, noise, observed = self.catalogue
        if not self.noisy:
            return _pinned(observed)
        return inverse_observed(noise + np.eye(observed.shape[1]) * self.tau2, observed)

    def log_density(self, u: Array) -> np.ndarray:
        """ln p(catalogue labels | u) (N,), up to a constant."""
        precision, observed = self.precision(), self.catalogue.observed
        offset = np.where(observed, self.catalogue.value - self.of(u), 0.0)
        full = precision + np.eye(observed.shape[1]) * ~observed[:, :, None]
        return 0.5 * np.linalg.slogdet(full)[1] - 0.5 * ((offset[:, None] @ precision)[:, 0] * offset).sum(1)

    def log_prior(self) -> float:
        """ln p(C, tau), up to a constant."""
        return -0.5 * float((self.coefficients**2).sum() / self.width**2 + self.tau2.sum() / self.scatter_width**2)

    def learn_scatter(self, u: np.ndarray, covariance: np.ndarray) -> None:
        """Mode of tau given the latents' means (N, P) and covariances (N, P, P)."""
        if self.noisy:
            _, noise, observed = self.catalogue
            second = self._second(u, covariance)
            self.tau2 = scatter_of_labels(self.tau2, second, noise, observed, self.scatter_width)

    def learn_from(self, sums: LabelSums) -> None:
        """tau, a step towards its mode, and C, from sums over all stars."""
        if self.noisy:
            log_tau2 = np.log(np.maximum(self.tau2, SMALLEST_TAU2))
            self.tau2 = np.exp(_scatter_move(log_tau2, sums.slope, sums.fisher, self.scatter_width))

    def _second(self, u: Array, covariance: Array) -> np.ndarray:
        """Second moments (N, M, M) of the catalogue labels about the true ones."""
        value, _, observed = self.catalogue
        offset = np.where(observed, value - self.of(u), 0.0)
        return offset[:, :, None] * offset[:, None, :] + self.spread(covariance)


class LatentLabels(CatalogueLabels):
    """Catalogue labels that measure the latents themselves, exactly or with noise."""

    def __init__(self, model: LinearModel, catalogue: MeasuredLabels):
        super().__init__(model, catalogue)
        features = self.features
        bounded = np.isfinite(model.coefficient_bounds()).any() or not model.allowed().all()
        self.movable = self.noisy and features.closed and not bounded and isinstance(model.prior, Learned)
        self.curve = model.label_features

    def of(self, u: Array) -> np.ndarray:
        return np.asarray(u)

    def spread(self, covariance: Array) -> np.ndarray:
        return np.asarray(covariance)

    def on_latents(self, precision: Array) -> tuple[Array, Array]:
        return precision, np.einsum("nmk,nk->nm", precision, self.catalogue.value)

    def learn_coefficients(self, phi: Array, second: Array) -> None:
        """There are none."""

    def moving(self, u: Array, covariance: Array, counts: Array) -> Moving:
        design = np.concatenate([np.ones((len(u), 1)), u], 1)
        weight = np.einsum("nmm->nm", self.precision()) * self.catalogue.observed
        residual = np.where(self.catalogue.observed, self.catalogue.value - u, 0.0)
        spread = np.pad(covariance, ((0, 0), (1, 0), (1, 0)))  # of (1, u)
        second = design[:, :, None] * design[:, None, :] + spread
        gram = (weight.T @ second.reshape(len(u), -1)).reshape(-1, *second.shape[1:])
        right = (weight * residual).T @ design - np.einsum("nm,nmj->mj", weight, spread[:, 1:])
        return super().moving(u, covariance, counts)._replace(gram=gram, right=right)

    def move(self, sums: Moving) -> tuple[np.ndarray, np.ndarray] | None:
        """u -> u + g (1, u), each g the weighted least-squares fit of the catalogue to the latents' moments."""
        if not self.movable:
            return None
        m = len(sums.right)
        g = np.linalg.solve(sums.gram + 1e-9 * np.eye(m + 1), sums.right[..., None])[..., 0]
        return np.eye(m) + g[:, 1:], g[:, 0]

    def carry(self, forth: np.ndarray, prior: CoefficientPrior) -> CoefficientPrior:
        return prior

    def seen(self, u: Array, covariance: Array, slope: np.ndarray, offset: np.ndarray) -> tuple[Array, Array]:
        return u @ slope.T + offset, slope @ covariance @ slope.T

    def system(self, u: np.ndarray, gram: Array, linear: Array, n_star: int) -> System:
        if not self.noisy:
            m, k = len(self.coefficients), self.curve.size
            return np.zeros((m, k, m, k)), None
        stars = self.features, self.curve, u, self.precision(), self.catalogue.observed
        catalogue, spectra, exact = label_system_precision(*stars, gram.mean(0))
        times = n_star / len(u)
        return _inverted(times * (catalogue + spectra)) - _inverted(times * exact), spectra


class LabelOutputs(CatalogueLabels):
    """Catalogue labels that are outputs of the latents, as the flux is."""

    def __init__(self, model: LinearModel, catalogue: MeasuredLabels):
        super().__init__(model, catalogue)
        self.movable = isinstance(model.prior, Learned) and bool(model.allowed().all())
        origin = np.zeros(self.features.n_label)
        self.at_zero, self.jacobian = self.features(origin), self.features.jacobian(origin)

    @property
    def slope(self) -> np.ndarray:
        """d label / d u, (M, P)."""
        return self.coefficients @ self.jacobian

    def on_latents(self, precision: Array) -> tuple[Array, Array]:
        return outputs_on_latents(self.catalogue.value, precision, self.coefficients, self.at_zero, self.jacobian)

    def of(self, u: Array) -> np.ndarray:
        return self.features(u) @ self.coefficients.T

    def spread(self, covariance: Array) -> np.ndarray:
        return self.slope @ covariance @ self.slope.T

    def learn_coefficients(self, phi: Array, second: Array) -> None:
        value = self.catalogue.value
        self.coefficients = regress_labels(value, self.precision(), phi, second, self.width)[0]

    def sums(self, u: Array, covariance: Array, phi: Array, second: Array) -> LabelSums:
        total, linear = regression_of_labels(self.catalogue.value, self.precision(), phi, second)
        return super().sums(u, covariance, phi, second)._replace(total=total, linear=linear)

    def learn_from(self, sums: LabelSums) -> None:
        super().learn_from(sums)
        self.coefficients = _solve_regression(sums.total, sums.linear, self.width)[0]

    def move(self, sums: Moving) -> tuple[np.ndarray, np.ndarray] | None:
        """Latents of mean 0 and covariance I, as their prior has it."""
        if not self.movable:
            return None
        n, first, second = sums[:3]
        centre = first / n if self.at_zero.any() else np.zeros(len(first))
        about = second / n - np.outer(centre, first / n) - np.outer(first / n, centre) + np.outer(centre, centre)
        slope = np.linalg.inv(np.linalg.cholesky(about))
        return slope, -slope @ centre

    def carry(self, forth: np.ndarray, prior: CoefficientPrior) -> CoefficientPrior:
        """Predicted fluxes and labels stay as they are."""
        self.coefficients = self.coefficients @ np.linalg.inv(forth)
        return prior._replace(precision=forth @ prior.precision @ forth.T, mean=np.linalg.solve(forth.T, prior.mean))

    def system(self, u: np.ndarray, gram: Array, linear: Array, n_star: int) -> System:
        """Covariance of C, from what the labels say of every star's latents as its flux alone has them.

        label_n | flux_n ~ N(C E[phi_n], V_n + tau^2 + slope Cov(u_n | flux_n) slope'). Given the latents, which the
        labels themselves help to find, they would seem to say more.
        """
        eye, blank = np.broadcast_to(np.eye(u.shape[1]), (len(u), u.shape[1], u.shape[1])), np.zeros(len(u))
        flux = Statistics(gram, linear, blank, blank, blank)
        mean, spread = settle(u, flux, eye, np.zeros(u.shape), self.features, 0)
        phi = self.features(mean)
        value, noise, observed = self.catalogue
        total = noise + np.diag(self.tau2 + 1e-10) + self.slope @ spread @ self.slope.T
        precision = inverse_observed(total, observed)
        second, times = phi[:, :, None] * phi[:, None, :], n_star / len(u)
        return regress_labels(value, precision, phi, second, self.width, times)[1], None


def outputs_on_latents(
    value: Array, precision: Array, coefficients: Array, at_zero: Array, jacobian: Array
) -> tuple[Array, Array]:
    """Precision (N, P, P) and information (N, P) of the latents from labels (N, M) of precision (N, M, M)."""
    slope = coefficients @ jacobian
    half = slope.T @ precision
    return half @ slope, (half @ (value - coefficients @ at_zero)[..., None])[..., 0]


def regress_labels(
    value: Array, precision: Array, phi: Array, second: Array, width: float, times: float = 1.0
) -> tuple[Array, Array]:
    """C (M, K) of value_n = C phi_n + N(0, precision_n^-1), C ~ N(0, width^2), and its covariance (M, K, M, K).

    times: how many stars each stands for.
    """
    total, linear = regression_of_labels(value, precision, phi, second)
    return _solve_regression(times * total, times * linear, width)


def regression_of_labels(value: Array, precision: Array, phi: Array, second: Array) -> tuple[Array, Array]:
    """Normal equations (M, K, M, K) and (M, K) of C."""
    (n, m), k = value.shape, phi.shape[1]
    total = (precision.reshape(n, m * m).T @ second.reshape(n, k * k)).reshape(m, m, k, k)
    return np.moveaxis(total, 2, 1), (precision @ value[..., None])[..., 0].T @ phi


def _solve_regression(total: Array, linear: Array, width: float) -> tuple[Array, Array]:
    m, k = linear.shape
    covariance = inverse_psd(total.reshape(m * k, m * k) + np.eye(m * k) / width**2)
    return (covariance @ linear.reshape(m * k)).reshape(m, k), covariance.reshape(m, k, m, k)


def moved_features(features: Features, slope: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """T (K, K) of phi(slope u + offset) = T phi(u): all monomials up to an order, or linear ones without offset."""
    nodes = np.random.default_rng(0).uniform(-2, 2, (4 * features.size, features.n_label))
    return np.linalg.lstsq(features(nodes), features(nodes @ slope.T + offset), rcond=None)[0].T


def label_system_precision(
    features: Features, psi: Features, u: np.ndarray, precision: np.ndarray, observed: np.ndarray, flux_gram: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision (M, K, M, K) of the label system, of g_m where every true label is u_m + g_m . psi(u): what the
    catalogue says of it, what the spectra do, and both together if the catalogue's labels were exact.

    However many pixels a spectrum has, the system of labels is only as well known as N noisy catalogue labels fix it.
    This uncertainty is common to all stars. With F_n = J_n' W J_n, all that a spectrum says of the labels of its star,

        sum_n psi_n (P_n^-1 + F_n^-1)^-1 psi_n'  +  sum_n h_n' [W - W J_n (F_n + P_n)^-1 J_n' W] h_n,

    the first term from the catalogue, as far as its labels are not needed to find those of the star; the second from
    the spectra: h_n (K, M K') is the change of phi(u_n) under a move of the label system, less what new coefficients
    absorb; the bracket leaves out what star n's own labels absorb. What is left of its inverse if labels are exact is
    the noise of the spectra, which the coefficients' own covariance has already.

    u (N, M): training labels; precision P (N, M, M) of the catalogue labels, observed (N, M); flux_gram W = sum_l w_l
    theta_l theta_l' (K, K).
    """
    step = max(1, len(u) // 1500)
    u, precision, observed = u[::step], precision[::step], observed[::step]
    n, m = u.shape
    phi, jacobian, bend = features(u), features.jacobian(u), psi(u)
    k = bend.shape[1]
    move = np.einsum("njm,nk->njmk", jacobian, bend).reshape(n, -1)
    move -= phi @ np.linalg.lstsq(phi, move, rcond=None)[0]
    move = move.reshape(n, phi.shape[1], m * k)
    along = np.swapaxes(jacobian, 1, 2) @ flux_gram
    fisher, shift, flat = along @ jacobian, along @ move, move.reshape(-1, m * k)
    bends = (bend[:, :, None] * bend[:, None, :]).reshape(n, k * k)
    resisted = flat.T @ (flux_gram @ move).reshape(-1, m * k)

    def told(precision: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        own = np.linalg.inv(fisher + precision + 1e-9 * np.eye(m))
        weight = fisher - fisher @ own @ fisher
        catalogue = np.moveaxis((weight.reshape(n, m * m).T @ bends).reshape(m, m, k, k), 2, 1)
        return step * catalogue, step * (resisted - _summed(shift, own @ shift)).reshape(m, k, m, k)

    exact = np.add(*told(_pinned(observed)))
    return *told(precision), exact


def _pinned(observed: np.ndarray) -> np.ndarray:
    """Precision (N, M, M) of exact labels, of which these (N, M) are observed."""
    return PINNED * np.eye(observed.shape[1]) * observed[:, :, None]


def _summed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """sum_n a_n' b_n of (N, M, J)."""
    return a.reshape(-1, a.shape[2]).T @ b.reshape(-1, b.shape[2])


def _inverted(precision: np.ndarray) -> np.ndarray:
    """Covariance (M, K, M, K) of a system that may be known in some directions only."""
    m, k = precision.shape[:2]
    total = precision.reshape(m * k, m * k)
    ridge = 1e-10 * np.trace(total) / len(total) + 1e-10
    return np.linalg.inv(total + ridge * np.eye(len(total))).reshape(m, k, m, k)


SMALLEST_TAU2 = 1e-12


def _scatter_slopes(tau2: Array, second: Array, noise: Array, observed: Array) -> tuple[Array, Array]:
    """Slope and Fisher information (M,) of minus the expected log density of the labels, in tau^2, halves left out.

    second (N, M, M): second moments of the catalogue's labels about the true ones; noise (N, M, M) as stated.
    """
    precision = inverse_observed(noise + np.eye(len(tau2)) * tau2, observed)
    diagonal = np.einsum("nmm->nm", precision)
    explained = ((precision @ second) * precision).sum(2)
    return (diagonal - explained).sum(0), (diagonal**2).sum(0)


def _scatter_move(log_tau2: Array, slope: Array, fisher: Array, width: float) -> Array:
    """A Newton step in ln tau^2 (M,) with the prior HalfNormal(width), scaled."""
    t = np.exp(log_tau2)
    prior = 0.5 * t / width**2
    gradient, curvature = 0.5 * t * slope + prior, 0.5 * t**2 * fisher + prior
    return np.clip(log_tau2 - np.clip(gradient / curvature, -1.5, 1.5), np.log(1e-10), 4.0)


def scatter_of_labels(tau2: Array, second: Array, noise: Array, observed: Array, width: float) -> Array:
    """Newton steps in ln tau_m^2 on the expected log density of the catalogue labels."""
    log_tau2 = np.log(np.maximum(tau2, SMALLEST_TAU2))
    for _ in range(8):
        slope, fisher = _scatter_slopes(np.exp(log_tau2), second, noise, observed)
        before, log_tau2 = log_tau2, _scatter_move(log_tau2, slope, fisher, width)
        if np.abs(log_tau2 - before).max(initial=0.0) < 1e-9:
            break
    return np.exp(log_tau2)


def labels_at(u: np.ndarray, coefficients: np.ndarray, psi: Features) -> tuple[np.ndarray, np.ndarray]:
    """u + C psi(u) at u (N, M), and its slope (N, M, M)."""
    return u + psi(u) @ coefficients.T, np.eye(u.shape[-1]) + coefficients @ psi.jacobian(u)


def variables_at(labels: np.ndarray, coefficients: np.ndarray, psi: Features) -> np.ndarray:
    """u (N, M) of u + C psi(u) = labels, by Newton steps from u = labels; NaN where they do not get there."""
    u, left = np.array(labels), np.flatnonzero(np.isfinite(labels).all(1))
    for _ in range(40):
        at, slope = labels_at(u[left], coefficients, psi)
        rest = labels[left] - at
        far = np.abs(rest).max(1) > 1e-13
        if not far.any():
            break
        left, rest, slope = left[far], rest[far], slope[far]
        normal = np.swapaxes(slope, 1, 2)
        move = np.linalg.solve(normal @ slope + 1e-9 * np.eye(u.shape[1]), normal @ rest[..., None])[..., 0]
        u[left] += np.clip(move, -0.5, 0.5)
    with np.errstate(invalid="ignore"):
        off = np.abs(labels_at(u, coefficients, psi)[0] - labels).max(1)
        return np.where((off < 1e-6)[:, None], u, np.nan)
