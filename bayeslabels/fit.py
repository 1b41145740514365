"""The two verbs: `fit`, the training step, and `infer`, the test step; what each kind of models does: families/."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import xarray as xr

from .errors import NotConverged, bad_input
from .family import family_of
from .inference.base import Inference
from .model import Model
from .numerics.linalg import in_float64
from .posterior import Posterior, provenance
from .progress import bar
from .star_posterior import StarPosterior
from .stars import Stars


@in_float64
def fit(
    model: Model,
    stars: Stars,
    inference: Inference | None = None,
    *,
    seed: int = 0,
    progress: bool | None = None,
) -> Posterior:
    """Training step: the posterior of the model's parameters given training stars.

    Args:
        model: such as `Cannon(order=2)`. What its settings leave open (`Cannon(label_noise=True)`) is decided by
            held-out density; the scores stand in the result's `info["selection"]`.
        stars: with the blocks that the model observes: for the Cannon `labels` and `flux`, for `Parallax` those of its
            features and `parallax`.
        inference: `MAP()` (the default for models of spectra), `Laplace()` (the default for `Parallax`), `Gibbs()`,
            `NUTS()` or `SVI()`.
        seed: same seed, same result. progress: show a bar; None: on a terminal.

    Raises:
        BadInput: stars that the model cannot be trained on. CannotDo: an inference that cannot train this model.
    """
    _check_arguments(model, stars, seed)
    family = family_of(model)
    inference = inference or family.fit_by
    family.require(inference, model, "fit")
    choice = family.choose(model, stars, inference, seed, progress)
    trained = family.train(choice.model, choice.stars, inference, seed, progress)
    if not trained.stats.get("converged", True):
        advice = trained.stats.get("advice", "more draws, steps or iterations")
        warnings.warn(f"the training step has not converged: try {advice}", NotConverged, stacklevel=3)
    info = {**provenance(seed, inference), **choice.info, "n_star": len(choice.stars)}
    return family.complete(Posterior.from_training(choice.model, trained, info), choice)


@in_float64
def infer(
    posterior: Posterior,
    stars: Stars,
    inference: Inference | None = None,
    *,
    seed: int = 0,
    progress: bool | None = None,
    batch_size: int | None = None,
) -> StarPosterior:
    """Test step: the posterior of what is not known of every star, integrated over the training posterior.

    A block present in `stars` is data, labels included: `stars.drop("labels")` asks for labels from spectra alone.

    Args:
        posterior: from `fit` or `load`.
        inference: `Laplace()` (the default), `Importance()`, `NUTS()` or `MAP()`.
        batch_size: stars at a time; None: as many as take some 200 MB.

    Returns:
        A row for every star, in order; a star without an answer has NaN and a flag.
    """
    model = posterior.model
    _check_arguments(model, stars, seed)
    family = family_of(model)
    inference = inference or family.infer_by
    family.require(inference, model, "infer")
    model.check(stars)
    batch_size = batch_size or family.batch_size(model)
    parts = []
    with bar(len(stars), "test step", progress) as shown:
        for start in range(0, len(stars), batch_size):
            batch = stars if len(stars) <= batch_size else stars[start : start + batch_size]
            parts.append(infer_batch(posterior, batch, inference, seed, start, min(batch_size, len(stars)), progress))
            shown.update(len(batch))
    return gathered(posterior, parts, inference, seed)


def infer_batch(
    posterior: Posterior, stars: Stars, inference: Inference, seed: int, first: int, size: int, progress: bool | None
) -> dict[str, xr.Dataset]:
    """`Family.infer` of some of many stars, filled up to `size` with copies of the last: one shape, compiled once.

    first: the place of the first of them among all stars.
    """
    n = len(stars)
    if n < size:
        stars = stars[np.minimum(np.arange(size), n - 1)]
    part = family_of(posterior.model).infer(posterior, stars, inference, seed, first, progress)
    return part if n == size else {name: data.isel(star=slice(0, n)) for name, data in part.items()}


def gathered(
    posterior: Posterior, parts: list[dict[str, xr.Dataset]], inference: Inference, seed: int
) -> StarPosterior:
    """The result of the test step of all stars from those of its batches."""
    family = family_of(posterior.model)
    data = xr.DataTree.from_dict({name: xr.concat([p[name] for p in parts], "star") for name in ("posterior", "stars")})
    info = {
        **provenance(seed, inference),
        **family.about(posterior),
        "trained_by": posterior.info.get("inference", ""),
        "n_star": data["stars"].sizes["star"],
    }
    return StarPosterior(data, family.quantities(posterior.model), info)


def fold_of(n_star: int, folds: int, seed: int) -> np.ndarray:
    """The fold of each star, balanced and shuffled by seed."""
    if not 2 <= folds <= n_star:
        raise bad_input(f"folds={folds} for {n_star} stars", "at least 2 folds, and a star for each")
    return np.random.default_rng([seed, 2718]).permutation(n_star) % folds


def _check_arguments(model: Any, stars: Any, seed: Any) -> None:
    if not isinstance(model, Model):
        raise bad_input(f"a {type(model).__name__}", "a model", fix="fit(Cannon(order=2), stars)")
    if not isinstance(stars, Stars):
        raise bad_input(
            f"stars as a {type(stars).__name__}", "Stars", fix='Stars.from_table(table, labels=(...), flux="FLUX")'
        )
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise bad_input(f"seed={seed!r}", "an integer >= 0")
