"""Labels that are a smooth function of the variables in which the spectra are polynomials.

    label_n = u_n + C psi(u_n) + N(0, V_n + diag(tau^2))        scaled labels, psi(u) monomials

Spectra of lines that saturate are no polynomials of the labels, but nearly polynomials of other variables. Their
precise spectra pull the training stars' u_n towards these, by far more than noisy catalogue labels resist, and errors
of u_n that many stars share are no errors but a bend of the coordinates: C, learned from all training stars.

If the polynomial is right, the spectra themselves resist a bend, with the precision Q of the label system that the
training step knows (`labels.label_system_precision`); if it is not, that says little. The training step ends where
spectra and catalogue pull equally hard, the catalogue by g: the spectra alone would have C = -Q^-1 g. So C ~ N(-Q^-1 g,
(Q / kappa)^-1), and kappa, how little the form of the spectra is to be believed, is learned from g: 1, which leaves C
at 0, where the two differ by no more than their errors, large for a catalogue that asks for a bend.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigh

from ...data.stars import Stars
from ...inference.base import Trained
from ...numerics.features import Features
from ...numerics.linalg import Array, in_float64, inverse_observed, inverse_psd
from .labels import labels_at, regression_of_labels, scatter_of_labels
from .model import LinearModel
from .moments import Moments
from .quartic import prepare

ITERATIONS = 30
"""Iterations of C and tau in turn: far more than they take to settle."""
DOUBTS = 10.0 ** (np.arange(17) / 2)
"""kappa: what is tried."""
CLEARLY = 3.0
"""Log evidence, in nats, by which a larger kappa must be better."""
CURVE = "label_curve"
"""The site of C."""


@in_float64
def learn_label_curve(model: LinearModel, moments: Moments, stars: Stars) -> tuple[Moments, float]:
    """Moments with tau, mean and covariance of C given the rest: generalised least squares; and kappa. Where that is 1
    the moments are those of the training step.

    u_n has the posterior N(m_n, S_n) that its spectrum alone gives it, so that the catalogue label has mean m_n + C
    psi(m_n) and covariance V_n + diag(tau^2) + J_n S_n J_n', J_n = d label / d u. tau is at its restricted maximum
    likelihood, C integrated out.

    N labels of noise sigma do not tell tau = 0 from sigma (2 / N)^(1/4).
    """
    psi = model.label_features
    size = model.label_features.size * len(moments.label_scatter)
    resisted = np.zeros((size, size))
    if moments.label_resistance is not None:
        resisted = moments.label_resistance.reshape(size, size)
    modes = prepare(model, _straight(moments), stars.drop(*model.label_blocks), 0).modes
    value, noise, observed = model.catalogue(stars)
    u, spread = modes.location[0], modes.covariance[0]
    usable = modes.converged[0] & np.isfinite(u).all(1)
    at = np.where(usable[:, None], u, 0.0)
    given = value, noise, observed & usable[:, None], at, spread, model.label_scatter_width
    kappa, pull, prior = 1.0, np.zeros(size), resisted
    if resisted.any():
        tau2 = (moments.label_scatter / model.require_frame().scale) ** 2
        gram, pull = _normal_equations(*given[:-1], tau2, psi)
        kappa = doubt_of(resisted, gram, pull)
        if kappa == 1.0:
            return moments, kappa
        pull, prior = pull / kappa, resisted / kappa
    c, covariance, tau2 = _regress(*given, prior + np.eye(size), pull, psi)
    tau = np.sqrt(tau2) * model.require_frame().scale
    learned = {"label_scatter": tau, "label_coefficients": c, "label_system_covariance": covariance}
    return moments._replace(**learned), kappa


def with_label_curve(model: LinearModel, trained: Trained, stars: Stars) -> Trained:
    """A point estimate with C and tau, and true labels to match, if the labels are a curve that training has not drawn;
    stars: some will do."""
    if not model.label_curve or CURVE in trained.draws:
        return trained
    assert trained.moments is not None
    frame = model.require_frame()
    moments, kappa = learn_label_curve(model, trained.moments, stars)
    changed = {CURVE: moments.label_coefficients, "label_scatter": moments.label_scatter}
    if "true_labels" in trained.draws:
        true = labels_at(moments.training_u, moments.label_coefficients, model.label_features)[0]
        changed["true_labels"] = frame.physical(true)
    head = next(iter(trained.draws.values())).shape[:2]
    draws = trained.draws | {name: np.broadcast_to(x, (*head, *x.shape)) for name, x in changed.items()}
    return Trained(draws, moments, trained.stats | {"label_curve_doubt": kappa}, trained.traces)


def _straight(moments: Moments) -> Moments:
    """The labels being u itself."""
    system = moments.label_system_covariance
    blank = {"label_coefficients": np.zeros(system.shape[:2]), "label_system_covariance": np.zeros(system.shape)}
    return moments._replace(**blank)


def _regress(
    value: Array,
    noise: Array,
    observed: Array,
    u: Array,
    spread: Array,
    width: float,
    prior: Array,
    pull: Array,
    psi: Features,
) -> tuple[Array, Array, Array]:
    """C (M, K), its covariance (M, K, M, K) and tau^2 (M,), in turn; prior (M K, M K) and pull (M K,): C has the prior
    N(-prior^-1 pull, prior^-1)."""
    m, k = u.shape[1], psi.size
    phi, slope, target = psi(u), psi.jacobian(u), np.where(observed, value - u, 0.0)
    outer = phi[:, :, None] * phi[:, None, :]
    c, tau2 = np.zeros((m, k)), np.full(m, 1e-2)
    for _ in range(ITERATIONS):
        jacobian = np.eye(m) + c @ slope
        total = noise + jacobian @ spread @ np.swapaxes(jacobian, 1, 2)
        precision = inverse_observed(total + np.eye(m) * tau2, observed)
        gram, linear = regression_of_labels(target, precision, phi, outer)
        covariance = inverse_psd(gram.reshape(m * k, m * k) + prior)
        c = (covariance @ (linear.reshape(m * k) - pull)).reshape(m, k)
        covariance = covariance.reshape(m, k, m, k)
        both = np.moveaxis(covariance, 2, 1).reshape(m * m, k * k)
        residual = np.where(observed, target - phi @ c.T, 0.0)
        second = residual[:, :, None] * residual[:, None, :] + (outer.reshape(len(u), -1) @ both.T).reshape(-1, m, m)
        tau2 = scatter_of_labels(tau2, second, total, observed, width)
    return c, covariance, tau2


def _normal_equations(
    value: Array, noise: Array, observed: Array, u: Array, spread: Array, tau2: Array, psi: Features
) -> tuple[Array, Array]:
    """Minus the curvature (M K, M K) and the slope (M K,) of the catalogue's log density in C at C = 0."""
    phi, target = psi(u), np.where(observed, value - u, 0.0)
    precision = inverse_observed(noise + spread + np.eye(u.shape[1]) * tau2, observed)
    gram, linear = regression_of_labels(target, precision, phi, phi[:, :, None] * phi[:, None, :])
    return gram.reshape(linear.size, linear.size), linear.ravel()


def doubt_of(resisted: np.ndarray, gram: np.ndarray, pull: np.ndarray) -> float:
    """kappa, from the spectra's resistance (J, J), the catalogue's precision G (J, J) and its pull g (J,) on C at the
    training step's end.

    There the spectra pull as hard the other way. In directions in which G is the identity and the resistance q, the
    optimum of the catalogue alone is g away, that of the spectra alone -g / q, and these differ by N(0, 1 + kappa / q):
    g ~ N(0, q (q + kappa) / (q + 1)^2). What the regression and the training step do not share adds about 1.
    """
    gram = gram + 1e-9 * np.trace(gram) / len(gram) * np.eye(len(gram))
    q, directions = eigh(resisted, gram)
    q, g = np.maximum(q, 0.0), directions.T @ pull

    def log_density(kappa: float) -> float:
        variance = q * (q + kappa) / (q + 1) ** 2 + 1
        return -0.5 * float((np.log(variance) + g**2 / variance).sum())

    best = 1.0
    for kappa in DOUBTS:
        if log_density(kappa) > log_density(best) + CLEARLY:
            best = float(kappa)
    return best
