"""`Translator`, and what every input contributes."""

from ..kinds.translator.translator import Translator, importances

__all__ = ["Translator", "importances"]
