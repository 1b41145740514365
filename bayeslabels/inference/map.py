"""MAP: the mode of what has a mode worth having, integrating over what does not; how, each kind of models says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..core.model import Model
from ..errors import bad_input
from .base import Inference, StarDraws
from .starwise import StarProblem, modes_of


@dataclass(frozen=True)
class MAP(Inference):
    """Training step: mode of scatter, tau and population; posterior mean and covariance of the coefficients.

    Test step: the best of several modes per star, with the inverse curvature as covariance (one draw, the mode).

    Args:
        max_iterations: of expectation-maximisation, at most.
        tolerance: largest root mean square change of the true labels in an iteration, in posterior sds. Where the
            objective is known exactly (features linear in the latents) it must also change by less than 1e-6 of itself.
        starts: starting points per star in the test step.
        batch_size: stars per step of models trained by minibatches (`Photometry`, `Translator`); None: by their number.

    Stars in files are passed over as often as there are iterations (`inference.passes`): to the same answer.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, bl.MAP(max_iterations=200), progress=False)
        >>> posterior.info["inference"]
        'MAP'
    """

    max_iterations: int = 100
    tolerance: float = 3e-3
    starts: int = 4
    batch_size: int | None = None

    def refuse_batches(self, model: Model) -> None:
        if self.batch_size is not None:
            raise bad_input(
                f"MAP(batch_size={self.batch_size}) of {type(model).__name__}",
                "None: every iteration goes through all stars; SVI takes minibatches",
            )

    def infer(self, problem: StarProblem, keys: np.ndarray, progress: bool | None) -> StarDraws:
        return modes_of(problem)
