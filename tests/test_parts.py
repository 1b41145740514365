"""Parts of a catalogue: damaged ones are made again, other files stay, and one process at a time writes."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from astropy.table import Table
from test_catalog import SIZE, N, assert_same, in_memory, read, run, sky, write_parquet  # noqa: F401

import bayeslabels as bl
from bayeslabels.catalogues.catalog import infer_catalog
from bayeslabels.catalogues.parts import DIGESTS, LOCK, NOTES
from bayeslabels.files.whole import locked


@pytest.fixture
def source(sky, tmp_path):  # noqa: F811
    return write_parquet(sky, tmp_path / "in.parquet")


def parts_in(folder):
    return sorted(folder.glob("part*"))


@pytest.mark.parametrize("damage", ["one bit", "another part", "exchanged", "no digest"])
def test_a_damaged_part_is_made_again(source, in_memory, run, tmp_path, damage):  # noqa: F811
    out = tmp_path / "out"
    run(source)
    first, second, _ = parts_in(out)
    lost = SIZE
    if damage == "one bit":
        content = bytearray(first.read_bytes())
        content[300] ^= 1
        first.write_bytes(content)
    elif damage == "another part":
        shutil.copy(second, first)
    elif damage == "exchanged":
        lost = 2 * SIZE
        first.rename(out / "x"), second.rename(first), (out / "x").rename(second)
    else:
        lines = (out / DIGESTS).read_text().splitlines()
        (out / DIGESTS).write_text("\n".join([*lines[1:], lines[0][:20]]))  # a write that was interrupted
    assert run(source).n_resumed == N - lost
    assert_same(read(out), in_memory)
    assert run(source).n_resumed == N


def test_the_source_is_never_replaced(sky, run, source, tmp_path):  # noqa: F811
    before = source.read_bytes()
    (tmp_path / "link.parquet").symlink_to(source)
    for name in ("in.parquet", "link.parquet"):
        with pytest.raises(bl.BadInput, match="source"):
            run(source, name, overwrite=True)
    assert source.read_bytes() == before
    folder = write_parquet(sky, tmp_path / "survey", rows=7)
    for name in ("survey", "survey/out", "survey/out.parquet"):
        with pytest.raises(bl.BadInput, match="source"):
            run(folder, name, overwrite=True, resume=False)
    assert sorted(x.name for x in folder.iterdir()) == [f"00{i}.parquet" for i in range(4)]
    run(source, "out")
    with pytest.raises(bl.BadInput, match="source"):
        run(tmp_path / "out", "out", columns={"flux": "TEFF"}, resume=False)
    assert len(parts_in(tmp_path / "out")) == 3


def test_starting_again_leaves_other_files(run, source, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    run(source)
    (out / "thesis.tex").write_text("all of it")
    (out / "part-1.parquet").write_text("mine")
    (out / "figures").mkdir()
    assert run(source, resume=False, seed=4).n_resumed == 0
    assert (out / "thesis.tex").read_text() == "all of it"
    assert (out / "part-1.parquet").read_text() == "mine"
    assert (out / "figures").is_dir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "part-000000000000.parquet").write_text("mine")
    with pytest.raises(bl.BadInput, match=r"other files \(part-000000000000.parquet"):
        run(source, "mine")


def test_a_folder_or_file_behind_a_link(in_memory, run, source, tmp_path):  # noqa: F811
    (tmp_path / "big disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "big disk")
    run(source)
    assert run(source, resume=False).n_resumed == 0
    assert (tmp_path / "out").is_symlink()
    assert_same(read(tmp_path / "big disk"), in_memory)
    (tmp_path / "real.fits").write_bytes(b"old")
    (tmp_path / "out.fits").symlink_to(tmp_path / "real.fits")
    run(source, "out.fits", overwrite=True)
    assert (tmp_path / "out.fits").is_symlink()
    assert_same(read(tmp_path / "real.fits"), in_memory)


@pytest.mark.parametrize("name", ["out", "out.fits"])
def test_one_process_at_a_time(run, source, tmp_path, name):  # noqa: F811
    folder = tmp_path / (".out.fits.parts" if "." in name else "out")
    folder.mkdir()
    with locked(folder / LOCK, "it"), pytest.raises(bl.BadInput, match=f"process {os.getpid()}.*one process at a time"):
        run(source, name)
    assert run(source, name).n_star == N
    assert not (folder / LOCK).exists()


def test_what_killed_runs_left_is_removed(run, source, tmp_path):  # noqa: F811
    (tmp_path / "out").mkdir()
    for name in (".part-000000000008.part123-node.parquet", "._bayeslabels.part9-node.json", ".mine"):
        (tmp_path / "out" / name).write_text("half")
    (tmp_path / "out" / NOTES).write_text("{}")
    run(source, resume=False)
    assert sorted(x.name for x in (tmp_path / "out").iterdir() if x.name[0] == ".") == [".mine"]


def test_texts_that_fits_cannot_hold_are_refused_at_the_beginning(sky, training, run, tmp_path):  # noqa: F811
    labels = training["labels"]
    greek = training.with_block(labels=bl.Block(labels.value, labels.error, names=("T_α", "LOGG"), unit=labels.unit))
    posterior = bl.fit(bl.Cannon(order=1, label_noise=False), greek)
    table = Table({"flux": sky["FLUX"], "flux_error": sky["FLUX_ERR"]})
    table.write(tmp_path / "in.fits")
    with pytest.raises(bl.BadInput, match=r"'T_α'.*\.parquet"):
        infer_catalog(posterior, tmp_path / "in.fits", tmp_path / "out.fits", progress=False)
    assert {x.name for x in tmp_path.iterdir()} == {"in.fits"}
    infer_catalog(posterior, tmp_path / "in.fits", tmp_path / "out.parquet", progress=False)
    assert "T_α" in read(tmp_path / "out.parquet").colnames
    named = sky.copy()
    named["NAME"] = [f"α {name}" for name in sky["NAME"]]
    with pytest.raises(bl.BadInput, match="23 ids"):
        run(write_parquet(named, tmp_path / "named.parquet"), "out2.fits")


def test_folders_of_a_source_that_are_hidden_are_not_read(sky, run, tmp_path):  # noqa: F811
    folder = write_parquet(sky, tmp_path / "survey", rows=7)
    (folder / ".other.fits.parts").mkdir()
    shutil.copy(folder / "000.parquet", folder / ".other.fits.parts" / "part-000000000000.parquet")
    run(folder, "survey/out.fits")
    assert len(read(folder / "out.fits")) == len(np.unique(read(folder / "out.fits")["id"])) == N
