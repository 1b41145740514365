"""What a survey is: how its files of spectra are known and read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from ...errors import bad_input
from .arms import Arm


class Survey(ABC):
    """A kind of files that hold the spectra of stars."""

    name: ClassVar[str]
    medium: ClassVar[str]
    """What its wavelengths are measured in: "vacuum" or "air"."""

    @abstractmethod
    def knows(self, hdus: Any) -> bool:
        """Whether these HDUs look like a file of the survey."""

    @abstractmethod
    def read(self, hdus: Any, path: Path) -> list[Arm]:
        """The arms of its spectrograph, with the stars of the file."""

    def check(self, hdus: Any, path: Path) -> None:
        """Refuse a file that does not look like one of the survey."""
        if not self.knows(hdus):
            raise bad_input(f"{path} without the columns of {self.name}", f"a file of {self.name}")


def columns_of(hdu: Any) -> set[str]:
    """The names of a table's columns in lower case, in which FITS does not tell them apart."""
    return {name.lower() for name in getattr(getattr(hdu, "columns", None), "names", None) or ()}
