"""Input that cannot mean what was intended is refused with a cure; gaps are flagged and counted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

import bayeslabels as bl
from bayeslabels.errors import BadInput
from bayeslabels.kinds.spectra import training as training_step
from bayeslabels.results.star_posterior import Flags

CLASSIC = bl.Cannon(order=1, label_noise=False, coefficient_prior=bl.priors.Flat())
NAMES = ("TEFF", "LOGG")


def changed(stars, block, value=None, error=None, **settings):
    """The stars with other numbers in one block."""
    old = stars[block]
    value = old.value if value is None else value
    error = old.error if error is None else error
    keep = {"names": old.names, "unit": old.unit, "coords": old.coords} | settings
    return stars.with_block(**{block: bl.Block(value, error, **keep)})


def assert_close(a, b, rows=slice(None)):
    """Labels agree to a ten-thousandth of their errors."""
    np.testing.assert_allclose(((a.mean - b.mean) / b.error)[rows], 0, atol=1e-4)
    np.testing.assert_allclose((a.error / b.error)[rows], 1, atol=1e-4)


def test_nan_and_infinite_flux_is_missing(trained, spectra):
    flux = spectra.flux.value.copy()
    flux[0, 3], flux[1, 3] = np.nan, np.inf
    error = spectra.flux.error.copy()
    error[2, 3] = np.inf
    result = bl.infer(trained, changed(spectra, "flux", flux, error), bl.MAP())
    whole = bl.infer(trained, spectra, bl.MAP())
    assert np.isfinite(result.mean).all()
    assert result.table()["n_pixel"][:4].tolist() == [11, 11, 11, 12]
    assert (result.error[:3] >= whole.error[:3]).all()
    assert_close(result, whole, slice(3, None))


@pytest.mark.parametrize(
    "names",
    [("flags", "LOGG"), ("chi2", "LOGG"), ("id", "LOGG"), ("n_pixel", "LOGG"), ("TEFF", "TEFF_error"),
     ("TEFF", "TEFF_catalogue_error"), ("TEFF_p50", "TEFF")],
)  # fmt: skip
def test_labels_that_would_be_lost_in_the_result(trained, training, spectra, names):
    stars = changed(training, "labels", names=names)
    with pytest.raises(BadInput, match="another name"):
        bl.fit(CLASSIC, stars)
    result = bl.infer(trained, spectra)
    result.frame = result.frame._replace(names=names)
    result.info["label_scatter"] = [1.0, 1.0]
    with pytest.raises(BadInput, match="two columns"):
        result.table()


def test_labels_that_would_be_lost_beside_other_quantities(simulated):
    labels = simulated.stars["labels"]
    stars = simulated.stars.with_block(labels=bl.Block(labels.value, labels.error, names=("TEFF", "reddening")))
    with pytest.raises(BadInput, match="'reddening'"):
        bl.fit(bl.Photometry(), stars)


def test_a_flux_that_no_star_has_is_flagged(trained, spectra):
    flux = spectra.flux.value.copy()
    flux[3], flux[4], flux[5, 2] = 1e30, 1e12, 1e30
    result = bl.infer(trained, changed(spectra, "flux", flux))
    assert (result.flags[3:6] & (Flags.POOR_FIT | Flags.NOT_CONVERGED)).all()
    assert np.isinf(result.table()["chi2"][3])
    assert_close(result, bl.infer(trained, spectra), [0, 1, 2, *range(6, 40)])


@pytest.mark.parametrize("error", [1e12, 1e22, 1e100])
def test_a_training_pixel_with_hopeless_errors_counts_as_missing(training, spectra, error):
    wide, missing = training.flux.error.copy(), training.flux.value.copy()
    wide[:, 3], missing[:, 3] = error, np.nan
    found = bl.infer(bl.fit(CLASSIC, changed(training, "flux", error=wide)), spectra)
    expected = bl.infer(bl.fit(CLASSIC, changed(training, "flux", missing)), spectra)
    assert np.isfinite(found.mean).all()
    assert_close(found, expected)


def test_star_without_data_is_nan_and_flagged(trained, spectra):
    flux = spectra.flux.value.copy()
    flux[5], flux[6, :8] = np.nan, np.nan
    result = bl.infer(trained, changed(spectra, "flux", flux))
    assert len(result) == len(spectra)
    assert np.isnan(result.mean[5]).all()
    assert np.isnan(result.error[5]).all()
    assert np.isnan(result.draws("TEFF")[:, 5]).all()
    assert result.flags[5] & Flags.NO_DATA
    assert result.flag_counts()["NO_DATA"] == 1
    assert bl.flag_names(result.flags[5])[0] == "NO_DATA"
    assert result.flags[6] & Flags.MISSING_DATA
    assert np.isfinite(result.mean[6]).all()


def test_pixel_without_data_is_counted(trained, training, spectra):
    flux = training.flux.value.copy()
    flux[:, 4] = np.nan
    posterior = bl.fit(CLASSIC, changed(training, "flux", flux))
    assert posterior.info["n_pixel_dropped"] == 1
    assert np.isnan(posterior.moments.coefficients[4]).all()
    assert np.isnan(posterior.predict(training)[:, 4]).all()
    result = bl.infer(posterior, spectra, bl.MAP())
    assert np.isfinite(result.mean).all()
    masked = spectra.flux.value.copy()
    masked[:, 4] = np.nan
    other = bl.infer(trained, changed(spectra, "flux", masked), bl.MAP())
    assert_close(result, other)


@pytest.mark.parametrize("wrong", [0.0, -0.1])
def test_errors_of_zero_or_less(training, wrong):
    error = training.flux.error.copy()
    error[3, 2] = wrong
    with pytest.raises(BadInput, match=r"got error zero or negative in 1 of 480.*expected errors above 0.*from_ivar"):
        changed(training, "flux", error=error)


def test_shapes_that_do_not_fit(training):
    with pytest.raises(BadInput, match=r"value has 2 columns but error has 3"):
        bl.Block(training.labels.value, np.ones((40, 3)))
    with pytest.raises(BadInput, match=r"got blocks of length .*40.*39.*expected"):
        bl.Stars(labels=training.labels, flux=training.flux[:39])


def test_constant_label(training):
    labels = training.labels.value.copy()
    labels[:, 1] = 3.0
    with pytest.raises(BadInput, match=r"'LOGG'.*equal, expected a label that varies.*labels=\('TEFF',\)"):
        bl.fit(CLASSIC, changed(training, "labels", labels))


def test_fewer_stars_than_coefficients(training):
    with pytest.raises(BadInput, match=r"got 3 training stars for 3 coefficients.*Cannon\(order=1\).*priors\.Normal"):
        bl.fit(CLASSIC, training[:3])


@pytest.mark.parametrize("prior", ["anything", 0.1, bl.priors.HalfNormal()])
def test_coefficient_prior_that_is_none(prior):
    with pytest.raises(BadInput, match=r"got coefficient_prior=.*expected 'auto', None \(flat\) or one of priors"):
        bl.Cannon(order=2, coefficient_prior=prior)


def test_one_star(trained, training, spectra):
    with pytest.raises(BadInput, match=r"1 values|1 training star"):
        bl.fit(CLASSIC, training[0])
    one = bl.infer(trained, spectra[7], bl.MAP())
    whole = bl.infer(trained, spectra, bl.MAP())
    np.testing.assert_allclose((one.mean[0] - whole.mean[7]) / whole.error[7], 0, atol=1e-4)


def test_duplicated_ids(training):
    with pytest.raises(BadInput, match=r"got 1 duplicated ids \(a\), expected one row per star"):
        bl.Stars(id=["a", "a"], labels=training.labels[:2])


def test_units_of_another_kind(trained, training):
    with pytest.raises(BadInput, match=r"got labels in \('kK', 'dex'\), expected \('K', 'dex'\)"):
        bl.infer(trained, changed(training, "labels", training.labels.value / [1e3, 1], unit=("kK", "dex")))


def test_labels_swapped(trained, training):
    swapped = training.with_block(labels=training.labels.select(["LOGG", "TEFF"]))
    with pytest.raises(BadInput, match=r"got labels \('LOGG', 'TEFF'\), expected \('TEFF', 'LOGG'\).*swapped.*select"):
        bl.infer(trained, swapped)
    with pytest.raises(BadInput, match="swapped"):
        trained.predict(swapped)


def test_other_wavelengths(trained, spectra):
    shifted = spectra.flux.coords["wavelength"] + 0.5
    with pytest.raises(BadInput, match=r"got pixel \d+ at .*as in training.*wavelength grid.*resample"):
        bl.infer(trained, changed(spectra, "flux", coords={"wavelength": shifted}))
    with pytest.raises(BadInput, match=r"got spectra of 10 pixels, expected 12, as in training"):
        bl.infer(trained, bl.Stars(flux=spectra.flux.select(range(10))))


def test_masked_fits_column(training, tmp_path):
    labels = training.labels.value
    table = Table(
        {"TEFF": labels[:, 0].astype(int), "LOGG": labels[:, 1], "FLUX": training.flux.value}, units={"TEFF": "K"}
    )
    table = Table(table, masked=True)
    table["TEFF"].mask[2] = True
    table["LOGG"].mask[3] = True
    table.write(tmp_path / "t.fits")
    columns = {"labels": NAMES, "flux": "FLUX"}
    stars = bl.Stars.from_table(Table.read(tmp_path / "t.fits"), **columns)
    with fits.open(tmp_path / "t.fits") as file:
        raw = bl.Stars.from_table(file[1].data, **columns)
    for found in (stars, raw):
        missing = np.argwhere(~found.labels.observed).tolist()
        assert missing == [[2, 0], [3, 1]]


@pytest.mark.parametrize(("dtype", "tolerance"), [(">f8", 0.0), ("<f4", 1e-4), (">f4", 1e-4)])
def test_other_number_types(trained, spectra, dtype, tolerance):
    stars = changed(spectra, "flux", spectra.flux.value.astype(dtype), spectra.flux.error.astype(dtype))
    expected, result = bl.infer(trained, spectra, bl.MAP()), bl.infer(trained, stars, bl.MAP())
    assert result.mean.dtype == np.float64
    # float32 rounds the flux by 6e-8, and labels by that over the flux error, in their own errors
    np.testing.assert_allclose((result.mean - expected.mean) / expected.error, 0, atol=tolerance)


def test_training_in_float32(trained, training):
    single = changed(training, "flux", training.flux.value.astype("f4"), training.flux.error.astype("f4"))
    theta = bl.fit(CLASSIC, single).moments.coefficients
    np.testing.assert_allclose(theta, trained.moments.coefficients, atol=1e-5)


def test_truncated_model_file(trained, tmp_path):
    path = trained.save(tmp_path / "cannon.nc")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(BadInput, match=r"cannon\.nc"):
        bl.load(path)


def test_not_a_model_file(tmp_path):
    path = tmp_path / "notes.nc"
    path.write_text("not a model")
    with pytest.raises(BadInput, match=r"notes\.nc.*expected"):
        bl.load(path)
    with pytest.raises((BadInput, FileNotFoundError), match=r"absent\.nc"):
        bl.load(tmp_path / "absent.nc")


def test_empty_table(training):
    with pytest.raises(BadInput, match=r"got 0 stars, expected at least one"):
        bl.Stars.from_table(Table({"TEFF": [], "LOGG": []}, dtype=[float, float]), labels=NAMES)
    with pytest.raises(BadInput, match="keeps 0 of 40 stars"):
        training[np.zeros(40, bool)]


def test_arguments_of_the_wrong_kind(training):
    with pytest.raises(BadInput, match=r"got a Stars, expected a model"):
        bl.fit(training, CLASSIC)
    with pytest.raises(BadInput, match=r"got stars as a dict, expected Stars"):
        bl.fit(CLASSIC, {})
    with pytest.raises(BadInput, match=r"seed=1\.5"):
        bl.fit(CLASSIC, training, seed=1.5)
    with pytest.raises(BadInput, match="'flux', which the training step needs"):
        bl.fit(CLASSIC, training.drop("flux"))


@pytest.mark.parametrize("wide", [False, True])
def test_interrupted_and_used_again(trained, training, spectra, monkeypatch, wide):
    """Ctrl-C passes through, and what is global stays as it was."""

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with jax.enable_x64(wide):
        with monkeypatch.context() as patch:
            patch.setattr(training_step.EM, "train", interrupt)
            with pytest.raises(KeyboardInterrupt):
                bl.fit(CLASSIC, training)
            patch.setattr(bl.MAP, "infer", interrupt)
            with pytest.raises(KeyboardInterrupt):
                bl.infer(trained, spectra, bl.MAP())
        assert jax.config.jax_enable_x64 is wide
        again = bl.fit(CLASSIC, training)
        assert jax.config.jax_enable_x64 is wide
    np.testing.assert_array_equal(again.moments.coefficients, trained.moments.coefficients)


def test_signal_in_a_long_fit(tmp_path):
    """SIGINT to a process in the middle of training ends it with KeyboardInterrupt and no file."""
    script = """
        import signal
        signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs inherit that it is ignored
        import numpy as np, bayeslabels as bl
        from bayeslabels.kinds.spectra.training import EM
        rng = np.random.default_rng(0)
        u = rng.normal(size=(40, 2))
        stars = bl.Stars(labels=bl.Block(u, 0.1), flux=bl.Block(1 + u @ rng.normal(size=(2, 5)), 0.01))
        train = EM.train
        def slow(self, *args, **kwargs):
            print("started", flush=True)
            while True:
                pass
        EM.train = slow
        try:
            bl.fit(bl.Cannon(order=1, label_noise=False), stars).save("cannon.nc")
        finally:
            EM.train = train
            bl.Stars(id=[1])
            print("usable", flush=True)
    """
    root = Path(bl.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "started\n"
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert "usable" in out
    assert "KeyboardInterrupt" in err
    assert process.returncode != 0
    assert list(tmp_path.iterdir()) == []


def test_import_changes_nothing_global():
    script = """
        import warnings, sys
        import jax, numpy as np, astropy.table, xarray, arviz_base, numpyro, scipy.stats
        before = jax.config.jax_enable_x64, list(warnings.filters), np.geterr(), np.random.get_state()[1].tolist()
        import bayeslabels, bayeslabels.calibration
        after = jax.config.jax_enable_x64, list(warnings.filters), np.geterr(), np.random.get_state()[1].tolist()
        assert before == after, "import changed global state"
        assert not jax.config.jax_enable_x64
        assert "matplotlib.pyplot" not in sys.modules
    """
    root = Path(bl.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root)}
    environment.pop("JAX_ENABLE_X64", None)
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=environment, check=True, timeout=120)


def test_fit_and_infer_leave_the_filters_alone(trained, training, spectra):
    before = list(warnings.filters), np.geterr(), jax.config.jax_enable_x64, np.random.get_state()[1].tolist()  # noqa: NPY002
    bl.fit(CLASSIC, training)
    bl.infer(trained, spectra, bl.MAP())
    after = list(warnings.filters), np.geterr(), jax.config.jax_enable_x64, np.random.get_state()[1].tolist()  # noqa: NPY002
    assert before == after


@pytest.mark.parametrize(
    ("inference", "settings"),
    [
        (bl.NUTS, {"draws": 0}), (bl.NUTS, {"chains": -1}), (bl.NUTS, {"target_accept": 1.5}),
        (bl.NUTS, {"warmup": -1}), (bl.Laplace, {"draws": "many"}),
        (bl.Laplace, {"starts": 0}), (bl.Importance, {"draws": 2.5}),
        (bl.MAP, {"max_iterations": True}), (bl.MAP, {"tolerance": float("nan")}), (bl.MAP, {"batch_size": 0}),
        (bl.Gibbs, {"thin": 0}), (bl.SVI, {"epochs": 0}), (bl.SVI, {"learning_rate": "fast"}),
    ],
)  # fmt: skip
def test_settings_of_inferences_that_cannot_be(inference, settings):
    ((name, _),) = settings.items()
    with pytest.raises(bl.BadInput, match=f"{inference.__name__}\\({name}="):
        inference(**settings)
    assert inference() == inference(**{name: getattr(inference(), name)})  # the defaults pass


def test_classes_and_names_in_the_place_of_values(trained, training, spectra):
    for call in (
        lambda: bl.fit(bl.Cannon(order=1), training, bl.MAP),
        lambda: bl.infer(trained, spectra, bl.Laplace),
        lambda: bl.infer(trained, spectra, "laplace"),
        lambda: bl.infer(spectra, trained),
        lambda: bl.infer("model.nc", spectra),
        lambda: bl.infer(bl.Cannon(order=1), spectra),
        lambda: bl.infer(trained, spectra, batch_size=0),
        lambda: bl.infer(trained, spectra, batch_size=2.5),
        lambda: bl.tables.read_table(""),
    ):
        with pytest.raises(bl.BadInput):
            call()


def test_a_warning_names_the_users_line(training):
    model = bl.Cannon(order=1, label_noise="joint")
    calls = (
        lambda: bl.fit(model, training, bl.MAP(max_iterations=1), progress=False),
        lambda: bl.cross_validate(model, training, bl.MAP(max_iterations=1), folds=2, progress=False),
    )
    for call in calls:
        with pytest.warns(bl.NotConverged, match=r"MAP\(max_iterations=4\)") as told:
            call()
        assert {Path(x.filename) for x in told} == {Path(__file__)}
