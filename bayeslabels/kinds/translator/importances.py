"""What every input contributes to the translated labels of a star."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from ...data.stars import Stars
from ...errors import bad_input
from ...kind import TrainedModel
from ...numerics.compiling import jit
from ...numerics.linalg import in_float64
from ...numerics.shapley import MOST, shapley_values
from .frame import known_inputs, measured
from .translator import Translator, TranslatorMoments


@in_float64
def importances(
    posterior: TrainedModel[Translator, TranslatorMoments], stars: Stars, *, background: int = 30
) -> xr.DataArray:
    """Exact Shapley values (star, labels, input): how far each input moves each translated label of a star.

    In label units; with the mean translation of the background they sum to the star's own. `abs(values).mean("star")`
    averages them (Thomas+24, eq. 4). Inputs that are missing take their posterior means.

    Args:
        posterior: of `Translator`, with 10 inputs at most. stars: with the blocks of the inputs.
        background: so many training stars stand for "not known", 100 at most.

    Example:
        >>> import numpy as np
        >>> import bayeslabels as bl
        >>> from bayeslabels.models.translator import importances
        >>> rng = np.random.default_rng(0)
        >>> ours = rng.normal([5000.0, 3.0], [300.0, 0.5], (200, 2))
        >>> names, unit = ("TEFF", "LOGG"), ("K", "dex")
        >>> labels = bl.Block(ours, (10.0, 0.02), names=names, unit=unit)
        >>> target = bl.Block(ours + [20.0, 0.1], (10.0, 0.02), names=names, unit=unit)
        >>> model = bl.Translator(function="polynomial", order=1)
        >>> posterior = bl.fit(model, bl.Stars(labels=labels, target_labels=target), bl.Laplace(), progress=False)
        >>> importances(posterior, bl.Stars(labels=labels)[:5]).dims
        ('star', 'labels', 'input')
    """
    model = posterior.model
    if not isinstance(model, Translator):
        raise bad_input(f"a posterior of {type(model).__name__}", "one of Translator", fix="fit(Translator(), stars)")
    frame = model.require_frame()
    if len(frame.centre) > MOST:
        raise bad_input(f"{len(frame.centre)} inputs", f"at most {MOST}: 2^D sets of them are evaluated")
    model.check(stars)
    x, _ = known_inputs(frame, measured(frame, stars))
    theta = {name: jnp.asarray(value) for name, value in posterior.moments.theta.items()}
    m = len(frame.names)
    mean = jit(lambda x: jax.vmap(lambda theta: model.raw_outputs(theta, x))(theta)[..., :m].mean(0))
    values = shapley_values(
        lambda x: frame.target_centre + frame.target_scale * np.asarray(mean(x)), x, frame.background[:background]
    )
    ids = stars.id if stars.id is not None else np.arange(len(stars))
    coords = {"star": ids, "labels": list(frame.names), "input": list(frame.input_names)}
    return xr.DataArray(values, coords, ("star", "labels", "input"))
