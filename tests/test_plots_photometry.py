"""What the pictures of photometry draw, of simulated stars behind dust."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from matplotlib.figure import Figure

import bayeslabels as bl
from bayeslabels import plots
from bayeslabels.errors import BadInput
from bayeslabels.simulate import simulate_photometry

BANDS = ("G", "BP", "RP", "J", "Ks")


@pytest.fixture(scope="module")
def survey():
    stars, truth = simulate_photometry(500, BANDS, seed=2, length=0.6)
    model = bl.Photometry(function="polynomial", order=2, members=2, distance_prior=bl.priors.ExponentialDisk(0.6))
    posterior = bl.fit(model, stars[:300], bl.MAP(max_iterations=30), progress=False)
    new = stars[300:]
    result = bl.infer(posterior, new.drop("parallax"), bl.Laplace(draws=200), progress=False)
    return posterior, new, result, truth


def drawn(figure, tmp_path):
    assert isinstance(figure, Figure)
    figure.savefig(tmp_path / "figure.png", dpi=50)
    assert (tmp_path / "figure.png").stat().st_size > 3000


def test_colour_magnitude(survey, tmp_path):
    posterior, stars, result, truth = survey
    figure = plots.colour_magnitude(posterior, stars, result, magnitude="G")
    drawn(figure, tmp_path)
    before, after = (np.asarray(ax.collections[0].get_offsets()) for ax in figure.axes[:2])
    seen = stars["magnitudes"].observed[:, :3].all(1)
    assert len(before) == len(after) == seen.sum()
    mu = result.mean[seen, result.frame.names.index("distance_modulus")]
    np.testing.assert_allclose(before[:, 1], stars["magnitudes"].value[seen, 0] - mu)
    true = truth.absolute_magnitudes[300:][seen]
    off = before[:, 0] - (true[:, 1] - true[:, 2]), after[:, 0] - (true[:, 1] - true[:, 2])
    assert np.mean(off[0]) > 0.1  # the dust reddens
    assert abs(np.mean(off[1])) < 0.03
    assert np.std(off[1]) < 0.5 * np.std(off[0])
    assert figure.axes[0].get_ylim()[0] > figure.axes[0].get_ylim()[1]  # bright stars on top
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
    assert figure.axes[0].get_xlabel() == "BP - RP [mag]"
    with pytest.raises(BadInput, match="there is no band 'V'"):
        plots.colour_magnitude(posterior, stars, result, colour=("BP", "V"))


def test_reddening_vector(survey, tmp_path):
    posterior = survey[0]
    figure = plots.reddening_vector(posterior)
    drawn(figure, tmp_path)
    ax, table = figure.axes[0], posterior.summary()
    points = ax.containers[0]
    np.testing.assert_allclose(points.lines[0].get_ydata(), table["reddening_vector"])
    np.testing.assert_allclose(points.lines[0].get_xdata(), [0.64, 0.52, 0.785, 1.241, 2.165])
    bars = [segment[:, 1] for segment in points.lines[2][0].get_segments()]
    np.testing.assert_allclose([np.ptp(x) / 2 for x in bars], table["reddening_vector_error"], rtol=1e-6)
    assert [text.get_text() for text in ax.texts] == list(BANDS)
    frame = dataclasses.replace(posterior.model.frame, bands=("a", "b", "c", "d", "e"))
    named = posterior.model.replace(frame=frame)
    ax = plots.reddening_vector(bl.Posterior(named, posterior.data, posterior.moments, posterior.info)).axes[0]
    assert [x.get_text() for x in ax.get_xticklabels()] == ["a", "b", "c", "d", "e"]
    assert ax.get_xscale() == "linear"


def test_magnitude_residuals(survey, tmp_path):
    posterior, stars, result, _ = survey
    value = stars["magnitudes"].value + np.array([0.0, 0.0, 0.0, 0.0, 1.0]) * (result.mean[:, :1] > 5200)
    off = stars.with_block(magnitudes=bl.Block(value, stars["magnitudes"].error, names=BANDS, unit="mag"))
    figure = plots.magnitude_residuals(posterior, off, result, bins=6)
    drawn(figure, tmp_path)
    assert [ax.get_xlabel().split(" ")[0] for ax in figure.axes] == ["TEFF", "LOGG", "FE_H", "reddening"]
    lines = {x.get_label(): x.lines[0].get_xydata() for x in figure.axes[0].containers}
    assert tuple(lines) == BANDS
    assert all(np.abs(lines[band][:, 1]).max() < 0.05 for band in BANDS[:4])
    hot = lines["Ks"][:, 0] > 5400
    assert 0.9 < lines["Ks"][hot, 1].min() < lines["Ks"][hot, 1].max() < 1.1  # put there
    assert np.abs(lines["Ks"][lines["Ks"][:, 0] < 5000, 1]).max() < 0.1
    with pytest.raises(BadInput, match="200 stars with magnitudes whose result this is"):
        plots.magnitude_residuals(posterior, stars[:5], result)


def test_distance_ladder(survey, tmp_path):
    """Parallaxes that are 10 per cent too small, and have a zero point that is told: moduli 0.23 mag larger."""
    _, stars, result, _ = survey
    w = stars["parallax"]
    parallax = bl.Block(0.9 * w.value - 0.05, w.error, unit="mas")
    figure = plots.distance_ladder(result, stars.with_block(parallax=parallax), zero_point=-0.05, bins=5)
    drawn(figure, tmp_path)
    bars = figure.axes[1].containers[0]
    off = bars.lines[0].get_ydata()
    error = np.array([np.ptp(segment[:, 1]) / 2 for segment in bars.lines[2][0].get_segments()])
    assert len(off) == 5
    assert (np.abs(off + 5 * np.log10(0.9)) < 4 * error + 0.03).all()
    assert error.max() < 0.2
    assert abs(np.average(off, weights=error**-2.0) - 0.23) < 0.08
    top = figure.axes[0].containers[0].lines[0].get_xydata()
    np.testing.assert_allclose(5 * np.log10(top[:, 1] / top[:, 0]), off)
    with pytest.raises(BadInput, match="its 200 stars with parallaxes"):
        plots.distance_ladder(result, stars.drop("parallax"))
