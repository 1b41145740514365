"""Parallaxes from features of the stars, alone and together with the measured ones.

Given the training step, ln parallax of a star is N(eta_n, v_n),

    eta_n = E(theta) . x_n
    v_n = s^2 + x_n' Cov(theta) x_n + E(theta)' (C_n + V_n) E(theta) + tr[V_n Cov(theta)] + g_n^2

with C_n (Hogg+19 eq. 5) the covariance of the errors of what is measured and V_n that of what is missing of x_n. There
is no tr[C_n Cov(theta)]: the errors of x_n are in x_n' Cov(theta) x_n already. g_n: 0 among the training stars, and
what the relation, learned there, may be wrong by outside (`predict`). A closed form, to which the star's own parallax
is added on a grid (`astro.parallax.combine`).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import xarray as xr
from astropy.table import QTable
from scipy.special import expit, ndtri

from ...astro.parallax import combine
from ...data.batches import Rows
from ...data.stars import Stars
from ...errors import bad_input
from ...files.checkpoint import Checkpoint
from ...inference import MAP, NUTS, SVI, Laplace
from ...inference.base import Inference, Trained
from ...inference.guide import fit_guide
from ...inference.passes import by_sweeps
from ...inference.whitened import Start, narrowed
from ...kind import DIAGNOSTICS, Choice, Column, Kind, Layout, Quantities, StarResult, TrainedModel, Trainer, by_program
from ...numerics.lognormal import log_likelihood
from ...numerics.own_variates import normals, other_keys, uniforms
from ...progress import bar
from ...results.rows import star_rows
from ...results.star_posterior import ONE_SIGMA, Flags
from .model import LogLinearModel, outlier_density
from .outliers import without_outliers
from .predict import ln_parallax, outside, with_surroundings
from .start import start_of
from .sums import GaussianBySums, ModeBySums
from .training import LogLinearMoments, fit_gaussian, fit_mode, moments_of, with_coefficients

PASSES = 100
"""Over the stars in files, at most."""
NEAR = 3000
"""Training stars that the posterior keeps the place of, at most."""


def _map(model: LogLinearModel, stars: Stars, inference: MAP, seed: int, progress: bool | None) -> Trained:
    with bar(None, "training step", progress):
        return without_outliers(model, stars, lambda data: fit_mode(model, data, seed))


def _laplace(model: LogLinearModel, stars: Stars, inference: Laplace, seed: int, progress: bool | None) -> Trained:
    with bar(None, "training step", progress):
        return without_outliers(model, stars, lambda data: fit_gaussian(model, data, inference.draws, seed))


def _map_of_rows(
    rows: Rows, inference: MAP, seed: int, progress: bool | None, checkpoint: Checkpoint | None
) -> Trained:
    inference.refuse_batches(rows.model)
    by_sums = ModeBySums(rows.model, rows.stars, int(rows.usable.sum()), seed)
    return by_sweeps(by_sums, rows, PASSES, progress, checkpoint)


def _laplace_of_rows(
    rows: Rows, inference: Laplace, seed: int, progress: bool | None, checkpoint: Checkpoint | None
) -> Trained:
    by_sums = GaussianBySums(rows.model, rows.stars, inference.draws, seed)
    return by_sweeps(by_sums, rows, PASSES, progress, checkpoint)


def _svi(rows: Rows, inference: SVI, seed: int, progress: bool | None, checkpoint: Checkpoint | None) -> Trained:
    def start() -> Start:
        return narrowed(start_of(rows.model, rows.stars), int(rows.usable.sum()) / len(rows.stars))

    return _finished(rows.model, fit_guide(rows, inference, seed, progress, checkpoint, start))


def _finished(model: LogLinearModel, trained: Trained) -> Trained:
    trained.draws = with_coefficients(model, trained.draws)
    trained.moments = moments_of(model, trained.draws)
    return trained


class ParallaxKind(Kind[LogLinearModel, LogLinearMoments]):
    """Parallaxes from features."""

    models: ClassVar = LogLinearModel
    moments: ClassVar = LogLinearMoments
    trainers: ClassVar = {
        MAP: Trainer(_map, _map_of_rows),
        Laplace: Trainer(_laplace, _laplace_of_rows),
        SVI: Trainer(rows=_svi),
        NUTS: Trainer(by_program),
    }
    answers: ClassVar = (MAP, Laplace)
    fit_by: ClassVar = Laplace()
    infer_by: ClassVar = Laplace()
    lost: ClassVar = "n_without_parallax"
    columns: ClassVar = DIAGNOSTICS | {
        "feature_distance": Column("from the training stars, in spreads of the features"),
        "n_missing": Column("features that are missing"),
        "zero_point": Column("added to the true parallax in the catalogue"),
        "outlier_probability": Column("that the measured parallax is wrong"),
        "ln_parallax": Column("mean of ln parallax from the features alone"),
        "ln_parallax_error": Column("standard deviation of ln_parallax"),
    }

    def usable(self, model: LogLinearModel, stars: Stars) -> np.ndarray:
        if model.predicted not in stars:
            model.bind(stars)  # says what is missing
        return np.asarray(stars[model.predicted].observed[:, 0])

    def start(self, model: LogLinearModel, stars: Stars, seed: int) -> Start:
        return start_of(model, stars)

    def finish(self, model: LogLinearModel, stars: Stars, trained: Trained) -> Trained:
        return _finished(model, trained)

    def complete(
        self, posterior: TrainedModel[LogLinearModel, LogLinearMoments], choice: Choice[LogLinearModel]
    ) -> TrainedModel[LogLinearModel, LogLinearMoments]:
        model, stars = posterior.model, choice.stars
        some = np.sort(np.random.default_rng(0).permutation(len(stars))[:NEAR])
        return posterior.with_moments(with_surroundings(model, posterior.moments, model.design(stars[some])))

    def layout(self, model: LogLinearModel) -> Layout:
        coords = {"feature": list(model.require_frame().names)}
        sites: dict[str, list[str]] = {
            "coefficients": ["feature"],
            "zero_point": [],
            "scatter": [],
            "global_scale": [],
            "outlier_fraction": [],
        }
        moments: dict[str, list[str]] = {
            "coefficients": ["feature"], "coefficient_factor": ["feature", "factor"],
            "coefficient_variance": ["feature"], "zero_point": [], "zero_point_error": [],
            "scatter": [],
            "outlier_fraction": [], "near_points": ["near", "coordinate"], "near_centre": ["coordinate"],
            "near_scale": ["coordinate"], "near_usual": [], "near_farthest": [], "growth": [],
        }  # fmt: skip
        return Layout(coords, sites, moments)

    def infer(
        self,
        posterior: TrainedModel[LogLinearModel, LogLinearMoments],
        stars: Stars,
        inference: Inference,
        seed: int,
        keys: np.ndarray,
        progress: bool | None,
    ) -> dict[str, xr.Dataset]:
        model, moments = posterior.model, posterior.moments
        frame, x = model.require_frame(), model.design(stars)
        eta, sd = ln_parallax(model, moments, x)
        y, sigma, seen = np.zeros(len(stars)), np.ones(len(stars)), np.zeros(len(stars), bool)
        if model.predicted in stars:
            y, sigma, seen = model.target(stars)
        wrong = np.where(seen, outlier_probability(model, moments, y, sigma, eta, sd), 0.0)
        value = np.where(seen & (wrong < 0.5), y, np.nan)
        both = combine(eta, sd, value, np.hypot(sigma, moments.zero_point_error), moments.zero_point)
        n_draw = inference.draws
        one, half = np.zeros((1, len(eta))), np.full((1, len(eta)), 0.5)
        alone = np.exp(eta + sd * (normals(keys, n_draw).T if n_draw > 1 else one))
        together = both.draws(uniforms(other_keys(keys, 49979687), n_draw).T if n_draw > 1 else half)
        draws = np.stack([alone, together, 1 / together], -1)
        mean_sp = np.exp(eta + 0.5 * sd**2)
        mean = np.stack([mean_sp, both.parallax, both.distance_mean], 1)
        error = np.stack([mean_sp * np.sqrt(np.expm1(sd**2)), both.parallax_error, both.distance_error], 1)
        steps = np.exp(eta[:, None] + sd[:, None] * ndtri([0.15865, 0.5, 0.84135]))
        at = np.stack([steps, both.parallax_percentiles[:, 1:4], both.distance_percentiles[:, 1:4]], 2)
        n_missing, n_taken = (~x.measured & frame.taken).sum(1), frame.taken.sum()
        bands = ~x.measured & ~frame.log & frame.taken
        blank = n_missing == n_taken
        flags = np.zeros(len(stars), int)
        flags |= Flags.NO_DATA * (blank & ~seen)
        distance = outside(model, moments, x)
        flags |= Flags.OUTSIDE_TRAINING * ((distance > moments.near_farthest) | (x.distance > frame.farthest))
        flags |= Flags.OUTLIER * (wrong > 0.5)
        flags |= Flags.MISSING_BAND * bands.any(1)
        flags |= Flags.MISSING_DATA * (n_missing > 0.5 * n_taken)
        lost = ~blank & ~(np.isfinite(mean) & np.isfinite(error)).all(1)
        flags |= Flags.NOT_CONVERGED * lost
        for values in (mean, error, at):
            values[lost | (blank & ~seen)] = np.nan
        summaries = {"mean": mean, **{name: at[:, i] for i, name in enumerate(ONE_SIGMA)}}
        zero = moments.zero_point + model.offset(stars)
        per_star = {
            "feature_distance": distance, "n_missing": n_missing, "zero_point": zero, "outlier_probability": wrong,
            "ln_parallax": eta, "ln_parallax_error": sd, "flags": flags,
        }  # fmt: skip
        columns = dict(self.columns) | {"zero_point": Column("added to the true parallax in the catalogue", frame.unit)}
        covariance = error[:, :, None] ** 2 * np.eye(3)
        return star_rows(stars, self.quantities(model).names, draws[None], summaries, covariance, per_star, columns)

    def quantities(self, model: LogLinearModel, stars: Stars | None = None) -> Quantities:
        unit, name = model.require_frame().unit, model.predicted
        return Quantities((f"{name}_sp", f"{name}_combined", "distance"), (unit, unit, "kpc" if unit == "mas" else ""))

    def about(self, posterior: TrainedModel[LogLinearModel, LogLinearMoments]) -> dict[str, Any]:
        return {
            "integrated_over": "coefficients, zero point, errors of the features and what is missing of them",
            "zero_point": float(posterior.moments.zero_point),
            "zero_point_error": float(posterior.moments.zero_point_error),
            "scatter": float(posterior.moments.scatter),
        }

    def log_density(
        self, posterior: TrainedModel[LogLinearModel, LogLinearMoments], result: StarResult, stars: Stars
    ) -> np.ndarray:
        y, sigma, seen = posterior.model.target(stars)
        at = result.stars
        density, bad = _log_densities(
            posterior.model, posterior.moments, y, sigma, at["ln_parallax"].values, at["ln_parallax_error"].values
        )
        density = np.logaddexp(density, bad)
        return np.where(seen, np.asarray(density), np.nan)

    def parameters(self, posterior: TrainedModel[LogLinearModel, LogLinearMoments], seed: int) -> dict[str, np.ndarray]:
        """The coefficients also as the program's sites have them."""
        draws, frame = super().parameters(posterior, seed), posterior.model.require_frame()
        theta = draws["coefficients"] * frame.scale
        draws["wide"] = theta[..., ~frame.penalised]
        return draws | ({"sparse": theta[..., frame.penalised]} if frame.penalised.any() else {})

    def identified(self, model: LogLinearModel, draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return super().identified(model, {name: x for name, x in draws.items() if name != "coefficients"})

    def true_quantities(self, model: LogLinearModel, sites: dict[str, Any], stars: Stars) -> dict[str, Any]:
        if (block := model.predicted) in stars:
            raise bad_input(f"stars with {block}", "their features alone", fix=f'stars.drop("{block}")')
        zero = sites.get("zero_point", model.zero_prior[0]) + model.offset(stars)
        return {f"{block}_sp": sites[block][:, 0] - zero}

    def predict(
        self,
        posterior: TrainedModel[LogLinearModel, LogLinearMoments],
        stars: Stars,
        name: str | None,
        with_error: bool,
    ) -> Any:
        if name not in (None, posterior.model.predicted):
            raise bad_input(f"predict(..., {name!r})", f"{posterior.model.predicted!r}")
        posterior.model.check(stars)
        eta, sd = ln_parallax(posterior.model, posterior.moments, posterior.model.design(stars))
        mean = np.exp(eta + 0.5 * sd**2)[:, None]
        return (mean, mean * np.sqrt(np.expm1(sd**2))[:, None]) if with_error else mean

    def summary(self, posterior: TrainedModel[LogLinearModel, LogLinearMoments]) -> QTable:
        """Per feature its unit, coefficient per unit, the error of that, and the value that it is centred on."""
        frame, moments = posterior.model.require_frame(), posterior.moments
        sd = np.sqrt((moments.coefficient_factor**2).sum(1) + moments.coefficient_variance)
        return QTable({
            "feature": list(frame.names), "unit": list(frame.units), "coefficient": moments.coefficients / frame.scale,
            "coefficient_error": sd / frame.scale, "centre": frame.centre,
        })  # fmt: skip

    def details(self, posterior: TrainedModel[LogLinearModel, LogLinearMoments]) -> list[str]:
        told, frame = self.about(posterior), posterior.model.require_frame()
        zero = f"zero point {told['zero_point']:.4g} +- {told['zero_point_error']:.2g} {frame.unit}".rstrip()
        return [f"scatter of ln {posterior.model.predicted} {told['scatter']:.3g}, {zero}"]

    def describe(self, model: LogLinearModel) -> str:
        return f"{model.predicted} from {len(model.require_frame().names) - 1} features"


def outlier_probability(
    model: LogLinearModel, moments: LogLinearMoments, y: Any, sigma: Any, eta: Any, sd: Any
) -> np.ndarray:
    """That a measured parallax (N,) has nothing to do with the features."""
    good, bad = _log_densities(model, moments, y, sigma, eta, sd)
    return expit(bad - good)


def _log_densities(
    model: LogLinearModel, moments: LogLinearMoments, y: Any, sigma: Any, eta: Any, sd: Any
) -> tuple[np.ndarray, np.ndarray]:
    """ln of (1 - f) p(y | right) and of f p(y | wrong), (N,) each."""
    f = float(moments.outlier_fraction)
    good = log_likelihood(y - moments.zero_point, np.hypot(sigma, moments.zero_point_error), eta, sd)
    bad = np.asarray(outlier_density(y, sigma, model.require_frame().outlier))
    return np.asarray(good) + np.log1p(-f), bad + (np.log(f) if f > 0 else -np.inf)
