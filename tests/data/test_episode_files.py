"""The copy of the train split that is streamed: its statistics, when it is written, and every message about it."""

import shutil

import gymnasium as gym
import numpy as np
import pytest
from logged import make_episode
from safetensors.numpy import load_file, save_file

from llmdpd_jax.data import episode_files
from llmdpd_jax.data.episode_files import INDEX_FILE, STEPS_FILE, open_episode_files
from llmdpd_jax.data.moments import measure, merge
from llmdpd_jax.data.store import load_split, statistics
from llmdpd_jax.errors import UserError
from llmdpd_jax.tasks.manifest import Manifest, TaskEntry, require_split

LENGTHS = ([5, 2, 7], [3, 3])
MINARI = Manifest((TaskEntry("a", "train", "a-v0"), TaskEntry("t", "test", "t-v0"), TaskEntry("b", "train", "b-v0")))


def open_train(manifest, cache):
    return open_episode_files(require_split(manifest, "train"), cache, progress=False)


def assert_same_statistics(found, expected):
    for name in vars(expected):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=2e-7, err_msg=name)


def test_statistics_are_those_of_the_store(write_tagged_tasks, tmp_path):
    """D4RL files have no bounds, so that the range of the logged actions counts."""
    manifest = write_tagged_tasks(LENGTHS)
    files = open_train(manifest, tmp_path)
    data = load_split(manifest, "train", progress=False)
    assert_same_statistics(files.statistics, statistics(data))
    assert files.statistics.action_high.tolist() == [4, 6]
    assert (files.observation_size, files.action_size) == (data.observation_size, data.action_size) == (1, 2)


def test_better_episodes_weigh_what_they_do_in_the_store(write_tagged_tasks, tmp_path):
    manifest = write_tagged_tasks(LENGTHS)
    files, data = open_train(manifest, tmp_path), load_split(manifest, "train", progress=False)
    np.testing.assert_array_equal(files.returns, data.returns)
    assert files.weights is None and data.store.weights is None
    np.testing.assert_array_equal(files.weighted(0.3).weights, data.weighted(0.3).store.weights)
    assert len(np.unique(files.weighted(0.3).weights)) > 3


def test_statistics_of_minari_data_with_a_constant_and_a_half_bounded_action(write_dataset, tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("a-v0", 3), ("b-v0", 5)):
        episodes = [make_episode(40, tag=1000) for _ in range(count)]
        for episode in episodes:
            episode["observations"] += rng.normal(size=(41, 3)).astype(np.float32)
            episode["observations"][:, 1] = 0.1
            episode["actions"] = rng.normal(size=(40, 2)).astype(np.float32).clip(-1, 1)
        space = gym.spaces.Box(np.array([-np.inf, -1], np.float32), np.array([1, np.inf], np.float32))
        write_dataset(name, episodes, action_space=space)
    found = open_train(MINARI, tmp_path)
    assert_same_statistics(found.statistics, statistics(load_split(MINARI, "train", progress=False)))
    assert found.statistics.observation_std[1] == 1
    assert [task.name for task in found.split.tasks] == ["a", "b"]  # t, which does not exist, was not opened


def test_moments_of_pieces_are_those_of_the_whole():
    values = np.float32(1e4 + np.random.default_rng(0).normal(size=(500, 3)))
    total = measure(values[:1])
    for start, end in ((1, 7), (7, 8), (8, 500)):
        total = merge(total, measure(values[start:end]))
    assert total.count == 500
    np.testing.assert_allclose(total.mean, values.astype(np.float64).mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(total.std, values.astype(np.float64).std(axis=0), rtol=1e-10)


def test_written_once_and_anew_when_the_data_change(write_tagged_tasks, tmp_path, monkeypatch):
    manifest = write_tagged_tasks(LENGTHS)
    written, write = [], episode_files._write
    monkeypatch.setattr(episode_files, "_write", lambda *given: written.append(given) or write(*given))
    first, second = open_train(manifest, tmp_path), open_train(manifest, tmp_path)
    assert len(written) == 1 and first.folder == second.folder and first.digest == second.digest
    assert [path.name for path in tmp_path.iterdir()] == [first.folder.name]
    longer = write_tagged_tasks([[5, 2, 8], [3, 3]])
    for task, changed in zip(manifest.tasks, longer.tasks, strict=True):
        if task.split == "train":
            shutil.copy(changed.dataset, task.dataset)
    third = open_train(manifest, tmp_path)
    assert len(written) == 2 and third.lengths.tolist() == [5, 2, 8, 3, 3] and third.digest != first.digest


def test_the_digest_tells_values_and_tasks_apart(write_tagged_tasks, tmp_path):
    found = [open_train(write_tagged_tasks(n), tmp_path).digest for n in (LENGTHS, LENGTHS, ([5, 2], [7, 3, 3]))]
    assert found[0] == found[1] != found[2]


def test_what_was_half_written_is_never_used(write_tagged_tasks, tmp_path, monkeypatch):
    manifest = write_tagged_tasks(LENGTHS)
    with monkeypatch.context() as patch:

        def interrupted(*given):
            raise KeyboardInterrupt

        patch.setattr(episode_files, "save_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_train(manifest, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    assert open_train(manifest, tmp_path / "cache").lengths.tolist() == [5, 2, 7, 3, 3]


def test_another_process_may_be_quicker(write_tagged_tasks, tmp_path, monkeypatch):
    manifest, write = write_tagged_tasks(LENGTHS), episode_files._write

    def overtaken(split, folder, progress):
        write(split, folder, progress)
        with monkeypatch.context() as patch:
            patch.setattr(episode_files, "_write", write)
            open_train(manifest, tmp_path)

    monkeypatch.setattr(episode_files, "_write", overtaken)
    assert open_train(manifest, tmp_path).lengths.tolist() == [5, 2, 7, 3, 3]
    assert len(list(tmp_path.iterdir())) == 1


def cut(folder):
    with open(folder / STEPS_FILE, "r+b") as file:
        file.truncate(100)


def forget_an_episode(folder):
    arrays = load_file(folder / INDEX_FILE)
    save_file(arrays | {"lengths": arrays["lengths"][:-1]}, folder / INDEX_FILE, {"digest": "0"})


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut, "steps.bin of 25 rows of 5 numbers has 100 bytes"),
        (lambda folder: (folder / STEPS_FILE).unlink(), "No such file"),
        (lambda folder: (folder / INDEX_FILE).write_bytes(b"0123456789"), ""),
        (lambda folder: (folder / INDEX_FILE).unlink(), "No such file"),
        (forget_an_episode, "contradicts itself"),
    ],
)
def test_damaged_files(write_tagged_tasks, tmp_path, damage, reason):
    manifest = write_tagged_tasks(LENGTHS)
    damage(open_train(manifest, tmp_path).folder)
    with pytest.raises(UserError, match=rf"{tmp_path}.*damaged \(.*{reason}.*Delete that folder"):
        open_train(manifest, tmp_path)


def test_data_that_cannot_be_used(write_dataset, tmp_path, write_tagged_tasks):
    write_dataset("a-v0", [make_episode(3), make_episode(3)])
    with pytest.raises(UserError, match="'b-v0' not found"):
        open_train(MINARI, tmp_path)
    write_dataset("b-v0", [make_episode(3)])
    with pytest.raises(UserError, match=r"task 'b' \(Minari data set 'b-v0'\): has 1 episode; a train task needs at"):
        open_train(MINARI, tmp_path)
    with pytest.raises(UserError, match="only the train split is streamed, not 'test'"):
        open_episode_files(require_split(MINARI, "test"), tmp_path)
    assert list(tmp_path.glob("*.part")) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": np.full((4, 3), np.nan, np.float32)}, r"b-v0', episode 1: observation at step 0.* is nan"),
        ({"rewards": np.array([0, np.inf, 0], np.float32)}, "b-v0', episode 1: reward at step 1 is inf"),
        ({"actions": np.full((3, 2), 2, np.float32)}, "b-v0', episode 1: action at step 0, dimension 0 is 2.0"),
    ],
)
def test_values_that_cannot_be_used(write_dataset, tmp_path, changes, message):
    write_dataset("a-v0", [make_episode(3), make_episode(3)])
    write_dataset("b-v0", [make_episode(3), make_episode(3) | changes])
    with pytest.raises(UserError, match=message):
        open_train(MINARI, tmp_path)


def test_tasks_must_share_their_spaces(write_dataset, tmp_path):
    write_dataset("a-v0", [make_episode(3), make_episode(3)])
    write_dataset("b-v0", [make_episode(3)] * 2, action_space=gym.spaces.Box(-1, 2, (2,)))
    with pytest.raises(UserError, match=r"task 'b'.*'b-v0'.*: action high bound is \[2.0, 2.0\], that of 'a-v0' is"):
        open_train(MINARI, tmp_path)


def test_a_folder_that_cannot_be_written(write_tagged_tasks, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: the episodes cannot be written there"):
        open_train(write_tagged_tasks(LENGTHS), tmp_path / "file")
