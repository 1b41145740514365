"""Data-driven models of stars, with error bars that hold."""

import importlib
from typing import TYPE_CHECKING, Any

from .names import PLACES, version_of

if TYPE_CHECKING:  # at run time `__getattr__` imports them where they are first used
    from .calibration import cross_validate
    from .catalogues.catalog import infer_catalog
    from .core import priors
    from .data.stars import Block, Stars
    from .errors import BadInput, NotConverged
    from .files.sources import read_stars
    from .inference import MAP, NUTS, SVI, Gibbs, Importance, Laplace
    from .kinds.parallax.parallax import Parallax
    from .kinds.photometry.photometry import Photometry
    from .kinds.spectra import nuisances
    from .kinds.spectra.cannon import Cannon
    from .kinds.spectra.lux import Lux
    from .kinds.translator.translator import Translator
    from .numerics.neighbours import label_distance
    from .results.cluster import together
    from .results.posterior import Posterior, load
    from .results.star_posterior import StarPosterior, flag_names
    from .verbs import fit, infer

    __version__: str

__all__ = [
    "MAP",
    "NUTS",
    "SVI",
    "BadInput",
    "Block",
    "Cannon",
    "Gibbs",
    "Importance",
    "Laplace",
    "Lux",
    "NotConverged",
    "Parallax",
    "Photometry",
    "Posterior",
    "StarPosterior",
    "Stars",
    "Translator",
    "cross_validate",
    "fit",
    "flag_names",
    "infer",
    "infer_catalog",
    "label_distance",
    "load",
    "nuisances",
    "priors",
    "read_stars",
    "together",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """A public name, or a module of the package, imported when it is first asked for."""
    if name == "__version__":
        value: Any = version_of(__name__)
    elif name in PLACES:
        module = importlib.import_module(f"{__name__}.{PLACES[name]}")
        value = getattr(module, name, None) or importlib.import_module(f"{module.__name__}.{name}")
    else:
        return _module(name)
    globals()[name] = value
    return value


def _module(name: str) -> Any:
    try:
        if name.startswith("_"):
            raise ModuleNotFoundError(name=f"{__name__}.{name}")
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as problem:
        if problem.name != f"{__name__}.{name}":
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
