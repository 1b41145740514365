"""The true scaled labels of a star as a function of its latents, in the test step.

    identity   labels = u                   Cannon, label_noise="joint" or False
    curve      labels = u + C psi(u)        Cannon, label_noise=True, "free" or "cut"
    outputs    labels = C phi(u)            Lux

What is not known of that function, a covariance of C that all stars share, is the uncertainty of the label system.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from ...numerics.features import Features
from ...numerics.linalg import Array, outer_pairs, pack, pairs
from .labels import labels_at, outputs_on_latents, variables_at
from .model import LinearModel
from .moments import Moments


@dataclass(frozen=True)
class LabelMap(ABC):
    """coefficients: C (M, K). system: its covariance (M, K, M, K), of `features`, also where C itself is 0."""

    coefficients: np.ndarray
    system: np.ndarray
    features: Features

    @abstractmethod
    def at(self, u: Array) -> np.ndarray:
        """Labels (..., M) of latents (..., P)."""

    @abstractmethod
    def slope(self, u: Array) -> np.ndarray:
        """Their derivatives by the latents, (N, M, P) or (M, P)."""

    @abstractmethod
    def inverse(self, labels: np.ndarray) -> np.ndarray:
        """Latents (N, P) of labels (N, M), NaN where there are none, or more than one."""

    @abstractmethod
    def information(self, value: Array, observed: Array, precision: Array, typical: Array) -> tuple[Array, Array]:
        """Precision (N, P, P) and information (N, P) of the latents from labels (N, M) of precision (N, M, M).

        typical (P,): latents about which a label that is not observed may be taken to be.
        """

    def spread(self, u: Array, covariance: Array) -> np.ndarray:
        """Covariance (N, M, M) of the labels of latents with covariance (N, P, P), the label system's included."""
        return self.own(u, covariance) + self.system_at(u)

    def own(self, u: Array, covariance: Array) -> np.ndarray:
        """The same of the star's own part, (N, M, M), without the label system's."""
        slope = self.slope(u)
        return slope @ covariance @ np.swapaxes(slope, -1, -2)

    def system_at(self, u: Array) -> np.ndarray:
        """Covariance (N, M, M) that the label system adds at latents (N, P)."""
        m = len(self.system)
        both = self.system + np.swapaxes(self.system, 1, 3)  # the part that is symmetric in k and l is all that counts
        k = both.shape[1]
        packed = pack(np.moveaxis(both, 2, 1)).reshape(m * m, -1) * (0.5 * pairs(k)[2])
        return (outer_pairs(self.features(u)) @ packed.T).reshape(-1, m, m)

    def drawn(self, u: Array, latent: Array, rng: np.random.Generator) -> np.ndarray:
        """Labels (chain, draw, N, M) of draws of latents, each with a draw of the label system at latent (N, P)."""
        draws = np.array(self.at(u))
        m, k = self.system.shape[:2]
        # of eigenvalues, not by Cholesky: a direction on which nothing depends may be missing
        values, vectors = np.linalg.eigh(self.system.reshape(m * k, m * k))
        factor, phi = vectors * np.sqrt(np.maximum(values, 0.0)), self.features(latent)
        for chain in draws:
            for draw in chain:
                draw += phi @ (factor @ rng.standard_normal(m * k)).reshape(m, k).T
        return draws


class Identity(LabelMap):
    """The latents are the labels."""

    def at(self, u: Array) -> np.ndarray:
        return np.asarray(u)

    def slope(self, u: Array) -> np.ndarray:
        return np.eye(u.shape[-1])

    def inverse(self, labels: np.ndarray) -> np.ndarray:
        return labels

    def information(self, value: Array, observed: Array, precision: Array, typical: Array) -> tuple[Array, Array]:
        return precision, np.einsum("nmk,nk->nm", precision, value)


class Curve(LabelMap):
    """The labels are a curved function of the latents, near these."""

    def at(self, u: Array) -> np.ndarray:
        return u + self.features(u) @ self.coefficients.T

    def slope(self, u: Array) -> np.ndarray:
        return np.eye(u.shape[-1]) + self.coefficients @ self.features.jacobian(u)

    def inverse(self, labels: np.ndarray) -> np.ndarray:
        return variables_at(labels, self.coefficients, self.features)

    def information(self, value: Array, observed: Array, precision: Array, typical: Array) -> tuple[Array, Array]:
        """Linear about the variables of these labels; about the typical ones where these are not known or nowhere."""
        u = self.inverse(np.where(observed, value, self.at(typical[None])))
        u = np.where(np.isnan(u), typical, u)
        at, slope = labels_at(u, self.coefficients, self.features)
        half = np.swapaxes(slope, 1, 2) @ precision
        return half @ slope, np.einsum("nmk,nk->nm", half, value - at + np.einsum("nmk,nk->nm", slope, u))


class Outputs(LabelMap):
    """The labels are linear outputs of the latents, as the flux is."""

    @property
    def origin(self) -> np.ndarray:
        return np.zeros(self.features.n_label)

    def at(self, u: Array) -> np.ndarray:
        return self.features(u) @ self.coefficients.T

    def slope(self, u: Array) -> np.ndarray:
        return self.coefficients @ self.features.jacobian(self.origin)

    def inverse(self, labels: np.ndarray) -> np.ndarray:
        return np.full((len(labels), self.features.n_label), np.nan)

    def information(self, value: Array, observed: Array, precision: Array, typical: Array) -> tuple[Array, Array]:
        at_zero, jacobian = self.features(self.origin), self.features.jacobian(self.origin)
        return outputs_on_latents(value, precision, self.coefficients, at_zero, jacobian)


def label_map(model: LinearModel, moments: Moments) -> LabelMap:
    """How a model's labels follow from its latents."""
    kind = Curve if model.label_curve else Identity if model.labels_are_latent else Outputs
    return kind(moments.label_coefficients, moments.label_system_covariance, model.label_features)
