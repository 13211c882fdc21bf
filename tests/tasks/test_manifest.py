"""Manifests: reading what was written, and every message about a bad one."""

import copy
import dataclasses
import json

import pytest

from llmdpd_jax.errors import UserError
from llmdpd_jax.tasks.manifest import (
    Manifest,
    Reference,
    TaskEntry,
    load_manifest,
    parse_manifest,
    require_split,
    save_manifest,
)

GOOD = {
    "family": "point_robot",
    "horizon": 20,
    "tasks": [
        {
            "name": "a",
            "split": "train",
            "dataset": "x/a-v0",
            "descriptions": ["go to 1", "reach 1"],
            "held_out_descriptions": ["1 it is"],
            "parameters": {"goal_x": 1, "goal_y": 0.5},
            "reference": {"random": -9, "expert": -1.5},
        },
        {"name": "b", "split": "test", "dataset": "x/b-v0"},
    ],
}


def test_every_field_is_read():
    manifest = parse_manifest(GOOD, "m.json")
    assert (manifest.family, manifest.env, manifest.horizon) == ("point_robot", "point_robot", 20)
    a, b = manifest.tasks
    assert a.descriptions == ("go to 1", "reach 1") and a.held_out_descriptions == ("1 it is",)
    assert a.parameters == {"goal_x": 1.0, "goal_y": 0.5} and a.reference == Reference(-9.0, -1.5)
    assert b == TaskEntry("b", "test", "x/b-v0")


def test_a_gymnasium_environment_is_an_id_or_arguments(tmp_path):
    ways = {"a": "HalfCheetah-v5", "b": {"id": "Pendulum-v1", "g": 5.0}}
    data = {**GOOD, "tasks": [{**task, "gym_env": ways[task["name"]]} for task in GOOD["tasks"]]}
    manifest = save_manifest(parse_manifest(data, "m.json"), tmp_path / "tasks.json")
    assert [task.gym_env for task in manifest.tasks] == [{"id": "HalfCheetah-v5"}, ways["b"]]
    assert load_manifest(manifest.path) == manifest


def test_files_are_looked_for_beside_the_manifest(tmp_path):
    tasks = [{"name": n, "split": "train", "dataset": d} for n, d in (("a", "logs/a.hdf5"), ("b", "/logs/b.h5"))]
    (tmp_path / "tasks.json").write_text(json.dumps({"tasks": tasks}))
    manifest = load_manifest(tmp_path)
    assert [task.dataset for task in manifest.tasks] == [str(tmp_path / "logs" / "a.hdf5"), "/logs/b.h5"]
    assert all(task.is_file for task in manifest.tasks) and manifest.tasks[1].source == "D4RL file /logs/b.h5"
    assert load_manifest(save_manifest(manifest, tmp_path / "run" / "tasks.json").path).tasks == manifest.tasks
    tasks[1]["dataset"] = "logs/../logs/a.hdf5"
    with pytest.raises(UserError, match=r"task 'b': \"dataset\" .* is also that of task 'a'"):
        parse_manifest({"tasks": tasks}, "m.json", tmp_path)


def test_only_name_split_and_dataset_are_needed():
    manifest = parse_manifest({"tasks": [{"name": "a", "split": "train", "dataset": "a-v0"}]}, "m.json")
    assert (manifest.family, manifest.env, manifest.horizon) == ("unnamed", None, None)
    assert parse_manifest({**GOOD, "family": "my arm"}, "m.json").env is None


def test_written_and_read_again_is_equal(tmp_path):
    manifest = save_manifest(parse_manifest(GOOD, "m.json"), tmp_path / "deep" / "tasks.json")
    assert load_manifest(manifest.path) == load_manifest(tmp_path / "deep") == manifest
    assert [path.name for path in manifest.path.parent.iterdir()] == ["tasks.json"]
    assert "reference" not in json.loads(manifest.path.read_text())["tasks"][1]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "tasks.json"
    save_manifest(parse_manifest(GOOD, "m.json"), path)
    before = path.read_text()
    with pytest.raises(TypeError):
        save_manifest(Manifest((TaskEntry("a", "train", object()),)), path)
    assert path.read_text() == before and len(list(tmp_path.iterdir())) == 1


def test_a_split_opens_its_own_tasks_only():
    split = require_split(dataclasses.replace(parse_manifest(GOOD, "m.json"), path="m.json"), "train")
    assert [task.name for task in split.tasks] == ["a"] and split.task("a").dataset == "x/a-v0"
    with pytest.raises(UserError, match=r"m\.json: task 'b' is a test task and stays closed"):
        split.task("b")
    with pytest.raises(UserError, match="no task 'c'"):
        split.task("c")
    assert "x/b-v0" not in repr(split)


def test_a_missing_split_is_named():
    manifest = parse_manifest({**GOOD, "tasks": GOOD["tasks"][:1]}, "m.json")
    require_split(manifest, "train")
    with pytest.raises(UserError, match='no task has "split": "test"'):
        require_split(manifest, "test")
    with pytest.raises(UserError, match=r"unknown split 'dev' \(known: train, test\)"):
        require_split(manifest, "dev")


def bad(path, value):
    """GOOD with one value replaced, or removed if the value is Ellipsis."""
    data = copy.deepcopy(GOOD)
    place = data
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], r"m.json: must be a JSON object, found \[\] \(list\)"),
        (bad(["tasks"], ...), 'm.json: "tasks" is missing'),
        (bad(["tasks"], []), 'm.json: "tasks" must be a list of at least one task'),
        (bad(["tasks", 0], "a"), r"m.json: tasks\[0\]: must be a JSON object, found 'a'"),
        (bad(["tasks", 1, "name"], ...), r'm.json: tasks\[1\]: "name" is missing'),
        (bad(["tasks", 1, "name"], "a"), "two tasks have the name 'a'"),
        (bad(["tasks", 0, "split"], ...), "m.json: task 'a': \"split\" is missing"),
        (bad(["tasks", 0, "split"], "dev"), "task 'a': \"split\" must be one of train, test, found 'dev'"),
        (bad(["tasks", 0, "dataset"], ""), "task 'a': \"dataset\" must be a non-empty string, found an empty string"),
        (bad(["tasks", 0, "dataset"], 3), "task 'a': \"dataset\" must be a non-empty string, found 3"),
        (bad(["tasks", 1, "dataset"], "x/a-v0"), "task 'b'.*also that of task 'a' of another split"),
        (bad(["tasks", 0, "descriptions"], "go"), "task 'a': \"descriptions\" must be a list of non-empty strings"),
        (bad(["tasks", 0, "descriptions"], ["go", " "]), '"descriptions" must be a list of non-empty strings'),
        (bad(["tasks", 0, "parameters", "goal_x"], "1"), "\"parameters\": 'goal_x' must be a finite number, found '1'"),
        (bad(["tasks", 0, "parameters", "goal_x"], float("nan")), "'goal_x' must be a finite number, found nan"),
        (bad(["tasks", 1, "parameters"], {"goal_x": 1}), r"task 'b': \"parameters\" are \['goal_x'\], those of"),
        (bad(["tasks", 0, "reference"], {"random": 1}), '"reference" must hold "random" and "expert"'),
        (bad(["tasks", 0, "reference", "random"], -1.5), "task 'a': \"reference\": expert must be above random"),
        (bad(["tasks", 0, "reference", "random"], 3), r"found -1\.5 \(expert\) and 3\.0 \(random\)"),
        (bad(["horizon"], 0), '"horizon" must be a whole number of steps, at least 1, found 0'),
        (bad(["horizon"], 2.5), '"horizon" must be a whole number'),
        (bad(["env"], "point_robt"), "m.json: \"env\": unknown task family 'point_robt'; did you mean 'point_robot'"),
        (
            bad(["tasks", 0, "held_out_description"], []),
            "task 'a': unknown field \"held_out_description\"; did you mean",
        ),
        (bad(["tasks", 0, "gym_env"], {"g": 5.0}), "task 'a': \"gym_env\" must be the id of a Gymnasium environment"),
        (bad(["tasks", 0, "gym_env"], " "), "\"gym_env\" must be .*, found ' '"),
        (bad(["horizn"], 20), 'm.json: unknown field "horizn"; did you mean "horizon"'),
    ],
)
def test_bad_manifests_name_the_culprit(data, message):
    with pytest.raises(UserError, match=message):
        parse_manifest(data, "m.json")


def test_fields_of_others_are_ignored():
    parse_manifest({**GOOD, "author": "someone", "licence": "CC0"}, "m.json")


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.json: no such task manifest; `llmdpd collect`"):
        load_manifest(tmp_path / "nowhere.json")
    path = tmp_path / "tasks.json"
    path.write_text('{"tasks": [\n{"name": "a",}]}')
    with pytest.raises(UserError, match=r"tasks\.json: not valid JSON: .* at line 2"):
        load_manifest(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"tasks\.json: not a text file"):
        load_manifest(path)
