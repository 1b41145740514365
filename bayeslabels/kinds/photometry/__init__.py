"""Dust-aware photometry."""
