"""`Lux`, and spectra of its labels' derivatives."""

from ..kinds.spectra.lux import Lux, derivative_spectra

__all__ = ["Lux", "derivative_spectra"]
