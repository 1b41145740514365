"""LAMOST: spectra of low resolution (LRS), of all data releases (http://www.lamost.org, "data release documents")."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...astro.spectra import SPEED_OF_LIGHT
from .arms import Arm
from .base import Survey

COLUMNS = ("FLUX", "IVAR", "WAVELENGTH", "ANDMASK")


class Lamost(Survey):
    name = "lamost"
    medium = "vacuum"

    def knows(self, hdus: Any) -> bool:
        return "LAMOST" in str(hdus[0].header.get("TELESCOP", "")).upper()

    def read(self, hdus: Any, path: Path) -> list[Arm]:
        """From DR8 on a table of one row; before, an image with the rows flux, ivar, wavelength, ANDMASK and ORMASK."""
        header = hdus[0].header
        rows = hdus[1].data[0] if hdus[0].data is None else dict(zip(COLUMNS, hdus[0].data, strict=False))
        flux, ivar, wavelength, mask = (np.array(rows[name], float) for name in COLUMNS)
        known = (mask == 0) & (ivar > 0) & np.isfinite(flux)
        id, z = str(header.get("OBSID", path.name.split(".fits")[0])), float(header.get("Z", np.nan))
        velocity = z * SPEED_OF_LIGHT if -1 < z < 1 else np.nan  # -9999: not measured
        return [Arm("", [id], wavelength, flux[None], np.where(known, ivar, 0.0)[None], "", {id: velocity})]
