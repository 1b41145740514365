"""Sphinx: `python -m sphinx -W --keep-going docs docs/_build`. Nothing is fetched, and no notebook is run."""

from __future__ import annotations

import argparse
import inspect
import os
import re
import shutil
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

import bayeslabels
from bayeslabels import cli

HERE = Path(__file__).parent
for notebook in (HERE.parent / "notebooks").glob("*.ipynb"):  # Sphinx reads nothing outside of its own folder
    shutil.copyfile(notebook, HERE / "tutorials" / notebook.name)

os.environ["COLUMNS"] = "100"  # of the help of the command line, which is shown as it is printed
COMMANDS = next(x for x in cli.parser()._actions if isinstance(x, argparse._SubParsersAction)).choices
for name, command in {"bayeslabels": cli.parser(), **COMMANDS}.items():
    (HERE / "reference" / f"cli-{name}.txt").write_text(command.format_help())

project = "bayeslabels"
author = "The bayeslabels developers"
copyright = author
release = version = bayeslabels.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "jupyter_execute", "**.ipynb_checkpoints"]
html_theme = "furo"
html_title = "bayeslabels"
html_static_path = ["static"]
html_css_files = ["pages.css"]
html_math_renderer = "mathml"
myst_update_mathjax = False

nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type", "mystnb.lexer"]

default_role = "code"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
napoleon_use_ivar = True

BARS = re.compile(r"(?<![\\|`])\|(?=[^|\s][^|]*\|)")
"""Absolute values, which reStructuredText takes for substitutions."""
SECTION = re.compile(r"^(\s*)(Args|Raises):\s*$")


def plain_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are written as plain text: escape absolute values, and part arguments that share a line."""
    try:
        names = [*inspect.signature(obj).parameters, "BadInput", "CannotDo"]
    except (TypeError, ValueError):
        names = []
    another = re.compile(rf"(?<=[.;]) (?=(?:{'|'.join(map(re.escape, names))}): )") if names else None
    out: list[str] = []
    section = item = None
    for line in lines:
        line = line.replace("|", r"\|") if BARS.search(line) else line
        indent = len(line) - len(line.lstrip())
        if found := SECTION.match(line):
            section, item = len(found[1]), None
        elif section is not None and line.strip():
            if indent <= section:
                section = None
            else:
                item = indent if item is None else item
        if section is None or item is None or another is None:
            out.append(line)
            continue
        first, *others = another.split(line)
        out += [first, *(" " * item + other for other in others)]
    lines[:] = out


def inline_math(writer: Any, node: Any) -> None:
    """Equations as MathML, which browsers draw themselves: pages need no script from elsewhere."""
    writer.body.append(tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def displayed_math(writer: Any, node: Any) -> None:
    writer.body += [writer.starttag(node, "div", CLASS="math"), tex2mathml(node.astext(), as_block=True), "</div>"]
    raise nodes.SkipNode


def setup(app: Any) -> None:
    app.add_html_math_renderer("mathml", (inline_math, None), (displayed_math, None))
    app.connect("autodoc-process-docstring", plain_docstring, priority=400)
