"""Collecting: what is written to Minari, and when it is written again."""

import dataclasses
import json

import jax
import minari
import numpy as np
import pytest
from minari.storage import get_dataset_path

from llmdpd_jax.data import collect as collect_module
from llmdpd_jax.data.collect import collect, episode_seeds, make_episode
from llmdpd_jax.data.logs import collected
from llmdpd_jax.errors import UserError
from llmdpd_jax.tasks import family as family_module
from llmdpd_jax.tasks.manifest import load_manifest
from llmdpd_jax.tasks.point_robot import point_robot


def few_tasks():
    tasks = point_robot().tasks()
    return (*tasks[:2], tasks[-1])


SMALL = dataclasses.replace(point_robot(), name="small", tasks=few_tasks, reference_episodes=50)


@pytest.fixture(autouse=True)
def small_family(minari_root, monkeypatch):
    """The point robot with two train tasks and one test task, known as "small"."""
    monkeypatch.setattr(family_module, "_FACTORIES", {"small": lambda: SMALL})


def collect_small(out, **changes):
    return collect(**{"family": "small", "quality": "mixed", "episodes": 3, "seed": 0, "out": out, **changes})


def test_minari_opens_what_was_written(tmp_path):
    collection = collect_small(tmp_path)
    assert [task.dataset for task in collection.manifest.tasks] == [
        "small/mixed-e3-s0/train-00-v0",
        "small/mixed-e3-s0/train-01-v0",
        "small/mixed-e3-s0/test-14-v0",
    ]
    assert set(minari.list_local_datasets()) == {task.dataset for task in collection.manifest.tasks}
    for i, task in enumerate(collection.manifest.tasks):
        dataset = minari.load_dataset(task.dataset)
        assert (dataset.total_episodes, dataset.total_steps) == (3, 60)
        metadata = list(dataset.storage.get_episode_metadata(range(3)))
        assert [m["seed"] for m in metadata] == episode_seeds("mixed", 0, i, 3).tolist()
        assert [m["options"]["progress"] for m in metadata] == [0.0, 0.5, 1.0]
        for episode in dataset:
            assert all(map(dataset.observation_space.contains, episode.observations))
            assert all(map(dataset.action_space.contains, episode.actions))
            np.testing.assert_array_equal(episode.truncations, np.arange(20) == 19)
            assert not episode.terminations.any()
            # The log obeys the environment: displacement 0.1 x action, reward minus distance after the move.
            np.testing.assert_allclose(np.diff(episode.observations, axis=0), 0.1 * episode.actions, atol=1e-6)
            goal = np.array([task.parameters["goal_x"], task.parameters["goal_y"]])
            distance = np.linalg.norm(episode.observations[1:] - goal, axis=1)
            np.testing.assert_allclose(episode.rewards, -distance, atol=1e-6)


def test_arrays_on_disk_are_bit_equal_to_the_rollout(tmp_path):
    manifest = collect_small(tmp_path).manifest
    seeds = np.stack([episode_seeds("mixed", 0, i, 3) for i in range(3)])
    rollout, _ = collect_module.roll_out_tasks(SMALL, "mixed", seeds, few_tasks())
    for i, task in enumerate(manifest.tasks):
        for j, episode in enumerate(minari.load_dataset(task.dataset)):
            for name in ("observations", "actions", "rewards"):
                written, rolled = getattr(episode, name), getattr(rollout, name)[i, j]
                assert written.dtype == np.float32
                np.testing.assert_array_equal(written, rolled)


def test_an_episode_can_be_replayed_from_its_seed(tmp_path):
    manifest = collect_small(tmp_path).manifest
    dataset = minari.load_dataset(manifest.tasks[1].dataset)
    metadata = next(iter(dataset.storage.get_episode_metadata([1])))
    goal = SMALL.parameter_array(manifest.tasks[1].parameters)
    replay = jax.jit(make_episode(SMALL, "mixed"))(np.uint32(metadata["seed"]), metadata["options"]["progress"], goal)
    np.testing.assert_allclose(replay.actions, dataset[1].actions, atol=1e-6)
    np.testing.assert_allclose(replay.observations, dataset[1].observations, atol=1e-6)


def test_manifest_holds_descriptions_and_measured_references(tmp_path):
    manifest = load_manifest(collect_small(tmp_path / "out").manifest.path)
    assert manifest.path == tmp_path / "out" / "tasks.json"
    assert (manifest.family, manifest.env, manifest.horizon) == ("small", "small", 20)
    assert [task.split for task in manifest.tasks] == ["train", "train", "test"]
    for task, origin in zip(manifest.tasks, few_tasks(), strict=True):
        assert task.parameters == origin.parameters
        assert task.descriptions == SMALL.descriptions(origin.parameters, held_out=False)
        assert task.held_out_descriptions == SMALL.descriptions(origin.parameters, held_out=True)
        goal = np.array([origin.parameters["goal_x"], origin.parameters["goal_y"]])
        left = np.maximum(np.abs(goal) - 0.1 * np.arange(1, 21)[:, None], 0)
        assert task.reference.expert == pytest.approx(-np.linalg.norm(left, axis=1).sum(), abs=1e-3)
        # A random walk stays near the origin.
        assert task.reference.random == pytest.approx(-20 * np.linalg.norm(goal), rel=0.35)
        metadata = minari.load_dataset(task.dataset).storage.metadata
        assert (metadata["ref_min_score"], metadata["ref_max_score"]) == (task.reference.random, task.reference.expert)


def test_same_seed_same_arrays_and_references_do_not_depend_on_it(tmp_path, monkeypatch):
    def actions(collection):
        return np.stack([minari.load_dataset(task.dataset)[0].actions for task in collection.manifest.tasks])

    first = collect_small(tmp_path)
    other = collect_small(tmp_path, seed=1)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "elsewhere"))
    again = collect_small(tmp_path)
    assert not again.reused and again.manifest == first.manifest
    np.testing.assert_array_equal(actions(again), actions(first))
    monkeypatch.undo()
    assert [t.reference for t in other.manifest.tasks] == [t.reference for t in first.manifest.tasks]


def test_different_seeds_and_episodes_log_different_actions(tmp_path):
    first = collect_small(tmp_path, quality="random").manifest.tasks[0].dataset
    other = collect_small(tmp_path, quality="random", seed=1).manifest.tasks[0].dataset
    assert np.abs(minari.load_dataset(first)[0].actions - minari.load_dataset(other)[0].actions).mean() > 0.2


def files(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("main_data.hdf5")}


def test_a_second_call_reuses_what_is_there(tmp_path, minari_root, monkeypatch):
    first = collect_small(tmp_path)
    before = files(minari_root)
    monkeypatch.setattr(collect_module, "roll_out_tasks", None)  # would fail if called
    second = collect_small(tmp_path / "elsewhere")
    assert (first.reused, second.reused) == (False, True)
    assert second.manifest == first.manifest and second.mean_score == first.mean_score
    assert files(minari_root) == before


def test_tasks_logged_in_groups_are_those_logged_at_once(tmp_path, minari_root, monkeypatch):
    """And a run that is killed between groups keeps what is written, and goes on behind it."""

    def arrays(manifest):
        return [minari.load_dataset(task.dataset)[2].actions for task in manifest.tasks]

    at_once = arrays(collect_small(tmp_path).manifest)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(collect_module, "EPISODES_AT_ONCE", 7)  # two tasks of three episodes
    groups, whole = [], collect_module.roll_out_tasks

    def counted(family, quality, seeds, tasks):
        groups.append([task.name for task in tasks])
        if len(groups) == 2:
            raise KeyboardInterrupt
        return whole(family, quality, seeds, tasks)

    monkeypatch.setattr(collect_module, "roll_out_tasks", counted)
    with pytest.raises(KeyboardInterrupt):
        collect_small(tmp_path)
    before = files(tmp_path / "elsewhere")
    manifest = collect_small(tmp_path).manifest
    assert groups == [["train-00", "train-01"], ["test-14", "test-14"], ["test-14", "test-14"]]
    after = files(tmp_path / "elsewhere")
    assert len(before) == 2 and len(after) == 3 and before.items() <= after.items()
    for mine, expected in zip(arrays(manifest), at_once, strict=True):
        np.testing.assert_allclose(mine, expected, atol=1e-6)


def test_data_of_another_expert_are_not_taken_for_these(tmp_path, monkeypatch):
    file = tmp_path / "expert.safetensors"
    file.write_bytes(b"one expert")
    learned = dataclasses.replace(SMALL, expert=file)
    monkeypatch.setattr(family_module, "_FACTORIES", {"small": lambda: learned})
    collect_small(tmp_path)
    assert collect_small(tmp_path).reused
    file.write_bytes(b"another")
    with pytest.raises(UserError, match="collected with other expert; overwrite it with --overwrite"):
        collect_small(tmp_path)


def test_what_was_collected_is_found(tmp_path, minari_root):
    assert collected("small") == {}
    collect_small(tmp_path, episodes=2)
    collect_small(tmp_path, seed=4)
    assert collected("small") == {"mixed-e2-s0": 3, "mixed-e3-s4": 3}
    metadata = next((minari_root / "small" / "mixed-e3-s4").glob("*-v0")) / "data" / "metadata.json"
    metadata.write_text(metadata.read_text()[:40])  # killed while it was written
    assert collected("small") == {"mixed-e2-s0": 3, "mixed-e3-s4": 2}


def test_half_written_data_sets_are_written_again(tmp_path, minari_root):
    manifest = collect_small(tmp_path).manifest
    names = [task.dataset for task in manifest.tasks]
    expected = [minari.load_dataset(name)[2].actions for name in names]
    before = files(minari_root)
    # Killed while episodes were written: metadata without the closing record. Then: damaged later.
    metadata_file = get_dataset_path(names[0]) / "data" / "metadata.json"
    metadata = json.loads(metadata_file.read_text())
    del metadata["llmdpd_collect"]
    metadata_file.write_text(json.dumps(metadata))
    main = get_dataset_path(names[1]) / "data" / "main_data.hdf5"
    main.write_bytes(main.read_bytes()[:5000])
    assert not collect_small(tmp_path).reused
    for name, actions in zip(names, expected, strict=True):
        np.testing.assert_array_equal(minari.load_dataset(name)[2].actions, actions)
    after = files(minari_root)
    changed = {path.parent.parent.name for path in after if after[path] != before[path]}
    assert changed == {"train-00-v0", "train-01-v0"}
    # Killed while the metadata were written.
    metadata_file.write_text('{"total_episodes": 3, "data_')
    assert not collect_small(tmp_path).reused
    assert collect_small(tmp_path).reused


def test_data_sets_of_others_are_not_overwritten_unasked(tmp_path):
    name = collect_small(tmp_path).manifest.tasks[0].dataset
    metadata_file = get_dataset_path(name) / "data" / "metadata.json"
    metadata = json.loads(metadata_file.read_text())
    metadata["llmdpd_collect"]["settings"]["parameters"]["goal_x"] = 9.0
    metadata_file.write_text(json.dumps(metadata))
    with pytest.raises(UserError, match=f"{name!r}.*collected with other parameters; overwrite it with --overwrite"):
        collect_small(tmp_path)
    del metadata["llmdpd_collect"]
    metadata_file.write_text(json.dumps({**metadata, "algorithm_name": "SAC"}))
    with pytest.raises(UserError, match=f"{name!r}.*was not written by this program"):
        collect_small(tmp_path)
    assert not collect_small(tmp_path, overwrite=True).reused
    assert collect_small(tmp_path).reused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "smal"}, "unknown task family 'smal'; did you mean 'small'"),
        ({"quality": "best"}, r"unknown quality 'best' \(known: random, replay, medium, mixed, expert\)"),
        ({"episodes": 1}, "episodes must be at least 2 per task, found 1"),
        ({"seed": -1}, "seed must lie in 0"),
    ],
)
def test_bad_arguments_are_named(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        collect_small(tmp_path, **changes)
