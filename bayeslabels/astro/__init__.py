"""Astronomy that the models rely on: units, parallaxes, photometry and spectra."""
