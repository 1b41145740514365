"""What the package offers, known without importing it: public names, the choices of the command line, versions."""

from __future__ import annotations

PUBLIC = {
    "calibration": ("cross_validate",),
    "catalogues.catalog": ("infer_catalog",),
    "core": ("priors",),
    "data.stars": ("Block", "Stars"),
    "errors": ("BadInput", "NotConverged"),
    "files.sources": ("read_stars",),
    "inference": ("MAP", "NUTS", "SVI", "Gibbs", "Importance", "Laplace"),
    "kinds.parallax.parallax": ("Parallax",),
    "kinds.photometry.photometry": ("Photometry",),
    "kinds.spectra": ("nuisances",),
    "kinds.spectra.cannon": ("Cannon",),
    "kinds.spectra.lux": ("Lux",),
    "kinds.translator.translator": ("Translator",),
    "numerics.neighbours": ("label_distance",),
    "results.cluster": ("together",),
    "results.posterior": ("Posterior", "load"),
    "results.star_posterior": ("StarPosterior", "flag_names"),
    "verbs": ("fit", "infer"),
}
"""The names that users import from `bayeslabels`, by the module that defines them."""
PLACES = {name: module for module, names in PUBLIC.items() for name in names}
"""The module of each public name."""
MODELS = tuple(sorted(name for name, module in PLACES.items() if module.startswith("kinds.") and name[0].isupper()))
"""The models that are made by name and settings alone."""
INFERENCES = tuple(sorted(PUBLIC["inference"]))
FORMATS = "FITS (.fits), Parquet (.parquet), HDF5 (.h5), VOTable (.vot), ECSV (.ecsv), CSV (.csv)"
"""The file formats, as `files.formats` has them."""
TABLES = f"a file in {FORMATS}, or a folder of Parquet files"
"""The tables that can be read and written."""
PRIORS = ("Flat", "Normal", "Laplace", "Learned", "HalfNormal")


def version_of(package: str) -> str:
    """The version that is installed, or "not installed"."""
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
