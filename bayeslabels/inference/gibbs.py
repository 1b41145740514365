"""placeholder"""

from dataclasses import dataclass

from .base import Inference


@dataclass(frozen=True)
class Gibbs(Inference):
    pass
