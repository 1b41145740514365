"""What astropy writes beside the columns of a Parquet or HDF5 file: units, shapes, meta, and columns that are masks."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from astropy.table import Table
from astropy.table.meta import get_header_from_yaml

from .columns import column, unit_in

MASK = ".mask"
"""End of the name of a column that astropy writes beside a masked one."""


class Written(NamedTuple):
    """Units, shapes of a row (of columns of matrices), and masks, by the name of the column."""

    units: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    masks: dict[str, str]
    meta: dict[str, Any]

    @classmethod
    def of(cls, text: bytes | None, names: Sequence[str]) -> Written:
        """Read the YAML text of a file with these columns; files that are not astropy's have none."""
        if text is None:
            return cls({}, {}, {}, {})
        header = get_header_from_yaml(text.decode().splitlines())
        units = {x["name"]: str(x["unit"]) for x in header["datatype"] if x.get("unit")}
        inner = {x["name"]: str(x.get("subtype", "")).partition("[") for x in header["datatype"]}
        shapes = {name: tuple(json.loads(f"[{x[2]}")) for name, x in inner.items() if x[2] and "null" not in x[2]}
        masks = {name.removesuffix(MASK): name for name in names if name.endswith(MASK)}
        masks = {name: mask for name, mask in masks.items() if name in names}
        meta = dict(header.get("meta", {}))
        own = meta.pop("__serialized_columns__", {})
        for name in masks:  # of a masked Quantity the unit stands with the class
            if "unit" in own.get(name, {}):
                units[name] = str(own[name]["unit"])
        return cls(units, shapes, masks, meta)

    def applied(self, table: Table) -> Table:
        """The table with masks and units, without the columns that were masks."""
        for name, mask in self.masks.items():
            if name in table.colnames and mask in table.colnames:
                table[name] = column(table[name], np.asarray(table[mask], bool), table[name].unit)
                table.remove_column(mask)
        for name, shape in self.shapes.items():
            if name in table.colnames and len(shape) > 1 and table[name].shape[1:] == (math.prod(shape),):
                table[name] = column(np.reshape(table[name], (len(table), *shape)), unit=table[name].unit)
        for name, unit in self.units.items():
            if name in table.colnames:
                table[name].unit = unit_in(unit)
        return table
