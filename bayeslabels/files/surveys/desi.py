"""DESI: coadded spectra of many targets in the arms B, R and Z (https://desidatamodel.readthedocs.io)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import bad_input
from .arms import Arm
from .base import Survey


class Desi(Survey):
    name = "desi"
    medium = "vacuum"

    def knows(self, hdus: Any) -> bool:
        names = [hdu.name for hdu in hdus]
        return "FIBERMAP" in names and any(name.endswith("_WAVELENGTH") for name in names)

    def read(self, hdus: Any, path: Path) -> list[Arm]:
        """Of every arm the images WAVELENGTH (n_pixel,), FLUX, IVAR and MASK (n, n_pixel); TARGETID in FIBERMAP."""
        names = [found[1] for hdu in hdus if (found := re.fullmatch(r"(\w+)_WAVELENGTH", hdu.name))]
        if not names or "FIBERMAP" not in hdus:
            raise bad_input(f"{path} without arms and FIBERMAP", "a coadd file of DESI")
        ids = [int(x) for x in hdus["FIBERMAP"].data["TARGETID"]]
        arms = []
        for name in names:
            wavelength, flux, ivar = (
                np.array(hdus[f"{name}_{x}"].data, float) for x in ("WAVELENGTH", "FLUX", "IVAR")
            )  # fmt: skip
            if f"{name}_MASK" in hdus:
                ivar = np.where(np.asarray(hdus[f"{name}_MASK"].data) == 0, ivar, 0.0)
            arms.append(Arm(name, ids, wavelength, flux, ivar, "1e-17 erg / (Angstrom s cm2)"))
        return arms
