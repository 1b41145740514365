"""What a process imports before it is needed: JAX and the rest take seconds."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import bayeslabels as bl
from bayeslabels import inference, names
from bayeslabels.cli import main
from bayeslabels.core import priors
from bayeslabels.core.model import models
from bayeslabels.files import formats

HEAVY = ("jax", "numpyro", "astropy", "xarray", "scipy", "matplotlib", "numpy", "pandas")


def run(code: str, *arguments: str, **environment: str) -> str:
    """What a fresh process prints."""
    command = [sys.executable, "-c", code, *arguments]
    variables = {**os.environ, **environment}
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300, check=True).stdout


def imported(code: str, *arguments: str) -> list[str]:
    tail = f"\nimport sys\nprint()\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    return run(code + tail, *arguments).splitlines()[-1].split()


def test_the_package_is_imported_without_what_is_not_needed():
    assert not imported("import bayeslabels as bl; bl.__version__; dir(bl); bl.BadInput")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"], ["--version"], ["info", "--help"], ["fit", "--help"], ["infer", "--help"], ["demo", "--help"],
        ["fit"], ["fit", "t.fits", "-o", "m.nc", "--model", "cannons"], ["infer", "m", "t", "-o", "c", "--seed", "-1"],
        ["fit", "t.fits", "-o", "m.nc", "--set", "scatter=0.1 K"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_help_and_wrong_usage_come_without_jax(arguments):
    assert not imported("import sys; from bayeslabels.cli import main; main(sys.argv[1:])", *arguments)


def test_what_a_model_file_says_comes_without_jax(tmp_path, capsys):
    old = Path(__file__).parent / "data/golden_cannon_v1.nc"
    new = bl.load(old).save(tmp_path / "m.nc")
    code = "import sys; from bayeslabels.cli import main; main(sys.argv[1:])"
    assert not {"jax", "numpyro", "astropy"} & set(imported(code, "info", str(new)))
    said = {}
    for path in (old, new):  # a file of before says the same, once it is read
        assert main(["info", str(path)]) == 0
        said[path] = capsys.readouterr().out.splitlines()
        assert said[path][0].startswith(f"{path} (")
    assert said[old][1:] == said[new][1:]
    assert "Cannon" in said[new][1]


IMPORTS = """
import sys
import jax
before = dict(jax.config.values)

def only(code):
    for name in [name for name in sys.modules if name.partition(".")[0] == "bayeslabels"]:
        del sys.modules[name]
    exec(code, {})

only("from bayeslabels.core.model import models; print(*models())")
only("import bayeslabels.kind as k, bayeslabels.kinds.spectra.cannon as c; print(k.kind_of(c.Cannon()))")
only("import bayeslabels.calibration, bayeslabels as bl; print(callable(bl.fit), callable(bl.simulate))")
only("import bayeslabels as bl; [getattr(bl, x) for x in bl.__all__]")
print({k for k, v in jax.config.values.items() if before[k] != v})
"""


def test_kinds_are_known_whatever_is_imported_first_and_no_setting_is_changed():
    """A module of the package, or a public name, without any other; and fit is the verb."""
    said = run(IMPORTS).splitlines()
    assert {"Cannon", "Lux", "Parallax"} <= set(said[0].split())
    assert "Spectra" in said[1]
    assert said[2:] == ["True False", "set()"]


def test_public_names_are_where_the_table_says():
    tree = ast.parse(Path(bl.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    found = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert {node.module: tuple(x.name for x in node.names) for node in found} == names.PUBLIC
    assert sorted(names.PLACES) == sorted(bl.__all__)
    assert set(bl.__all__) <= set(dir(bl))
    with pytest.raises(AttributeError, match="no attribute 'Canon'"):
        bl.Canon  # noqa: B018


def test_choices_of_the_command_line_are_what_is_registered():
    own = [cls for cls in models().values() if cls.__module__.startswith("bayeslabels.")]
    assert tuple(cls.__name__ for cls in own if cls.offered) == names.MODELS
    assert tuple(sorted(inference.__all__)) == names.INFERENCES
    assert ", ".join(f"{x.name} ({x.suffixes[0]})" for x in formats.FORMATS) == names.FORMATS
    assert all(hasattr(priors, name) for name in names.PRIORS)
    assert set(names.PRIORS) == {x.__name__ for x in (*priors.Prior.__args__, priors.HalfNormal)}
