"""Every name of the reference has an example in its docstring, and every example prints what it says."""

from __future__ import annotations

import doctest
import functools
import importlib
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bayeslabels as bl

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"
COSTLY = {
    "Gibbs",
    "Groups",
    "Photometry",
    "Translator",
    "colour_magnitude",
    "distance_ladder",
    "energy",
    "importances",
    "magnitude_residuals",
    "pair",
    "ppc",
    "prior_to_posterior",
    "ranks",
    "reddening_vector",
    "together",
}
"""Those whose example trains something that no other test does; the slow tests run them."""


def documented() -> list[str]:
    """Dotted names of all functions and classes in the reference, without the package's."""
    names = []
    for page in sorted(REFERENCE.glob("*.rst")):
        module = "bayeslabels"
        for line in page.read_text().splitlines():
            if found := re.match(r"\.\. currentmodule:: (\S+)", line):
                module = found[1]
            elif found := re.match(r"\.\. auto(?:function|class|exception):: (\S+)", line):
                full = found[1] if found[1].startswith("bayeslabels.") else f"{module}.{found[1]}"
                names.append(full.removeprefix("bayeslabels."))
    return names


def documented_value(name: str) -> Any:
    value: Any = bl
    for i, part in enumerate(parts := name.split(".")):
        if not hasattr(value, part):
            importlib.import_module(".".join(["bayeslabels", *parts[: i + 1]]))
        value = getattr(value, part)
    return value


def marked(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.slow) if name.rpartition(".")[2] in COSTLY else name


def remembered(function: Callable[..., Any], results: dict[bytes, Any]) -> Callable[..., Any]:
    """The function, called once for arguments of the same content; each caller gets a copy of the result."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            key = pickle.dumps((function.__name__, args, sorted(kwargs.items())))
        except (pickle.PicklingError, AttributeError):  # a program that the example defines
            return function(*args, **kwargs)
        if key not in results:
            results[key] = pickle.dumps(function(*args, **kwargs))
        return pickle.loads(results[key])

    return call


@pytest.fixture(scope="module")
def training_once():
    """Most examples train the same model with the same stars."""
    results: dict[bytes, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((bl, "fit"), (bl, "cross_validate"), (bl.calibration, "sbc")):
            patch.setattr(module, name, remembered(getattr(module, name), results))
        yield


@pytest.mark.parametrize("name", [marked(name) for name in documented()])
def test_the_example_of_a_documented_name_prints_what_it_says(name, training_once):
    plt = pytest.importorskip("matplotlib.pyplot")
    found = doctest.DocTestFinder(recurse=False).find(documented_value(name), name, globs={})
    assert found[0].examples, f"no example in the docstring of {name}"
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    said: list[str] = []
    runner.run(found[0], out=said.append)
    plt.close("all")
    assert not runner.summarize(verbose=False).failed, "".join(said)
