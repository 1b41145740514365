"""How far stars are from the training stars: Ho+17 eq. 7, over the nearest ten."""

from __future__ import annotations

import functools

import numpy as np
from scipy.spatial import cKDTree

NEAREST = 10
"""Training stars that count as near."""
MOST = 4000
"""Training stars, at most, that stand for all."""


def label_distance(training: np.ndarray, labels: np.ndarray, scale: np.ndarray | float = 1.0) -> np.ndarray:
    """Mean squared distance (N,) of labels to the ten nearest training stars, in units of `scale`.

        D_n^2 = 1/10 sum_(10 nearest i) sum_m (label_nm - training_im)^2 / scale_m^2

    Ho+17 (eq. 7) cut stars far from the training set by it before the test step, at pilot labels of another pipeline.

    Args:
        training: (N_train, M) labels of the training stars.
        labels: (N, M) pilot labels, in the same units. A star with a NaN has NaN.
        scale: (M,) or a number, in these units: what counts as 1, such as 100 K, 0.2 dex, 0.1 dex.

    Example:
        >>> import numpy as np
        >>> from bayeslabels import label_distance
        >>> training = np.random.default_rng(0).normal(size=(500, 2))
        >>> near, far = label_distance(training, np.array([[0.0, 0.0], [5.0, 5.0]]))
        >>> bool(far > 100 * near)
        True
    """
    train, found = np.asarray(training, float) / scale, np.asarray(labels, float) / scale
    train = np.ascontiguousarray(train[np.isfinite(train).all(1)][:: max(1, len(train) // MOST)])
    tree, k, _ = _neighbours(train.tobytes(), train.shape[1])
    ok = np.isfinite(found).all(1)
    distance = np.full(len(found), np.nan)
    if ok.any():
        distance[ok] = (tree.query(found[ok], k=k)[0].reshape(ok.sum(), -1) ** 2).mean(1)
    return distance


def farthest(training: np.ndarray) -> float:
    """Label distance beyond which a star is outside: twice that of the training stars themselves, save for one in a
    hundred."""
    train = np.asarray(training, float)
    train = np.ascontiguousarray(train[np.isfinite(train).all(1)][:: max(1, len(train) // MOST)])
    return 2 * _neighbours(train.tobytes(), train.shape[1])[2]


@functools.lru_cache(maxsize=8)
def _neighbours(train: bytes, width: int) -> tuple[cKDTree, int, float]:
    """The tree of training stars, how many of them count as near, and the distance that one in a hundred of them
    exceeds: once for all batches of stars."""
    points = np.frombuffer(train).reshape(-1, width)
    tree, k = cKDTree(points), min(NEAREST, len(points) - 1)
    own = (tree.query(points, k=k + 1)[0][:, 1:] ** 2).mean(1)
    return tree, k, float(np.quantile(own, 0.99))
