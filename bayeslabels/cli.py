"""The command line: ``bayeslabels demo``, ``fit``, ``infer`` and ``info``."""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from . import demo, reports
from . import inference as inferences
from .catalogues.catalog import infer_catalog
from .core.model import Model, models
from .core.priors import HalfNormal, Prior
from .data.columns import default_names
from .data.stars import Stars
from .errors import BadInput, CannotDo, bad_input, index_of
from .files.formats import TABLES
from .files.sources import read_stars
from .files.whole import refuse_unwritable
from .fit import fit
from .kind import kind_of
from .results.posterior import Posterior, load, version_of

INFERENCES = {name.lower(): getattr(inferences, name) for name in sorted(inferences.__all__)}
_BY_NAME = {name.lower(): model for name, model in models().items() if model.offered}
_PRIORS = {prior.__name__: prior for prior in (*get_args(Prior), HalfNormal)}
COLUMNS = ("labels", "labels_error", "flux", "flux_error", "flux_ivar", "wavelength", "id", "hdu")
"""Options that say where things stand in a table; a model file remembers those of its training."""
ROWS = 60
"""Of what was learned, at most, that `info` shows."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 0, 2 for bad input, 130 when interrupted."""
    try:
        arguments = parser().parse_args(argv)
    except SystemExit as leave:
        return int(leave.code or 0)
    written: list[Path] = []
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            arguments.run(arguments, written)
        except (BadInput, CannotDo) as problem:
            return _fail(str(problem))
        except OSError as problem:
            where = f"{problem.filename}: " if problem.filename else ""
            return _fail(f"{where}{problem.strerror or problem}")
        except KeyboardInterrupt:
            done = ", ".join(map(str, written))
            what = f"already written: {done}" if done else getattr(arguments, "interrupted", "nothing was written")
            print(f"\nbayeslabels: interrupted; {what}", file=sys.stderr)
            return 130
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="bayeslabels",
        description="Data-driven models of stars, with error bars that hold.",
        epilog="Start with: bayeslabels demo",
    )
    top.add_argument("--version", action="version", version=f"bayeslabels {version_of('bayeslabels')}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    p = commands.add_parser("demo", help="simulate a survey, train, infer, and report; needs no data")
    p.description = (
        "Train a Cannon and infer the labels of stars it has not seen. Without options on a simulated survey; with "
        "--data on a table of yours, of which a third is held out."
    )
    out = "folder for the files (default: %(default)s; files in it are replaced)"
    p.add_argument("--out", metavar="DIR", type=Path, default=Path("bayeslabels-demo"), help=out)
    p.add_argument("--data", metavar="TABLE", help=f"a table of labels and spectra to use: {TABLES}")
    _label_options(p)
    _table_options(p)
    p.add_argument("--stars", metavar="N", type=_positive, help="how many (simulated: for training, default 600)")
    p.add_argument("--pixels", metavar="L", type=_positive, help="how many (simulated: default 400)")
    _run_options(p)
    p.set_defaults(run=_demo)

    p = commands.add_parser("fit", help="training step: learn a model from labelled stars")
    p.description = f"Train a model on a table of labels and spectra, or of any other blocks: {TABLES}."
    p.epilog = (
        "Examples: bayeslabels fit train.fits --labels TEFF,LOGG,FE_H --flux-error FLUX_ERR --set order=3 -o model.nc; "
        "bayeslabels fit giants.fits --model parallax --set 'features=[\"magnitudes\"]' --column magnitudes=G,BP,RP "
        "--column magnitudes_error=G_ERR,BP_ERR,RP_ERR --column parallax=PLX --column parallax_error=E_PLX -o model.nc"
    )
    p.add_argument("table", metavar="TABLE", help="labelled stars, one row each")
    _label_options(p)
    _table_options(p)
    p.add_argument("--model", type=str.lower, choices=_BY_NAME, default="cannon", help="(default: %(default)s)")
    p.add_argument(
        "--set",
        metavar="NAME=VALUE",
        type=_setting,
        action="append",
        default=[],
        help="a hyperparameter of the model, its value in JSON or Python; again for others",
    )
    p.add_argument("--order", type=int, choices=(1, 2, 3), help="short for --set order=...")
    p.add_argument("--no-label-noise", action="store_true", help="short for --set label_noise=false")
    p.add_argument("--inference", choices=INFERENCES, help="(default: the model's own)")
    _output_options(p, "MODEL.nc", "the model file to write")
    _run_options(p)
    p.set_defaults(run=_fit)

    p = commands.add_parser("infer", help="test step: labels of new stars from their spectra, or what the model gives")
    p.description = (
        "What the model infers, with error bars, for every star of a table of any length: "
        f"{TABLES}. Columns are those of the training step, or named; what is asked for, such as labels, is "
        "data only where it is named. Interrupted, the same command goes on where it stopped."
    )
    p.epilog = "Example: bayeslabels infer model.nc survey.fits -o catalogue.fits"
    p.add_argument("model", metavar="MODEL.nc", help="written by bayeslabels fit")
    p.add_argument("table", metavar="TABLE", help="stars, one row each")
    _label_options(p)
    _table_options(p)
    p.add_argument("--inference", choices=INFERENCES, help="(default: the model's own)")
    _output_options(p, "CATALOGUE", f"to write: {TABLES}")
    p.add_argument("--batch-size", metavar="N", type=_positive, help="stars at a time (default: some 200 MB)")
    p.add_argument(
        "--save", metavar="A,B", type=_names, default=(),
        help="further columns, vectors: flux (the star's own model spectrum), latents",
    )  # fmt: skip
    p.add_argument("--restart", action="store_true", help="start again, where an interrupted run would go on")
    _run_options(p)
    p.set_defaults(run=_infer, interrupted="what was done is kept: the same command goes on from there")

    p = commands.add_parser("info", help="what a model file holds")
    p.add_argument("model", metavar="MODEL.nc")
    p.set_defaults(run=_info)
    return top


def _demo(a: argparse.Namespace, written: list[Path]) -> None:
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


def _fit(a: argparse.Namespace, written: list[Path]) -> None:
    _may_write(a.output, a.overwrite)
    model = _model(a)
    columns = _columns(a)
    stars = read_stars(a.table, columns)
    _say(f"{a.table}: {_counts(stars)}")
    with _taken(a):
        model.bind(stars)
    start = time.perf_counter()
    inference = INFERENCES[a.inference]() if a.inference else None
    posterior = fit(model, stars, inference, seed=a.seed, progress=_progress(a))
    _say(reports.training(posterior, time.perf_counter() - start))
    posterior.info["columns"] = columns
    posterior.info["source"] = os.path.basename(a.table)
    written.append(_saved(posterior, a.output))
    _say(f"wrote {written[-1]}; next: bayeslabels infer {written[-1]} TABLE -o catalogue.fits")


def _saved(posterior: Posterior, path: Path) -> Path:
    """Save what was trained; where that fails now, as on a disk that is full, in a folder for temporary files."""
    try:
        return posterior.save(path)
    except OSError as problem:
        elsewhere = Path(tempfile.mkdtemp(prefix="bayeslabels-")) / path.name
        posterior.save(elsewhere)
        text = f"{path} could not be written ({problem.strerror}): the model is in {elsewhere}"
        raise OSError(problem.errno, text) from problem


def _infer(a: argparse.Namespace, written: list[Path]) -> None:
    if a.output.suffix:  # a folder may be that of an interrupted run
        _may_write(a.output, a.overwrite)
    posterior = load(a.model)
    inference = INFERENCES[a.inference]() if a.inference else None
    size = a.batch_size or "auto"
    run = infer_catalog(
        posterior, a.table, a.output, inference, columns=_given(a), save=a.save, batch_size=size,
        resume=not a.restart, overwrite=a.overwrite, seed=a.seed, progress=_progress(a),
    )  # fmt: skip
    written.append(a.output)
    _say(f"wrote {run}")


def _info(a: argparse.Namespace, written: list[Path]) -> None:
    posterior = load(a.model)
    info = posterior.info
    size = Path(a.model).stat().st_size / 1e6
    _say(f"{a.model} ({size:.1f} MB): {type(posterior.model).__name__} trained by {info.get('inference')}")
    _say(reports.training(posterior))
    for line in kind_of(posterior.model).details(posterior):
        _say(f"  {line}")
    table = posterior.summary()
    for name in table.colnames:
        if table[name].dtype.kind == "f":
            table[name].info.format = ".4g"
    _say("\n  " + "\n  ".join(table.pformat(max_lines=ROWS, max_width=-1)))
    told = {"inference", "n_star", "converged", "selection", "versions", "columns", "settings"}
    _say("\n  made with: " + ", ".join(f"{k} {v}" for k, v in info.get("versions", {}).items()))
    settings = info.get("settings") or {}
    _say(f"  settings: {', '.join(f'{k}={v}' for k, v in settings.items()) or 'none'}")
    if info.get("columns"):
        shown = {k: ",".join(map(str, v)) if isinstance(v, list | tuple) else v for k, v in info["columns"].items()}
        _say("  columns: " + ", ".join(f"{k} {v}" for k, v in shown.items()))
    rest = {k: v for k, v in info.items() if k not in told and isinstance(v, str | int | float)}
    _say("  " + ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in rest.items()))


def _label_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--labels", metavar="A,B,C", type=_names, help="columns of the labels")
    p.add_argument("--labels-error", metavar="A,B,C", type=_names, help="columns of their errors (without: learned)")


def _table_options(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--column", metavar="BLOCK=A,B", type=_column, action="append", default=[],
        help="columns of any other block, such as magnitudes=G,BP,RP or parallax_error=PLX_ERR; again for others",
    )  # fmt: skip
    p.add_argument("--flux", metavar="COLUMN", help="vector column of the spectra (default: FLUX, if no --column)")
    noise = p.add_mutually_exclusive_group()
    noise.add_argument("--flux-error", metavar="COLUMN", help="vector column of their errors")
    noise.add_argument("--flux-ivar", metavar="COLUMN", help="vector column of their inverse variances; 0: missing")
    p.add_argument(
        "--wavelength", metavar="HDU[:COLUMN]", help="where a FITS file holds the wavelengths; or FILE:COLUMN"
    )
    p.add_argument("--id", metavar="COLUMN", help="column that names the stars")
    p.add_argument("--hdu", metavar="HDU", help="number or name of the table's HDU (default: the first table)")


def _output_options(p: argparse.ArgumentParser, name: str, what: str) -> None:
    p.add_argument("-o", "--output", metavar=name, type=Path, required=True, help=what)
    p.add_argument("--overwrite", action="store_true", help="replace the output if it exists")


def _run_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--seed", type=_natural, default=0, help="same seed, same result (default: 0)")
    p.add_argument("--quiet", action="store_true", help="no progress bars (they show on a terminal only)")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _column(text: str) -> tuple[str, Any]:
    """BLOCK=COLUMN[,COLUMN...], also of BLOCK_error and BLOCK_ivar."""
    name, _, columns = (part.strip() for part in text.partition("="))
    names = _names(columns)
    if not (name.isidentifier() and names):
        raise argparse.ArgumentTypeError(f"{text!r} is not BLOCK=COLUMN[,COLUMN...], such as magnitudes=G,BP,RP")
    return name, names[0] if len(names) == 1 else list(names)


def _setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE, where VALUE is JSON, a Python literal, a prior such as Normal(scale=0.1), or a word."""
    name, equals, value = (part.strip() for part in text.partition("="))
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE, such as order=3")
    for read in (json.loads, ast.literal_eval, _prior):
        with contextlib.suppress(ValueError, SyntaxError, TypeError):
            return name, read(value)
    if not value.isidentifier():
        raise argparse.ArgumentTypeError(
            f"{value!r}, the value of {name}, is neither JSON nor Python: such as 3, true, joint, [1, 2], "
            f"{', '.join(f'{prior}()' for prior in _PRIORS)}"
        )
    return name, value


def _prior(text: str) -> Any:
    call = ast.parse(text, mode="eval").body
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in _PRIORS):
        raise ValueError(text)
    given = {word.arg or "": ast.literal_eval(word.value) for word in call.keywords}
    return _PRIORS[call.func.id](*map(ast.literal_eval, call.args), **given)


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is below 0")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def _model(a: argparse.Namespace) -> Model:
    """The model named, with the hyperparameters that were set."""
    model = _BY_NAME[a.model]
    short = ([("order", a.order)] if a.order else []) + ([("label_noise", False)] if a.no_label_noise else [])
    known = [field.name for field in dataclasses.fields(model) if field.init and field.name != "frame"]
    settings: dict[str, Any] = {}
    for name, value in [*a.set, *short]:
        index_of(name, known, f"hyperparameter of {model.__name__}")
        if name in settings:
            raise bad_input(f"{name}={settings[name]!r} and {name}={value!r}", "one of them")
        settings[name] = value
    with _taken(a):
        return model(**settings)


@contextlib.contextmanager
def _taken(a: argparse.Namespace) -> Iterator[None]:
    """Hyperparameters come from the command line: what Python cannot make of them is bad input, not a bug."""
    try:
        yield
    except (TypeError, ValueError, AttributeError) as problem:
        if isinstance(problem, BadInput) or not a.set:
            raise
        given = ", ".join(f"{name}={value!r}" for name, value in a.set)
        raise bad_input(f"--set {given}", f"values that {a.model} can take", str(problem)) from problem


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
    print(_printable(text), flush=True)


def _fail(message: str) -> int:
    print(f"bayeslabels: {_printable(' '.join(message.split()))}", file=sys.stderr)
    return 2


def _show_warning(message: Any, category: Any, *_: Any, **__: Any) -> None:
    print(f"bayeslabels: warning: {_printable(' '.join(str(message).split()))}", file=sys.stderr)


def _printable(text: str) -> str:
    """Without what would command a terminal: names and notes come from files."""
    return "".join(x if x.isprintable() or x in "\n\t" else repr(x)[1:-1] for x in text)


if __name__ == "__main__":
    sys.exit(main())
