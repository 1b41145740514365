"""The parts of a catalogue: a Parquet file per batch in a folder, which of them are finished, and one file of all.

Beside the parts stand their notes, which say what they are parts of, and the SHA-256 of each, in the format of
`sha256sum`: a part that was damaged, or put in another's place, is made again. Nothing else in the folder is touched.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astropy.table import QTable

from ..errors import BadInput, bad_input
from ..files.checkpoint import refuse_other
from ..files.formats import find_format, format_of
from ..files.tables import write_table
from ..files.whole import in_one_piece, locked

NOTES = "_bayeslabels.json"
"""The file, beside the parts, that says what they are parts of."""
DIGESTS = "_bayeslabels.sha256"
"""The file, beside the parts, with the digest of each that is finished."""
LOCK = "_bayeslabels.lock"
OURS = re.compile(r"_bayeslabels\.(json|sha256)|\._bayeslabels\.part.*|_one\.fits|\._one\.part.*|\.?part-\d{12}\..*")
"""Names of the files that a run makes in its folder, finished or not."""


@dataclass(frozen=True)
class Parts:
    """Where the result of a run goes: ranges of its rows, a part each.

    Attributes:
        destination: a folder, or a file that is made of the parts at the end.
        notes: what the run is: model, source and settings.
        ranges: first row and one past the last, of every part.
    """

    destination: Path
    notes: Mapping[str, Any]
    ranges: list[tuple[int, int]]

    @property
    def is_file(self) -> bool:
        return bool(self.destination.suffix)

    @property
    def folder(self) -> Path:
        """The destination, or a folder beside the file that is made of the parts at the end."""
        return self.destination.with_name(f".{self.destination.name}.parts") if self.is_file else self.destination

    def refuse(self, overwrite: bool, sources: list[Path]) -> None:
        """Refuse a destination that would replace something else."""
        if self.is_file:
            format_of(self.destination, "destination", folder=True)
        self._refuse_source(sources)
        if (self.destination.is_file() and not overwrite) or (self.destination.is_dir() and self.is_file):
            raise bad_input(f"destination {self.destination}, which exists", "a new name", fix="overwrite=True")
        if self.folder.is_dir() and not (self.folder / NOTES).is_file():
            others = [x.name for x in self.folder.iterdir() if x.name != LOCK and not _unfinished(x)]
            if others:
                got = f"destination {self.folder}, a folder of other files ({', '.join(sorted(others)[:3])})"
                raise bad_input(got, "a new or empty folder")

    def _refuse_source(self, sources: list[Path]) -> None:
        """Refuse to write over the source, or to where it would be read as the source."""
        own, real = Path(os.path.realpath(self.destination)), [Path(os.path.realpath(path)) for path in sources]
        for path in real:
            if own == path or (not self.is_file and own in path.parents):
                raise bad_input(
                    f"destination {self.destination}, in which the source {path} is", "another place",
                    "source and destination are the same", 'infer_catalog(posterior, source, "catalogue/")',
                )  # fmt: skip
        parquet = find_format("a.parquet")
        if not self.is_file or find_format(own) is parquet:
            for folder in {path.parent for path in real if find_format(path) is parquet}:
                if len(real) > 1 and folder in own.parents:
                    raise bad_input(
                        f"destination {self.destination} in the folder {folder} of the source", "another place",
                        "the result would be read as a part of the source",
                    )  # fmt: skip

    @contextlib.contextmanager
    def held(self, resume: bool) -> Iterator[None]:
        """The folder, made and locked; in it the parts of earlier calls of the same run, and none of another."""
        begun, known = False, self.folder.exists()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(self.folder / LOCK, f"{self.destination}"):
                self._begin(resume)
                begun = True
                yield
        except BadInput:
            if begun and not known and not any(self.part(first).exists() for first, _ in self.ranges):
                self.remove()
                with contextlib.suppress(OSError):
                    self.folder.rmdir()
            raise
        except OSError as problem:
            if begun:
                raise
            got = f"destination {self.destination} ({problem.strerror})"
            raise bad_input(got, "one that can be written") from problem
        finally:
            if self.is_file:
                with contextlib.suppress(OSError):  # it is not empty, or was never made
                    self.folder.rmdir()

    def _begin(self, resume: bool) -> None:
        notes = self.folder / NOTES
        if notes.is_file() and resume:
            fix = "resume=False to start again, or another destination"
            refuse_other(_notes_of(notes), self.notes, f"the parts in {self.folder}", fix)
        elif not resume:
            self.remove()
        for path in self.folder.iterdir():
            if _unfinished(path):
                path.unlink()  # of a process that was killed: no other is at work, this one has the lock
        with in_one_piece(notes) as part:
            part.write_text(json.dumps(self.notes, indent=1))
        digests = self.folder / DIGESTS
        if digests.is_file() and not digests.read_bytes().endswith(b"\n"):  # the last line was cut off
            with open(digests, "a") as file:
                file.write("\n")

    def part(self, first: int) -> Path:
        return self.folder / f"part-{first:012d}.parquet"

    def finished(self) -> list[tuple[int, int]]:
        """The parts that are there as they were written."""
        try:
            lines = (self.folder / DIGESTS).read_text(errors="replace").splitlines()
        except OSError:
            return []
        known = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        return [x for x in self.ranges if (part := self.part(x[0])).is_file() and known.get(part.name) == _sha256(part)]

    def write(self, first: int, stop: int, table: QTable) -> None:
        """Write a part, and then that it is finished."""
        part = self.part(first)
        try:
            write_table(table, part)
            with open(self.folder / DIGESTS, "a") as file:
                file.write(f"{_sha256(part)}  {part.name}\n")
        except OSError as problem:
            raise OSError(
                problem.errno,
                f"{problem.strerror}: part {first} to {stop} of {self.destination} could not be written; what was "
                "written is kept, and the same call goes on from there",
            ) from problem

    def assemble(self) -> None:
        """One file of the parts, if a file was asked for."""
        if not self.is_file:
            return
        with in_one_piece(self.destination) as whole:
            format_of(self.destination).join([self.part(first) for first, _ in self.ranges], whole, self.ranges[-1][1])
        self.remove()

    def remove(self) -> None:
        """Remove what runs wrote into the folder, and nothing else."""
        for path in self.folder.iterdir():
            if OURS.fullmatch(path.name) and not path.is_dir():
                path.unlink()


def _unfinished(path: Path) -> bool:
    return path.name.startswith(".") and bool(OURS.fullmatch(path.name))


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _notes_of(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as problem:  # TypeError: of JSON that is no mapping
        what = f"{path}, which cannot be read ({problem})"
        raise bad_input(what, "the notes of an earlier run", fix="resume=False to start again") from problem
