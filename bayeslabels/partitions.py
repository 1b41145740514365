"""`infer_partition`, for survey tables in partitions (HATS, Dask)."""

from .catalogues.partitions import infer_partition

__all__ = ["infer_partition"]
