import numpy as np
import pytest

from bayeslabels import BadInput
from bayeslabels.simulate import SUN, line_list, simulate, simulate_disk


def test_a_survey_has_what_a_survey_has():
    train, test, truth = simulate(120, 60, n_test=40)
    assert (len(train), len(test)) == (120, 40)
    assert set(train.blocks) == {"labels", "flux"}
    assert set(test.blocks) == {"flux"}
    assert train["labels"].names == truth.names == ("TEFF", "LOGG", "FE_H")
    assert train["labels"].units == ("K", "dex", "dex")
    assert truth.training_labels.shape == (120, 3)
    assert truth.test_flux.shape == (40, 60)
    grid = train["flux"].coords["pixel"]
    assert (np.diff(grid) > 0).all()
    assert 5000 < grid[0] < grid[-1] < 6000
    assert 0.01 < train["flux"].n_missing / train["flux"].value.size < 0.03
    assert not set(train.id) & set(test.id)


def test_same_seed_same_survey():
    one, two, other = (simulate(30, 20, seed=seed)[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(one["flux"].value, two["flux"].value)
    np.testing.assert_array_equal(one["labels"].value, two["labels"].value)
    assert not np.array_equal(one["labels"].value, other["labels"].value)


def test_noise_is_as_stated():
    train, test, truth = simulate(4000, 40)
    z = (train["flux"].value - truth.training_flux) / train["flux"].error
    assert abs(np.nanstd(z) - 1) < 0.01
    z = (train["labels"].value - truth.training_labels) / train["labels"].error
    np.testing.assert_allclose(z.std(0), 1, atol=0.05)
    np.testing.assert_allclose(np.median(train["labels"].error, 0), [40, 0.08, 0.03], rtol=0.05)
    assert abs(np.median(1 / test["flux"].error[:, 0]) / 100 - 1) < 0.1


def test_label_scatter_is_noise_that_is_not_stated():
    train, _, truth = simulate(4000, 20, label_scatter=(30, 0.06, 0.02))
    unstated = np.var(train["labels"].value - truth.training_labels, axis=0) - (train["labels"].error ** 2).mean(0)
    np.testing.assert_allclose(np.sqrt(unstated), [30, 0.06, 0.02], rtol=0.25)


def test_a_quadratic_describes_the_flux_to_three_per_mille():
    _, _, truth = simulate(1500, 300)
    z = (truth.training_labels - truth.training_labels.mean(0)) / truth.training_labels.std(0)
    i, j = np.triu_indices(3)
    design = np.concatenate([np.ones((len(z), 1)), z, z[:, i] * z[:, j]], 1)
    residual = truth.training_flux - design @ np.linalg.lstsq(design, truth.training_flux, rcond=None)[0]
    assert 1e-5 < residual.std() < 0.003
    assert truth.training_flux.std(0).max() > 0.03


def test_magnesium_acts_where_its_lines_are():
    train, _, truth = simulate(400, 120, ("TEFF", "LOGG", "FE_H", "MG_FE"))
    lines, grid = line_list(120), train["flux"].coords["pixel"]
    known = np.column_stack([np.ones(400), truth.training_labels])
    slope = np.linalg.lstsq(known, truth.training_flux, rcond=None)[0][4]
    reach = np.abs(grid[:, None] - lines.centre[lines.magnesium]) < 3 * lines.width[lines.magnesium]
    assert 0 < lines.magnesium.sum() < len(lines.centre)
    assert slope[np.argmin(slope)] == slope[reach.any(1)].min()
    assert np.abs(slope[~reach.any(1)]).max() < 0.2 * np.abs(slope).max()


def test_a_label_left_out_does_not_vary():
    train, _, truth = simulate(50, 40, labels=("FE_H", "TEFF"))
    assert train["labels"].names == ("FE_H", "TEFF")
    assert truth.training_labels[:, 1].mean() > 3500


@pytest.mark.parametrize(
    "wrong",
    [{"labels": ("AGE",)}, {"n_star": 0}, {"missing": 1.0}, {"snr": -1}, {"label_error": (1, 2)}, {"label_error": 0}],
)
def test_bad_settings_are_refused(wrong):
    with pytest.raises(BadInput):
        simulate(**{"n_star": 10, "n_pixel": 10, **wrong})


def test_disk():
    stars, truth = simulate_disk(800, 20, seed=3, zero_point=-0.1)
    again, _ = simulate_disk(800, 20, seed=3, zero_point=-0.1)
    np.testing.assert_array_equal(stars["parallax"].value, again["parallax"].value)
    assert stars["magnitudes"].names == ("G", "BP", "RP", "J", "H", "Ks")
    assert (stars["magnitudes"].value[:, 4] < 13.6).all()
    np.testing.assert_allclose(np.linalg.norm(truth.position - SUN, axis=1), truth.distance)
    miss = (stars["parallax"].value[:, 0] + 0.1 - 1 / truth.distance) / stars["parallax"].error[:, 0]
    assert abs(miss.mean()) < 4 / np.sqrt(800)
    assert miss.std() == pytest.approx(1, abs=0.1)
    with pytest.raises(BadInput, match="a limit at which enough stars are seen"):
        simulate_disk(100, 5, limit=2.0)
    with pytest.raises(BadInput, match="n_star=0"):
        simulate_disk(0)
