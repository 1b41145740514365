"""The command line: ``bayeslabels demo``, ``fit``, ``infer``, ``check`` and ``info``.

What is asked is read here, without JAX, which takes seconds to import; what is done stands in `commands`.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .errors import BadInput, CannotDo, printable
from .names import INFERENCES, MODELS, PRIORS, TABLES, version_of

_FIT_EXAMPLES = """Examples:
  bayeslabels fit train.fits --labels TEFF,LOGG,FE_H --flux-error FLUX_ERR --set order=3 -o model.nc
  bayeslabels fit giants.fits --model parallax --set 'features=["magnitudes"]' -o model.nc \\
      --column magnitudes=G,BP,RP --column magnitudes_error=G_ERR,BP_ERR,RP_ERR \\
      --column parallax=PLX --column parallax_error=E_PLX"""
_CHECK_EXAMPLE = """Example:
  bayeslabels check train.fits --labels TEFF,LOGG,FE_H --flux-error FLUX_ERR --figure check.png"""
_MODELS, _INFERENCES = ([name.lower() for name in names] for names in (MODELS, INFERENCES))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 0, 2 for bad input, 130 when interrupted."""
    try:
        arguments = _parsed(argv)
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


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    top = parser()
    arguments, left = top.parse_known_args(argv)
    if left:
        words = all(not x.startswith("-") for x in left)
        hint = ": several columns are one word, such as --labels TEFF,LOGG,FE_H" if words else ""
        top.error(f"unrecognized arguments {' '.join(left)}{hint}")
    return arguments


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="bayeslabels",
        description="Data-driven models of stars, with error bars that hold.",
        epilog="Start with: bayeslabels demo",
    )
    top.add_argument("--version", action=_Version, nargs=0, help="show the version and leave")
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
    p.set_defaults(run=_command("demo"))

    p = commands.add_parser("fit", help="training step: learn a model from labelled stars")
    p.description = f"Train a model on a table of labels and spectra, or of any other blocks: {TABLES}."
    p.formatter_class, p.epilog = _Examples, _FIT_EXAMPLES
    _training_options(p)
    p.add_argument(
        "--stream", action="store_true",
        help="read the table in every pass anew, where it is larger than memory (MAP, SVI; parallax: Laplace)",
    )  # fmt: skip
    p.add_argument(
        "--checkpoint", metavar="FILE.npz", type=Path,
        help="keep the state of the training here; the same command resumes from it",
    )  # fmt: skip
    _output_options(p, "MODEL.nc", "the model file to write")
    _run_options(p)
    p.set_defaults(run=_command("fit"))

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
    _inference_options(p, "draws=4000")
    _output_options(p, "CATALOGUE", f"to write: {TABLES}")
    p.add_argument("--batch-size", metavar="N", type=_positive, help="stars at a time (default: some 200 MB)")
    p.add_argument(
        "--save", metavar="A,B", type=_names, default=(),
        help="further columns: correlations, reduced_chi2, flux (the star's own model spectrum), latents",
    )  # fmt: skip
    p.add_argument("--restart", action="store_true", help="start again, where an interrupted run would go on")
    _run_options(p)
    p.set_defaults(run=_command("infer"), interrupted="what was done is kept: the same command goes on from there")

    p = commands.add_parser("check", help="do the error bars hold? every star by a model trained without it")
    p.description = (
        "Cross-validation on labelled stars: the labels of each star are inferred by a model that was trained without "
        f"it, and compared with the table's. The table is {TABLES}. It trains once for each fold."
    )
    p.formatter_class, p.epilog = _Examples, _CHECK_EXAMPLE
    _training_options(p)
    p.add_argument(
        "--folds", metavar="N", type=_positive, default=8, help="parts that are left out in turn (default: 8)"
    )
    p.add_argument("--figure", metavar="FILE.png", type=Path, help="draw z scores and coverage of each label")
    _output_options(p, "TABLE", "a table of the labels of the held-out stars to write", required=False)
    _run_options(p)
    p.set_defaults(run=_command("check"))

    p = commands.add_parser("info", help="what a model file holds")
    p.add_argument("model", metavar="MODEL.nc")
    p.set_defaults(run=_command("info", ".model_info"))
    return top


def _command(name: str, module: str = ".commands") -> Callable[..., None]:
    """A function of a module, imported when it runs."""

    def run(arguments: argparse.Namespace, written: list[Path]) -> None:
        getattr(importlib.import_module(module, __package__), f"run_{name}")(arguments, written)

    return run


class _Examples(argparse.HelpFormatter):
    """Help whose examples keep their lines."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("Example") else super()._fill_text(text, width, indent)


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        print(f"bayeslabels {version_of('bayeslabels')}")
        parser.exit()


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


def _training_options(p: argparse.ArgumentParser) -> None:
    """The labelled stars, and what is trained on them."""
    p.add_argument("table", metavar="TABLE", help="labelled stars, one row each")
    _label_options(p)
    _table_options(p)
    p.add_argument("--model", type=str.lower, choices=_MODELS, default="cannon", help="(default: %(default)s)")
    p.add_argument(
        "--set", metavar="NAME=VALUE", type=_setting, action="append", default=[],
        help="a hyperparameter of the model, its value in JSON or Python; again for others",
    )  # fmt: skip
    p.add_argument("--order", type=int, choices=(1, 2, 3, 4), help="short for --set order=...")
    p.add_argument("--no-label-noise", action="store_true", help="short for --set label_noise=false")
    _inference_options(p, "epochs=20")


def _inference_options(p: argparse.ArgumentParser, example: str) -> None:
    p.add_argument("--inference", choices=_INFERENCES, help="(default: the model's own)")
    p.add_argument(
        "--inference-set", metavar="NAME=VALUE", type=_setting, action="append", default=[],
        help=f"a setting of the inference, such as {example}; again for others",
    )  # fmt: skip


def _output_options(p: argparse.ArgumentParser, name: str, what: str, required: bool = True) -> None:
    p.add_argument("-o", "--output", metavar=name, type=Path, required=required, help=what)
    p.add_argument("--overwrite", action="store_true", help="replace the output if it exists")


def _run_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--seed", type=_natural, default=0, help="same seed, same result (default: 0)")
    p.add_argument("--quiet", action="store_true", help="no progress bars (shown on terminals alone)")


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
            f"{', '.join(f'{prior}()' for prior in PRIORS)}"
        )
    return name, value


def _prior(text: str) -> Any:
    call = ast.parse(text, mode="eval").body
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in PRIORS):
        raise ValueError(text)
    given = {word.arg or "": ast.literal_eval(word.value) for word in call.keywords}
    positional = [ast.literal_eval(x) for x in call.args]
    return getattr(importlib.import_module(".core.priors", __package__), call.func.id)(*positional, **given)


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


def _fail(message: str) -> int:
    print(f"bayeslabels: {printable(' '.join(message.split()))}", file=sys.stderr)
    return 2


def _show_warning(message: Any, category: Any, *_: Any, **__: Any) -> None:
    print(f"bayeslabels: warning: {printable(' '.join(str(message).split()))}", file=sys.stderr)
