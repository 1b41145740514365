"""A folder per kind of models; importing this package registers them all."""

import importlib

WINGS = ("parallax", "photometry", "program", "spectra", "translator")

for _wing in WINGS:
    importlib.import_module(f"{__name__}.{_wing}.kind")
