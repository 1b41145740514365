import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

import bayeslabels as bl
from bayeslabels import calibration, plots
from bayeslabels.inference.base import Trained
from bayeslabels.simulate import simulate


@pytest.fixture(scope="module")
def survey():
    train, test, truth = simulate(80, 25, n_test=40)
    posterior = bl.fit(bl.Cannon(order=1, label_noise=False), train)
    return posterior, bl.infer(posterior, test, bl.Laplace(draws=200)), test, truth


def drawn(figure, tmp_path):
    assert isinstance(figure, Figure)
    path = tmp_path / "figure.png"
    figure.savefig(path, dpi=50)
    assert path.stat().st_size > 3000
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def test_one_to_one(survey, tmp_path):
    _, result, _, truth = survey
    figure = plots.one_to_one(result, truth)
    texts = drawn(figure, tmp_path)
    assert len(figure.axes) == 3
    assert figure.axes[0].get_xlabel() == "true TEFF [K]"
    assert "40 stars" in texts[0]
    rms = np.sqrt(((result.mean - truth.test_labels)[:, 0] ** 2).mean())
    assert f"rms {rms:.0f} K" in texts[0]


def test_residuals_below_one_to_one(survey, tmp_path):
    _, result, test, truth = survey
    figure = plots.one_to_one(result, truth, residuals=True)
    drawn(figure, tmp_path)
    assert len(figure.axes) == 6
    points = figure.axes[4].containers[0].lines[0].get_xydata()
    np.testing.assert_allclose(points[:, 1], (result.mean - truth.test_labels)[:, 1])
    labels = truth.test_labels.copy()
    labels[:, 2] = np.nan
    stars = test.with_block(labels=bl.Block(labels, [40, 0.1, 0.1], names=truth.names, unit=["K", "dex", "dex"]))
    assert drawn(plots.one_to_one(result, stars, residuals=True), tmp_path)[-1] == "no star with FE_H"


def test_precision(survey, tmp_path):
    _, result, test, truth = survey
    snr = np.linspace(10, 100, 40)
    figure = plots.precision(result, truth, snr, bins=(50,), by_name="S/N")
    drawn(figure, tmp_path)
    off, high = (result.mean - truth.test_labels)[:, 1], snr >= 50
    drawn_lines = {line.get_label(): line.get_ydata() for line in figure.axes[1].lines}
    drawn_lines |= {x.get_label(): x.lines[0].get_ydata() for x in figure.axes[1].containers}
    scatter, errors, bias = (drawn_lines[name] for name in ("scatter", "error bars", "bias"))
    for b, rows in enumerate((~high, high)):
        assert scatter[b] == calibration.robust_scatter(off[rows, None])[0]
        np.testing.assert_allclose(errors[b], np.sqrt((result.error[rows, 1] ** 2).mean()))
        np.testing.assert_allclose(bias[b], off[rows].mean())
    catalogue = test.with_block(labels=bl.Block(truth.test_labels, 0.1, names=truth.names, unit=["K", "dex", "dex"]))
    drawn(plots.precision(result, catalogue, "FE_H", bins=2), tmp_path)
    with pytest.raises(bl.BadInput, match="by="):
        plots.precision(result, truth)


def test_kiel(survey, tmp_path):
    _, result, _, _ = survey
    figure = plots.kiel(result)
    drawn(figure, tmp_path)
    table = result.table()
    table.write(tmp_path / "labels.fits")
    again = plots.kiel(bl.tables.read_table(tmp_path / "labels.fits"), colour=None)
    for one in (figure, again):
        points = one.axes[0].collections[0].get_offsets()
        np.testing.assert_allclose(np.sort(points[:, 0]), np.sort(result.mean[:, 0]))
        assert one.axes[0].yaxis_inverted()
    with pytest.raises(bl.BadInput, match="did you mean 'TEFF'"):
        plots.kiel(table, teff="TEF")
    with pytest.raises(bl.BadInput, match="a list"):
        plots.kiel([1.0])


def test_residual_map(survey, tmp_path):
    posterior, result, test, _ = survey
    figure = plots.residual_map(posterior, test, result=result, by="LOGG")
    drawn(figure, tmp_path)
    found = np.ma.filled(figure.axes[0].collections[0].get_array().reshape(40, 25), np.nan)
    frame, order = result.frame, np.argsort(result.mean[:, 1])
    labels = bl.Stars(labels=bl.Block(result.mean, names=frame.names, unit=frame.units))
    mean, sd = posterior.predict(labels, with_error=True)
    expected = np.where(test.flux.observed, (test.flux.value - mean) / np.hypot(test.flux.error, sd), np.nan)
    np.testing.assert_allclose(found, expected[order], atol=1e-12)
    with pytest.raises(bl.BadInput, match="without flux"):
        plots.residual_map(posterior, test.drop("flux"), result=result)
    with pytest.raises(bl.BadInput, match=r"result=bl\.infer"):
        plots.residual_map(posterior, test)


def test_predictive_check(survey, tmp_path):
    train, *_ = simulate(80, 25, n_test=40)
    figure = plots.ppc(survey[0], train)
    drawn(figure, tmp_path)
    assert [ax.get_xlabel() for ax in figure.axes][-1] == "flux"


def test_one_to_one_against_a_catalogue_with_gaps(survey, tmp_path):
    _, result, test, truth = survey
    labels = truth.test_labels.copy()
    labels[:5, 0], labels[:, 2] = np.nan, np.nan
    stars = test.with_block(labels=bl.Block(labels, [40, 0.1, 0.1], names=truth.names, unit=["K", "dex", "dex"]))
    texts = drawn(plots.one_to_one(result, stars), tmp_path)
    assert "35 stars" in texts[0]
    assert "no star with FE_H" in texts[-1]
    drawn(plots.calibration(result, stars), tmp_path)


def test_calibration(survey, tmp_path):
    _, result, _, truth = survey
    figure = plots.calibration(result, truth.test_labels)
    texts = drawn(figure, tmp_path)
    z = (result.mean - truth.test_labels) / result.error
    assert f"sd {z[:, 0].std():.2f}" in texts[0]
    assert len(figure.axes) == 6
    level, share = figure.axes[4].lines[1].get_data()
    np.testing.assert_array_equal(share, calibration.coverage(result, truth, level).share[:, 1])


def test_calibration_against_a_catalogue_counts_its_errors_and_tau(survey, tmp_path):
    _, result, test, truth = survey
    error, tau = np.array([40, 0.1, 0.1]), np.array([70.0, 0.3, 0.2])
    labels = truth.test_labels + np.hypot(error, tau) * np.random.default_rng(0).normal(size=(40, 3))
    catalogue = test.with_block(labels=bl.Block(labels, error, names=truth.names, unit=["K", "dex", "dex"]))
    scattered = bl.StarPosterior(result.data, result.frame, result.info | {"label_scatter": tau.tolist()})
    texts = drawn(plots.calibration(scattered, catalogue), tmp_path)
    z = (result.mean - labels) / np.sqrt(result.error**2 + error**2 + tau**2)
    assert f"mean {z[:, 1].mean():+.2f}\nsd {z[:, 1].std():.2f}" in texts[1]


def test_reliability(survey, tmp_path):
    _, result, test, truth = survey
    snr = np.linspace(10, 100, 40)
    figure = plots.reliability(result, truth, snr, bins=(50,), by_name="S/N")
    drawn(figure, tmp_path)
    table = calibration.reliability(result, truth, snr, bins=(50,), levels=(0.6827, 0.95))
    points = [line for line in figure.axes[1].lines if line.get_marker() == "o"]
    assert [list(line.get_ydata()) for line in points] == [
        table["share"][(table["label"] == "LOGG") & (table["level"] == level)].tolist() for level in (0.6827, 0.95)
    ]
    assert figure.axes[0].get_xlabel() == "S/N"
    catalogue = test.with_block(labels=bl.Block(truth.test_labels, 0.1, names=truth.names, unit=["K", "dex", "dex"]))
    drawn(plots.reliability(result, catalogue, "FE_H", bins=2), tmp_path)
    with pytest.raises(bl.BadInput, match="by="):
        plots.reliability(result, truth)


def test_on_axes_given(survey):
    _, result, _, truth = survey
    figure = Figure()
    axes = figure.subplots(1, 3)
    assert plots.one_to_one(result, truth, axes=axes) is figure
    with pytest.raises(bl.BadInput, match="2 axes"):
        plots.one_to_one(result, truth, axes=axes[:2])


def test_coefficients(survey, tmp_path):
    posterior, *_ = survey
    figure = plots.coefficients(posterior, wavelength_unit="Angstrom")
    drawn(figure, tmp_path)
    assert len(figure.axes) == 5
    assert figure.axes[-1].get_xlabel() == "wavelength [Angstrom]"


def test_corner(survey, tmp_path):
    _, result, test, truth = survey
    figure = plots.corner(result, 2, truth=truth)
    drawn(figure, tmp_path)
    assert len(figure.axes) == 9
    drawn(plots.corner(result, str(test.id[3])), tmp_path)
    with pytest.raises(bl.BadInput):
        plots.corner(result, "nobody")


def test_spectrum(survey, tmp_path):
    posterior, result, test, _ = survey
    figure = plots.spectrum(posterior, test, 1, result=result, region=(5161, 5165))
    drawn(figure, tmp_path)
    for name, unit, value, sd in zip(
        result.frame.names, result.frame.units, result.mean[1], result.error[1], strict=True
    ):
        digits = max(0, 1 - int(np.floor(np.log10(sd))))
        assert f"{name} {value:.{digits}f} {unit}" in figure.axes[0].get_title(loc="left")
    with pytest.raises(bl.BadInput, match="labels"):
        plots.spectrum(posterior, test, 1)
    with pytest.raises(bl.BadInput, match="region"):
        plots.spectrum(posterior, test, 1, result=result, region=(1, 2))


def test_of_a_model_whose_labels_are_outputs(tmp_path):
    train, test, _ = simulate(80, 25, n_test=4)
    colour = bl.Block(train.labels.value[:, :1] / 4000, 0.05, names=("BP_RP",), unit="mag")
    posterior = bl.fit(bl.Lux(3, outputs=("magnitudes",)), train.with_block(magnitudes=colour), bl.MAP(tolerance=0.1))
    figure = plots.spectrum(posterior, test, 1, result=bl.infer(posterior, test, bl.MAP()))
    drawn(figure, tmp_path)
    assert "BP_RP" in figure.axes[0].get_title("left")
    title = plots.spectrum(posterior, train, 1).axes[0].get_title("left")
    assert f"TEFF {train.labels.value[1, 0]:.0f}" in title
    with pytest.raises(bl.BadInput, match="derivative_spectra"):
        plots.coefficients(posterior)


def test_truth_of_another_shape_is_refused(survey):
    _, result, _, truth = survey
    with pytest.raises(bl.BadInput, match="labels of shape"):
        plots.calibration(result, truth.test_labels[:3])


@pytest.fixture(scope="module")
def chains():
    """A posterior with two chains of made-up draws, of which one label's scatter disagrees between the chains."""
    train, *_ = simulate(30, 8, labels=("TEFF", "FE_H"), n_test=1)
    trained = bl.fit(bl.Cannon(order=1, label_noise="joint"), train, bl.MAP(tolerance=0.3))
    rng = np.random.default_rng(0)
    tau = np.abs(rng.normal(size=(2, 100, 2))) * [20, 0.02]
    tau[1, :, 1] += 0.05
    known = trained.data["posterior"].to_dataset()
    draws = {
        "label_scatter": (("chain", "draw", "labels"), tau),
        "scatter": (("chain", "draw", "pixel"), np.ones((2, 100, 8))),
    }
    coords = {"labels": known["labels"].values, "pixel": known["pixel"].values}
    stats = xr.Dataset({"energy": (("chain", "draw"), rng.normal(size=(2, 100)))})
    data = xr.DataTree.from_dict({"posterior": xr.Dataset(draws, coords), "sample_stats": stats})
    return trained, bl.Posterior(trained.model, data, trained.moments, {"inference": "NUTS"}), train


def test_ranks(chains, tmp_path):
    _, sampled, _ = chains
    figure = plots.ranks(sampled)
    drawn(figure, tmp_path)
    assert [ax.get_xlabel() for ax in figure.axes] == ["rank of label_scatter[TEFF]", "rank of label_scatter[FE_H]"]
    low, high = (patch.get_data().values for patch in figure.axes[1].patches)
    assert low[:8].sum() > 75 > 25 > high[:8].sum()  # the chain that lies lower has the low ranks
    assert low.sum() == high.sum() == 100
    with pytest.raises(bl.BadInput, match="'tau'"):
        plots.ranks(sampled, ["tau"])


def test_energy(chains, tmp_path):
    trained, sampled, _ = chains
    figure = plots.energy(sampled)
    drawn(figure, tmp_path)
    bfmi = figure.axes[0].get_title().removeprefix("BFMI ").split(", ")
    assert all(1.5 < float(x) < 2.5 for x in bfmi)  # of independent draws: 2
    with pytest.raises(bl.BadInput, match=r"NUTS\(\)"):
        plots.energy(trained)


def test_pair(chains, tmp_path):
    _, sampled, _ = chains
    figure = plots.pair(sampled)
    drawn(figure, tmp_path)
    assert len(figure.axes) == 4
    assert "label_scatter[TEFF]" in figure.axes[0].get_title()


def test_prior_to_posterior(chains, tmp_path):
    trained, sampled, train = chains
    figure = plots.prior_to_posterior(sampled, train, draws=100)
    drawn(figure, tmp_path)
    assert [ax.get_xlabel() for ax in figure.axes] == ["label_scatter[TEFF]", "label_scatter[FE_H]"]
    low, high = figure.axes[0].get_xlim()
    width = np.percentile(np.abs(np.random.default_rng(0).normal(size=1000)), 95) * trained.model.frame.scale[0]
    assert 0.7 * width < high - low < 1.6 * width  # as wide as the HalfNormal prior of tau
    with pytest.raises(bl.BadInput, match="a mode and no draws"):
        plots.prior_to_posterior(trained, train)


def test_loss(chains, tmp_path):
    trained, sampled, _ = chains
    figure = plots.loss(trained)
    drawn(figure, tmp_path)
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), trained.data["sample_stats"]["change"].values)
    with pytest.raises(bl.BadInput, match="without iterations"):
        plots.loss(sampled)


def test_loss_of_steps_and_of_epochs(chains, tmp_path):
    trained, _, _ = chains
    draws = {str(name): x.values for name, x in trained.data["posterior"].to_dataset().items()}
    traces = {"loss": np.linspace(3, 1, 60), "held_out_elbo": np.linspace(1, 2, 3)}
    both = bl.Posterior.from_training(trained.model, Trained(draws, trained.moments, {}, traces), trained.info)
    figure = plots.loss(both)
    drawn(figure, tmp_path)
    assert {(ax.get_ylabel(), ax.get_xlabel()) for ax in figure.axes} == {
        ("loss", "iteration"), ("held out elbo", "epoch")
    }  # fmt: skip


def test_khat(survey, tmp_path):
    _, result, _, _ = survey
    with pytest.raises(bl.BadInput, match=r"Importance\(\)"):
        plots.khat(result)
    stars = result.stars.assign(khat=("star", np.linspace(-0.5, 0.9, 40)))
    data = result.data.copy()
    data["stars"] = xr.DataTree(stars)
    figure = plots.khat(bl.StarPosterior(data, result.frame, result.info))
    drawn(figure, tmp_path)
    legend = figure.axes[0].get_legend().get_texts()[0].get_text()
    assert legend == f"{(np.linspace(-0.5, 0.9, 40) > 0.7).sum()} of 40 stars above 0.7"


def test_spectra_with_covariances_are_drawn_by_the_errors_of_their_pixels(trained, spectra):
    flux = spectra["flux"]
    square = np.where(np.isfinite(flux.error), flux.error, np.nan)[:, :, None] ** 2 * np.eye(flux.n_dim)
    alike = spectra.with_block(flux=bl.Block(flux.value, square, unit=flux.unit, coords=dict(flux.coords)))
    result = bl.infer(trained, spectra, progress=False)
    images = [plots.residual_map(trained, stars, result=result).axes[0].collections[0] for stars in (spectra, alike)]
    np.testing.assert_allclose(*(np.ma.filled(image.get_array(), 9.0) for image in images), rtol=1e-12)
    with pytest.raises(bl.BadInput, match="stars without flux"):
        plots.spectrum(
            trained, spectra.drop("flux").with_block(labels=bl.Block(result.mean, names=("TEFF", "LOGG"))), 0
        )
