"""mwmStar of SDSS-V: the coadded spectra of one star (https://data.sdss.org/datamodel, Milky Way Mapper)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...errors import bad_input
from .arms import Arm
from .base import Survey, columns_of

COLUMNS = {"sdss_id", "wavelength", "flux", "ivar", "pixel_flags"}


class MilkyWayMapper(Survey):
    name = "mwm"
    medium = "vacuum"

    def knows(self, hdus: Any) -> bool:
        return any(columns_of(hdu) >= COLUMNS for hdu in hdus[1:])

    def read(self, hdus: Any, path: Path) -> list[Arm]:
        """A table of one row for BOSS and APOGEE at each of the two sites, empty where the star was not observed."""
        self.check(hdus, path)
        arms = []
        for hdu in hdus[1:]:
            if columns_of(hdu) >= COLUMNS and (rows := hdu.data) is not None and len(rows):
                if len(rows) > 1:
                    raise bad_input(f"{path} with {len(rows)} spectra in {hdu.name}", "one", "visits of the star")
                wavelength, flux, ivar = (np.array(rows[x][0], float) for x in ("wavelength", "flux", "ivar"))
                known = (np.asarray(rows["pixel_flags"][0]) == 0) & np.isfinite(flux) & np.isfinite(ivar)
                ivar, id = np.where(known, ivar, 0.0), int(rows["sdss_id"][0])
                arms.append(Arm(hdu.name, [id], wavelength, flux[None], ivar[None], "1e-17 erg / (Angstrom s cm2)"))
        if not arms:
            raise bad_input(f"{path} without a spectrum", "one at least")
        return arms
