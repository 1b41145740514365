"""One file per strategy; each declares what it requires of a model and refuses with what is missing."""

from .gibbs import Gibbs
from .importance import Importance
from .laplace import Laplace
from .map import MAP
from .nuts import NUTS
from .svi import SVI

__all__ = ["MAP", "NUTS", "SVI", "Gibbs", "Importance", "Laplace"]
