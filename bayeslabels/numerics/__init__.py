"""Pure array mathematics: no NumPyro, no I/O, no knowledge of the rest of the package."""
