"""D4RL files whose values tell where they come from, as tasks of a manifest."""

import h5py
import numpy as np
import pytest

from llmdpd_jax.tasks.manifest import Manifest, TaskEntry


@pytest.fixture(scope="session")
def write_tagged_tasks(tmp_path_factory):
    """`write_tagged_tasks(lengths)`: a manifest of train tasks with episodes of the given lengths (a list for each).

    What their values are says `tagged`. With noise, normal noise of that size is on all of them, in float64.
    """

    def write(lengths, noise=0.0) -> Manifest:
        rng = np.random.default_rng(0)
        folder, tasks, episode = tmp_path_factory.mktemp("tagged"), [], 0
        for name, own in enumerate(lengths):
            number = np.repeat(episode + np.arange(len(own)), own).astype(np.float32)
            step = np.concatenate([np.arange(n) for n in own]).astype(np.float32)
            last = np.zeros(len(step), bool)
            last[np.cumsum(own) - 1] = True
            seen = (100 * number + step)[:, None]
            arrays = {
                "observations": seen,
                "next_observations": seen + 1,
                "actions": np.stack([number, step], -1),
                "rewards": -seen[:, 0],
                "terminals": last & (number % 2 == 0),
                "timeouts": last & (number % 2 == 1),
            }
            path = folder / f"{name}.hdf5"
            with h5py.File(path, "w") as file:
                for key, array in arrays.items():
                    file[key] = array if array.dtype == bool else array + noise * rng.normal(size=array.shape)
            tasks.append(TaskEntry(f"task-{name}", "train", str(path)))
            episode += len(own)
        # A test task, whose data are not there: opening them would fail.
        tasks.insert(1, TaskEntry("closed", "test", str(folder / "closed.hdf5")))
        return Manifest(tuple(tasks))

    return write
