"""Magnitudes of dusty stars to first order in their errors: covariances, colours, and the reddening that fits.

    magnitudes = M(labels) + mu + E R(labels) + noise                         (Green+21, arXiv:2006.16258, eq. 2)

M: absolute magnitudes in B bands, mu: distance modulus, E: reddening, R: reddening vector. An unobserved band has an
infinite error and counts for nothing; an unknown distance has an infinite modulus error and leaves the colours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ..errors import bad_input
from .quantities import plain, positive


@np.errstate(all="ignore")
def propagated_covariance(
    slope: ArrayLike,
    label_covariance: ArrayLike,
    reddening_vector: ArrayLike,
    reddening_error: ArrayLike,
    magnitude_error: ArrayLike,
    modulus_error: ArrayLike = 0.0,
) -> np.ndarray:
    """Covariance (N, B, B) of the measured magnitudes about M + mu + E R at the measured labels (Green+21, eq. 4).

        C = J C_labels J' + sigma_E^2 R R' + sigma_mu^2 1 1' + diag(sigma_m^2),   J = d(M + E R) / d labels

    Args:
        slope: J (N, B, K), mag per unit of label. label_covariance: (N, K, K).
        reddening_vector: R (N, B) or (B,). reddening_error: sigma_E (N,), mag.
        magnitude_error: sigma_m (N, B), mag; infinite for an unobserved band, whose variance is infinite.
        modulus_error: sigma_mu = 5 / ln 10 * parallax_error / parallax (N,), mag; 0 to leave the distance out. It must
            be finite: `reddening_posterior` takes what is not.

    Example:
        >>> import numpy as np
        >>> from bayeslabels.astro.photometry import propagated_covariance
        >>> slope = np.array([[[0.01], [0.02]]])  # two bands, one label
        >>> propagated_covariance(slope, np.array([[[1.0]]]), [1.0, 0.5], [0.0], [[0.02, 0.02]]).round(6)[0]
        array([[0.0005, 0.0002],
               [0.0002, 0.0008]])
    """
    j, labels = plain(slope, None, "slope"), plain(label_covariance, None, "label_covariance")
    error = positive(magnitude_error, "mag", "magnitude_error", zero=True)
    error[np.isnan(error)] = np.inf
    if j.ndim != 3 or j.shape[:2] != error.shape or labels.shape != (len(j), j.shape[2], j.shape[2]):
        raise bad_input(
            f"slope {j.shape}, label_covariance {labels.shape}, magnitude_error {error.shape}",
            "(N, B, K), (N, K, K) and (N, B)",
        )
    vector = np.broadcast_to(plain(reddening_vector, None, "reddening_vector"), error.shape)
    of_reddening = np.broadcast_to(positive(reddening_error, "mag", "reddening_error", zero=True), len(j))
    of_modulus = np.broadcast_to(positive(modulus_error, "mag", "modulus_error", zero=True), len(j))
    if not np.isfinite(of_modulus).all():
        raise bad_input("an infinite modulus_error", "finite ones", fix="reddening_posterior(..., modulus_error=...)")
    out = j @ labels @ np.swapaxes(j, 1, 2)
    out = out + of_reddening[:, None, None] ** 2 * vector[:, :, None] * vector[:, None, :]
    out = out + of_modulus[:, None, None] ** 2
    band = np.arange(error.shape[1])
    out[:, band, band] += error**2
    return out


def to_colours(n_band: int) -> np.ndarray:
    """The matrix (B, B) from magnitudes to the first magnitude and the others less the first (Green+21, eq. 5).

    Example:
        >>> from bayeslabels.astro.photometry import to_colours
        >>> to_colours(2)
        array([[ 1.,  0.],
               [-1.,  1.]])
    """
    out = np.eye(n_band)
    out[1:, 0] = -1.0
    return out


@np.errstate(all="ignore")
def reddening_posterior(
    residual: ArrayLike,
    reddening_vector: ArrayLike,
    covariance: ArrayLike,
    prior: ArrayLike,
    prior_error: ArrayLike,
    modulus_error: ArrayLike = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd (N,) of the reddening E given a star's magnitudes and a Gaussian prior (Green+21, eq. 8-9).

        sd^-2 = R' C^-1 R + sigma_0^-2,   mean = sd^2 (E_0 / sigma_0^2 + R' C^-1 residual)

    Not truncated at 0. The prior is the same however often the model is trained again: a prior that follows the
    posterior would let all reddenings drift against the length of R.

    Args:
        residual: measured magnitudes less M + mu (N, B); NaN for an unobserved band.
        reddening_vector: R (N, B) or (B,).
        covariance: C (N, B, B) of the prediction without dust, `propagated_covariance` with sigma_E = 0.
        prior, prior_error: E_0 and sigma_0 (N,), mag; sigma_0 infinite, or one of them NaN or masked, for none.
        modulus_error: sigma_mu (N,) where C leaves it out, mag; infinite for a star of unknown distance, of which
            only the colours count, as where it is NaN or masked.

    Example:
        >>> import numpy as np
        >>> from bayeslabels.astro.photometry import reddening_posterior
        >>> covariance = 0.02**2 * np.eye(2)[None]
        >>> mean, sd = reddening_posterior([[0.2, 0.1]], [1.0, 0.5], covariance, [0.1], [0.1])
        >>> float(mean[0].round(2))
        0.2
    """
    y, c = plain(residual, "mag", "residual"), plain(covariance, "mag2", "covariance")
    if y.ndim != 2 or c.shape != (*y.shape, y.shape[-1]):
        raise bad_input(f"residual {y.shape}, covariance {c.shape}", "(N, B) and (N, B, B)")
    vector = plain(reddening_vector, None, "reddening_vector")
    if vector.shape not in (y.shape, y.shape[1:]):
        raise bad_input(f"reddening_vector of shape {vector.shape}", f"{y.shape[1:]}, or {y.shape}")
    seen = np.isfinite(y) & np.isfinite(np.diagonal(c, axis1=1, axis2=2))
    vector = np.where(seen, vector, 0.0)
    c = np.where(seen[:, :, None] & seen[:, None, :], c, np.eye(y.shape[1]))
    if (odd := ~(np.linalg.eigvalsh(c)[:, 0] > 0)).any():
        got = f"covariances of which {int(odd.sum())} of {len(odd)} are not positive definite"
        raise bad_input(got, "covariances, NaN on the diagonal where missing", "errors or correlations in their place")
    columns = np.stack([vector, np.where(seen, y, 0.0), seen.astype(float)], -1)
    inner = np.swapaxes(columns, 1, 2) @ np.linalg.solve(c, columns)  # R, residual and 1 in the metric C^-1
    centre = np.broadcast_to(plain(prior, "mag", "prior"), len(y))
    width = np.broadcast_to(positive(prior_error, "mag", "prior_error"), len(y))
    width = np.where(np.isfinite(centre) & np.isfinite(width), width, np.inf)
    of_modulus = np.broadcast_to(positive(modulus_error, "mag", "modulus_error", zero=True), len(y))
    of_modulus = np.where(np.isnan(of_modulus), np.inf, of_modulus)
    # (C + sigma_mu^2 1 1')^-1 = C^-1 - C^-1 1 1' C^-1 / (1' C^-1 1 + sigma_mu^-2)
    shared = inner[:, :2, 2] / (inner[:, 2, 2] + of_modulus**-2.0)[:, None]
    shared = np.where(seen.any(1)[:, None], shared, 0.0)
    precision = inner[:, 0, 0] - shared[:, 0] * inner[:, 0, 2] + width**-2.0
    pull = inner[:, 0, 1] - shared[:, 1] * inner[:, 0, 2] + np.where(np.isinf(width), 0.0, centre / width**2)
    return pull / precision, precision**-0.5
