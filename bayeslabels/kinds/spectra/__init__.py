"""Spectra <-> labels: the Cannon and Lux."""
