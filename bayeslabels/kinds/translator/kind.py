"""Labels of survey B from what survey A measured.

Given one member of the ensemble, y of a star has a mean and two covariances: J S J', what the uncertainty S of its
inputs makes of it (`numerics.propagate`), and the intrinsic scatter. Over members the means are averaged and spread:

    Cov(y_n) = mean_e (J S J')_e  +  cov_e(mean_e)  +  mean_e (s R s')_e nu'
               measurement           function          intrinsic

nu' the variance of the Student-t. Percentiles are those of a Gaussian convolved with it. The other direction:
`translator_inverse`.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from astropy.table import QTable
from scipy.special import ndtr

from ...core.model import Bound
from ...data.batches import Rows, RowsInMemory
from ...data.stars import Stars
from ...errors import CannotDo, DoubtfulErrors, bad_input, warn
from ...files.checkpoint import Checkpoint
from ...inference import MAP, NUTS, SVI, Laplace
from ...inference.base import Inference, Trained
from ...inference.guide import fit_guide
from ...inference.importance import KHAT_LIMIT
from ...inference.minibatch import fit_members, fit_part
from ...inference.whitened import Start
from ...kind import DIAGNOSTICS, Choice, Column, Kind, Layout, Quantities, StarResult, TrainedModel, Trainer, by_program
from ...numerics.compiling import jit
from ...numerics.linalg import Array
from ...numerics.occupancy import Occupancy
from ...numerics.own_variates import normals, other_keys, uniforms
from ...results.rows import star_rows
from ...results.star_posterior import LEVELS, Flags
from .frame import TARGET, Inputs, known_inputs, measured
from .held_out import doubts, told_by_held_out
from .inverse import inverse
from .translator import Translator, TranslatorData, TranslatorMoments

LEARNING_RATE, PATIENCE = 1e-2, 4
"""Of `fit_members`."""
MEMBERS = 20
"""Draws of a training posterior that the test step goes through, at most."""
SOME_STARS = 2
"""Training stars at which the functions are compared."""
START = 4000
"""Stars from which a guide or a sampler is given its first place."""
CHUNK = 512
"""Stars whose hidden layers stay in the cache."""
BACK = 1000
"""Draws that the moments of the other direction are of."""


class PredictedOutputs(NamedTuple):
    """Predicted outputs of N stars, scaled: mean (N, M), and covariances (N, M, M) by where they come from."""

    mean: np.ndarray
    measurement: np.ndarray
    function: np.ndarray
    intrinsic: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        return self.measurement + self.function + self.intrinsic


def _map(rows: Rows, inference: MAP, seed: int, progress: bool | None, checkpoint: Checkpoint | None) -> Trained:
    trained = fit_members(
        rows, seed, progress, epochs=inference.max_iterations, batch_size=inference.batch_size,
        learning_rate=LEARNING_RATE, patience=PATIENCE, checkpoint=checkpoint,
    )  # fmt: skip
    moments = _members(rows.model, trained.draws, trained.stats["members"])
    return told_by_held_out(trained, rows.model, moments, rows.held_out(trained.held_out), moments)


def _laplace(model: Translator, stars: Stars, inference: Laplace, seed: int, progress: bool | None) -> Trained:
    """A Gaussian of what f is linear in (all of a polynomial) about every member of `MAP`, given its other weights,
    scatter and tails."""
    rows = RowsInMemory(model, stars)
    members = _map(rows, MAP(), seed, progress, None)
    sizes = np.cumsum([0, *(f.size for f in model.functions)])
    last = [first + np.arange(f.linear) for first, f in zip(sizes[:-1], model.functions, strict=True)]
    n = members.stats["members"]
    trained = fit_part(rows, members, -(-inference.draws // n), seed, {"coefficients": np.concatenate(last)})
    moments = _members(model, trained.draws, max(MEMBERS, n))
    return told_by_held_out(trained, model, members.moments, rows.held_out(trained.held_out), moments)


def _svi(rows: Rows, inference: SVI, seed: int, progress: bool | None, checkpoint: Checkpoint | None) -> Trained:
    trained = fit_guide(rows, inference, seed, progress, checkpoint, functools.partial(start_of, rows, seed))
    return _finished(rows.model, trained)


def _finished(model: Translator, trained: Trained) -> Trained:
    trained.moments = _members(model, trained.draws, MEMBERS)
    return trained


class TranslatorKind(Kind[Translator, TranslatorMoments]):
    """Labels of one survey from those of another."""

    models: ClassVar = Translator
    moments: ClassVar = TranslatorMoments
    unbounded: ClassVar = ("freedom",)
    trainers: ClassVar = {
        MAP: Trainer(rows=_map),
        SVI: Trainer(rows=_svi),
        Laplace: Trainer(_laplace),
        NUTS: Trainer(by_program),
    }
    answers: ClassVar = (MAP, Laplace)
    fit_by: ClassVar = MAP()
    infer_by: ClassVar = MAP()
    lost: ClassVar = "n_without_target_labels"
    columns: ClassVar = DIAGNOSTICS | {
        "n_missing": Column("of what is translated, labels and colours that are missing"),
        "outside": Column("pairs of labels that lie where no training stars are"),
    }
    parts: ClassVar = {
        "error_measurement": Column("part of the error that the errors of the labels translated make"),
        "error_function": Column("part of the error that is not known of the function"),
        "error_intrinsic": Column("part of the error that stars of the same labels differ by"),
    }

    def require(self, inference: Inference, model: Translator, verb: str) -> None:
        super().require(inference, model, verb)
        if verb == "fit" and model.dropout and not isinstance(inference, MAP):
            raise CannotDo(
                f"dropout={model.dropout} is a way to train by MAP(), and {type(inference).__name__}() seeks the "
                "posterior of all weights: use MAP(), or Translator(dropout=0)"
            )

    def usable(self, model: Translator, stars: Stars) -> np.ndarray:
        if TARGET not in stars:
            model.bind(stars)  # says what is missing
        return np.asarray(stars[TARGET].observed.any(1))

    def start(self, model: Translator, stars: Stars, seed: int) -> Start:
        return start_of(RowsInMemory(model, stars), seed)

    def finish(self, model: Translator, stars: Stars, trained: Trained) -> Trained:
        return _finished(model, trained)

    def complete(
        self, posterior: TrainedModel[Translator, TranslatorMoments], choice: Choice[Translator]
    ) -> TrainedModel[Translator, TranslatorMoments]:
        if said := doubts(posterior, choice.stars):
            warn(said, DoubtfulErrors)
        return posterior

    def sizes(self, model: Translator) -> dict[str, int]:
        return {"weight": sum(f.size for f in model.functions), "scatter_weight": sum(f.size for f in model.scatters)}

    def layout(self, model: Translator) -> Layout:
        names = list(model.require_frame().names)
        matrix = ["labels", "labels_bis"]
        sites: dict[str, list[str]] = {
            "coefficients": ["weight"], "scatter_weights": ["scatter_weight"], "correlation": matrix, "freedom": [],
            "error_factor": ["labels"],
        }  # fmt: skip
        moments = {name: ["member", *dims] for name, dims in sites.items()} | {"scatter_shift": ["member", "labels"]}
        return Layout({"labels": names, "labels_bis": names}, sites, moments)

    def infer(
        self,
        posterior: TrainedModel[Translator, TranslatorMoments],
        stars: Stars,
        inference: Inference,
        seed: int,
        keys: np.ndarray,
        progress: bool | None,
    ) -> dict[str, xr.Dataset]:
        model, frame = posterior.model, posterior.model.require_frame()
        if TARGET in stars:
            return _backwards(posterior, stars, inference, keys, progress)
        given = measured(frame, stars)
        found = predict(posterior, given)
        weight, precision = posterior.moments.tails
        variance = np.einsum("nmm->nm", found.covariance)
        share = np.einsum("nmm->nm", found.intrinsic) / variance
        centre, scale, sd = frame.target_centre, frame.target_scale, np.sqrt(variance)
        mean = centre + scale * found.mean
        steps = quantiles(weight, precision, np.array(list(LEVELS.values())), share)
        summaries: dict[str, np.ndarray] = {"mean": mean}
        for name in ("measurement", "function", "intrinsic"):
            variance_of = np.einsum("nmm->nm", getattr(found, name))
            summaries[f"error_{name}"] = scale * np.sqrt(variance_of)
        summaries |= {name: mean + scale * sd * step for name, step in zip(LEVELS, steps, strict=True)}
        raw = np.where(given.observed, frame.centre + frame.scale * given.value, np.nan)
        outside, flags = _flags(model, raw, mean, given.observed)
        draws = mean[None]
        if isinstance(inference, Laplace):
            draws = centre + scale * _draws(found, weight, precision, inference.draws, keys)
        covariance = scale[:, None] * found.covariance * scale
        per_star = {"n_missing": (~given.observed).sum(1), "outside": outside, "flags": flags}
        return star_rows(stars, frame.names, draws[None], summaries, covariance, per_star, self.columns | self.parts)

    def asked(self, model: Translator) -> tuple[str, ...]:
        return (TARGET,)

    def batch_size(self, model: Translator) -> int:
        return 65_536

    def quantities(self, model: Translator, stars: Stars | None = None) -> Quantities:
        frame = model.require_frame()
        if stars is not None and TARGET in stars:
            return Quantities(frame.input_names, frame.input_units, frame.source[0])
        return Quantities(frame.names, frame.units, TARGET)

    def about(self, posterior: TrainedModel[Translator, TranslatorMoments]) -> dict[str, Any]:
        factor = np.median(posterior.moments.error_factor, 0).tolist()
        return {
            "integrated_over": "errors of the inputs and what is missing of them, the function, the intrinsic scatter",
            "members": len(posterior.moments.coefficients),
            "error_factor": {TARGET: dict(zip(posterior.model.require_frame().names, factor, strict=True))},
        }

    def log_density(
        self, posterior: TrainedModel[Translator, TranslatorMoments], result: StarResult, stars: Stars
    ) -> np.ndarray:
        model, frame = posterior.model, posterior.model.require_frame()
        rows = model.arrays(stars)
        density = np.asarray(_log_likelihood(Bound(model), posterior.moments.theta, rows))
        constant = np.log(len(posterior.moments.coefficients)) + rows.observed @ np.log(frame.target_scale)
        return np.where(rows.observed.any(1), density - constant, np.nan)

    def identified(self, model: Translator, draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Quantities that data identify: of networks, what they say of some training stars."""
        x = jnp.asarray(model.require_frame().background[:SOME_STARS])
        both = np.asarray(jax.vmap(lambda theta: model.raw_outputs(theta, x))(draws))
        m = both.shape[-1] // 2
        rest = {name: x for name, x in draws.items() if name in ("correlation", "freedom", "error_factor")}
        if "correlation" in rest:
            rest["correlation"] = rest["correlation"][:, 1:, 0]
        return super().identified(model, {"mean": both[..., :m], "ln scatter": both[..., m:], **rest})

    def true_quantities(self, model: Translator, sites: dict[str, Any], stars: Stars) -> dict[str, Any]:
        frame = model.require_frame()
        if TARGET in stars:
            groups = zip(frame.groups, ("true_inputs", "true_inputs_extrinsic"), strict=False)
            true = {j: sites[site][:, i] for group, site in groups for i, j in enumerate(group)}
            return {name: frame.centre[j] + frame.scale[j] * true[j] for j, name in enumerate(frame.input_names)}
        return {name: sites[TARGET][:, m] for m, name in enumerate(model.require_frame().names)}

    def predict(
        self, posterior: TrainedModel[Translator, TranslatorMoments], stars: Stars, name: str | None, with_error: bool
    ) -> Any:
        frame = posterior.model.require_frame()
        if name not in (None, TARGET):
            raise bad_input(f"predict(..., {name!r})", f"{TARGET!r}")
        posterior.model.check(stars)
        found = predict(posterior, measured(frame, stars))
        mean = frame.target_centre + frame.target_scale * found.mean
        sd = frame.target_scale * np.sqrt(np.einsum("nmm->nm", found.covariance))
        return (mean, sd) if with_error else mean

    def summary(self, posterior: TrainedModel[Translator, TranslatorMoments]) -> QTable:
        """Per target label: the input that it corrects, the median and spread of their difference in the training set,
        typical intrinsic scatter and error of the function there, and the factor of the stated errors (1: none, or
        believed)."""
        frame = posterior.model.require_frame()
        x = frame.background
        found = predict(posterior, Inputs(x, np.zeros((*x.shape, x.shape[1])), np.ones(x.shape, bool)), exact=True)
        pair = [frame.input_names[j] if j >= 0 else "" for j in frame.pair]
        offset = frame.target_centre - np.where(frame.pair >= 0, frame.centre[frame.pair], 0.0)
        typical = lambda c: frame.target_scale * np.sqrt(np.median(np.einsum("nmm->nm", c), 0))  # noqa: E731
        return QTable({
            "label": list(frame.names), "unit": list(frame.units), "corrects": pair, "offset": offset,
            "spread": frame.target_scale, "scatter": typical(found.intrinsic),
            "function_error": typical(found.function), "error_factor": np.median(posterior.moments.error_factor, 0),
        })  # fmt: skip

    def describe(self, model: Translator) -> str:
        frame = model.require_frame()
        return f"{', '.join(frame.names)} from {', '.join(frame.input_names)}"


def start_of(rows: Rows, seed: int) -> Start:
    """A mode, of one member: from anywhere else, samplers and guides of networks end where the density is lower."""
    some = np.sort(np.random.default_rng([seed, 982451653]).permutation(len(rows.stars))[:START])
    one = RowsInMemory(rows.model.replace(members=1), rows.stars[some])
    point = fit_members(one, seed, False, learning_rate=LEARNING_RATE, patience=PATIENCE).draws
    return Start({name: x[0, 0] for name, x in point.items()})


def _members(model: Translator, draws: dict[str, np.ndarray], most: int) -> TranslatorMoments:
    """From draws {site: (chain, draw, ...)}, of which `most` are kept."""
    flat = {name: x.reshape(-1, *x.shape[2:]) for name, x in draws.items()}
    n = len(flat["coefficients"])
    at = np.linspace(0, n - 1, min(n, most)).astype(int)
    m = len(model.require_frame().names)
    return TranslatorMoments(
        flat["coefficients"][at],
        flat["scatter_weights"][at],
        flat["correlation"][at] if m > 1 else np.ones((len(at), 1, 1)),
        flat["freedom"][at] if model.robust else np.full(len(at), np.inf),
        np.zeros((len(at), m)),
        flat["error_factor"][at] if model.has_error_factor else np.ones((len(at), m)),
    )


def predict(
    posterior: TrainedModel[Translator, TranslatorMoments], given: Inputs, exact: bool = False
) -> PredictedOutputs:
    """What the members together say of the outputs; exact: given's values are the true inputs."""
    model = posterior.model
    x, root = (given.value, np.zeros((*given.value.shape, 0))) if exact else known_inputs(model.require_frame(), given)
    return PredictedOutputs(*_predict(Bound(model), posterior.moments, x, root))


def _predict(bound: Bound[Translator], moments: TranslatorMoments, x: np.ndarray, root: np.ndarray) -> list[np.ndarray]:
    """In chunks of one shape; in float32, which is exact to a millionth of the spread."""
    n = len(x)
    size = min(CHUNK, 1 << max(n - 1, 0).bit_length())
    weight, precision = moments.tails
    tail = float((weight / precision).sum())
    padded = [np.concatenate([a, np.repeat(a[-1:], -n % size, 0)]).astype(np.float32) for a in (x, root)]
    theta = {name: np.asarray(a, np.float32) for name, a in moments.theta.items()}
    out = _predict_chunks(bound, theta, *(a.reshape(-(-n // size), size, *a.shape[1:]) for a in padded))
    mean, measurement, function, intrinsic = (np.asarray(a, float).reshape(-1, *a.shape[2:])[:n] for a in out)
    return [mean, measurement, function, tail * intrinsic]


@functools.partial(jit, static_argnums=0)
def _log_likelihood(bound: Bound[Translator], theta: dict[str, Array], rows: TranslatorData) -> Array:
    """Of the members together, but for their number."""
    each = jax.vmap(lambda theta: bound.model.log_likelihood(theta, rows))(theta)
    return jax.scipy.special.logsumexp(each, 0)


@functools.partial(jit, static_argnums=0)
def _predict_chunks(
    bound: Bound[Translator], theta: dict[str, Array], x: Array, root: Array
) -> tuple[Array, Array, Array, Array]:
    def of_chunk(rows: tuple[Array, Array]) -> tuple[Array, Array, Array, Array]:
        mean, measurement, intrinsic = jax.vmap(lambda theta: bound.model.predictive(theta, *rows))(theta)
        centre = mean.mean(0)
        offset = mean - centre
        function = jnp.einsum("enm,enk->nmk", offset, offset) / max(len(mean) - 1, 1)
        return centre, measurement.mean(0), function, intrinsic.mean(0)

    return jax.lax.map(of_chunk, (x, root))


def quantiles(weight: np.ndarray, precision: np.ndarray, levels: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Quantiles (P, ...) of a Gaussian plus scatter with these tails, of unit variance together.

    share (...): of the variance that is the scatter's. By interpolation in the share.
    """
    grid = np.linspace(0.0, 1.0, 65)
    scatter = 1 / precision / (weight / precision).sum()
    sd = np.sqrt(1 - grid[:, None] + grid[:, None] * scatter)
    low, high = np.full((len(levels), len(grid)), -30.0), np.full((len(levels), len(grid)), 30.0)
    for _ in range(60):
        middle = 0.5 * (low + high)
        below = (ndtr(middle[..., None] / sd) * weight).sum(-1) < levels[:, None]
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.stack([np.interp(share, grid, row) for row in 0.5 * (low + high)])


def _draws(found: PredictedOutputs, weight: Any, precision: Any, n: int, keys: np.ndarray) -> np.ndarray:
    """(n, N, M)."""
    eye = 1e-12 * np.eye(found.mean.shape[1])
    smooth = np.linalg.cholesky(found.measurement + found.function + eye)
    tail = np.linalg.cholesky(found.intrinsic / (weight / precision).sum() + eye)
    n_star, m = found.mean.shape
    z = normals(keys, 2 * n * m).reshape(n_star, 2, n, m)
    which = np.searchsorted(np.cumsum(weight / weight.sum())[:-1], uniforms(other_keys(keys, 472882027), n).T)
    stretch = precision[which][..., None] ** -0.5
    both = [np.einsum("nij,nsj->sni", root, z[:, i]) for i, root in enumerate((smooth, tail))]
    return found.mean + both[0] + stretch * both[1]


def _backwards(
    posterior: TrainedModel[Translator, TranslatorMoments],
    stars: Stars,
    inference: Inference,
    keys: np.ndarray,
    progress: bool | None,
) -> dict[str, xr.Dataset]:
    """The inputs of stars whose outputs are known, as `Kind.infer`."""
    model, frame = posterior.model, posterior.model.require_frame()
    found = inverse(posterior, stars, inference.draws if inference.draws > 1 else BACK, keys, progress)
    target, given = stars[TARGET], measured(frame, stars)
    mean, draws = (frame.centre + frame.scale * x for x in (found.mean, found.u))
    covariance = frame.scale[:, None] * found.covariance * frame.scale
    levels = np.quantile(draws, list(LEVELS.values()), axis=0)
    observed = np.concatenate([target.observed, given.observed], 1)
    outputs = np.where(target.observed, target.value, np.nan)
    outside, flags = _flags(model, mean, outputs, target.observed)
    flags = np.where(observed.any(1), flags & ~Flags.NO_DATA, flags)
    flags |= Flags.KHAT_HIGH * (found.khat > KHAT_LIMIT)
    summaries = {"mean": mean, **dict(zip(LEVELS, levels, strict=True))}
    per_star = {
        "n_missing": (~target.observed).sum(1), "outside": outside, "khat": found.khat, "ess": found.ess,
        "flags": flags,
    }  # fmt: skip
    kept = draws[None] if isinstance(inference, Laplace) else mean[None, None]
    return star_rows(stars, frame.input_names, kept, summaries, covariance, per_star, TranslatorKind.columns)


def _flags(
    model: Translator, inputs: np.ndarray, outputs: np.ndarray, observed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The pairs that lie outside of the training set, "" for none, and the flags (N,); observed: what is translated."""
    frame = model.require_frame()
    sets = zip(frame.occupancy, (inputs, outputs), (frame.input_names, frame.names), strict=True)
    comments = np.full(len(inputs), "", object)
    for kept, values, names in sets:
        where = Occupancy(*kept)
        labels = [names[i] if i == j else f"{names[i]}-{names[j]}" for i, j in where.pairs]
        out = where.outside(values, model.threshold)
        for n in np.flatnonzero(out.any(1)):
            both = (*comments[n].split(" "), *(labels[p] for p in np.flatnonzero(out[n])))
            comments[n] = " ".join(dict.fromkeys(x for x in both if x))  # a pair of inputs and of outputs alike once
    flags = Flags.OUTSIDE_TRAINING * (comments != "").astype(int)
    flags |= Flags.MISSING_BAND * (~observed.all(1))
    flags |= Flags.MISSING_DATA * (observed.mean(1) < 0.5)
    flags |= Flags.NO_DATA * (~observed.any(1))
    return comments.astype(str), flags
