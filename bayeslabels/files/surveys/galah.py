"""GALAH: reduced spectra of the third data release, a file for each of the four CCDs (Buder+21, MNRAS 506, 150)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import bad_input
from .arms import Arm, ivar_of, linear
from .base import Survey


class Galah(Survey):
    name = "galah"
    medium = "air"

    def knows(self, hdus: Any) -> bool:
        said = f"{hdus[0].header.get('ORIGIN', '')} {hdus[0].header.get('INSTRUME', '')}".upper()
        return len(hdus) >= 5 and ("GALAH" in said or "HERMES" in said) and "CRVAL1" in hdus[0].header

    def read(self, hdus: Any, path: Path) -> list[Arm]:
        """HDU 0: reduced counts; 1: their relative errors; 4: the normalised spectrum, on a grid of its own."""
        name = re.fullmatch(r"(\d+)([1-4])", path.name.split(".fits")[0])
        if name is None:
            raise bad_input(f"{path}", "a name of sobject_id and number of the CCD, such as 1311160005010031.fits")
        if len(hdus) < 5 or hdus[4].data is None:
            raise bad_input(f"{path} with {len(hdus)} HDUs", "the normalised spectrum in HDU 4")
        flux, relative = (np.array(hdus[i].data, float) for i in (4, 1))
        wavelength = linear(hdus[4].header, len(flux))
        own = linear(hdus[1].header if "CRVAL1" in hdus[1].header else hdus[0].header, len(relative))
        wrong = ~(np.isfinite(relative) & (relative > 0))
        error = np.interp(wavelength, own, np.where(wrong, np.nan, relative), np.nan, np.nan) * np.abs(flux)
        return [Arm(name[2], [int(name[1])], wavelength, flux[None], ivar_of(error, ~np.isfinite(flux))[None])]
