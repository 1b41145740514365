"""Labels that are a smooth function of the variables in which the spectra are polynomials.

    label_n = u_n + C psi(u_n) + N(0, V_n + diag(tau^2))        scaled labels, psi(u) monomials

Spectra of lines that saturate are no polynomials of the labels, but nearly polynomials of other variables. Their
precise spectra pull the training stars' u_n towards these, by far more than noisy catalogue labels resist, and errors
of u_n that many stars share are no errors but a bend of the coordinates: C, learned from all training stars.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ..linear import LinearModel
from ..numerics.features import Monomials
from ..numerics.linalg import in_float64, inverse_observed
from ..stars import Stars
from .base import Moments, Trained
from .labels import labels_at, regress_labels, scatter_of_labels
from .quartic import prepare

ITERATIONS = 30
"""Of C and tau in turn: far more than they take to settle."""


@in_float64
def learn_label_curve(model: LinearModel, moments: Moments, stars: Stars) -> tuple[Moments, np.ndarray]:
    """Moments with mean and covariance of C given the rest, and tau: generalised least squares.

    u_n has the posterior N(m_n, S_n) that its spectrum alone gives it, so that the catalogue label has mean m_n + C
    psi(m_n) and covariance V_n + diag(tau^2) + J_n S_n J_n', J_n = d label / d u. tau is at its restricted maximum
    likelihood, C integrated out.

    What the labels of a catalogue with stated errors scatter beyond them is taken for an error of u_n, which spectra
    that are not quite polynomials of anything have: in the moments tau is then 0, and tau^2 part of every star's
    covariance. Of labels without stated errors it is the noise, of which held-out labels tell better. N labels of
    noise sigma do not tell tau = 0 from sigma (2 / N)^(1/4): error bars may be too large by as much.
    """
    psi = model.label_features
    flat = _straight(moments, psi)
    modes = prepare(model, flat, stars.drop(*model.label_blocks), 0).modes
    catalogue = model.catalogue(stars)
    value, noise, observed = map(jnp.asarray, catalogue)
    u, spread = jnp.asarray(modes.location[0]), jnp.asarray(modes.covariance[0])
    usable = jnp.asarray(modes.converged[0]) & jnp.isfinite(u).all(1)
    at = jnp.where(usable[:, None], u, 0.0)
    c, covariance, tau2 = _regress(
        value, noise, observed & usable[:, None], at, spread, model.label_scatter_width, psi, ITERATIONS
    )
    stated = catalogue.stated
    system, tau2, constant = np.array(covariance), np.asarray(tau2), psi.exponents.index((0,) * psi.n_label)
    for m in np.flatnonzero(stated):
        system[m, constant, m, constant] += tau2[m]
    tau = np.sqrt(tau2) * model.require_frame().scale
    left = np.where(stated, 0.0, tau)
    return moments._replace(label_scatter=left, label_coefficients=np.asarray(c), label_system_covariance=system), tau


def with_label_curve(model: LinearModel, trained: Trained, stars: Stars) -> Trained:
    """A point estimate with C and tau, and true labels to match, if the labels are a curve; stars: some will do."""
    if not model.label_curve:
        return trained
    assert trained.moments is not None
    frame = model.require_frame()
    moments, tau = learn_label_curve(model, trained.moments, stars)
    changed = {"label_curve": moments.label_coefficients, "label_scatter": tau}
    if "true_labels" in trained.draws:
        true = labels_at(moments.training_u, moments.label_coefficients, model.label_features)[0]
        changed["true_labels"] = frame.physical(np.asarray(true))
    draws = trained.draws | {name: x[None, None] for name, x in changed.items()}
    return Trained(draws, moments, trained.stats, trained.traces)


def _straight(moments: Moments, psi: Monomials) -> Moments:
    """The labels being u itself."""
    m, k = len(moments.label_scatter), psi.size
    return moments._replace(label_coefficients=np.zeros((m, k)), label_system_covariance=np.zeros((m, k, m, k)))


@functools.partial(jax.jit, static_argnames=("psi", "iterations"))
def _regress(value, noise, observed, u, spread, width, psi: Monomials, iterations: int):
    """C (M, K), its covariance (M, K, M, K) and tau^2 (M,), in turn."""
    m, k = u.shape[1], psi.size
    phi, slope = psi(u), psi.jacobian(u)
    outer = phi[:, :, None] * phi[:, None, :]
    eye, target = jnp.eye(m), jnp.where(observed, value - u, 0.0)

    def step(state, _):
        c, _, tau2 = state
        jacobian = eye + jnp.einsum("mk,nkj->nmj", c, slope)
        total = noise + jacobian @ spread @ jnp.swapaxes(jacobian, 1, 2)
        precision = inverse_observed(total + eye * tau2, observed)
        c, covariance = regress_labels(target, precision, phi, outer, 1.0)
        of_c = jnp.einsum("nk,mkjl,nl->nmj", phi, covariance, phi)
        residual = jnp.where(observed, target - phi @ c.T, 0.0)
        second = residual[:, :, None] * residual[:, None, :] + of_c
        return (c, covariance, scatter_of_labels(tau2, second, total, observed, width)), None

    start = (jnp.zeros((m, k)), jnp.zeros((m, k, m, k)), jnp.full(m, 1e-2))
    return jax.lax.scan(step, start, None, length=iterations)[0]
