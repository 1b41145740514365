"""`read_table` and `write_table`, for scripts: tables from and to files."""

from .files.tables import read_table, write_table

__all__ = ["read_table", "write_table"]
