import argparse
import functools
import tempfile
import warnings

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import QTable, Table

import bayeslabels as bl
from bayeslabels import cli, commands, demo, model_info, reports
from bayeslabels.cli import main
from bayeslabels.core.model import models
from bayeslabels.files.tables import read_table, read_wavelength, write_table
from bayeslabels.simulate import simulate

LABELS = ["--labels", "TEFF,LOGG,FE_H"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with train.fits, test.fits, wavelengths in their HDU 2, and model.nc trained on them."""
    folder = tmp_path_factory.mktemp("cli")
    train, test, _ = simulate(80, 20, n_test=12)
    for name, stars in (("train", train), ("test", test)):
        columns = {"NAME": stars.id}
        if "labels" in stars:
            labels = stars["labels"].value
            for i, label in enumerate(("TEFF", "LOGG", "FE_H")):
                columns[label] = u.Quantity(labels[:, i], "K") if i == 0 else labels[:, i]
        columns |= {"FLUX": stars["flux"].value, "FLUX_ERR": stars["flux"].error}
        grid = Table({"WAVELENGTH": stars["flux"].coords["pixel"]})
        tables = [fits.table_to_hdu(QTable(columns)), fits.table_to_hdu(grid)]
        fits.HDUList([fits.PrimaryHDU(), *tables]).writeto(folder / f"{name}.fits")
    arguments = ["--flux", "FLUX", "--flux-error", "FLUX_ERR", "--wavelength", "2:WAVELENGTH", "--id", "NAME"]
    train_it = ["fit", f"{folder}/train.fits", *LABELS, *arguments, "--order", "1", "--no-label-noise"]
    assert main([*train_it, "-o", f"{folder}/model.nc"]) == 0
    return folder


@pytest.mark.parametrize("suffix", ["fits", "ecsv", "parquet"])
def test_infer_writes_a_catalogue_with_units(files, tmp_path, capsys, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / f"catalogue.{suffix}"
    inference = {"fits": "laplace", "ecsv": "map", "parquet": "laplace"}[suffix]
    code = main(["infer", f"{files}/model.nc", f"{files}/test.fits", "-o", str(out), "--inference", inference])
    said = capsys.readouterr()
    assert (code, said.err) == (0, "")
    assert "12 stars" in said.out
    table = read_table(out)
    assert len(table) == 12
    assert table["TEFF"].unit == table["TEFF_error"].unit == u.K
    assert table["id"][0] == "giant 00080"
    assert (np.asarray(table["TEFF_error"]) > 0).all()
    assert [x.name for x in tmp_path.iterdir()] == [out.name]


def test_the_model_file_loads_and_remembers_its_columns(files, capsys):
    posterior = bl.load(files / "model.nc")
    assert posterior.info["columns"]["flux_error"] == "FLUX_ERR"
    assert main(["info", f"{files}/model.nc"]) == 0
    said = capsys.readouterr().out
    for part in ("Cannon", "80 stars", "20 pixels", "TEFF", "K", "flux_error FLUX_ERR", "jax"):
        assert part in said


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("order=3", 3), ("label_noise=false", False), ("label_noise=False", False), ("label_noise=joint", "joint"),
        ("scatter=null", None), ("scatter=1e-3", 1e-3), ('terms=[{}, {"TEFF": 2}]', [{}, {"TEFF": 2}]),
        ("bounds={'TEFF': (-1, 2)}", {"TEFF": (-1, 2)}), ("coefficient_prior=Flat()", bl.priors.Flat()),
        ("coefficient_prior=Laplace(scale=0.1)", bl.priors.Laplace(0.1)), ("a='b=c'", "b=c"),
    ],
)  # fmt: skip
def test_hyperparameters_from_text(text, value):
    assert cli._setting(text) == (text.split("=")[0], value)


@pytest.mark.parametrize(
    "text", ["x=__import__('os')", "x=Normal(open('f'))", "x=Normal(1)(2)", "x=print()", "=1", "x="]
)
def test_a_hyperparameter_runs_no_code(text):
    with pytest.raises(argparse.ArgumentTypeError):
        cli._setting(text)


def test_fit_sets_hyperparameters_of_any_model(files, tmp_path):
    base = ["fit", f"{files}/train.fits", *LABELS, "--flux-error", "FLUX_ERR"]
    settings = ["order=1", "label_noise=false", "scatter=0.02", "coefficient_prior=Normal(scale=0.5)"]
    chosen = [word for text in settings for word in ("--set", text)]
    assert main([*base, "--model", "Cannon", *chosen, "-o", f"{tmp_path}/m.nc"]) == 0
    model = bl.load(tmp_path / "m.nc").model
    assert (model.order, model.label_noise, model.scatter) == (1, False, 0.02)
    assert model.coefficient_prior == bl.priors.Normal(0.5)


def test_any_blocks_from_columns(tmp_path, capsys):
    """A model of magnitudes and parallaxes, from the shell alone; a table without parallaxes is enough to infer."""
    rng = np.random.default_rng(0)
    magnitudes = rng.normal([12.0, 13.0], 1.0, (300, 2))
    parallax = np.exp(-0.5 * (magnitudes @ [1.2, -0.4] - 9.0)) + 0.05 * rng.normal(size=300)
    table = QTable({"G": magnitudes[:, 0] * u.mag, "K": magnitudes[:, 1] * u.mag, "STAR": np.arange(300) + 7})
    table["PLX"], table["E_PLX"] = parallax * u.mas, np.full(300, 0.05) * u.mas
    table.write(tmp_path / "train.ecsv")
    table["STAR", "G", "K"].write(tmp_path / "new.ecsv")
    columns = ["magnitudes=G,K", "parallax=PLX", "parallax_error=E_PLX"]
    named = [word for text in columns for word in ("--column", text)]
    model = ["--model", "parallax", "--set", 'features=["magnitudes"]', "--id", "STAR"]
    assert main(["fit", f"{tmp_path}/train.ecsv", *model, *named, "-o", f"{tmp_path}/m.nc"]) == 0
    assert main(["info", f"{tmp_path}/m.nc"]) == 0
    said = capsys.readouterr().out
    for part in ("Parallax", "G, K", "coefficient_error", "zero point", "magnitudes G,K"):
        assert part in said
    for name, combined in (("train", True), ("new", False)):
        assert main(["infer", f"{tmp_path}/m.nc", f"{tmp_path}/{name}.ecsv", "-o", f"{tmp_path}/{name}.fits"]) == 0
        result = read_table(tmp_path / f"{name}.fits")
        assert result["id"][0] == 7
        apart = np.abs(np.asarray(result["parallax_sp"]) - np.asarray(result["parallax_combined"])).max()
        assert (apart > 1e-3) == combined
    assert main(["check", f"{tmp_path}/train.ecsv", *model, *named]) == 2
    assert "'labels', which these stars do not have; in Python" in capsys.readouterr().err
    assert main(["infer", f"{tmp_path}/m.nc", f"{tmp_path}/new.ecsv", "-o", f"{tmp_path}/x.fits", "--column",
                 "magnitudes=G,H"]) == 2  # fmt: skip
    assert "'K'" in capsys.readouterr().err


def test_settings_of_inferences(files, tmp_path):
    data = [f"{files}/train.fits", *LABELS, "--flux-error", "FLUX_ERR", "--order", "1", "--no-label-noise"]
    assert main(["fit", *data, "--inference-set", "max_iterations=7", "-o", f"{tmp_path}/m.nc"]) == 0
    assert bl.load(tmp_path / "m.nc").info["settings"]["max_iterations"] == 7
    one = ["infer", f"{tmp_path}/m.nc", f"{files}/test.fits", "--inference", "importance", "--save", "reduced_chi2"]
    assert (
        main([*one, "--inference-set", "draws=300", "--inference-set", "rescue=false", "-o", f"{tmp_path}/c.fits"]) == 0
    )
    table = read_table(tmp_path / "c.fits")
    assert (np.asarray(table["ess"]) <= 300).all()
    assert "reduced_chi2" in table.colnames


def test_training_from_a_file_that_is_streamed_with_a_checkpoint(files, tmp_path, capsys):
    data = [
        f"{files}/train.fits",
        *LABELS,
        "--flux-error",
        "FLUX_ERR",
        "--id",
        "NAME",
        "--order",
        "1",
        "--no-label-noise",
    ]
    for name, options in (("whole", []), ("stream", ["--stream", "--checkpoint", f"{tmp_path}/training.npz"])):
        assert main(["fit", *data, *options, "-o", f"{tmp_path}/{name}.nc"]) == 0
    a, b = (bl.load(tmp_path / f"{name}.nc") for name in ("whole", "stream"))
    np.testing.assert_allclose(a.moments.coefficients, b.moments.coefficients, rtol=1e-4, atol=1e-5)
    for posterior in (a, b):
        assert posterior.info["columns"]["labels"] == ["TEFF", "LOGG", "FE_H"]
    assert (tmp_path / "training.npz").exists()
    assert main(["infer", f"{tmp_path}/stream.nc", f"{files}/test.fits", "-o", f"{tmp_path}/c.fits"]) == 0
    assert len(read_table(tmp_path / "c.fits")) == 12


def test_check_says_whether_the_error_bars_hold(files, tmp_path, capsys):
    data = [f"{files}/train.fits", *LABELS, "--flux-error", "FLUX_ERR", "--id", "NAME", "--order", "1"]
    table, figure = tmp_path / "held-out.ecsv", tmp_path / "check.png"
    command = ["check", *data, "--no-label-noise", "--folds", "2", "-o", str(table), "--figure", str(figure)]
    assert main(command) == 0
    said = capsys.readouterr().out
    stars = bl.read_stars(f"{files}/train.fits", {"labels": ["TEFF", "LOGG", "FE_H"], "flux": "FLUX",
                                                  "flux_error": "FLUX_ERR", "id": "NAME"})  # fmt: skip
    held_out = bl.cross_validate(bl.Cannon(order=1, label_noise=False), stars, folds=2, progress=False)
    tau = bl.calibration.label_scatter(held_out)
    inside = bl.calibration.coverage(held_out, stars, scatter=tau)
    for name, share, low, high, n in zip(("TEFF", "LOGG", "FE_H"), *inside, strict=True):
        verdict = "are too small" if share < low else "are too large" if share > high else "hold:"
        assert f"error bars of {name} {verdict}" in said
        assert f": {100 * share:.1f}% of {n} stars inside" in said
    written = read_table(table)
    assert set(written["fold"]) == {0, 1}
    np.testing.assert_allclose(np.asarray(written["LOGG"]), held_out.mean[:, 1])
    assert figure.read_bytes()[1:4] == b"PNG"
    assert main(command) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_error_bars_that_are_too_small_or_too_large_are_named():
    train, test, _ = simulate(60, 20, seed=1)
    result = bl.infer(bl.fit(bl.Cannon(order=1), train, progress=False), test, bl.MAP(), progress=False)
    beyond = result.mean + result.error * [1.5, 0.1, 1.0] * np.where(np.arange(len(test)) % 3, 1.0, 0.5)[:, None]
    said = reports.recovery(result, beyond)
    for verdict in ("TEFF are too small: 33.3%", "LOGG are too large: 100.0%"):
        assert f"error bars of {verdict} of {len(test)} stars" in said
    tails = result.mean + result.error * np.where(np.arange(len(test)) % 10, 0.1, 4.0)[:, None]
    assert "error bars of TEFF are too large for most stars, not for those far off: 90.0%" in reports.recovery(
        result, tails
    )


@pytest.mark.parametrize("text", ["magnitudes", "=G", "magnitudes=", "a b=G"])
def test_columns_that_are_none(text):
    with pytest.raises(argparse.ArgumentTypeError):
        cli._column(text)


def test_every_model_can_be_named(capsys):
    assert main(["fit", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(
        name.lower() in said
        for name, cls in models().items()
        if cls.offered and cls.__module__.startswith("bayeslabels")
    )


def test_outputs_are_not_overwritten_unless_asked(files, tmp_path, capsys):
    out = tmp_path / "out.ecsv"
    out.write_text("precious")
    command = ["infer", f"{files}/model.nc", f"{files}/test.fits", "-o", str(out)]
    assert main(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert out.read_text() == "precious"
    assert main([*command, "--overwrite", "--inference", "map"]) == 0
    assert len(read_table(out)) == 12


@pytest.mark.parametrize(
    ("command", "part"),
    [
        (["info", "nowhere.nc"], "no file nowhere.nc"),
        (["fit", "nowhere.fits", *LABELS, "-o", "m.nc"], "no file nowhere.fits"),
        (["fit", "{}/train.fits", "--labels", "TEF,LOGG", "-o", "m.nc"], "'TEFF'"),
        (["fit", "{}/train.fits", *LABELS, "--flux", "FLUXX", "-o", "m.nc"], "'FLUX'"),
        (["fit", "{}/train.fits", *LABELS, "--wavelength", "7", "-o", "m.nc"], "HDU 7"),
        (["fit", "{}/train.fits", *LABELS, "--wavelength", "2:LAMBDA", "-o", "m.nc"], "WAVELENGTH"),
        (["fit", "{}/train.fits", *LABELS, "-o", "nowhere/m.nc"], "folder"),
        (["fit", "{}/model.nc", *LABELS, "-o", "m.nc"], ".fits"),
        (["info", "{}/train.fits"], "Posterior.save"),
        (["infer", "{}/model.nc", "{}/test.fits", "-o", "catalogue.txt"], ".ecsv"),
        (["infer", "{}/model.nc", "{}/test.fits", "--flux", "NO", "-o", "c.fits"], "NO"),
        (["fit", "{}/train.fits", *LABELS, "-o", "m.nc", "--set", "oder=2"], "'order'"),
        (["fit", "{}/train.fits", *LABELS, "-o", "m.nc", "--set", "order=7"], "order=7"),
        (["fit", "{}/train.fits", *LABELS, "-o", "m.nc", "--set", "order=1", "--order", "2"], "order=1 and order=2"),
        (["fit", "{}/train.fits", *LABELS, "-o", "m.nc", "--set", "scatter=none"], "--set scatter='none'"),
        (["fit", "{}/train.fits", *LABELS, "-o", "m.nc", "--set", "censor=3"], "--set censor=3"),
        (["fit", "{}/train.fits", *LABELS, "-o", "m.nc", "--inference-set", "draw=3"], "setting of MAP 'draw'"),
        (["fit", "{}/train.fits", *LABELS, "-o", "m.nc", "--inference", "nuts", "--stream"], "stars in files"),
        (["fit", "{}/train.fits", "--labels", "TEF,LOGG", "-o", "m.nc", "--stream"], "train.fits 'TEF'; did you mean"),
        (["check", "{}/train.fits", *LABELS, "--figure", "check.fits"], ".png"),
        (["check", "{}/train.fits", *LABELS, "--folds", "200"], "folds=200"),
        (["demo", *LABELS], "--data"),
        (["demo", "--data", "{}/train.fits"], "--labels"),
    ],
)
def test_errors_are_one_clear_line(files, tmp_path, monkeypatch, capsys, command, part):
    monkeypatch.chdir(tmp_path)
    assert main([x.format(files) for x in command]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("bayeslabels: ")
    assert said.err.count("\n") == 1
    assert part in said.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("left", "hint"), [(["LOGG", "FE_H"], True), (["--labells", "A"], False)])
def test_labels_with_spaces_are_explained(capsys, left, hint):
    assert main(["fit", "train.fits", "-o", "m.nc", "--labels", "TEFF", *left]) == 2
    said = capsys.readouterr().err
    assert f"unrecognized arguments {' '.join(left)}" in said
    assert ("--labels TEFF,LOGG,FE_H" in said) == hint


def test_a_damaged_file_is_refused(tmp_path, capsys):
    for name in ("a.fits", "a.ecsv", "a.parquet", "a.nc"):
        if name == "a.parquet":
            pytest.importorskip("pyarrow")
        (tmp_path / name).write_bytes(b"no such format " * 300)
        path = str(tmp_path / name)
        command = ["info", path] if name == "a.nc" else ["fit", path, *LABELS, "-o", str(tmp_path / "m.nc")]
        assert main(command) == 2
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["fit"],
        ["fit", "t.fits", *LABELS, "-o", "m.nc", "--model", "cannons"],
        ["fit", "t.fits", *LABELS, "-o", "m.nc", "--set", "order"],
        ["fit", "t.fits", *LABELS, "-o", "m.nc", "--set", "scatter=0.1 K"],
        ["infer", "a", "b", "-o", "c", "--inference", "magic"],
        ["demo", "--seed", "-1"],
    ],
)
def test_wrong_usage(command, capsys):
    assert main(command) == 2
    assert "usage: bayeslabels" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [["--version"], ["--help"], ["demo", "--help"], ["fit", "--help"], ["check", "-h"], ["infer", "-h"]]
)
def test_help(command, capsys):
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "bayeslabels" in told
    assert command != ["--version"] or told == f"bayeslabels {bl.__version__}\n"


def test_interrupted(files, tmp_path, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    out = str(tmp_path / "c.fits")
    monkeypatch.setattr("bayeslabels.catalogues.catalog._inferred", interrupt)
    assert main(["infer", f"{files}/model.nc", f"{files}/test.fits", "-o", out]) == 130
    assert "goes on from there" in capsys.readouterr().err
    assert not (tmp_path / "c.fits").exists()
    monkeypatch.undo()
    assert main(["infer", f"{files}/model.nc", f"{files}/test.fits", "-o", out]) == 0
    assert [x.name for x in tmp_path.iterdir()] == ["c.fits"]
    monkeypatch.setattr(commands, "fit", interrupt)
    assert main(["fit", f"{files}/train.fits", *LABELS, "-o", str(tmp_path / "m.nc")]) == 130
    assert "nothing was written" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_refused_before_training(files, tmp_path, monkeypatch, capsys):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(commands, "fit", None)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        assert main(["fit", f"{files}/train.fits", *LABELS, "-o", str(tmp_path / "m.nc")]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "cannot be written" in capsys.readouterr().err
    (tmp_path / "folder.nc").mkdir()
    assert main(["fit", f"{files}/train.fits", *LABELS, "-o", str(tmp_path / "folder.nc"), "--overwrite"]) == 2
    assert "folder" in capsys.readouterr().err
    assert [x.name for x in tmp_path.iterdir()] == ["folder.nc"]


def test_what_was_trained_is_not_lost_with_the_disk(files, tmp_path, monkeypatch, capsys):
    save, tried = bl.Posterior.save, []

    def full(posterior, path, **how):
        tried.append(path)
        if len(tried) == 1:
            raise OSError(28, "No space left on device")
        return save(posterior, path, **how)

    monkeypatch.setattr(bl.Posterior, "save", full)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    known = ["--flux-error", "FLUX_ERR", "--order", "1", "--no-label-noise"]
    assert main(["fit", f"{files}/train.fits", *LABELS, *known, "-o", str(tmp_path / "m.nc")]) == 2
    assert f"No space left on device): the model is in {tried[1]}" in capsys.readouterr().err
    assert bl.load(tried[1]).info["n_star"] == 80


def test_info_of_a_model_with_errors_given_as_numbers(files, tmp_path, capsys):
    posterior = bl.load(files / "model.nc")
    posterior.info["columns"] = {
        "flux": "FLUX",
        "flux_error": 0.02,
        "labels": ["A", "B", "C"],
        "labels_error": [1, 2, 3],
    }
    assert main(["info", str(posterior.save(tmp_path / "m.nc"))]) == 0
    assert "flux_error 0.02, labels A,B,C, labels_error 1,2,3" in capsys.readouterr().out


def test_terminals_are_not_commanded_by_files(files, tmp_path, capsys):
    posterior = bl.load(files / "model.nc")
    posterior.info["source"] = "survey\x1b]0;owned\x07\x9b31m.fits"
    posterior.save(tmp_path / "m.nc")
    assert main(["info", str(tmp_path / "m.nc")]) == 0
    out = capsys.readouterr().out
    assert r"survey\x1b]0;owned\x07\x9b31m.fits" in out
    assert main(["info", str(tmp_path / "m\x1b[2J.nc")]) == 2
    assert r"m\x1b[2J.nc" in capsys.readouterr().err


def test_warnings_are_lines(capsys, monkeypatch):
    def warn(*_):
        warnings.warn("not there yet", bl.NotConverged, stacklevel=2)

    monkeypatch.setattr(model_info, "run_info", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always", bl.NotConverged)
        assert main(["info", "x.nc"]) == 0
    assert capsys.readouterr().err == "bayeslabels: warning: not there yet\n"


@pytest.fixture
def quick(monkeypatch):
    """The demonstration with a classic linear Cannon, and no NUTS for the stars that importance sampling fails."""
    monkeypatch.setattr(demo, "Cannon", lambda: bl.Cannon(order=1, label_noise=False))
    monkeypatch.setattr(demo, "Importance", functools.partial(bl.Importance, draws=200, rescue=False))


def test_demo(tmp_path, monkeypatch, capsys, quick):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--stars", "80", "--pixels", "20"]) == 0
    said = capsys.readouterr().out
    for part in ("simulated red giants", "converged", "TEFF", "sd of z", "k-hat", "flags of 40 stars", "model.nc"):
        assert part in said
    out = tmp_path / "bayeslabels-demo"
    names = {x.name for x in out.iterdir()}
    figures = {"one_to_one.png", "calibration.png", "coefficients.png", "corner.png", "spectrum.png"}
    assert names == {"model.nc", "catalogue.ecsv", "catalogue.fits"} | figures
    assert len(read_table(out / "catalogue.ecsv")) == 40
    assert bl.load(out / "model.nc").info["n_star"] == 80


def test_demo_on_a_table(files, tmp_path, monkeypatch, capsys, quick):
    monkeypatch.setattr(demo, "Importance", bl.MAP)
    options = [
        "--data",
        f"{files}/train.fits",
        *LABELS,
        "--flux-error",
        "FLUX_ERR",
        "--wavelength",
        "2",
        "--id",
        "NAME",
    ]
    assert main(["demo", "--out", str(tmp_path / "d"), *options, "--pixels", "15"]) == 0
    said = capsys.readouterr().out
    assert "compared with the catalogue" in said
    assert "15 pixels" in said


def test_tables_round_trip(tmp_path):
    table = QTable({"T": [1.0, 2] * u.K, "G": [1, np.nan] * u.dex, "s": ["a", "b"], "v": np.ones((2, 3))})
    table.meta["flag_bits"] = {"NO_DATA": 2}
    for suffix in ("fits", "ecsv", "parquet"):
        if suffix == "parquet":
            pytest.importorskip("pyarrow")
        back = read_table(write_table(table, tmp_path / f"t.{suffix}"))
        assert (back["T"].unit, back["G"].unit) == (u.K, u.dex)
        assert back["v"].shape == (2, 3)
        assert list(back["s"]) == ["a", "b"]
        assert np.isnan(np.asarray(back["G"])[1])


def test_parquet_lists_become_spectra(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "lists.parquet"
    pq.write_table(pa.table({"x": [1.0, None], "f": [[1.0, None], None], "s": ["a", None]}), path)
    table = read_table(path)
    np.testing.assert_array_equal(table["f"], [[1, np.nan], [np.nan, np.nan]])
    assert np.isnan(table["x"][1])


def test_wavelengths_of_an_image_and_of_another_file(tmp_path):
    hdus = [fits.PrimaryHDU(), fits.table_to_hdu(Table({"a": [1]})), fits.ImageHDU(np.arange(4.0), name="WAVE")]
    fits.HDUList(hdus).writeto(tmp_path / "t.fits")
    Table({"lam": np.arange(4.0)}).write(tmp_path / "grid.ecsv")
    for where in ("2", "WAVE", f"{tmp_path}/grid.ecsv:lam", f"{tmp_path}/grid.ecsv"):
        np.testing.assert_array_equal(read_wavelength(tmp_path / "t.fits", where), np.arange(4.0))
