"""Parallaxes from magnitudes and spectra."""
