"""What the stars that each member of an ensemble left out say of a `Translator`'s errors, and of the stated ones.

Scatter learned from the stars that the function was fitted to is too small, the more the fewer they are. Scatter and
the factor k of the stated errors make one variance, s^2 + k^2 sigma^2. A training step by minibatches finds the sum
long before the parts: it leaves k where it starts, and both are settled here, at the mode

    maximise  sum_n ln p(y_n | theta_e, s exp(shift), k) + ln N(shift; 0, 0.5^2) + ln p(k)
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import OptimizeResult, minimize

from ...core.model import Bound
from ...data.stars import Stars
from ...inference.base import Trained
from ...kind import TrainedModel
from ...numerics.compiling import jit
from ...numerics.linalg import Array, in_float64
from .frame import TARGET, typical_error
from .translator import Translator, TranslatorData, TranslatorMoments

SPREAD = "held_out_spread"
"""Key of `info`: how far held-out labels are off, in units of their errors."""
DOUBTFUL, TOO_SMALL = 1.5, 0.6
"""Factor by which stated errors of outputs are off, and `SPREAD`, from which the user is told."""
SHIFT = 0.5
"""Prior sd of what is added to ln s."""
EVIDENCE = 1.0
"""Gain in ln p: what the mode of stated errors that mean nothing has to gain on that of errors that are right."""
FACTORS = (1.0, 0.02)
"""Factors of the stated errors from which the mode is looked for: right, and nearly meaningless."""


def told_by_held_out(
    trained: Trained, model: Translator, members: TranslatorMoments, rows: Any, moments: TranslatorMoments
) -> Trained:
    """`trained` with `moments`, to which held-out stars give `scatter_shift` and `error_factor`.

    members: moments of each member; rows: of the stars (E, n) that each left out. moments: those of the functions whose
    spread is left to itself, `members` or draws about them.
    """
    shift, factor, spread = _settled(model, members, rows, moments)
    n = len(moments.coefficients)
    trained.moments = moments._replace(scatter_shift=np.tile(shift, (n, 1)), error_factor=np.tile(factor, (n, 1)))
    if model.has_error_factor:
        trained.draws["error_factor"] = np.broadcast_to(factor, trained.draws["error_factor"].shape).copy()
    trained.stats[SPREAD] = spread.tolist()
    return trained


class LeftOut(NamedTuple):
    """What the likelihood of the stars (E, n) that each member left out is made of, beside the noise.

    offset (E, n, M): y less the member's mean. spread, between, intrinsic (E, n, M, M): covariances that the inputs'
    uncertainty makes, of the functions, and s R s'.
    """

    offset: Array
    spread: Array
    between: Array
    intrinsic: Array


@functools.partial(jit, static_argnums=0)
def _parts(bound: Bound[Translator], theta: Any, functions: Any, own: TranslatorData) -> LeftOut:
    def of_member(theta: Any, own: TranslatorData) -> LeftOut:
        def mean_of(other: Any) -> Array:
            return bound.model.predictive(other, own.x, own.root)[0]

        mean, spread, intrinsic = bound.model.predictive(theta, own.x, own.root)
        means = jax.lax.map(mean_of, functions)
        offset = means - means.mean(0)
        between = jnp.einsum("ens,ent->nst", offset, offset) / max(len(means) - 1, 1)
        return LeftOut(own.y - mean, spread, between, intrinsic)

    return jax.lax.map(lambda both: of_member(*both), (theta, own))


@functools.partial(jit, static_argnums=0)
def _loss_and_slope(
    bound: Bound[Translator], x: Array, freedom: Array, parts: LeftOut, own: TranslatorData
) -> tuple[Array, Array]:
    """- ln p of (shift, ln k), and its slope; the functions' spread is not scaled with the stated errors."""
    model = bound.model
    m = len(x) // 2

    def loss(x: Array) -> Array:
        s, factor = jnp.exp(x[:m]), jnp.exp(x[m:])
        known = parts.spread + parts.between + factor[:, None] * own.noise * factor
        each = jax.vmap(model.log_density_of)(
            parts.offset, known, s[:, None] * parts.intrinsic * s, freedom, own.observed
        )
        prior = model.factor_prior().log_prob(factor) if model.has_error_factor else 0.0
        return -each.sum() + 0.5 * (x[:m] ** 2).sum() / SHIFT**2 - prior

    return jax.value_and_grad(loss)(x)


@in_float64
def _settled(
    model: Translator, members: TranslatorMoments, rows: Any, functions: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """shift and k, (M,) each, and how far the stars are off (M,), in units of the errors that they then have."""
    bound, learned, m = Bound(model), model.has_error_factor, members.scatter_shift.shape[-1]
    parts = _parts(bound, members.theta, functions.theta, rows)

    def value_and_slope(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = _loss_and_slope(bound, x, members.freedom, parts, rows)
        slope = np.array(slope, float)
        if not learned:
            slope[m:] = 0.0
        return float(value), slope

    def mode_from(x: np.ndarray) -> OptimizeResult:
        return minimize(value_and_slope, x, jac=True, method="L-BFGS-B")

    ends = [mode_from(np.r_[np.zeros(m), np.full(m, np.log(k))]) for k in (FACTORS if learned else FACTORS[:1])]
    x, value = ends[0].x, ends[0].fun
    for label in np.flatnonzero(np.abs(ends[0].x - ends[-1].x)[m:] > 0.1):  # each label by itself
        mixed = x.copy()
        mixed[[label, m + label]] = ends[-1].x[[label, m + label]]
        if (now := mode_from(mixed)).fun < value - EVIDENCE:
            x, value = now.x, now.fun
    shift, factor = x[:m], np.exp(x[m:])
    weight, precision = members.tails
    offset, *parts_of = (np.einsum("gnmm->gnm", a) if a.ndim == 4 else a for a in map(np.asarray, (*parts, rows.noise)))
    spread, between, intrinsic, noise = parts_of
    tail = float((weight / precision).sum()) * np.exp(2 * shift)
    z = offset / np.sqrt(spread + between + tail * intrinsic + factor**2 * noise)
    return shift, factor, np.nanmedian(np.abs(np.where(rows.observed, z, np.nan)), (0, 1)) / 0.6745


def doubts(posterior: TrainedModel[Translator, TranslatorMoments], stars: Stars) -> str:
    """What the training stars say against the stated errors, "" for nothing; stars: some of them."""
    frame, said = posterior.model.require_frame(), []
    factor = np.median(posterior.moments.error_factor, 0)
    spread = np.array(posterior.info.get(SPREAD, np.ones(len(factor))))
    for m in np.flatnonzero(np.abs(np.log(factor)) > np.log(DOUBTFUL)):
        stated, name = f"{typical_error(stars[TARGET])[m]:.3g} {frame.units[m]}".rstrip(), frame.names[m]
        said.append(
            f"the stated errors of {name} (median {stated}) do not fit the stars that both surveys have: noise is "
            f"{factor[m]:.2g} of them. {name}_error is what held-out labels are off by beyond that: quote it. "
            "z_scores(result, stars) reckons with that"
        )
    noisy = [name for name, exact in zip(frame.input_names, frame.exact, strict=True) if not exact]
    for m in np.flatnonzero(spread < TOO_SMALL) if noisy else ():
        said.append(
            f"held-out {frame.names[m]} are off by {spread[m]:.2g} of their errors: the stated errors of "
            f"{', '.join(noisy)} are too large: divide them, or leave them out to have them learned as scatter"
        )
    return "; ".join(said)
