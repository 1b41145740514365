"""Checkpoints: what is damaged is never taken for whole, and no file of the user's is lost."""

from __future__ import annotations

import warnings

import jax.numpy as jnp
import numpy as np
import pytest

import bayeslabels as bl
from bayeslabels.files.checkpoint import Checkpoint
from bayeslabels.files.whole import locked

STATE = {"x": jnp.arange(40.0), "n": np.arange(3)}


@pytest.fixture
def kept(tmp_path):
    checkpoint = Checkpoint(tmp_path / "run.npz", 0.0, {"seed": 1})
    for place in (1, 2):
        checkpoint.save({**STATE, "n": np.full(3, place)}, (place,))
    return checkpoint


def again(kept):
    return Checkpoint(kept.path, 0.0, kept.notes).load()


def test_a_checkpoint_is_read_as_it_was_written(kept):
    found = again(kept)
    assert found.place == (2,)
    np.testing.assert_array_equal(found.restore(STATE)["x"], STATE["x"])
    assert {x.name for x in kept.path.parent.iterdir()} == {"run.npz", "run.previous.npz"}


@pytest.mark.parametrize("name", ["data.npz", "data.previous.npz"])
def test_a_file_of_the_users_is_not_replaced(training, tmp_path, name):
    precious = tmp_path / name
    np.savez(precious, precious=np.arange(9))
    before = precious.read_bytes()
    with pytest.raises(bl.BadInput, match="no checkpoint"):
        bl.fit(bl.Cannon(order=1, label_noise=False), training, checkpoint=tmp_path / "data.npz", every=0)
    precious.write_bytes(b"anything else")
    with pytest.raises(bl.BadInput, match="no checkpoint"):
        Checkpoint(tmp_path / "data.npz", 0.0, {})
    assert [x.name for x in tmp_path.iterdir()] == [name]
    precious.write_bytes(before[: len(before) // 2])
    with pytest.raises(bl.BadInput, match="no checkpoint"):
        Checkpoint(tmp_path / "data.npz", 0.0, {})


def test_damage_is_never_silently_different(kept):
    """Each bit flip, cut or lengthening gives the state before, the same state, or a refusal."""
    whole, rng = kept.path.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(int(rng.integers(1, 4))):
            damaged[int(rng.integers(len(whole)))] ^= 1 << int(rng.integers(8))
        kept.path.write_bytes(damaged[: int(rng.integers(len(whole)))] if rng.random() < 0.2 else bytes(damaged))
        try:
            found = again(kept)
        except bl.BadInput:
            continue
        assert found.place in ((1,), (2,))
        np.testing.assert_array_equal(found.restore(STATE)["n"], np.full(3, found.place[0]))
        np.testing.assert_array_equal(found.restore(STATE)["x"], STATE["x"])


def test_where_none_can_be_read_the_work_starts_again_and_says_so(kept):
    for path in (kept.path, kept.before):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(UserWarning, match="cannot be read: the work starts again"):
        assert again(kept) is None
    for path in (kept.path, kept.before):
        path.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert again(kept) is None


def test_a_state_of_another_shape_is_refused(kept):
    for like in ({**STATE, "more": np.zeros(1)}, {**STATE, "n": np.zeros((3, 1))}):
        with pytest.raises(bl.BadInput, match="another version"):
            again(kept).restore(like)


def test_links_stay(kept, tmp_path):
    link = tmp_path / "link.npz"
    link.symlink_to(kept.path)
    Checkpoint(link, 0.0, kept.notes).save(STATE, (3,))
    assert link.is_symlink()
    assert again(kept).place == (3,)


def test_two_runs_with_one_checkpoint_are_refused(training, tmp_path):
    path = tmp_path / "run.npz"
    with (
        locked(tmp_path / ".run.npz.lock", "the checkpoint"),
        pytest.raises(bl.BadInput, match="one process at a time"),
    ):
        bl.fit(bl.Cannon(order=1, label_noise=False), training, checkpoint=path, every=0)
    bl.fit(bl.Cannon(order=1, label_noise=False), training, checkpoint=path, every=0)
    assert {x.name for x in tmp_path.iterdir()} <= {"run.npz", "run.previous.npz"}
