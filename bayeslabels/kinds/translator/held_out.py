"""What the stars that each member of an ensemble left out say of a `Translator`'s errors, and of the stated ones.

Scatter learned from the stars that the function was fitted to is too small, the more the fewer they are. Scatter and
the factor k of the stated errors make one variance, s^2 + k^2 sigma^2. A training step by minibatches finds the sum
long before the parts: it leaves k where it starts, and both are settled here, at the mode

    maximise  sum_n ln p(y_n | theta_e, s exp(shift), k) + ln N(shift; 0, 0.5^2) + ln p(k)
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer.util import log_density
from scipy.optimize import OptimizeResult, minimize

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


@in_float64
def _settled(
    model: Translator, members: TranslatorMoments, rows: Any, functions: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """shift and k, (M,) each, and how far the stars are off (M,), in units of the errors that they then have."""
    several = {name: jnp.asarray(x) for name, x in functions.theta.items()}
    theta, own = ({name: jnp.asarray(x) for name, x in members.theta.items()}, jax.tree.map(jnp.asarray, rows))
    learned, m = model.has_error_factor, members.scatter_shift.shape[-1]

    def means_of(own: TranslatorData) -> Array:
        return jax.vmap(lambda t: model.predictive(t, own.x, own.root)[0])(several)

    means = jit(jax.vmap(means_of))(own)
    offset = means - means.mean(1, keepdims=True)
    between = jnp.einsum("gens,gent->gnst", offset, offset) / max(means.shape[1] - 1, 1)
    fixed = {name: x[0] for name, x in theta.items()}

    def log_prior(factor: Array) -> Array | float:
        if not learned:
            return 0.0
        # the factor's alone: the others' part is a constant
        return log_density(model.parameters, (), {}, {**fixed, "error_factor": factor})[0]

    def of_member(t: dict[str, Array], data: TranslatorData, between: Array, x: Array) -> Array:
        """ln p of the stars of a member; the function's spread is not scaled with the stated errors."""
        factor = jnp.exp(x[m:])
        stated = factor[:, None] * data.noise * factor
        t = {**t, "scatter_shift": x[:m], "error_factor": jnp.ones(m)}
        return model.log_likelihood(t, data._replace(noise=stated + between))

    @jit
    @jax.value_and_grad
    def loss(x: Array, theta: dict[str, Array], own: TranslatorData, between: Array) -> Array:
        each = jax.vmap(lambda t, data, b: of_member(t, data, b, x))
        return -each(theta, own, between).sum() + 0.5 * (x[:m] ** 2).sum() / SHIFT**2 - log_prior(jnp.exp(x[m:]))

    def value_and_slope(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = loss(jnp.asarray(x), theta, own, between)
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
    return shift, factor, _spread(model, members, {**theta, "scatter_shift": shift}, factor, own, between)


def _spread(
    model: Translator, members: TranslatorMoments, theta: Any, factor: np.ndarray, own: Any, between: Any
) -> np.ndarray:
    weight, precision = members.tails
    tail = float((weight / precision).sum())
    shift = jnp.asarray(theta["scatter_shift"])

    @jit
    @jax.vmap
    def standardised(theta: dict[str, Array], own: TranslatorData, between: Array) -> Array:
        mean, spread, intrinsic = model.predictive({**theta, "scatter_shift": shift}, own.x, own.root)
        total = spread + jnp.asarray(factor)[:, None] * own.noise * jnp.asarray(factor) + between + tail * intrinsic
        return (own.y - mean) / jnp.sqrt(jnp.diagonal(total, axis1=-2, axis2=-1))

    each = {name: x for name, x in theta.items() if name != "scatter_shift"}
    z = np.where(np.asarray(own.observed), np.asarray(standardised(each, own, between)), np.nan)
    return np.nanmedian(np.abs(z), (0, 1)) / 0.6745


def doubts(posterior: TrainedModel[Translator, TranslatorMoments], stars: Stars) -> str:
    """What the training stars say against the stated errors, "" for nothing; stars: some of them."""
    frame, said = posterior.model.require_frame(), []
    factor = np.median(posterior.moments.error_factor, 0)
    spread = np.array(posterior.info.get(SPREAD, np.ones(len(factor))))
    for m in np.flatnonzero(np.abs(np.log(factor)) > np.log(DOUBTFUL)):
        stated, name, unit = typical_error(stars[TARGET])[m], frame.names[m], frame.units[m]
        said.append(
            f"the stated errors of {name} (median {stated:.3g} {unit}) do not fit the stars that both surveys have: "
            f"noise is {factor[m]:.2g} of them. {name}_error is what held-out labels are off by beyond that: quote it, "
            "and compare with labels by z_scores(..., errors=posterior.moments.error_factor.mean(0) * stated errors)"
        )
    noisy = [name for name, exact in zip(frame.input_names, frame.exact, strict=True) if not exact]
    for m in np.flatnonzero(spread < TOO_SMALL) if noisy else ():
        said.append(
            f"held-out {frame.names[m]} are off by {spread[m]:.2g} of their errors: the stated errors of "
            f"{', '.join(noisy)} are too large: divide them, or leave them out to have them learned as scatter"
        )
    return "; ".join(said)
