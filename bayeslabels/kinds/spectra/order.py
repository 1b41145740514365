"""The order of a polynomial in the labels, by the evidence of the flux, and the population of these.

Misfit of a polynomial that is too low is common to many pixels: too small to be seen in any of them, it makes error
bars too small by a factor that grows with S/N and the number of pixels. The density of the flux, the coefficients
integrated out under a prior that is learned, shows it at the price of one exact solve of all pixels; held-out densities
of a few noisy labels do not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...core.priors import Learned
from ...data.stars import Stars
from ...numerics.linalg import in_float64
from ...numerics.population import choose
from ...progress import bar
from .em import SHORT, em_of
from .model import LinearModel
from .training import EM

MOST_STARS, MOST_PIXELS = 1500, 800
"""Enough to tell orders apart."""
MOST_FEATURES = 200
"""Terms of a polynomial that is still tried."""
ITERATIONS, TOLERANCE = 100, 0.01
"""Iterations of training at an order, at most: labels that have not settled at the lower order show more misfit than
there is."""
CLEARLY, PER_TERM = 10.0, 2.0
"""Log evidence, in nats, by which a higher order must be better, and for every further term: mean and variance of terms
that are nowhere, learned, add about one."""

USUAL = 2
"""The order that is tried first: few spectra are so nearly linear that the lowest serves."""
FALL = 30.0
"""Every order adds far less than the one before: one that adds less than this times what it must is the last."""


@in_float64
def choose_order(
    model: LinearModel, stars: Stars, seed: int, progress: bool | None
) -> tuple[int, list[dict[str, Any]], EM]:
    """The order, and the lead in log evidence of every order that was tried over the one below it.

    A higher order is tried at the labels of the training step at the present one, or those of the catalogue where these
    are exact. That favours the present order, which must be too low by enough to be seen; the first order, which has
    been trained already, and the one below it are compared each at its own labels.
    """
    model, stars = _some(model, stars, seed)  # the frame is that of every order
    of_order = {x: model.of_order(x) for x in model.orders}
    sizes = {x: each.features.size for x, each in of_order.items()}
    orders = [x for x, size in sizes.items() if size <= min(MOST_FEATURES, len(stars) // 2)] or [min(sizes)]
    order = first = min(USUAL, max(orders))
    scores: list[dict[str, Any]] = []

    trained: dict[int, EM] = {}
    with bar(None, "order of the polynomial", progress) as shown:

        def at(order: int) -> EM:
            if order not in trained:
                shown.set_description(f"order of the polynomial, {order}")
                trained[order] = _trained(of_order[order], stars, shown)
            return trained[order]

        def evidence(order: int, given: EM) -> float:
            """That of an order at the labels of a training; if they are exact, all orders are trained at them."""
            if not given.has_latents:
                return at(order).log_evidence()
            return _evidence(of_order[order], stars, given.u, given.u_covariance)

        def lead(low: int, below: float, above: float) -> float:
            """That of the next order over this one, in units of what it must be."""
            scores.append({"order": low + 1, "below": low, "lead": above - below})
            return (above - below) / (CLEARLY + PER_TERM * (sizes[low + 1] - sizes[low]))

        while order + 1 in orders:
            found = lead(order, *(evidence(x, at(order)) for x in (order, order + 1)))
            order += found >= 1
            if found < FALL:
                break
        while order <= first and order - 1 in orders:
            if lead(order - 1, at(order - 1).log_evidence(), at(order).log_evidence()) >= 1:
                break
            order -= 1
    return order, sorted(scores, key=lambda score: score["order"]), trained[max(trained, key=lambda x: (x <= order, x))]


@in_float64
def choose_components(
    model: LinearModel, stars: Stars, em: EM | None, seed: int, progress: bool | None
) -> tuple[int, list[dict[str, Any]]]:
    """Of how many Gaussians the population of the true labels is a mixture, by their posteriors under one; and the lead
    of every number that was tried. em: a training with one, None: there has been none."""
    if em is None:
        model, stars = _some(model, stars, seed)
        with bar(None, "population of the labels", progress) as shown:
            em = em_of(model, stars)
            em.run(SHORT.max_iterations, SHORT.tolerance, shown)
    population, leads = choose(em.u, em.u_covariance, seed)
    return len(population.weight), [{"components": i, "lead": x} for i, x in enumerate(leads[1:].tolist(), 2)]


def _some(model: LinearModel, stars: Stars, seed: int) -> tuple[LinearModel, Stars]:
    """As many stars and pixels as are enough to tell; the model bound to them, its population one Gaussian."""
    rng = np.random.default_rng([seed, 86028157])
    n_pixel = stars["flux"].n_dim
    if len(stars) > MOST_STARS:
        stars = stars[np.sort(rng.permutation(len(stars))[:MOST_STARS])]
    if n_pixel > MOST_PIXELS:
        some = np.unique(np.linspace(0, n_pixel - 1, MOST_PIXELS).astype(int))
        model, stars = model.of_pixels(some), stars.with_block(flux=stars["flux"].select(some))
    return model.sampled().replace(coefficient_prior=Learned()).bind(stars), stars


def _trained(model: LinearModel, stars: Stars, shown: Any) -> EM:
    em = em_of(model, stars)
    if em.has_latents:
        em.run(ITERATIONS, TOLERANCE, shown)
    else:
        em.train_given(em.u, em.u_covariance)
    return em


def _evidence(model: LinearModel, stars: Stars, u: np.ndarray, spread: np.ndarray) -> float:
    em = em_of(model, stars)
    em.train_given(u.copy(), spread)
    return em.flux_evidence()
