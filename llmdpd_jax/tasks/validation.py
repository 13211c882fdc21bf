"""A validation manifest: settings are chosen on train tasks held out of training, so that test tasks stay unseen."""

import dataclasses

import numpy as np

from llmdpd_jax.errors import UserError
from llmdpd_jax.tasks.manifest import Manifest, TaskEntry, require_split


def validation_manifest(manifest: Manifest, tasks: int, descriptions: int, seed: int = 0) -> Manifest:
    """The train tasks of a manifest, some of them in the place of the test tasks, which are left out altogether.

    Training and evaluation take it like any manifest: what they call the test split are the validation tasks, and what
    they call held-out descriptions are train descriptions kept out of training.

    Args:
        manifest: its test tasks and held-out descriptions are dropped.
        tasks: how many train tasks become validation tasks.
        descriptions: how many descriptions per task are held out, by their place in the list, the same places for all
            tasks: where descriptions come from templates, templates are held out. 0 holds out none.
        seed: of the choice, 0 to 2**32 - 1.

    Raises:
        UserError: too few train tasks, a task with too few descriptions, or a seed out of range.
    """
    train = require_split(manifest, "train").tasks
    if not 1 <= tasks < len(train):
        most = len(train) - 1
        raise UserError(f"{manifest.where}: of {len(train)} train tasks 1 to {most} can be held out, not {tasks}")
    fewest = min(len(task.descriptions) for task in train)
    if not 0 <= descriptions < max(fewest, 1):
        raise UserError(
            f"{manifest.where}: {descriptions} descriptions per task cannot be held out, the shortest list has {fewest}"
        )
    if not 0 <= seed < 2**32:
        raise UserError(f"seed: {seed} is out of range; it must be between 0 and {2**32 - 1}")
    generator = np.random.default_rng(seed)
    held_out_tasks = set(generator.permutation(len(train))[:tasks].tolist())
    held_out_places = set(generator.permutation(fewest)[:descriptions].tolist())

    def entry(i: int, task: TaskEntry) -> TaskEntry:
        seen, held_out = (
            tuple(text for place, text in enumerate(task.descriptions) if (place in held_out_places) == chosen)
            for chosen in (False, True)
        )
        split = "test" if i in held_out_tasks else "train"
        return dataclasses.replace(task, split=split, descriptions=seen, held_out_descriptions=held_out)

    return dataclasses.replace(manifest, tasks=tuple(entry(i, task) for i, task in enumerate(train)), path=None)
