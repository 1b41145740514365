"""Labels from spectra, by a `LinearModel`.

Before training, what the model's settings leave open is chosen (`choice.select`); after it tau is learned from
held-out labels where the training labels say too little of it. The test step is that of `quartic`, to whose
result the uncertainty of the label system is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import xarray as xr
from astropy.table import QTable

from ...data.batches import Rows
from ...data.stars import Block, Stars
from ...errors import CannotDo, bad_input
from ...files.checkpoint import Checkpoint
from ...inference.base import Inference, Trained
from ...inference.gibbs import Gibbs
from ...inference.laplace import Laplace
from ...inference.map import MAP
from ...inference.nuts import NUTS
from ...inference.passes import by_minibatches, by_sweeps
from ...inference.svi import SVI
from ...inference.whitened import Start
from ...kind import Choice, Kind, Layout, Quantities, StarResult, TrainedModel, Trainer, by_program, told_of
from ...numerics.gaussian import log_density_of
from .choice import select, tell_which_error, with_fit_quality, with_label_scatter
from .draws import moments_from_draws
from .em import SHORT, by_em
from .gibbs import by_gibbs
from .label_curve import with_label_curve
from .label_map import label_map
from .model import LinearModel
from .moments import Moments
from .nuisances import require_nuisances
from .quartic import prepare
from .stars import COLUMNS, PARTS, finish, joined, latents, masked, predicted_flux
from .sums import SpectraBySums

GAUSSIAN_DRAWS = 200
"""Draws of the coefficients from their covariance, where a posterior has but its mode."""
SOME_STARS = 4
"""Training stars of which predictions stand for those of all."""


def _map(model: LinearModel, stars: Stars, inference: MAP, seed: int, progress: bool | None) -> Trained:
    return with_label_curve(model, by_em(model, stars, inference, seed, progress), stars)


def _gibbs(model: LinearModel, stars: Stars, inference: Gibbs, seed: int, progress: bool | None) -> Trained:
    return with_label_curve(model, by_gibbs(model, stars, inference, seed, progress), stars)


def _map_of_rows(
    rows: Rows, inference: MAP, seed: int, progress: bool | None, checkpoint: Checkpoint | None
) -> Trained:
    inference.refuse_batches(rows.model)
    by_sums = SpectraBySums(rows.model, rows.stars, inference.tolerance)
    trained = by_sweeps(by_sums, rows, inference.max_iterations, progress, checkpoint)
    return with_label_curve(rows.model, trained, rows.stars)


def _svi(rows: Rows, inference: SVI, seed: int, progress: bool | None, checkpoint: Checkpoint | None) -> Trained:
    by_sums = SpectraBySums(rows.model, rows.stars, MAP().tolerance)
    trained = by_minibatches(by_sums, rows, inference, seed, progress, checkpoint)
    return with_label_curve(rows.model, trained, rows.stars)


class SpectraKind(Kind[LinearModel, Moments]):
    """Labels from spectra, by models linear in features of the latents."""

    models: ClassVar = LinearModel
    moments: ClassVar = Moments
    trainers: ClassVar = {
        MAP: Trainer(_map, _map_of_rows),
        SVI: Trainer(rows=_svi),
        Gibbs: Trainer(_gibbs),
        NUTS: Trainer(by_program),
    }
    fit_by: ClassVar = MAP()
    infer_by: ClassVar = Laplace()
    lost: ClassVar = "n_without_data"
    columns: ClassVar = COLUMNS
    parts: ClassVar = PARTS
    saved: ClassVar = ("flux", "latents")

    def choose(
        self, model: LinearModel, stars: Stars, inference: Inference, seed: int, progress: bool | None
    ) -> Choice[LinearModel]:
        if isinstance(inference, Gibbs | NUTS):
            model = model.sampled()
            if model.n_component > 1:
                raise CannotDo(
                    f"{type(inference).__name__} trains with a population of one Gaussian, got {model.n_component} "
                    'components: components=1 or "auto", or MAP()'
                )
        given = super().choose(model, stars, inference, seed, progress)
        chosen, stars, seen, selection = select(given.model, given.stars, seed, progress)
        return Choice(chosen, stars, {**given.info, "selection": selection}, seen, given.kept)

    def usable(self, model: LinearModel, stars: Stars) -> np.ndarray:
        return told_of(stars, model.blocks)

    def complete(
        self, posterior: TrainedModel[LinearModel, Moments], choice: Choice[LinearModel]
    ) -> TrainedModel[LinearModel, Moments]:
        if choice.held_out is not None and choice.model.scatter_from_held_out:
            posterior = with_label_scatter(posterior, choice.stars, choice.held_out)
        tell_which_error(posterior, choice.stars)
        return with_fit_quality(posterior, choice.stars)

    def not_by_rows(self, model: LinearModel) -> str:
        if model.asks_hidden:
            return f"{type(model).__name__} finds no hidden labels (hidden=0)"
        if model.nuisances:
            return f"{type(model).__name__} has no nuisances in training (nuisances=(); `infer` takes its own)"
        if model.flux_error_factor is not None:
            return f"{type(model).__name__} has no flux_error_factor in training (`infer` takes its own)"
        return ""

    def not_as_program(self, model: LinearModel) -> str:
        if model.asks_hidden:
            return "hidden labels (hidden=0)"
        return super().not_as_program(model)

    def first_pass(self, model: LinearModel) -> tuple[LinearModel, float] | None:
        """Ho+17, section 3: stars whose labels are off by so many robust scatters are dropped."""
        limit = model.outlier_sigma
        return None if limit is None else (model.replace(outlier_sigma=None), limit)

    def offsets(self, model: LinearModel, result: StarResult, stars: Stars) -> np.ndarray:
        catalogue = model.catalogue(stars)
        return np.where(catalogue.observed, catalogue.value, np.nan) - model.require_frame().scaled(result.mean)

    def test_settings(self, model: LinearModel, asked: Mapping[str, Any]) -> dict[str, Any]:
        settings = dict(asked)
        if settings.get("flux_error_factor") not in (None, "star"):
            got = f"flux_error_factor={settings['flux_error_factor']!r} of the test step"
            raise bad_input(got, "'star', or None: as in training")
        if "nuisances" in settings:
            settings["nuisances"] = chosen = require_nuisances(settings["nuisances"])
            names = model.require_frame().names
            if twice := [name for x in chosen for name in x.names if name in names]:
                raise bad_input(f"nuisances named {twice}", "other names than the labels'", fix="rename the labels")
        return settings

    def start(self, model: LinearModel, stars: Stars, seed: int) -> Start:
        point = with_label_curve(model, by_em(model, stars, SHORT, seed, False), stars)
        return Start({name: x[0, 0] for name, x in point.draws.items()})

    def finish(self, model: LinearModel, stars: Stars, trained: Trained) -> Trained:
        trained.moments = moments_from_draws(model, stars, trained.draws)
        return with_label_curve(model, trained, stars)

    def trained_part(self, posterior: TrainedModel[LinearModel, Moments], stars: Stars) -> Stars:
        blank = ~np.isfinite(posterior.moments.scatter)
        if not blank.any() or "flux" not in stars:
            return stars
        flux = stars["flux"]
        value = np.where(blank, np.nan, flux.value)
        return stars.with_block(flux=Block(value, flux.error, names=flux.names, unit=flux.unit, coords=flux.coords))

    def layout(self, model: LinearModel) -> Layout:
        frame = model.require_frame()
        latents = list(frame.names)
        if not model.labels_are_latent:
            latents = [f"{model.sites['latents']}{p}" for p in range(model.features.n_label)]
        features = list(model.features.names(tuple(latents)))
        coords = {
            "labels": list(frame.names),
            "labels_bis": list(frame.names),
            "latent": latents,
            "latent_bis": latents,
            "feature": features,
            "feature_bis": features,
            "pixel": np.arange(frame.n_pixel) if frame.coordinate is None else frame.coordinate,
            "component": np.arange(model.n_component),
        }
        own_features = "label_feature" if model.label_curve else "feature"
        if model.label_curve:
            of_labels = list(model.label_features.names(frame.names))
            coords |= {"label_feature": of_labels, "label_feature_bis": of_labels}
        own, names = "labels" if model.labels_are_latent else "latent", model.sites
        shared = {
            "scatter": ["pixel"],
            "label_scatter": ["labels"],
            "population_mean": [own],
            "population_covariance": [own, f"{own}_bis"],
        }
        each = ["component"] if model.n_component > 1 else []
        sites = {
            "population_weight": each,
            "population_mean": [*each, own],
            "population_covariance": [*each, own, f"{own}_bis"],
            names["coefficients"]: ["pixel", "feature"],
            f"{names['coefficients']}_mean": ["feature"],
            f"{names['coefficients']}_covariance": ["feature", "feature_bis"],
            names["latents"]: ["star", own],
            "true_labels": ["star", "labels"],
            names.get("label_coefficients", "label_coefficients"): ["labels", "feature"],
            "label_curve": ["labels", own_features],
            "flux_error_factor": ["star"] if model.flux_error_factor == "star" else [],
        }
        moments = {
            "coefficients": ["pixel", "feature"],
            "coefficient_covariance": ["pixel", "feature", "feature_bis"],
            "label_coefficients": ["labels", own_features],
            "label_system_covariance": ["labels", own_features, "labels_bis", f"{own_features}_bis"],
            "training_u": ["training_star", own],
            "component_weight": ["component"],
            "component_mean": ["component", own],
            "component_covariance": ["component", own, f"{own}_bis"],
            "fit_quality": ["quality"],
            "flux_error_factor": ["survey"],
        }
        return Layout(coords, shared | sites, shared | moments)

    def read_moments(self, arrays: dict[str, np.ndarray]) -> Moments:
        if "label_coefficients" not in arrays:  # a file of before labels could be outputs
            arrays = {**arrays, "label_coefficients": np.zeros(arrays["label_system_covariance"].shape[:2])}
        return super().read_moments(arrays)

    def infer(
        self,
        posterior: TrainedModel[LinearModel, Moments],
        stars: Stars,
        inference: Inference,
        seed: int,
        keys: np.ndarray,
        progress: bool | None,
    ) -> dict[str, xr.Dataset]:
        model, moments = posterior.model, posterior.moments
        blocks = ("flux", *model.label_blocks)
        if not any(name in stars for name in blocks):
            raise bad_input(f"stars with {', '.join(stars.blocks) or 'no blocks'}", f"at least one of {blocks}")
        groups = []
        for labels, mask in model.pixels_for():
            seen = stars if mask is None else stars.with_block(flux=masked(stars, mask))
            problem = prepare(model, moments, seen, seed, inference.starts)
            draws = inference.infer(problem, keys, progress)
            groups.append((labels, finish(model, moments, seen, problem, draws, seed)))
        return groups[0][1] if len(groups) == 1 else joined(groups)

    def batch_size(self, model: LinearModel) -> int:
        """As many as take some 200 MB: 64 bytes a pixel at work, as many as read ahead, and matrices of the labels."""
        return max(512, min(4096 * 5 // max(5, model.features.n_label), 2_000_000 // model.require_frame().n_pixel))

    def quantities(self, model: LinearModel, stars: Stars | None = None) -> Quantities:
        frame = model.require_frame()
        return Quantities(frame.names, frame.units)

    def about(self, posterior: TrainedModel[LinearModel, Moments]) -> dict[str, Any]:
        return {
            "integrated_over": "coefficients and label system of the training posterior",
            "label_scatter": posterior.moments.label_scatter.tolist(),
            "label_scatter_included": posterior.model.scatter_is_own,
            "flux_unit": posterior.model.require_frame().flux_unit,
        }

    def asked(self, model: LinearModel) -> tuple[str, ...]:
        return ("labels",)

    def held_out_view(self, model: LinearModel, stars: Stars) -> Stars:
        return stars.drop(*[name for name in model.label_blocks if name in stars])

    def log_density(
        self, posterior: TrainedModel[LinearModel, Moments], result: StarResult, stars: Stars
    ) -> np.ndarray:
        """Density of the catalogue labels; tau is the catalogue's noise unless it is in the star's own error."""
        model, frame = posterior.model, posterior.model.require_frame()
        catalogue = model.catalogue(stars)
        tau = 0.0 if model.scatter_is_own else posterior.moments.label_scatter
        covariance = result.cov + catalogue.covariance * (frame.scale[:, None] * frame.scale)
        covariance = covariance + np.eye(len(frame.names)) * tau**2
        value = np.where(catalogue.observed, frame.physical(catalogue.value), np.nan)
        return log_density_of(value - result.mean, covariance)

    def parameters(self, posterior: TrainedModel[LinearModel, Moments], seed: int) -> dict[str, np.ndarray]:
        """Draws of the sites; where there is one draw, the mode, the coefficients vary as their covariance says."""
        draws, moments = super().parameters(posterior, seed), posterior.moments
        name = posterior.model.sites["coefficients"]
        if draws[name].shape[:2] != (1, 1):
            return draws
        root = np.linalg.cholesky(moments.coefficient_covariance + 1e-14 * np.eye(moments.coefficients.shape[1]))
        z = np.random.default_rng([seed, 179424673]).standard_normal((GAUSSIAN_DRAWS, *moments.coefficients.shape))
        out = {site: np.broadcast_to(x, (1, GAUSSIAN_DRAWS, *x.shape[2:])) for site, x in draws.items()}
        out[name] = (moments.coefficients + np.einsum("ljk,dlk->dlj", root, z))[None]
        return out

    def identified(self, model: LinearModel, draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Quantities that data identify: of latents, which may be rotated, the labels and fluxes that they predict."""
        names = model.sites
        if not model.labels_are_latent:
            free = {*names.values(), "true_labels", *(f"{names['coefficients']}_{x}" for x in ("mean", "covariance"))}
            made = {}
            if names["latents"] in draws:
                phi = model.features(draws[names["latents"]][:, :SOME_STARS])
                made = {
                    "label": phi @ draws[names["label_coefficients"]].swapaxes(1, 2),
                    "flux": phi @ draws[names["coefficients"]].swapaxes(1, 2),
                }
            draws = {name: x for name, x in draws.items() if name not in free} | made
        return super().identified(model, {name: x for name, x in draws.items() if name != "true_labels"})

    def true_quantities(self, model: LinearModel, sites: dict[str, Any], stars: Stars) -> dict[str, Any]:
        """The labels that catalogues measure with noise; where they are outputs, their scatter about A z included."""
        if model.labels_are_latent:
            values = sites["true_labels"]
        else:
            if known := [block for block in model.label_blocks if block in stars]:
                raise bad_input(f"stars with {', '.join(known)}", "spectra alone", fix=f"stars.drop{tuple(known)}")
            values = jnp.concatenate([sites[block] for block in model.label_blocks], -1)
        return {name: values[:, m] for m, name in enumerate(model.require_frame().names)}

    def predict(
        self, posterior: TrainedModel[LinearModel, Moments], stars: Stars, name: str | None, with_error: bool
    ) -> Any:
        name = name or "flux"
        model, moments = posterior.model, posterior.moments
        if name not in ("flux", *model.label_blocks) or (name != "flux" and model.labels_are_latent):
            known = ("flux",) if model.labels_are_latent else ("flux", *model.label_blocks)
            raise bad_input(f"predict(..., {name!r})", f"one of {known}", "a quantity that this model does not have")
        given = [block for block in ("flux", *model.label_blocks) if block in stars and block != name]
        if not given:
            raise bad_input(
                f"stars without {'labels' if name == 'flux' else 'flux'}", f"a block to predict {name} from",
                fix="infer(posterior, stars).table() gives labels",
            )  # fmt: skip
        model.check(stars)
        u, spread = latents(posterior, stars, given)
        if name != "flux":
            at, frame, labels = model.require_frame().columns(name), model.require_frame(), label_map(model, moments)
            own = np.einsum("nmm->nm", labels.spread(u, spread)) * frame.scale**2 + moments.label_scatter**2
            mean, sd = frame.physical(labels.at(u))[:, at], np.sqrt(own)[:, at]
            return (mean, sd) if with_error else mean
        return predicted_flux(model, moments, u, spread, with_error)

    def predict_stars(
        self, posterior: TrainedModel[LinearModel, Moments], result: StarResult, name: str | None, with_error: bool
    ) -> Any:
        if name not in (None, "flux"):
            raise bad_input(f"predict({name!r})", '"flux": the labels are in table()')
        stars, model = result.stars, posterior.model
        names = [(n, w) for x in model.nuisances for n, w in zip(x.names, x.widths, strict=True)]
        v = np.stack([stars[n].values / w for n, w in names], 1) if names else None
        latent, spread = stars["latents"].values, stars["latents_covariance"].values
        return predicted_flux(model, posterior.moments, latent, spread, with_error, v)

    def summary(self, posterior: TrainedModel[LinearModel, Moments]) -> QTable:
        model, moments = posterior.model, posterior.moments
        frame = model.require_frame()
        if not model.labels_are_latent:
            columns = {"label": list(frame.names), "unit": list(frame.units), "label_scatter": moments.label_scatter}
            return QTable(columns)
        learned = np.nan if model.fixed_population is not None else 1.0
        return QTable(
            {
                "label": list(frame.names),
                "unit": list(frame.units),
                "label_scatter": moments.label_scatter,
                "population_mean": learned * frame.physical(moments.population_mean),
                "population_sd": learned * frame.scale * np.sqrt(np.diag(moments.population_covariance)),
            }
        )

    def describe(self, model: LinearModel) -> str:
        frame = model.require_frame()
        return f"{', '.join(frame.names)} from {frame.n_pixel} pixels"

    def details(self, posterior: TrainedModel[LinearModel, Moments]) -> list[str]:
        frame, moments = posterior.model.require_frame(), posterior.data["moments"].to_dataset()
        grid = "" if frame.coordinate is None else f", {frame.coordinate[0]:.6g} to {frame.coordinate[-1]:.6g}"
        scatter = np.nanmedian(posterior.moments.scatter)
        return [
            f"spectra: {frame.n_pixel} pixels{grid}; median scatter {scatter:.2g} {frame.flux_unit}".rstrip(),
            f"features: {', '.join(moments['feature'].values.astype(str))}",
        ]
