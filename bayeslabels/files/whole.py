"""Files that are whole or not there: written beside, brought to the disk and moved into place; and folders with a lock.

Names that begin with a dot are files in the making. Those that a killed process left are removed by the next one that
writes the same file on the same machine.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import bad_input

try:
    import fcntl
except ImportError:  # pragma: no cover - where there is none, two processes are not told apart
    fcntl = None  # type: ignore[assignment]

_HERE = re.sub(r"\W", "_", platform.node())[:32]


@contextlib.contextmanager
def in_one_piece(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path beside `path` to write to; moved to `path` at the end, removed if the writing fails.

    Of a symbolic link the file that it points at is replaced, and the link stays.
    """
    whole = Path(os.path.realpath(path))
    remove_leftovers(whole)
    part = whole.with_name(f".{whole.stem}.part{os.getpid()}-{_HERE}{whole.suffix}")
    try:
        yield part
        _to_disk(part)
        os.replace(part, whole)
        _to_disk(whole.parent)
    finally:
        part.unlink(missing_ok=True)


def write_bytes(content: bytes, path: str | os.PathLike[str]) -> None:
    """Write a file in one piece."""
    with in_one_piece(path) as part:
        part.write_bytes(content)


def remove_leftovers(whole: Path) -> None:
    """Remove what processes of this machine that were killed left of a file in the making."""
    if os.name != "posix":  # pragma: no cover - elsewhere one cannot ask whether a process lives
        return
    pattern = re.compile(rf"\.{re.escape(whole.stem)}\.part(\d+)-{re.escape(_HERE)}{re.escape(whole.suffix)}")
    with contextlib.suppress(OSError):
        for name in os.listdir(whole.parent):
            found = pattern.fullmatch(name)
            if found and not _lives(int(found[1])):
                (whole.parent / name).unlink(missing_ok=True)


def refuse_unwritable(path: Path, what: str) -> None:
    """Refuse a file that cannot be written, by writing one beside it."""
    whole = Path(os.path.realpath(path))
    probe = whole.with_name(f".{whole.stem}.part{os.getpid()}-{_HERE}{whole.suffix}")
    try:
        if whole.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        with open(probe, "wb") as file:
            file.write(b"0")
    except OSError as problem:
        got = f"{what} {path}, which cannot be written ({problem.strerror})"
        raise bad_input(got, "a file in a folder that can be written") from problem
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path` for as long as the body runs; refuse if another process holds it.

    The lock ends with its process, however that ends.
    """
    file = _lock(path, what) if fcntl else None
    try:
        yield
    finally:
        if file is not None:
            if _is_at(file, path):
                path.unlink(missing_ok=True)
            os.close(file)


def _lock(path: Path, what: str) -> int:
    """The descriptor of the lock file, locked."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(file, 200).decode(errors="replace").strip() or "another process"
            os.close(file)
            raise bad_input(
                f"{what}, on which {holder} is at work", "one process at a time", "the same call twice",
                "wait for it, or name another one",
            ) from None  # fmt: skip
        except OSError:  # a file system without locks
            return file
        if _is_at(file, path):
            with contextlib.suppress(OSError):  # a full disk
                os.ftruncate(file, 0)
                os.write(file, f"process {os.getpid()} of {platform.node()}".encode())
            return file
        os.close(file)  # the holder before has just removed it


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except OSError:
        return False


_NO_SYNC = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _to_disk(path: Path) -> None:
    """Wait until a file or folder is on the disk; where a file system has no such thing, go on."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as problem:
        if problem.errno not in _NO_SYNC:
            raise
    finally:
        os.close(handle)
