"""`llmdpd tasks`: what there is, and what it looks like."""

import numpy as np

from llmdpd_jax.cli.main import main
from llmdpd_jax.evaluation.rollout import play
from llmdpd_jax.tasks.experts import load_expert
from llmdpd_jax.tasks.family import family_names, get_family


def test_families_and_tasks_are_listed(capsys):
    assert main(["tasks"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in family_names())
    assert main(["tasks", "--family=point_robot"]) == 0
    listed = capsys.readouterr().out
    assert all(task.name in listed for task in get_family("point_robot").tasks())


def test_returns_of_a_shipped_expert_are_listed(capsys):
    assert main(["tasks", "--family=cheetah_vel"]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split()[3:6] == ["random", "medium", "expert"]
    returns = load_expert(get_family("cheetah_vel").expert)[1]["returns"]
    row = next(row for row in rows if "train-00" in row).split()
    assert row[3:6] == [f"{returns[quality]['train-00']:.1f}" for quality in ("random", "medium", "expert")]


def test_a_family_is_drawn(tmp_path, capsys):
    assert main(["tasks", "--family=point_robot", f"--render={tmp_path / 'p.png'}"]) == 0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert main(["tasks", f"--render={tmp_path / 'q.png'}"]) == 2
    assert "--render draws one family" in capsys.readouterr().err and not (tmp_path / "q.png").exists()
    assert main(["tasks", "--family=point_robot", f"--render={tmp_path}"]) == 2
    assert "is a folder; name a file" in capsys.readouterr().err


def test_what_is_drawn_is_what_the_policies_do():
    family = get_family("point_robot")
    rollouts = play(family, ("random", "expert"), episodes=3)
    assert rollouts.prompts == ("random", "expert") and rollouts.observations.shape == (15, 2, 3, 21, 2)
    np.testing.assert_allclose(rollouts.observations[:, 1, :, -1], rollouts.goals[:, None].repeat(3, 1), atol=1e-6)
    assert np.abs(rollouts.observations[:, 0, :, -1] - rollouts.goals[:, None]).max() > 0.5
    test = [task for task in family.tasks() if task.split == "test"]
    assert rollouts.tasks == tuple(task.name for task in test)
    np.testing.assert_allclose(rollouts.goals[0], list(test[0].parameters.values()), atol=1e-6)
