"""`read_spectra`, `from_spectra` and `to_spectra`, for scripts: spectra of surveys and of specutils."""

from .files.surveys import read_spectra
from .files.surveys.spectrum import from_spectra, to_spectra

__all__ = ["from_spectra", "read_spectra", "to_spectra"]
