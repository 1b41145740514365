"""The two verbs: `fit`, the training step, and `infer`, the test step; what each kind of models does: kinds/."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import xarray as xr

from .core.model import Model
from .data.batches import Usable
from .data.digests import digests, in_order
from .data.sentinels import ranges_of, refuse_sentinels, refuse_tiny_errors, warn_of_far_labels, without_sentinels
from .data.stars import Stars
from .devices import one_each
from .errors import CannotDo, NotConverged, bad_input, warn
from .files.bad_stars import without_failures
from .files.checkpoint import Checkpoint
from .files.training import StarsInFiles, StarsInMemory, TrainingStars
from .inference.base import Inference, Trained
from .inference.map import MAP
from .kind import Choice, kind_of
from .kinds.program.program import as_model
from .numerics.linalg import in_float64
from .numerics.own_variates import keys_of
from .progress import bar
from .results.posterior import Posterior, provenance
from .results.star_posterior import Flags, StarPosterior, refuse_names

F = TypeVar("F", bound=Callable[..., Any])


def _solvable(function: F) -> F:
    """`fit`, where linear algebra without an answer is bad input."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Posterior:
        try:
            return function(*args, **kwargs)
        except np.linalg.LinAlgError as problem:
            raise bad_input(
                f"training stars for which the linear algebra has no answer ({problem})", "numbers of one size",
                "numbers far from all others, or labels that are multiples of one another",
                "training stars without those whose numbers are outliers",
            ) from problem  # fmt: skip

    return wrapped  # type: ignore[return-value]


@in_float64
@_solvable
def fit(
    model: Model | Callable[..., Any],
    stars: Stars | str | os.PathLike[str],
    inference: Inference | None = None,
    *,
    seed: int = 0,
    progress: bool | None = None,
    columns: Mapping[str, Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    every: float = 60.0,
) -> Posterior:
    """Training step: the posterior of the model's parameters given training stars.

    Args:
        model: such as `Cannon()`. What its settings leave open (an order, `label_noise=True`, a latent size) is decided
            by the evidence of the flux or by held-out stars. The scores stand in the result's `info["selection"]`.
            A model may also be a NumPyro program of your own, which is a function of stars (how it is written:
            `kinds.program.OwnProgram`), a subclass with a program of its own, or a model with a distribution of NumPyro
            as one of its priors. `NUTS` and `SVI` train these, slowly.
        stars: training stars with the blocks that the model observes: for `Cannon` these are `labels` and `flux`, for
            `Parallax` its features and `parallax`. `MAP` and `SVI`, and `Laplace` of `Parallax`, also take a file or
            folder that is larger than memory, as `infer_catalog` does, and read it anew in every epoch.
        inference: `MAP()` (the default for models of spectra), `Laplace()` (the default for `Parallax`), `Gibbs()`,
            `NUTS()` or `SVI()`.
        seed: same seed, same result. progress: show a bar; None: on a terminal and in notebooks.
        columns: which columns of a file make up which block, as in `Stars.from_table`. A block that is not named here
            is read from the columns named like it.
        checkpoint: a file (.npz) that the inferences that take files write while they train. The same call, after
            whatever stopped it, continues from there, with the same result to the bit.
        every: seconds between two checkpoints.

    Returns:
        What was learned: parameters with their uncertainty, `info`, and everything that `infer` needs.

    Raises:
        BadInput: stars that the model cannot be trained on. CannotDo: an inference that cannot train this model.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
        >>> posterior.model.frame.names
        ('TEFF', 'LOGG', 'FE_H')
    """
    model = as_model(model)
    _check_arguments(None if isinstance(stars, str | os.PathLike) else stars, seed)
    kind = kind_of(model)
    inference = inference or kind.fit_by
    kind.require(inference, model, "fit")
    large = not isinstance(stars, Stars) or checkpoint is not None
    by_rows = kind.by_rows(inference, large)
    if isinstance(stars, Stars):
        _refuse_early(model, stars)
        order = np.arange(len(stars))
        if not kind.keeps_order:  # so that nothing depends on the order in which they are given
            order = in_order(digests(stars, model.blocks), seed)
            stars = stars[order]
    if by_rows:
        if odd := kind.not_by_rows(model):
            why = "stars are in files or a checkpoint is kept" if large else f"{type(inference).__name__} trains it"
            raise CannotDo(f"{odd} where {why}")
        return _fit_by_rows(model, stars, inference, seed, progress, columns, checkpoint, every)
    if not isinstance(stars, Stars) or checkpoint or columns:
        what = "stars in files" if not isinstance(stars, Stars) else "checkpoints" if checkpoint else "columns"
        raise CannotDo(
            f"{type(inference).__name__} of {kind.called(model)} takes no {what}: it holds all stars in memory, "
            "Stars.from_table(table, ...), and is done in one go"
        )
    inliers = _inliers(model, stars, seed, progress)
    used = stars
    if inliers is not None:
        inside = inliers(stars)
        order, used = order[inside], stars[inside]
    choice = kind.choose(model, used, inference, seed, progress)
    if inliers is not None:
        choice.info["n_outlier"] = len(stars) - len(used)
    trained = kind.train(choice.model, choice.stars, inference, seed, progress)
    rows = order if choice.kept is None else order[choice.kept]
    trained = trained.reordered(np.argsort(rows), kind.layout(choice.model).sites)  # that in which they were given
    return _posterior(trained, choice, inference, seed, len(choice.stars))


def _fit_by_rows(
    model: Model, stars: Any, inference: Inference, seed: int, progress: bool | None, columns: Any, checkpoint: Any,
    every: float,
) -> Posterior:  # fmt: skip
    """`fit` row after row, of stars in memory or in files: the model is bound to a sample, and trained block by
    block."""
    kind = kind_of(model)
    if isinstance(stars, Stars) and columns:
        raise bad_input("columns for stars in memory", "columns of a file", fix="Stars.from_table(table, ...)")

    def those(usable: Usable) -> TrainingStars:
        if isinstance(stars, Stars):
            return StarsInMemory(stars, usable)
        return StarsInFiles(stars, dict(columns or {}), model, usable, seed, progress)

    training = those(functools.partial(kind.usable, model))
    if not isinstance(stars, Stars):
        _refuse_early(model, training.sample)
    n_usable, inliers = int(training.usable.sum()), _inliers(model, training.sample, seed, progress)
    if inliers is not None:
        training = those(lambda some: kind.usable(model, some) & inliers(some))
    kept = None
    if checkpoint is not None:
        notes = {
            "model": described(model), "n_star": training.n, "stars": training.identity(), "columns": training.columns,
            "inference": type(inference).__name__, "settings": inference.settings(), "seed": seed,
        }  # fmt: skip
        kept = Checkpoint(Path(checkpoint), every, notes)
    with kept.alone() if kept else nullcontext():
        choice = kind.choose(model, training.sample, inference, seed, progress)
        trained = kind.train_rows(training.rows(choice.model), inference, seed, progress, kept)
    n = int(training.usable.sum())
    if kind.lost:
        choice.info[kind.lost] = training.n - n_usable
    if inliers is not None:
        choice.info["n_outlier"] = n_usable - n
    if training.columns is not None:
        choice.info["columns"] = training.columns
    return _posterior(trained, choice, inference, seed, n)


def _inliers(model: Model, stars: Stars, seed: int, progress: bool | None) -> Usable | None:
    """Which of any stars are no outliers, by a first pass of the training step on some; None: the model asks for no
    such pass."""
    kind = kind_of(model)
    asked = kind.first_pass(model)
    if asked is None:
        return None
    first, limit = asked
    trained = fit(first, stars, seed=seed, progress=progress)

    def offsets(some: Stars) -> np.ndarray:
        answered = infer(trained, kind.held_out_view(trained.model, some), MAP(), seed=seed, progress=False)
        return kind.offsets(trained.model, answered, some)

    low, middle, high = np.nanpercentile(offsets(stars), [15.87, 50, 84.13], axis=0)
    return lambda some: ~(np.abs(offsets(some) - middle) > limit * (high - low) / 2).any(1)


def _posterior(trained: Trained, choice: Choice, inference: Inference, seed: int, n_star: int) -> Posterior:
    if not trained.stats.get("converged", True):
        advice = trained.stats.get("advice", "more draws, steps or iterations")
        warn(f"the training step has not converged: try {advice}", NotConverged)
    ranges = ranges_of(choice.stars, choice.model.blocks)
    info = {**provenance(seed, inference), **choice.info, "n_star": n_star, "ranges": ranges}
    trained_model = Posterior.from_training(choice.model, trained, info)
    return cast(Posterior, kind_of(choice.model).complete(trained_model, choice))


@in_float64
def infer(
    posterior: Posterior,
    stars: Stars,
    inference: Inference | None = None,
    *,
    nuisances: Sequence[Any] | None = None,
    flux_error_factor: str | None = None,
    seed: int = 0,
    progress: bool | None = None,
    batch_size: int | None = None,
) -> StarPosterior:
    """Test step: the posterior of what is not known of every star, integrated over the training posterior.

    A block present in `stars` is data, labels included: `stars.drop("labels")` asks for labels from spectra alone.

    Args:
        posterior: from `fit` or `load`.
        inference: `Laplace()` (the default), `Importance()`, `NUTS()` or `MAP()`.
        nuisances: for models of spectra, what else varies from star to star in these spectra, such as
            `nuisances.Continuum(0.01)`; None: as in training. A continuum that is off by 1 per cent makes the labels
            three times worse; integrated out it costs nothing. What is found of a nuisance, such as a velocity, stands
            in the table.
        flux_error_factor: for models of spectra, "star" says that the stated flux errors are wrong by a factor f. It is
            learned for every star, with the prior ln f ~ N(0, 1), and stands in the table. None: as in training.
        seed: same seed, same result. The draws of a star follow from the seed and from what was measured of it,
            whatever stars are beside it: two stars of the same numbers have the same draws. progress: as in `fit`.
        batch_size: stars at a time; None: as many as take some 200 MB, at most.

    Returns:
        A row for every star, in order. A star without an answer has NaN and a flag.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
        >>> result = bl.infer(posterior, test, progress=False)
        >>> result.mean.shape
        (20, 3)
        >>> result.table().colnames[:3]
        ['id', 'TEFF', 'TEFF_error']
    """
    if not isinstance(posterior, Posterior):
        raise bad_input(f"a {type(posterior).__name__}", "a training posterior", fix="posterior = fit(model, stars)")
    if batch_size is not None and (not isinstance(batch_size, int | np.integer) or batch_size < 1):
        raise bad_input(f"batch_size={batch_size!r}", "a number of stars, or None")
    posterior = for_stars_with(posterior, nuisances, flux_error_factor)
    model = posterior.model
    _check_arguments(stars, seed)
    kind = kind_of(model)
    inference = inference or kind.infer_by
    kind.require(inference, model, "infer")
    model.check(stars)
    size = batch_of(batch_size or even_batches(model, len(stars)), len(stars))

    def part(start: int) -> dict[str, xr.Dataset]:
        batch = stars if len(stars) <= size else stars[start : start + size]
        return infer_batch(posterior, batch, inference, seed, size, progress)

    parts = []
    with bar(len(stars), "test step", progress) as shown:
        for done in one_each(part, range(0, len(stars), max(size, 1))):
            parts.append(done)
            shown.update(done["stars"].sizes["star"])
    return gathered(posterior, stars, parts, inference, seed)


def for_stars_with(
    posterior: Posterior, nuisances: Sequence[Any] | None = None, flux_error_factor: str | None = None
) -> Posterior:
    """The posterior for stars that vary in these respects, too, or of which the errors may be wrong; None: as in
    training."""
    asked = {"nuisances": nuisances, "flux_error_factor": flux_error_factor}
    asked = {name: value for name, value in asked.items() if value is not None}
    if not asked:
        return posterior
    return posterior.with_model(**kind_of(posterior.model).test_settings(posterior.model, asked))


EVEN = 128
"""Sizes of batches are multiples of so many stars: few are compiled."""


def even_batches(model: Model, n: int) -> int:
    """Stars at a time, of n: as many as a kind takes, or fewer where the last batch would be emptier than the rest,
    which costs as much as a full one."""
    most = kind_of(model).batch_size(model)
    even = -(-n // max(1, -(-n // most)))
    return min(most, even + -even % EVEN)


def batch_of(most: int, n: int) -> int:
    """Stars at a time, of n: as many as allowed, or a power of two that holds them all: few sizes are compiled."""
    return min(most, 1 << max(n - 1, 0).bit_length())


def few_batches(model: Model) -> list[int]:
    """Stars at a time where their number is not known beforehand: few sizes, that each is compiled once, of which the
    smallest that holds them wastes at most three quarters of it."""
    most = kind_of(model).batch_size(model)
    return sorted({most, *(max(EVEN, most // part) for part in (4, 16) if most > EVEN)})


def infer_batch(
    posterior: Posterior, stars: Stars, inference: Inference, seed: int, size: int, progress: bool | None
) -> dict[str, xr.Dataset]:
    """`Kind.infer` of some of many stars, filled up to `size` with copies of them: one shape, compiled once.

    A star at which the linear algebra fails is flagged NOT_CONVERGED; the others are inferred without it. A sentinel,
    such as a magnitude of 99, is missing, and its star is flagged SENTINEL. The random numbers of a star follow from
    the seed and from what was measured of it: they are the same among other stars and in other batches.
    """
    n = len(stars)
    if n < size:
        stars = stars[np.arange(size) % n]  # of all: were the last one hard, its copies would be
    kind = kind_of(posterior.model)
    stars, odd = without_sentinels(stars, posterior.info.get("ranges", {}))
    keys = keys_of(digests(stars, posterior.model.blocks), seed)
    part, failed = without_failures(lambda x: kind.infer(posterior, x, inference, seed, keys, progress), stars)
    if failed.any():
        flags = part["stars"]["flags"]
        part["stars"]["flags"] = flags.where(~failed, (flags & ~int(Flags.NO_DATA)) | int(Flags.NOT_CONVERGED))
    if odd.any():
        part["stars"]["flags"] = part["stars"]["flags"] | np.where(odd, int(Flags.SENTINEL), 0)
    return part if n == size else {name: data.isel(star=slice(0, n)) for name, data in part.items()}


def gathered(
    posterior: Posterior, stars: Stars, parts: list[dict[str, xr.Dataset]], inference: Inference, seed: int
) -> StarPosterior:
    """The result of the test step of all stars from those of its batches; stars: some of them."""
    kind = kind_of(posterior.model)
    data = xr.DataTree.from_dict({name: xr.concat([p[name] for p in parts], "star") for name in ("posterior", "stars")})
    info = {
        **provenance(seed, inference),
        **kind.about(posterior),
        "trained_by": posterior.info.get("inference", ""),
        "n_star": data["stars"].sizes["star"],
    }
    return StarPosterior(data, kind.quantities(posterior.model, stars), info, posterior.predictor)


def described(model: Model) -> dict[str, str]:
    """Its kind and hyperparameters, to compare."""
    fields = {f.name: str(getattr(model, f.name)) for f in dataclasses.fields(model) if f.name != "frame"}
    return {"kind": type(model).__name__, **fields}


def _refuse_early(model: Model, stars: Stars) -> None:
    """Refuse names that would be lost in the result, and sentinels, before anything is computed."""
    kind = kind_of(model)
    for block in {"labels", "target_labels", *getattr(model, "label_blocks", ())} & set(model.blocks):
        if block in stars:
            refuse_names(stars[block].names or (), kind.beside, kind.columns, kind.parts)
    refuse_sentinels(stars, model.blocks)
    refuse_tiny_errors(stars, model.blocks)
    warn_of_far_labels(stars, [x for x in model.blocks if x == "labels"])


def _check_arguments(stars: Any, seed: Any) -> None:
    if not isinstance(stars, Stars | None):
        raise bad_input(
            f"stars as a {type(stars).__name__}", "Stars", fix='Stars.from_table(table, labels=(...), flux="FLUX")'
        )
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise bad_input(f"seed={seed!r}", "an integer >= 0")
