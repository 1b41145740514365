"""Two dust vectors: the integral over the shape of a star's extinction curve, beside distance modulus and reddening.

    m = M + mu 1 + E (R + x R_2) + F z + N(0, diag(D)),   x ~ N(0, 1),   z ~ N(0, I)

Given x this is `dusty`'s density with R + x R_2 for R, whose quadratic in (mu, E) is a polynomial in x: the bands are
gone through once. x is integrated out by Gauss-Hermite quadrature, centred where the linear model at a first estimate
of E puts it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from .dusty import Others, Quadratic, about_reddening, log_marginal, near, quadratic_and_rest, rule, scattered
from .linalg import Array
from .whitening import Noise

NODES = 9
"""In x."""


def second_vector(free: Array, log_vector: Array) -> Array:
    """R_2 (..., B): what of a free vector is at right angles to R at the median labels, whose part E measures."""
    vector = jnp.exp(log_vector)
    along = (free * vector).sum(-1, keepdims=True) / (vector**2).sum(-1, keepdims=True)
    return free - along * vector


def of_shape(columns: Array, factors: Array, noise: Noise, mu_0: Array, e_0: Array, x: Array) -> Quadratic:
    """`dusty.quadratic_and_rest` of R + x R_2 at x (K, ...), of stars (...); columns (..., 4, B): R_2's is the last."""
    return _at(*quadratic_and_rest(columns, factors, noise, mu_0, e_0), x)


def _at(q: Quadratic, rest: Array, x: Array) -> Quadratic:
    on_one, on_r, on_rest, square = ((rest[..., 3, :] * rest[..., i, :]).sum(-1) for i in range(4))
    y = q.e_0 * x
    return Quadratic(
        q.a_mu, q.a_both + x * on_one, q.a_e + x * (2 * on_r + x * square), q.b_mu - y * on_one,
        q.b_e + x * on_rest - y * (on_r + x * square), q.log_norm + y * (on_rest - 0.5 * y * square), q.mu_0, q.e_0,
    )  # fmt: skip


def log_marginal_of_both(q: Quadratic, rest: Array, sd: Array, others: Others) -> Array:
    """ln p(data) (...), x, E and mu integrated out, of what `dusty.quadratic_and_rest` has of columns of which the
    fourth is R_2's; sd (...): scatter of mu."""
    centre, width = jax.lax.stop_gradient(_where(q, rest, others))
    t, log_w = (jnp.asarray(a, centre.dtype).reshape(-1, *[1] * centre.ndim) for a in rule(NODES))
    x = centre + width * t
    at = jax.tree.map(lambda a: jnp.broadcast_to(a, x.shape), scattered(_at(q, rest, x), sd))
    terms = log_marginal(at, others) + log_w - 0.5 * x**2
    return jax.scipy.special.logsumexp(terms, axis=0) + jnp.log(width) - 0.5 * np.log(2 * np.pi)


def _where(q: Quadratic, rest: Array, others: Others) -> tuple[Array, Array]:
    """Mean and sd of x if everything is Gaussian: mu free, E about its own first estimate."""
    dot = lambda i, j: (rest[..., i, :] * rest[..., j, :]).sum(-1)  # noqa: E731
    weight = others.reddening_weight**2
    a_mu = jnp.maximum(q.a_mu, 1e-6)
    hold, pull, firm = about_reddening(q, others)
    p = jnp.maximum(q.a_e - q.a_both**2 / a_mu, 0.0) + weight + firm
    e = near(q, others)[1]
    # x at that E, which may move on by its sd; the residual is that at E
    left = lambda i, j: dot(i, j) - dot(i, 0) * dot(j, 0) / a_mu  # noqa: E731
    off = e - q.e_0
    of_x, both = e**2 * left(3, 3), e * left(1, 3)
    h_x = e * (left(3, 2) - off * left(3, 1))
    h_e = left(1, 2) - off * left(1, 1) + weight * (others.reddening - e) + pull - hold * e
    precision = 1 + of_x - both**2 / p
    return (h_x - both * h_e / p) / precision, 1 / jnp.sqrt(precision)
