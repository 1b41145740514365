"""netCDF4 (HDF5) files with their checksum: a tree of arrays, and after it the SHA-256 of all its bytes.

The file is made in memory, so that a full disk is an error of this process and not of HDF5's. It is read in the same
way: the checksum comes before HDF5 sees a byte, then only what such a file may hold is looked at. Nothing that the file
names is opened or run.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
import xarray as xr

from ..errors import BadInput, bad_input
from .whole import write_bytes

T = TypeVar("T")

ABOUT = "about"
"""Attribute in which a file says in words what it holds."""
MODEL_FILE = "a model file written by Posterior.save"
"""What readers of model files expect."""
SEAL = b"\nbayeslabels sha256 "
"""What stands between the netCDF4 file and its checksum."""
DEPTH = 4
"""Groups in groups, at most."""
FILTERS = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32)
"""What HDF5 does without loading a library that the file names."""


def save_sealed(tree: xr.DataTree, attrs: Mapping[str, Any], path: str | os.PathLike[str], overwrite: bool) -> Path:
    """Write a file in one piece; of several processes (`jax.distributed`) the first alone writes.

    Raises:
        BadInput: of a file that exists, unless it may be overwritten.
    """
    from ..devices import writes  # imports JAX, which reading does without

    path = Path(path)
    if not writes():
        return path
    if path.exists() and not overwrite:
        raise bad_input(f"{path}, which exists", "a new name", fix=f'save("{path}", overwrite=True)')
    tree = tree.copy()
    tree.attrs.update(attrs)
    made = io.BytesIO()
    tree.to_netcdf(made, engine="h5netcdf")
    write_bytes(sealed(made.getvalue()), path)
    return path


def load_sealed(path: str | os.PathLike[str], written_by: str, read: Callable[[xr.DataTree, bool], T]) -> T:
    """What `read` makes of the tree of a file, and of whether it had a checksum. written_by: what is expected.

    Raises:
        BadInput: of a file that is damaged, cut short, or of another kind.
    """
    path = Path(path)
    content, checked = unsealed(_read(path, written_by), path, written_by)
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            _refuse_others(file, path, written_by, 0)
        with xr.open_datatree(io.BytesIO(content), engine="h5netcdf") as opened:
            tree = opened.load()
        return read(tree, checked)
    except BadInput:
        raise
    except Exception as problem:  # whatever a damaged file makes HDF5, netCDF4 or JSON stumble over
        raise bad_input(
            f"{path}, which cannot be read as {written_by} ({type(problem).__name__}: "
            f"{' '.join(str(problem).split())[:160]})",
            written_by, "a truncated download or another kind of file",
        ) from problem  # fmt: skip


def about(path: str | os.PathLike[str], written_by: str) -> str | None:
    """What a file says of itself; None: nothing, or a file that must be read to be trusted.

    Raises:
        BadInput: of a file that cannot be read.
    """
    content, checked = unsealed(_read(Path(path), written_by), Path(path), written_by)
    if not checked:
        return None
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            text = file.attrs.get(ABOUT)
    except (OSError, RuntimeError):
        return None
    return text if isinstance(text, str) else None


def _read(path: Path, written_by: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as problem:
        got = f"no file {path}" if not path.exists() else f"{path}, which cannot be read ({problem.strerror})"
        raise bad_input(got, written_by) from problem


def version_in(tree: xr.DataTree, name: str, newest: int, path: Path, written_by: str) -> int:
    """The version of the file's layout, in the attribute of that name."""
    version = tree.attrs.get(name)
    if version is None:
        raise bad_input(f"{path} without {name}", written_by, "another kind of file")
    if not isinstance(version, int | np.integer) or version < 1:
        raise bad_input(f"{path} of format {str(version)[:20]!r}", "a whole number", "another program changed it")
    if version > newest:
        raise bad_input(
            f"{path} of format {version}", f"at most {newest}", "a newer bayeslabels wrote it",
            "pip install --upgrade bayeslabels",
        )  # fmt: skip
    return int(version)


def refuse_unchecked(path: Path, written_by: str) -> None:
    raise bad_input(f"{path} without its checksum", written_by, "its end was cut off, or another program changed it")


def sealed(content: bytes) -> bytes:
    """A netCDF4 file with its checksum."""
    return content + SEAL + hashlib.sha256(content).hexdigest().encode() + b"\n"


def unsealed(data: bytes, path: Path, written_by: str) -> tuple[bytes, bool]:
    """The netCDF4 file, and whether it had a checksum; refuses a file that does not agree with its own."""
    size = len(sealed(b""))
    content, seal = data[:-size], data[-size:]
    if data and data == sealed(content):
        return content, True
    words = [word for word in SEAL.split() if word in data[-2 * size :]]
    if words or seal.startswith(SEAL):
        raise bad_input(
            f"{path}, whose numbers do not agree with its checksum", written_by,
            "it was damaged on a disk or on its way, or changed by another program", "copy it again, or train again",
        )  # fmt: skip
    return data, False


def _refuse_others(group: Any, path: Path, written_by: str, depth: int) -> None:
    """Refuse what would make HDF5 read another file, load a library, or make up numbers that are not there."""
    if depth > DEPTH:
        raise bad_input(f"{path} with groups in groups in groups", written_by)
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise bad_input(f"{path}, in which {group.name}/{name} is a link", f"{written_by}, which has none")
        x = group[name]
        if isinstance(x, h5py.Group):
            _refuse_others(x, path, written_by, depth + 1)
        elif not isinstance(x, h5py.Dataset):
            raise bad_input(f"{path}, in which {x.name} is a {type(x).__name__}", f"{written_by}, which has none")
        else:
            _refuse_odd_dimensions(x, path, written_by)
            _refuse_elsewhere(x, path, written_by)


_INTEGER, _STRING, _TABLE, _LISTS = (
    h5py.h5t.TypeIntegerID, h5py.h5t.TypeStringID, h5py.h5t.TypeCompoundID, h5py.h5t.TypeVlenID,
)  # fmt: skip
DIMENSIONS = {
    "CLASS": (_STRING, 0), "NAME": (_STRING, 0), "_Netcdf4Dimid": (_INTEGER, 0), "_Netcdf4Coordinates": (_INTEGER, 1),
    "REFERENCE_LIST": (_TABLE, 1), "DIMENSION_LIST": (_LISTS, 1),
}  # fmt: skip
"""Attributes by which netCDF4 knows dimensions: type and number of axes. Of other types HDF5 writes over memory."""
OF_AXES = ("DIMENSION_LIST", "_Netcdf4Coordinates")
"""Of them those with an entry for every axis of their dataset."""


def _refuse_odd_dimensions(x: Any, path: Path, written_by: str) -> None:
    """Looks at types and shapes alone, before anything is read."""
    for name in DIMENSIONS.keys() & set(x.attrs):
        there = x.attrs.get_id(name)
        kind, (expected, axes) = there.get_type(), DIMENSIONS[name]
        right = isinstance(kind, expected) and there.shape is not None and len(there.shape) == axes
        if expected is _LISTS:
            right = right and isinstance(kind.get_super(), h5py.h5t.TypeReferenceID)
        if expected is _STRING:
            right = right and not kind.is_variable_str() and kind.get_size() <= 256
        if not right or (name in OF_AXES and x.ndim and there.shape != (x.ndim,)):
            raise bad_input(f"{path}, in which {name} of {x.name} is none of netCDF4", written_by)


def _refuse_elsewhere(x: Any, path: Path, written_by: str) -> None:
    settings = x.id.get_create_plist()
    filters = {settings.get_filter(i)[0] for i in range(settings.get_nfilters())}
    if x.external or x.is_virtual or not filters <= set(FILTERS):
        raise bad_input(
            f"{path}, in which {x.name} is kept in another file or by a plug-in", "a file that has all in it"
        )
    label = x.attrs.get("NAME", b"")
    place = isinstance(label, bytes) and label.startswith(b"This is a netCDF dimension but not a netCDF variable")
    if not place and not filters and x.id.get_storage_size() < x.size * x.id.get_type().get_size():
        raise bad_input(f"{path}, in which {x.name} has no numbers", written_by)
