"""A folder per kind of models; importing this package registers them all, with the models that are public."""

import importlib

from ..names import PUBLIC

WINGS = ("parallax", "photometry", "program", "spectra", "translator")

for _name in (*(f"kinds.{wing}.kind" for wing in WINGS), *(name for name in PUBLIC if name.startswith("kinds."))):
    importlib.import_module(f"bayeslabels.{_name}")
