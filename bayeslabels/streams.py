"""`open_stream`, for scripts: tables larger than memory, read in order."""

from .files.streams import open_stream

__all__ = ["open_stream"]
