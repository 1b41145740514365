"""A NumPyro program of the user's own."""
