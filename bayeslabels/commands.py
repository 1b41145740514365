"""What the command line does: one function per command, of the arguments and a list of the files written."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from . import demo, plots, reports
from . import inference as inferences
from .calibration import cross_validate
from .catalogues.catalog import infer_catalog
from .core.model import Model, models
from .data.columns import default_names
from .data.stars import Stars
from .errors import BadInput, CannotDo, bad_input, index_of, printable
from .files.sources import read_stars
from .files.tables import write_table
from .files.whole import in_one_piece, refuse_unwritable
from .inference.base import Inference
from .kind import kind_of
from .results.about import training
from .results.posterior import Posterior, load
from .verbs import fit

COLUMNS = ("labels", "labels_error", "flux", "flux_error", "flux_ivar", "wavelength", "id", "hdu")
"""Options that say where things stand in a table; a model file remembers those of its training."""

FIGURES = (".png", ".pdf", ".svg", ".jpg")
"""Formats of figures."""


def run_demo(a: argparse.Namespace, written: list[Path]) -> None:
    if a.out.exists() and not a.out.is_dir():
        raise bad_input(f"--out {a.out}, which is a file", "a folder")
    if a.data is None:
        given = [f"--{x.replace('_', '-')}" for x in COLUMNS if getattr(a, x) is not None] + ["--column"] * bool(
            a.column
        )
        if given:
            raise bad_input(f"{', '.join(given)} without --data", "--data TABLE, or neither")
        survey = demo.simulated(a.stars or 600, a.pixels or 400, a.seed)
    else:
        if a.labels is None:
            raise bad_input("--data without --labels", "the label columns", fix="--labels TEFF,LOGG,FE_H")
        stars = read_stars(a.data, _columns(a))
        survey = demo.split(stars, a.stars, a.pixels, a.seed, a.data)
    start = time.perf_counter()
    demo.run(survey, a.out, seed=a.seed, progress=_progress(a), say=_say, written=written)
    _say(f"\nAll done in {time.perf_counter() - start:.0f} s.")


def run_fit(a: argparse.Namespace, written: list[Path]) -> None:
    _may_write(a.output, a.overwrite)
    model = _model(a)
    columns = _columns(a)
    inference = _inference(a, kind_of(model).fit_by)
    options: dict[str, Any] = {"seed": a.seed, "progress": _progress(a), "checkpoint": a.checkpoint}
    if a.checkpoint:
        a.interrupted = f"the same command resumes from {a.checkpoint}"
    start = time.perf_counter()
    if a.stream:
        posterior = fit(model, a.table, inference, columns=columns, **options)
    else:
        posterior = fit(model, _labelled(a, model, columns)[0], inference, **options)
        posterior.info["columns"] = columns
    _say(training(posterior, time.perf_counter() - start))
    posterior.info["source"] = os.path.basename(a.table)
    written.append(_saved(posterior, a.output))
    _say(f"wrote {written[-1]}; next: bayeslabels infer {written[-1]} TABLE -o catalogue.fits")


def _saved(posterior: Posterior, path: Path) -> Path:
    """Save what was trained; where that fails now, as on a disk that is full, in a folder for temporary files."""
    try:
        return posterior.save(path, overwrite=True)  # asked for, or refused, before training
    except OSError as problem:
        elsewhere = Path(tempfile.mkdtemp(prefix="bayeslabels-")) / path.name
        posterior.save(elsewhere)
        text = f"{path} could not be written ({problem.strerror}): the model is in {elsewhere}"
        raise OSError(problem.errno, text) from problem


def run_check(a: argparse.Namespace, written: list[Path]) -> None:
    if a.figure and a.figure.suffix not in FIGURES:
        raise bad_input(f"--figure {a.figure}", f"a name that ends in {', '.join(FIGURES)}")
    for path in filter(None, (a.output, a.figure)):
        _may_write(path, a.overwrite)
    model = _model(a)
    inference = _inference(a, kind_of(model).fit_by)
    stars, bound = _labelled(a, model, _columns(a))
    if (block := kind_of(bound).quantities(bound).block) not in stars:
        text = f"check compares what is inferred with a block {block!r}, which these stars do not have"
        raise CannotDo(f"{text}; in Python, bayeslabels.cross_validate gives what is inferred of held-out stars")
    start = time.perf_counter()
    held_out = cross_validate(model, stars, inference, a.folds, seed=a.seed, progress=_progress(a))
    _say(f"Held-out stars of {held_out.folds} folds, each inferred by a model that was trained on the other folds:")
    _say(reports.recovery(held_out, stars, time.perf_counter() - start))
    if a.output:
        written.append(write_table(held_out.table(), a.output))
    if a.figure:
        with in_one_piece(a.figure) as part:
            plots.calibration(held_out, stars).savefig(part, dpi=130)
        written.append(a.figure)
    if written:
        _say(f"wrote {', '.join(map(str, written))}")


def _labelled(a: argparse.Namespace, model: Model, columns: dict[str, Any]) -> tuple[Stars, Model]:
    """The stars of the table, counted, which the model can be trained on; and the model bound to them."""
    stars = read_stars(a.table, columns)
    _say(f"{a.table}: {_counts(stars)}")
    with _taken("--set", a.set, a.model):
        return stars, model.bind(stars)


def run_infer(a: argparse.Namespace, written: list[Path]) -> None:
    if a.output.suffix:  # a folder may be that of an interrupted run
        _may_write(a.output, a.overwrite)
    posterior = load(a.model)
    inference = _inference(a, kind_of(posterior.model).infer_by)
    size = a.batch_size or "auto"
    run = infer_catalog(
        posterior, a.table, a.output, inference, columns=_given(a), save=a.save, batch_size=size,
        resume=not a.restart, overwrite=a.overwrite, seed=a.seed, progress=_progress(a),
    )  # fmt: skip
    written.append(a.output)
    _say(f"wrote {run}")


def _model(a: argparse.Namespace) -> Model:
    """The model named, with the hyperparameters that were set."""
    model = next(cls for name, cls in models().items() if name.lower() == a.model)
    short = ([("order", a.order)] if a.order else []) + ([("label_noise", False)] if a.no_label_noise else [])
    known = [field.name for field in dataclasses.fields(model) if field.init and field.name != "frame"]
    settings = _settings([*a.set, *short], known, f"hyperparameter of {model.__name__}")
    with _taken("--set", a.set, a.model):
        return model(**settings)


def _inference(a: argparse.Namespace, own: Inference) -> Inference | None:
    """The inference named, or else the model's own, with the settings given; None: the model's own as it is."""
    named = next((getattr(inferences, x)() for x in inferences.__all__ if x.lower() == a.inference), None)
    if not a.inference_set:
        return named
    one = named or own
    known, name = [field.name for field in dataclasses.fields(one)], type(one).__name__
    with _taken("--inference-set", a.inference_set, name):
        return dataclasses.replace(one, **_settings(a.inference_set, known, f"setting of {name}"))


def _settings(given: Iterable[tuple[str, Any]], known: list[str], what: str) -> dict[str, Any]:
    """The values given, each name known and given once."""
    settings: dict[str, Any] = {}
    for name, value in given:
        index_of(name, known, what)
        if name in settings:
            raise bad_input(f"{name}={settings[name]!r} and {name}={value!r}", "one of them")
        settings[name] = value
    return settings


@contextlib.contextmanager
def _taken(option: str, given: Sequence[tuple[str, Any]], owner: str) -> Iterator[None]:
    """Settings come from the command line: what Python cannot make of them is bad input, not a bug."""
    try:
        yield
    except (TypeError, ValueError, AttributeError) as problem:
        if isinstance(problem, BadInput) or not given:
            raise
        text = ", ".join(f"{name}={value!r}" for name, value in given)
        raise bad_input(f"{option} {text}", f"values that {owner} can take", str(problem)) from problem


def _given(a: argparse.Namespace) -> dict[str, Any]:
    """The columns that the options name."""
    given = {name: getattr(a, name) for name in COLUMNS if getattr(a, name) is not None}
    given |= {name: list(value) for name, value in given.items() if isinstance(value, tuple)}
    for name, value in a.column:
        if name in given:
            raise bad_input(f"{name} twice", "once")
        given[name] = value
    return given


def _columns(a: argparse.Namespace) -> dict[str, Any]:
    """The columns of the training step: spectra are in FLUX unless something else is named."""
    given = _given(a)
    if not a.column:
        given.setdefault("flux", "FLUX")
    return given


def _counts(stars: Stars) -> str:
    parts = [f"{len(stars)} stars"]
    for name, block in stars.blocks.items():
        missing = 100 * block.n_missing / block.value.size
        own = block.names if not block.coords and block.names != default_names(block.n_dim) else None
        what = ", ".join(own) if own else f"{name} of {block.n_dim} {'pixels' if name == 'flux' else 'columns'}"
        parts.append(f"{what} ({missing:.2g}% missing{', without errors' if block.error is None else ''})")
    return "; ".join(parts)


def _may_write(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise bad_input(f"output {path}, which exists", "a new file", fix="--overwrite to replace it")
    if not path.parent.is_dir():
        raise bad_input(f"output {path}", "a file in a folder that exists")
    refuse_unwritable(path, "output")


def _progress(a: argparse.Namespace) -> bool | None:
    return False if a.quiet else None


def _say(text: str) -> None:
    print(printable(text), flush=True)
