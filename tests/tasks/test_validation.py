"""Validation manifests: train tasks held out, test tasks gone."""

import pytest

from llmdpd_jax.cli.main import main
from llmdpd_jax.errors import UserError
from llmdpd_jax.tasks.manifest import Manifest, Reference, TaskEntry, load_manifest, save_manifest
from llmdpd_jax.tasks.validation import validation_manifest


def make_manifest(train=6, descriptions=5):
    return Manifest(
        tuple(
            TaskEntry(
                name=f"{split}-{i}",
                split=split,
                dataset=f"x/{split}-{i}-v0",
                descriptions=tuple(f"{split} {i} said in way {way}" for way in range(descriptions)),
                held_out_descriptions=(f"{split} {i} said otherwise",),
                reference=Reference(-9.0, -1.0),
            )
            for split, count in (("train", train), ("test", 3))
            for i in range(count)
        ),
        family="point_robot",
        env="point_robot",
        horizon=20,
    )


def test_held_out_train_tasks_stand_for_the_test_tasks():
    manifest = make_manifest()
    divided = validation_manifest(manifest, tasks=2, descriptions=2)
    assert (divided.family, divided.env, divided.horizon) == ("point_robot", "point_robot", 20)
    assert [t.dataset for t in divided.tasks] == [f"x/train-{i}-v0" for i in range(6)]
    assert [t.split for t in divided.tasks].count("test") == 2
    ways = {tuple(text[-1] for text in t.held_out_descriptions) for t in divided.tasks}
    assert len(ways) == 1 and len(ways.pop()) == 2  # the same two ways of saying it for all tasks
    for before, after in zip(manifest.tasks, divided.tasks, strict=False):
        assert set(after.descriptions) | set(after.held_out_descriptions) == set(before.descriptions)
        assert after.reference == before.reference


def test_seed_decides():
    def chosen(seed):
        return [t.split for t in validation_manifest(make_manifest(20), 5, 0, seed).tasks]

    assert chosen(3) == chosen(3)
    assert len({tuple(chosen(seed)) for seed in range(8)}) > 4
    assert all(not t.held_out_descriptions for t in validation_manifest(make_manifest(), 2, 0).tasks)


@pytest.mark.parametrize(
    ("tasks", "descriptions", "message"),
    [
        (6, 0, "of 6 train tasks 1 to 5 can be held out, not 6"),
        (0, 0, "1 to 5 can be held out, not 0"),
        (2, 5, "5 descriptions per task cannot be held out, the shortest list has 5"),
        (2, -1, "-1 descriptions per task cannot"),
    ],
)
def test_what_cannot_be_held_out(tasks, descriptions, message):
    with pytest.raises(UserError, match=message):
        validation_manifest(make_manifest(), tasks, descriptions)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_out_of_range(seed, tmp_path, capsys):
    with pytest.raises(UserError, match=f"seed: {seed} is out of range; it must be between 0 and 4294967295"):
        validation_manifest(make_manifest(), 2, 0, seed)
    for command in (["validation", str(tmp_path), "--out=v"], ["evaluate", "run"], ["sweep", "run", "--out=s"]):
        assert main([*command, f"--seed={seed}"]) == 2
        assert f"error: --seed: {seed} is out of range" in capsys.readouterr().err


def test_command(tmp_path, capsys):
    save_manifest(make_manifest(), tmp_path / "all" / "tasks.json")
    arguments = ["validation", str(tmp_path / "all"), "--tasks=2", "--descriptions=1", f"--out={tmp_path / 'v'}"]
    assert main(arguments) == 0
    expected = validation_manifest(make_manifest(), 2, 1)
    assert load_manifest(tmp_path / "v").tasks == expected.tasks
    printed = capsys.readouterr().out
    assert "4 train tasks" in printed and all(t.name in printed for t in expected.tasks if t.split == "test")
    assert main([*arguments[:2], "--tasks=60", arguments[-1]]) == 2


def test_the_divided_manifest_is_not_overwritten(tmp_path, capsys):
    before = save_manifest(make_manifest(), tmp_path / "tasks.json").path.read_bytes()
    assert main(["validation", str(tmp_path / "tasks.json"), "--tasks=2", f"--out={tmp_path}"]) == 2
    assert f"--out={tmp_path} holds the very manifest" in capsys.readouterr().err
    assert (tmp_path / "tasks.json").read_bytes() == before
