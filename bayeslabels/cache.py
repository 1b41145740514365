"""Compiled programs, kept on disk: what one process has compiled, the next one loads in milliseconds.

JAX can keep them, for all code of a process or for none. Here it is lent a folder while this package's own code runs,
and left alone by whoever has named a folder of his own (`JAX_COMPILATION_CACHE_DIR`). JAX's own class for folders locks
its folder for every program, lists all of it before it writes one, warns of every program where it cannot write, and
never mends a file that was cut short: it is not used.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import platformdirs

try:
    from jax._src import compilation_cache as _of_jax
    from jax._src.config import persistent_cache_min_compile_time_secs as _least_time

    _of_jax._cache, _of_jax.is_persistent_cache_enabled  # noqa: B018
except (ImportError, AttributeError):  # pragma: no cover - of another version of JAX: nothing is kept
    _of_jax = None  # type: ignore[assignment]

SWITCH = "BAYESLABELS_CACHE"
"""The environment variable that names another folder, or is "off"."""
LIMIT = 200_000_000
"""Bytes that are kept at most; the programs that were used longest ago go first."""
STEP = LIMIT // 8
"""Bytes written between two looks at all that is kept."""
DIGEST = hashlib.sha256().digest_size


class Folder:
    """A cache as JAX asks for one, `get` and `put`, of what is compiled within `in_use`; it never fails."""

    def __init__(self, root: Path):
        self.root, self._path = root, root / f"programs-{_machine()}"
        self.written, self.broken = 0, False
        self.users, self.lock, self.here = 0, threading.Lock(), threading.local()

    def get(self, key: str) -> bytes | None:
        if not getattr(self.here, "depth", 0):
            return None
        path = self._file(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(data[DIGEST:]).digest() != data[:DIGEST]:  # damaged: `put` will replace it
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # used now
        return data[DIGEST:]

    def put(self, key: str, value: bytes) -> None:
        if self.broken or not getattr(self.here, "depth", 0):
            return
        try:
            if not self.written:
                self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self.written or self.written // STEP != (self.written + len(value)) // STEP:
                prune(self.root, LIMIT - STEP)
            self._write(self._file(key), hashlib.sha256(value).digest() + value)
            self.written += len(value)
        except OSError:  # a folder that cannot be written, a disk that is full
            self.broken = True

    def _file(self, key: str) -> Path:
        return self._path / hashlib.sha256(key.encode()).hexdigest()

    def _write(self, path: Path, data: bytes) -> None:
        """Beside, and moved into place: whole, or not there, whatever other processes do."""
        handle, part = tempfile.mkstemp(dir=self._path)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(part, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """To JAX, in this thread."""
        with self.lock:
            self.users += 1
            if _of_jax._cache is None:
                _of_jax._cache = self  # type: ignore[assignment]
        self.here.depth = getattr(self.here, "depth", 0) + 1
        try:
            with _least_time(0.0):
                yield
        finally:
            self.here.depth -= 1
            with self.lock:
                self.users -= 1
                if not self.users and _of_jax._cache is self:
                    _of_jax._cache = None


def in_use() -> contextlib.AbstractContextManager[None]:
    """Within it, what this thread compiles is kept and found again, unless the user has a cache of his own or none."""
    setting = os.environ.get(SWITCH, "")
    if _of_jax is None or setting.lower() == "off" or _of_jax.is_persistent_cache_enabled():
        return contextlib.nullcontext()
    folder = folder_of(setting)
    if folder is None or folder.broken or (_of_jax._cache is not None and _of_jax._cache is not folder):
        return contextlib.nullcontext()
    return folder.lent()


@functools.cache
def folder_of(setting: str) -> Folder | None:
    """The folder that the switch names; "": that of the user's caches; None: there is none."""
    try:
        return Folder(Path(setting or platformdirs.user_cache_dir("bayeslabels", False)).expanduser())
    except (OSError, RuntimeError):  # pragma: no cover - of a user without a home
        return None


def prune(root: Path, most: int) -> None:
    """Delete the programs that were used longest ago, until the rest has so many bytes at most."""
    files = []
    for path in root.glob("programs-*/*"):
        with contextlib.suppress(OSError):  # deleted by another process
            about = path.stat()
            files.append((about.st_mtime, about.st_size, path))
    size = sum(x[1] for x in files)
    for _, own, path in sorted(files):
        if size <= most:
            break
        with contextlib.suppress(OSError):
            path.unlink()
        size -= own


def _machine() -> str:
    """Which machines can run each other's programs: homes are shared by machines of many kinds."""
    about: list[Any] = [platform.machine(), platform.processor()]
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if not line.strip():
                    break  # of the first processor
                if line.startswith(("model name", "flags", "Features", "CPU ")):
                    about.append(line)
    except OSError:
        about.append(platform.node())
    return hashlib.sha256(repr(about).encode()).hexdigest()[:16]
