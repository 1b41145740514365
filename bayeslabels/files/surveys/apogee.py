"""APOGEE: apStar and aspcapStar files of the data releases 14 to 17 (https://data.sdss.org/datamodel)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...errors import bad_input
from .arms import Arm, ivar_of, linear
from .base import Survey

BAD_BITS = (0, 1, 2, 3, 4, 5, 6, 7, 12, 14)
"""Of APOGEE_PIXMASK: bad, cosmic ray, saturated, unfixable, bad dark, flat or error, no sky; sky line; little light."""


class Apogee(Survey):
    name = "apogee"
    medium = "vacuum"

    def knows(self, hdus: Any) -> bool:
        header = hdus[1].header if len(hdus) > 3 else {}
        return 4.1 < float(header.get("CRVAL1", 0)) < 4.3 and 0 < float(header.get("CDELT1", 0)) < 1e-4

    def read(self, hdus: Any, path: Path) -> list[Arm]:
        """Flux, error and mask, of which the first row is all visits together; or, of aspcapStar, flux, error, fit."""
        if len(hdus) < 4 or any(hdus[i].data is None for i in (1, 2, 3)):
            raise bad_input(f"{path} with {len(hdus)} HDUs", "flux, error and mask, or fit, in HDUs 1 to 3")
        flux, error, third = (np.atleast_2d(hdus[i].data)[0] for i in (1, 2, 3))
        masked = third.dtype.kind in "iu"
        bad = (third & sum(1 << bit for bit in BAD_BITS)) != 0 if masked else np.zeros(len(flux), bool)
        unit = "1e-17 erg / (Angstrom s cm2)" if masked else ""
        wavelength = 10 ** linear(hdus[1].header, len(flux))
        ivar = ivar_of(error, bad | ~(np.isfinite(flux) & (masked | (flux != 0))))  # aspcapStar has 0 between detectors
        return [Arm("", [_id(hdus, path)], wavelength, flux[None].astype(float), ivar[None], unit)]


def _id(hdus: Any, path: Path) -> str:
    """APOGEE_ID, in the header or the table of results, or else at the end of the file's name."""
    if name := str(hdus[0].header.get("OBJID", "")).strip():
        return name
    for hdu in hdus[1:]:
        names = getattr(getattr(hdu, "columns", None), "names", None) or ()
        if "APOGEE_ID" in names and len(hdu.data) == 1:
            return str(hdu.data["APOGEE_ID"][0]).strip()
    return path.name.split(".fits")[0].rpartition("-2M")[2].join(["2M", ""]) if "-2M" in path.name else path.stem
