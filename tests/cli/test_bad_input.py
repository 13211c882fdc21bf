"""Wrong input: exit status 2, one message that names the culprit, nothing trained, nothing written, nothing lost."""

import json
import os
import shutil
import subprocess
import sys

import gymnasium as gym
import h5py
import numpy as np
import pytest
from logged import make_episode
from minari.storage import get_dataset_path

from llmdpd_jax.cli.main import main
from llmdpd_jax.errors import UserError
from llmdpd_jax.policy import Policy, load_policy


def refused(capfd, *arguments) -> str:
    """The one message with which the command line refuses the arguments."""
    capfd.readouterr()
    assert main([str(a) for a in arguments]) == 2
    out, err = capfd.readouterr()
    assert "Traceback" not in err and "next:" not in out and "results:" not in out, err
    messages = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1, err
    return messages[0]


def snapshot(folder) -> dict[str, bytes]:
    """Content of every file in a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def tasks_json(path, datasets, descriptions=("go to (0.1, 0.2)",), splits=None):
    """A manifest by hand, one task per data set."""
    splits = splits or ["train"] * len(datasets)
    tasks = [
        {"name": f"task-{i}", "split": split, "dataset": dataset, "descriptions": list(descriptions)}
        for i, (dataset, split) in enumerate(zip(datasets, splits, strict=True))
    ]
    path.write_text(json.dumps({"tasks": tasks}))
    return path


# --- config -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ("--config.train.stepz=5", ["train.stepz", "did you mean 'train.steps'"]),
        ("--config.trian.steps=5", ["trian.steps", "did you mean 'train.steps'"]),
        ("--config.train.steps=many", ["train.steps", "many"]),
        ("--config.train.steps=1.5", ["train.steps", "1.5"]),
        ("--config.model.use_llm=perhaps", ["model.use_llm", "perhaps"]),
        ("--config.diffusion.schedule=vpp", ["diffusion.schedule", "'vpp'", "did you mean 'vp'", "cosine"]),
        ("--config.diffusion.parameterisation=x1", ["diffusion.parameterisation", "'x1'", "velocity"]),
        ("--config.diffusion.schedule=edm", ["diffusion.time_draw", "'grid'", "'log_normal'"]),
        ("--config.evaluation.sampler=student", ["evaluation.sampler", "agent.policy_improvement='student'"]),
        ("--config.train.distill_from=runs/x", ["train.distill_from", "agent.policy_improvement='student'"]),
        ("--config.diffusion.bounds=clamp", ["diffusion.bounds", "'clamp'", "did you mean 'clip'", "scale"]),
        ("--config.evaluation.sampler=dimm", ["evaluation.sampler", "'dimm'", "did you mean 'ddim'"]),
        ("--config.evaluation.sampler=midpoint", ["evaluation.sampler", "diffusion.time_draw=continuous"]),
        ("--config.model.critic_activation=tanh", ["model.critic_activation", "'tanh'", "mish"]),
        ("--config.agent.policy_improvement=two_step", ["agent.policy_improvement", "one_step"]),
        ("--config.model.width=0", ["model.width", "0", "at least 1"]),
        ("--config.model.denoiser=unet", ["model.denoiser", "'unet'", "mlp, dit"]),
        ("--config.agent.chunk=0", ["agent.chunk", "0", "at least 1"]),
        ("--config.evaluation.execute=2", ["evaluation.execute: 2", "agent.chunk (1)"]),
        ("--config.train.keep_every=100", ["train.keep_every: 100", "train.checkpoint_every (3000)"]),
        ("--config.data.groups=-3", ["data.groups", "-3", "at least 1"]),
        ("--config.data.prompt_length=0", ["data.prompt_length", "at least 1"]),
        ("--config.agent.text_dropout=1.5", ["agent.text_dropout", "1.5", "between 0 and 1"]),
        ("--config.agent.imaginary_share=2.0", ["agent.imaginary_share", "2.0", "between 0 and 1"]),
        ("--config.agent.trajectory_dropout=-0.1", ["agent.trajectory_dropout", "-0.1", "between 0 and 1"]),
        ("--config.optimiser.learning_rate=nan", ["optimiser.learning_rate", "nan"]),
        ("--config.model.context_width=30", ["model.context_width", "30", "multiple of 4"]),
        ("--config.evaluation.steps=9", ["evaluation.steps", "9", "diffusion.steps (5)"]),
        ("--config.seed=-1", ["seed", "-1", "between 0"]),
    ],
)
def test_config(change, parts, tmp_path, capfd):
    # The manifest does not exist: the config is looked at first.
    message = refused(
        capfd,
        "train",
        "--config=configs/point_robot.py",
        "--config.data.manifest=no.json",
        change,
        f"--out={tmp_path / 'run'}",
    )
    for part in parts:
        assert part in message
    assert not (tmp_path / "run").exists()


def test_noise_cannot_be_predicted_where_a_path_ends_in_nothing_else(tmp_path, capfd):
    path = [f"--config.diffusion.{name}" for name in ("schedule=flow", "parameterisation=noise")]
    given = ("train", "--config=configs/point_robot.py", "--config.data.manifest=no.json", *path)
    message = refused(capfd, *given, f"--out={tmp_path / 'run'}")
    assert "diffusion.parameterisation: 'noise'" in message and "choose flow, velocity or x0" in message


def test_heads_that_do_not_divide_the_width(tmp_path, capfd):
    model = [f"--config.model.{name}" for name in ("denoiser=dit", "width=64", "heads=5")]
    given = ("train", "--config=configs/point_robot.py", "--config.data.manifest=no.json", *model)
    message = refused(capfd, *given, f"--out={tmp_path / 'run'}")
    assert "model.heads: 5 heads do not divide model.width (64) evenly" in message


def test_imaginary_tasks_without_a_model(tmp_path, capfd):
    agent = [f"--config.agent.{name}" for name in ("imaginary_share=0.5", "model_weight=0.0", "detach_context=False")]
    given = ("train", "--config=configs/point_robot.py", "--config.data.manifest=no.json", *agent)
    message = refused(capfd, *given, f"--out={tmp_path / 'run'}")
    assert "agent.imaginary_share" in message and "agent.model_weight=0 leaves untrained" in message


def test_a_config_in_two_words(tmp_path, capfd):
    out = f"--out={tmp_path / 'run'}"
    assert "no file nowhere.py" in refused(capfd, "train", "--config", "nowhere.py", out)
    given = ("train", out, "--config", "configs/point_robot.py", "--config.model.use_llm", "--config.seed", "-1")
    assert refused(capfd, *given).startswith("error: seed: -1 is out of range")
    assert "name a config file" in refused(capfd, "train", "--config", out)


def test_devices_that_are_not_there(tmp_path, capfd):
    given = ("train", "--config=configs/point_robot.py", "--config.data.manifest=no.json", f"--out={tmp_path / 'run'}")
    for devices in (-1, 99):
        assert f"--devices: {devices} of" in refused(capfd, *given, f"--devices={devices}")


def test_files_that_are_not_there(tmp_path, capfd):
    out = f"--out={tmp_path / 'run'}"
    assert "no file nowhere.py" in refused(capfd, "train", "--config=nowhere.py", out)
    assert "name a config file" in refused(capfd, "train", out)
    assert "--out" in refused(capfd, "train", "--config=configs/point_robot.py")
    assert "data.manifest" in refused(capfd, "train", "--config=configs/minari.py", out)
    no_manifest = ("train", "--config=configs/minari.py", f"--config.data.manifest={tmp_path}/none.json", out)
    assert f"{tmp_path}/none.json" in refused(capfd, *no_manifest)
    assert "no such run" in refused(capfd, "evaluate", tmp_path / "run")
    assert "not a run" in refused(capfd, "train", f"--resume={tmp_path}")
    assert "only `llmdpd train`" in refused(capfd, "doctor", "--config=configs/minari.py")
    assert not (tmp_path / "run").exists()


def test_a_config_file_that_does_not_run(tmp_path, capfd):
    file = tmp_path / "broken.py"
    start = "from llmdpd_jax.config import default_config\n\ndef get_config():\n    config = default_config()\n"
    file.write_text(f"{start}    config.train.stepz = 3\n    return config\n")
    message = refused(capfd, "train", f"--config={file}", f"--out={tmp_path / 'run'}")
    assert str(file) in message and "stepz" in message
    file.write_text(start)
    for change in ([], ["--config.train.steps=3"]):
        message = refused(capfd, "train", f"--config={file}", *change, f"--out={tmp_path / 'run'}")
        assert message == f"error: {file}: get_config() returns no config; end it with `return config`"
    file.write_text("def get_config(:\n")
    assert str(file) in refused(capfd, "train", f"--config={file}", f"--out={tmp_path / 'run'}")


def test_the_real_command():
    command = [sys.executable, "-m", "llmdpd_jax", "train", "--config=configs/quickstart.py", "--config.train.stepz=5"]
    done = subprocess.run([*command, "--out=runs/never"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("error: --config.train.stepz=5: there is no field 'train.stepz'")
    assert "Traceback" not in done.stderr and not os.path.exists("runs/never")


# --- data -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def refused_data(tmp_path, capfd, write_dataset):
    """`refused_data(episodes, ...)`: the message with which training refuses a data set beside a good one."""

    def run(episodes=None, spaces=None, empty=False, **manifest):
        write_dataset("mine/good-v0", [make_episode(5, 0.1), make_episode(4, 0.2)])
        if episodes is not None:
            write_dataset("mine/bad-v0", episodes, **(spaces or {}))
        if empty:  # Minari itself does not write such an episode
            with h5py.File(get_dataset_path("mine/bad-v0") / "data" / "main_data.hdf5", "a") as file:
                for name in ("actions", "rewards", "terminations", "truncations"):
                    file["episode_1"][name].resize(0, axis=0)
                file["episode_1"]["observations"].resize(1, axis=0)
        path = tasks_json(tmp_path / "tasks.json", ["mine/good-v0", "mine/bad-v0"], **manifest)
        out = tmp_path / "run"
        message = refused(
            capfd, "train", "--config=configs/minari.py", f"--config.data.manifest={path}", f"--out={out}"
        )
        assert not out.exists()
        return message

    return run


def changed(name, index, value):
    """Two episodes, in the second of which one value is wrong."""
    episodes = [make_episode(5, 0.1), make_episode(4, 0.2)]
    episodes[1][name][index] = value
    return episodes


def test_missing_minari_id(refused_data):
    message = refused_data()
    assert "'mine/bad-v0' not found" in message and "MINARI_DATASETS_PATH" in message


def test_nan_reward(refused_data):
    message = refused_data(changed("rewards", 2, np.nan))
    assert "'mine/bad-v0', episode 1: reward at step 2 is nan" in message


def test_action_outside_the_space(refused_data):
    message = refused_data(changed("actions", (3, 1), 1.5))
    assert "'mine/bad-v0', episode 1: action at step 3, dimension 1 is 1.5" in message and "high [1.0, 1.0]" in message


def test_dimensions_differ_between_tasks(refused_data):
    spaces = {"observation_space": gym.spaces.Box(-9, 9, (4,), np.float32)}
    message = refused_data([make_episode(5, observation_shape=(4,)) for _ in range(2)], spaces)
    assert "'task-1'" in message and "observations hold 4 numbers, those of 'mine/good-v0' hold 3" in message


def test_empty_episode(refused_data):
    message = refused_data([make_episode(5), make_episode(4)], empty=True)
    assert "'mine/bad-v0', episode 1: has no steps" in message


def test_too_few_episodes(refused_data):
    assert "has 1 episode; a train task needs at least 2" in refused_data([make_episode(5)])


def test_no_descriptions(refused_data):
    assert "task 'task-0' has no \"descriptions\"" in refused_data(descriptions=())


def test_no_train_split(refused_data):
    assert 'no task has "split": "train"' in refused_data(splits=["test", "test"])


# --- weights ----------------------------------------------------------------------------------------------------------


def test_missing_weights_without_network(world, tmp_path, monkeypatch, capfd):
    offline = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_INDEX_URL": "http://127.0.0.1:9/simple"}
    for name, value in {**offline, "PIP_FIND_LINKS": str(tmp_path), "LLMDPD_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    for command in (
        ["train", *world.config(text__source="smollm2"), f"--out={tmp_path / 'run'}"],
        ["embed", "--fetch"],
    ):
        message = refused(capfd, *command)
        assert str(tmp_path / "cache") in message and "llmdpd embed --fetch" in message and "LLMDPD_CACHE" in message
    assert not (tmp_path / "run").exists() and not list(tmp_path.rglob("*.gguf"))


# --- runs and checkpoints ---------------------------------------------------------------------------------------------


@pytest.fixture
def run_copy(world, tiny_run, tmp_path):
    """A finished run that may be damaged."""
    return shutil.copytree(tiny_run, tmp_path / "run")


def test_run_folder_of_another_config(world, run_copy, capfd):
    before = snapshot(run_copy)
    message = refused(capfd, "train", *world.config(agent__eta=2.0), f"--out={run_copy}")
    assert str(run_copy) in message and "agent.eta: 1.0 -> 2.0" in message
    assert snapshot(run_copy) == before


def test_other_data_than_the_run_was_trained_on(world, run_copy, capfd):
    """The same manifest path, but two tasks have changed places."""
    text = world.manifest.read_text()
    manifest = json.loads(text)
    manifest["tasks"][:2] = manifest["tasks"][1::-1]
    before = snapshot(run_copy)
    try:
        world.manifest.write_text(json.dumps(manifest))
        assert "not those that" in refused(capfd, "train", *world.config(), f"--out={run_copy}")
    finally:
        world.manifest.write_text(text)
    assert snapshot(run_copy) == before


def test_other_descriptions_than_the_run_was_trained_on(world, run_copy, capfd):
    text = world.manifest.read_text()
    manifest = json.loads(text)
    next(task for task in manifest["tasks"] if task["split"] == "train")["descriptions"][0] += " now"
    try:
        world.manifest.write_text(json.dumps(manifest))
        message = refused(capfd, "train", *world.config(), f"--out={run_copy}")
        assert "descriptions of the train tasks are not those" in message and str(world.manifest) in message
    finally:
        world.manifest.write_text(text)


@pytest.mark.parametrize("damage", ["truncated", "emptied", "metadata"])
def test_truncated_checkpoint(world, run_copy, damage, capfd):
    step = run_copy / "checkpoints" / "6"
    files = [p for p in step.rglob("*") if p.is_file()]
    if damage == "truncated":
        # All of the arrays' files: which of them a value is read from is Orbax's choice, another one each time.
        for file in (p for p in files if p.parent.name == "d"):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif damage == "emptied":
        for file in files:
            file.write_bytes(b"")
    else:
        shutil.rmtree(step / "metadata")
    before = snapshot(run_copy)
    for command in (["evaluate", run_copy], ["train", f"--resume={run_copy}"]):
        message = refused(capfd, *command)
        assert str(step) in message and "damaged" in message
    assert snapshot(run_copy) == before
    assert load_policy(run_copy / "checkpoints" / "4").checkpoint.state.step == 4, "the older one is still good"


@pytest.mark.parametrize("content", ["nothing", "files", "other"])
def test_foreign_checkpoint_folder(tmp_path, content, capfd):
    folder = tmp_path / "run" / "checkpoints" / "5"
    folder.mkdir(parents=True)
    if content == "files":
        (folder / "model.pt").write_bytes(b"\x80\x02}q\x00.")
    elif content == "other":
        import orbax.checkpoint as ocp

        with ocp.CheckpointManager(folder.parent) as manager:
            manager.save(7, args=ocp.args.Composite(metadata=ocp.args.JsonSave({"format": "theirs"})))
    message = refused(capfd, "evaluate", tmp_path / "run")
    assert str(folder.parent) in message


def test_evaluate(world, tiny_run, tmp_path, capfd):
    """What evaluation cannot do is said before it rolls out; results that are there stay."""
    manifest = json.loads(world.manifest.read_text())
    for task in manifest["tasks"]:
        task["split"] = "train"
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps(manifest))
    out = f"--out={tmp_path / 'out'}"
    message = refused(capfd, "evaluate", tiny_run, f"--manifest={path}", out)
    assert str(path) in message and 'no task has "split": "test"' in message
    assert "episodes" in refused(capfd, "evaluate", tiny_run, "--episodes=0", out)
    assert "'dimm' is unknown" in refused(capfd, "evaluate", tiny_run, "--sampler=dimm", out)
    assert "6 is out of range" in refused(capfd, "evaluate", tiny_run, "--steps=6", out)
    assert "--devices: 99 of" in refused(capfd, "evaluate", tiny_run, "--devices=99", out)
    assert "temperature: -0.5 is out of range" in refused(capfd, "evaluate", tiny_run, "--temperature=-0.5", out)
    assert "text_guidance: nan is out of range" in refused(capfd, "evaluate", tiny_run, "--text-guidance=nan", out)
    assert "critic_guidance: inf is out of range" in refused(capfd, "evaluate", tiny_run, "--critic-guidance=inf", out)
    message = refused(capfd, "evaluate", tiny_run, "--backend=spring", out)
    assert "'point_robot' has no robot of Brax's, so it has no backend 'spring'" in message
    assert not (tmp_path / "out").exists()


def test_an_environment_of_other_sizes(world, tiny_run, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(Policy, "read_descriptions", None)  # the LLM is not asked
    path, manifest = tmp_path / "tasks.json", json.loads(world.manifest.read_text())
    path.write_text(json.dumps(manifest | {"env": "cheetah_vel"}))
    for command in ("evaluate", "sweep"):
        message = refused(capfd, command, tiny_run, f"--manifest={path}", f"--out={tmp_path / 'out'}")
        assert f"{path}: \"env\": observations and actions of 'cheetah_vel' hold (17, 6) numbers" in message
        assert "the policy's (2, 2)" in message


def test_a_folder_that_cannot_be_made(world, tiny_run, tmp_path, capfd):
    """Where a file is in the way, which is said before anything starts."""
    shutil.copy(world.manifest, tmp_path / "file")
    for command in ("sweep", "evaluate"):
        for out in (tmp_path / "file", tmp_path / "file" / "below"):
            assert f"{tmp_path / 'file'} is no folder" in refused(capfd, command, tiny_run, f"--out={out}")


def test_export(world, tiny_run, tmp_path, capfd, monkeypatch):
    """What cannot be exported is said before the LLM runs and anything is written; what is there stays."""

    def never(*arguments):
        raise AssertionError("the LLM was asked")

    monkeypatch.setattr(Policy, "read_descriptions", never)
    folder, file = tmp_path / "mine", tmp_path / "file.npz"
    folder.mkdir()
    (folder / "policy.json").write_text('{"format": "theirs"}')
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(file, observations=np.zeros((4, 2)), actions=np.zeros((3, 5)), rewards=np.zeros(3))
    before = snapshot(tmp_path)
    told = ("--text", "go to (0.1, 0.2)")
    for arguments, parts in [
        (["--platforms", "cpu", "gpu", *told], ["platforms", "'gpu' is unknown", "cpu, cuda, tpu"]),
        (["--text", ""], ["descriptions[0]", "empty"]),
        (["--sampler=student", *told], ["'student' needs a policy that has one"]),
        (["--sampler=dimm", *told], ["'dimm' is unknown"]),
        (["--steps=6", *told], ["6 is out of range"]),
        (["--best-of=0", *told], ["the best of 0 actions"]),
        (["--temperature=nan", *told], ["temperature: nan is out of range"]),
        (["--trajectory-guidance=nan", *told], ["trajectory_guidance: nan is out of range"]),
        ([f"--out={folder}", *told], [str(folder), "holds other things than an export"]),
        ([f"--out={file}", *told], [str(file), "is a file"]),
        (["--trajectory", tmp_path / "none.npz", *told], ["none.npz", "no such file"]),
        (["--trajectory", tmp_path / "array.npy", *told], ["array.npy", "not an .npz file"]),
        (["--trajectory", world.manifest, *told], [str(world.manifest), "not an .npz file"]),
        (["--trajectory", file, *told], ["actions has shape (3, 5)", "[T, 2]"]),
        (["--trajectory", file, file, *told, "a", "b"], ["3 descriptions", "2 trajectories"]),
        (["--weights-only"], ["FILE.safetensors"]),
        (["--weights-only", *told], ["--weights-only writes no program", "--text"]),
        (["--weights-only", "--best-of=2"], ["leave out --best-of"]),
    ]:
        message = refused(capfd, "export", tiny_run, f"--out={tmp_path / 'out'}", *arguments)
        for part in parts:
            assert part in message
        assert snapshot(tmp_path) == before and not (tmp_path / "out").exists()
    assert "no such run" in refused(capfd, "export", tmp_path / "run", f"--out={tmp_path / 'out'}")


# --- prompts ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def policy(world, tiny_run):
    return load_policy(tiny_run)


def trajectory(**changes):
    return {"observations": np.zeros((4, 2)), "actions": np.zeros((3, 2)), "rewards": np.zeros(3)} | changes


@pytest.mark.parametrize(
    ("prompts", "parts"),
    [
        ({"text": 3}, ["text prompt", "string", "int"]),
        ({"text": ["go", 3]}, ["descriptions[1]", "int"]),
        ({"text": b"go"}, ["text prompt", "bytes"]),
        ({"text": ""}, ["empty"]),
        ({"text": []}, ["empty list"]),
        ({"trajectory": np.zeros((3, 2))}, ["trajectory prompt", "ndarray"]),
        ({"trajectory": "left, then right"}, ["trajectory prompt", "str"]),
        ({"trajectory": {"observations": np.zeros((4, 2))}}, ["missing", "actions", "rewards"]),
        ({"trajectory": trajectory(actions=np.zeros((3, 5)))}, ["actions has shape (3, 5)", "[T, 2]"]),
        ({"trajectory": trajectory(rewards=[0.0, np.inf, 0.0])}, ["rewards", "not finite"]),
        ({"trajectory": trajectory(rewards=["a", "b", "c"])}, ["rewards", "not an array of numbers"]),
        ({"text": ["a", "b", "c"], "trajectory": [trajectory(), trajectory()]}, ["3 descriptions", "2 trajectories"]),
    ],
)
def test_prompts(policy, prompts, parts):
    with pytest.raises(UserError) as refusal:
        policy.prompt(**prompts)
    for part in parts:
        assert part in str(refusal.value)


def test_every_checked_field_exists():
    """A renamed field would else lose its check."""
    from llmdpd_jax import config

    known = config.field_names(config.default_config())
    assert {*config._CHOICES, *config._RANGES} <= set(known)
