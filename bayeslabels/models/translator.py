"""`Translator`, and what every input contributes."""

from ..kinds.translator.importances import importances
from ..kinds.translator.translator import Translator

__all__ = ["Translator", "importances"]
