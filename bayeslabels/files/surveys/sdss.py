"""SDSS: coadded spectra of the optical spectrographs (https://data.sdss.org/datamodel, spec-PLATE-MJD-FIBER)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...astro.spectra import SPEED_OF_LIGHT
from .arms import Arm
from .base import Survey, columns_of

COLUMNS = {"flux", "loglam", "ivar", "and_mask"}


class Sdss(Survey):
    name = "sdss"
    medium = "vacuum"

    def knows(self, hdus: Any) -> bool:
        return len(hdus) > 1 and columns_of(hdus[1]) >= COLUMNS

    def read(self, hdus: Any, path: Path) -> list[Arm]:
        """A row for every pixel in HDU 1; Z of the pipeline in HDU 2, where it is there."""
        self.check(hdus, path)
        log, flux, ivar, mask = (np.array(hdus[1].data[x], float) for x in ("loglam", "flux", "ivar", "and_mask"))
        id = path.name.split(".fits")[0].removeprefix("spec-")
        with_z = len(hdus) > 2 and "z" in columns_of(hdus[2]) and len(hdus[2].data)
        z = float(hdus[2].data["Z"][0]) if with_z else np.nan
        ivar = np.where((mask == 0) & np.isfinite(flux), ivar, 0.0)
        return [
            Arm("", [id], 10**log, flux[None], ivar[None], "1e-17 erg / (Angstrom s cm2)", {id: z * SPEED_OF_LIGHT})
        ]
