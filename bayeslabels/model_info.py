"""``bayeslabels info``: what a model file says of itself, for which JAX is not needed."""

from __future__ import annotations

import argparse
from pathlib import Path

from .errors import printable
from .files.sealed import MODEL_FILE, about


def run_info(a: argparse.Namespace, written: list[Path]) -> None:
    said = about(a.model, MODEL_FILE)
    if said is None:  # a file of before models said so, which `load` makes sense of, or refuses
        from .results.about import about as about_model
        from .results.posterior import load

        said = about_model(load(a.model))
    print(printable(f"{a.model} ({Path(a.model).stat().st_size / 1e6:.1f} MB)\n{said}"))
