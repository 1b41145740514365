"""What settings and the blocks of stars must be for photometry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...core.own_priors import is_own, is_own_scatter
from ...core.priors import DistancePrior, ReddeningPrior
from ...data.columns import require_same_grid
from ...data.stars import Stars
from ...errors import bad_input
from .label_prior import require_label_prior
from .systems import check_systems

if TYPE_CHECKING:
    from .photometry import Photometry


def check_blocks(model: Photometry, stars: Stars) -> None:
    """Refuse blocks that do not say what they should: without errors, in other units, of other columns."""
    for name in model.measured_blocks:
        if name in stars and stars[name].error is None:
            raise bad_input(f"{name} without errors", "an error for every number", fix=f"Block({name}, error)")
    for name, unit in (("magnitudes", "mag"), ("parallax", "mas"), ("reddening", "mag")):
        if name not in stars:
            continue
        if name != "magnitudes" and stars[name].n_dim != 1:
            raise bad_input(f"{name} of {stars[name].n_dim} columns", "one number per star")
        if wrong := set(stars[name].units) - {unit, ""}:
            raise bad_input(f"{name} in {sorted(wrong)}", unit, fix=f"Block(..., unit={unit!r})")
    check_systems(stars, model.frame)
    for prior in model.star_priors:
        prior.check(stars)


def check_frame(model: Photometry, stars: Stars) -> None:
    """Refuse stars that do not fit the frame of a bound model."""
    frame = model.require_frame()
    for name, names in (("labels", frame.names), ("magnitudes", frame.bands[: model.n_magnitude])):
        if name in stars and stars[name].names != names:
            raise bad_input(
                f"{name} {stars[name].names}", f"{names}, as in training", "columns swapped, renamed or left out",
                f"Stars.from_table(table, {name}={names}, ...), NaN for what was not observed",
            )  # fmt: skip
    if "spectrum" in stars:
        own = stars["spectrum"].n_dim, stars["spectrum"].units[0]
        if own != (frame.n_flux, frame.flux_unit):
            raise bad_input(f"spectrum of {own[0]} pixels in {own[1]!r}",
                            f"{frame.n_flux} pixels in {frame.flux_unit!r}, as in training",
                            fix="spectra on the wavelengths and in the unit of the training stars")  # fmt: skip
        trained = [band.removeprefix("flux_") for band in frame.bands[model.n_magnitude :]]
        require_same_grid("spectrum", stars["spectrum"].coords, trained)
    if "labels" in stars and stars["labels"].units != frame.units:
        raise bad_input(f"labels in {stars['labels'].units}", f"{frame.units}, as in training")
    check_blocks(model, stars)


def check_settings(model: Photometry) -> None:
    """Refuse settings that are none."""
    if model.function not in ("network", "polynomial"):
        raise bad_input(f"function={model.function!r}", "'network' or 'polynomial'", fix='function="network"')
    if model.dust_vectors not in (1, 2):
        raise bad_input(f"dust_vectors={model.dust_vectors!r}", "1 or 2", fix="dust_vectors=2")
    if model.scatter_rank < 0:
        raise bad_input(f"scatter_rank={model.scatter_rank!r}", "a number of directions >= 0")
    if model.order < 0 or model.depth < 0 or model.width < 1:
        raise bad_input(f"order={model.order}, depth={model.depth}, width={model.width}", ">= 0, >= 0 and >= 1")
    if not (len(model.zero_point) == 2 and model.zero_point[1] >= 0):
        raise bad_input(f"zero_point={model.zero_point!r}", "(mean, sd) with sd >= 0", fix="zero_point=(0.0, 0.05)")
    positive = ("reddening_slope", "outlier_width", "members", "components", "survey_offset", "parallax_error_factor")
    for name in positive:
        if not getattr(model, name) > 0:
            raise bad_input(f"{name}={getattr(model, name)!r}", "a number > 0")
    require_label_prior(model.label_prior)
    if not is_own("distance_prior", model.distance_prior) and not isinstance(model.distance_prior, DistancePrior):
        raise bad_input(f"distance_prior={model.distance_prior!r}",
                        "priors.Galaxy, ExponentialDisk or NormalModulus, or a distribution of NumPyro",
                        fix="distance_prior=priors.ExponentialDisk(1.35)")  # fmt: skip
    own = is_own_scatter("reddening_prior", model.reddening_prior)
    if not own and not isinstance(model.reddening_prior, ReddeningPrior):
        raise bad_input(f"reddening_prior={model.reddening_prior!r}", "priors.Exponential or AlongSightline",
                        fix="reddening_prior=priors.Exponential(0.1)")  # fmt: skip
