"""Your own data, from logging to acting: no environment is registered anywhere.

    python experiments/bring_your_own_data.py --out=runs/harbour

1. A boat is steered, badly, to the berths of a harbour, and every berth's episodes go into a Minari data set.
2. `tasks.json` says which data set belongs to which task, and what each task is called in words.
3. `llmdpd train --config=configs/minari.py` learns from the train tasks.
4. The policy steers the boat to berths it was never trained on, in a plain Gymnasium loop: told in words, shown one
   logged trajectory, or both.

Arguments that begin with `--config.` are handed to the training, for example `--config.train.steps=2000`.
"""

import argparse
import json
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer

import llmdpd_jax
from llmdpd_jax.cli.main import main as llmdpd

STEPS = 15  # of an episode
EPISODES = 60  # logged per task


class Harbour(gym.Env):
    """A boat in a basin of 100 m x 60 m. Observation: position in metres; action: a move of at most 8 m per axis."""

    observation_space = gym.spaces.Box(np.float32([0, 0]), np.float32([100, 60]))
    action_space = gym.spaces.Box(-8, 8, (2,), np.float32)

    def __init__(self, berth):
        self.berth = np.float32(berth)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        self.position = np.float32([50, 30]) + self.np_random.uniform(-5, 5, 2).astype(np.float32)
        return self.position, {}

    def step(self, action):
        low, high = self.observation_space.low, self.observation_space.high
        self.position = np.clip(self.position + np.float32(action), low, high)
        self.steps += 1
        reward = -float(np.linalg.norm(self.position - self.berth)) / 10
        return self.position, reward, False, self.steps == STEPS, {}


def poor_steering(env, rng):
    """Often adrift, and at half speed when it does head for the berth."""
    if rng.random() < 0.5:
        return rng.uniform(-8, 8, 2).astype(np.float32)
    return np.clip(env.berth - env.position, -4, 4)


def run_episode(env, act, seed):
    """One episode as Minari wants it: an observation more than actions, and truncation is not termination."""
    observation, _ = env.reset(seed=seed)
    log = {"observations": [observation], "actions": [], "rewards": [], "terminations": [], "truncations": []}
    while not (log["truncations"] and log["truncations"][-1]):
        action = act(observation)
        observation, reward, terminated, truncated, _ = env.step(action)
        for name, value in zip(log, (observation, action, reward, terminated, truncated), strict=True):
            log[name].append(value)
    return {name: np.array(values) for name, values in log.items()}


def write_data(berths, splits, folder):
    """Logs every task into a Minari data set of its own and lists them in `tasks.json`."""
    rng, tasks = np.random.default_rng(0), []
    for i, (berth, split) in enumerate(zip(berths, splits, strict=True)):
        env, dataset = Harbour(berth), f"harbour/berth-{i:02d}-v0"
        if dataset in minari.list_local_datasets():
            minari.delete_dataset(dataset)
        episodes = [run_episode(env, lambda _, env=env: poor_steering(env, rng), seed) for seed in range(EPISODES)]
        with warnings.catch_warnings(action="ignore"):  # Minari would like an author and a description for each
            minari.create_dataset_from_buffers(
                dataset,
                [EpisodeBuffer(**episode, infos={}) for episode in episodes],
                observation_space=env.observation_space,
                action_space=env.action_space,
            )
        x, y = berth
        descriptions = [f"Moor at {x:.0f} m east, {y:.0f} m north", f"Take the boat to the berth ({x:.0f}, {y:.0f})"]
        tasks.append({"name": f"berth-{i:02d}", "split": split, "dataset": dataset, "descriptions": descriptions})
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "tasks.json"
    manifest.write_text(json.dumps({"family": "harbour", "horizon": STEPS, "tasks": tasks}, indent=1))
    return manifest


def act_on_test_tasks(run, manifest, berths):
    """Mean return over the test tasks, one episode each, by what the policy is told; the logged data's mean beside."""
    policy = llmdpd_jax.load_policy(run)
    returns = {"logged": [], "text": [], "trajectory": [], "text and trajectory": []}
    for task, berth in zip(json.loads(manifest.read_text())["tasks"], berths, strict=True):
        if task["split"] == "train":
            continue
        logged = list(minari.load_dataset(task["dataset"]))
        returns["logged"] += [episode.rewards.sum() for episode in logged]
        shown = {name: getattr(logged[0], name) for name in ("observations", "actions", "rewards")}
        told = task["descriptions"][0]
        for prompt, words, example in (
            ("text", told, None),
            ("trajectory", None, shown),
            ("text and trajectory", told, shown),
        ):
            context = policy.prompt(text=words, trajectory=example)
            steer = policy.as_gymnasium_agent(context)

            env = Harbour(berth)
            observation, _ = env.reset(seed=1000)
            total, truncated = 0.0, False
            while not truncated:
                observation, reward, _, truncated, _ = env.step(steer(observation))
                total += reward
            returns[prompt].append(total)
    return {name: float(np.mean(values)) for name, values in returns.items()}


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/harbour"))
    parser.add_argument("--tasks", type=int, default=40, help="berths; every fourth is a test task")
    options, overrides = parser.parse_known_args(arguments)

    berths = np.random.default_rng(7).uniform([5, 5], [95, 55], (options.tasks, 2)).round()
    splits = ["test" if i % 4 == 3 else "train" for i in range(options.tasks)]
    manifest = write_data(berths, splits, options.out)

    command = ["train", "--config=configs/minari.py", f"--config.data.manifest={manifest}", *overrides]
    print("llmdpd " + " ".join(command), f"--out={options.out}")
    status = llmdpd([*command, f"--out={options.out}"])
    if status == 0:
        for name, value in act_on_test_tasks(options.out, manifest, berths).items():
            print(f"{name:20} mean return {value:8.2f}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
