"""What the blocks of stars must be for photometry, whatever the model's frame."""

from __future__ import annotations

from typing import Any

from ...data.stars import Stars
from ...errors import bad_input


def check_blocks(model: Any, stars: Stars) -> None:
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
    for prior in model.star_priors:
        prior.check(stars)
