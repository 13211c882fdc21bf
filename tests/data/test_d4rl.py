"""Reading D4RL files: where episodes are cut, what truncation keeps, and every message about a file."""

import h5py
import numpy as np
import pytest

from llmdpd_jax.data import d4rl
from llmdpd_jax.data.d4rl import read_d4rl
from llmdpd_jax.data.store import load_split
from llmdpd_jax.errors import UserError
from llmdpd_jax.tasks.manifest import Manifest, TaskEntry

# Three episodes in a row: three steps and terminated, two steps and cut, two steps when the file ends.
OBSERVATIONS = np.float32([[0, 0.0], [1, 0], [2, 0], [10, 0], [11, 0], [20, 0], [21, 0]])
LOG = {
    "observations": OBSERVATIONS,
    "next_observations": OBSERVATIONS + np.float32([1, 0]),
    "actions": np.float32([[0.1], [0.2], [0.3], [0.4], [0.5], [0.6], [-0.7]]),
    "rewards": np.float32([1, 2, 3, 4, 5, 6, 7]),
    "terminals": np.array([0, 0, 1, 0, 0, 0, 0], bool),
    "timeouts": np.array([0, 0, 0, 0, 1, 0, 0], bool),
}


@pytest.fixture
def write(tmp_path):
    """`write(name=array, ...)` writes the log with some arrays changed, or left out (None), and returns the path."""

    def write(**changes):
        path = tmp_path / "log.hdf5"
        with h5py.File(path, "w") as file:
            for name, array in (LOG | changes).items():
                if array is not None:
                    file[name] = array
            file["metadata/algorithm"] = "SAC"
        return str(path)

    return write


def check_three_episodes(episodes):
    assert episodes.lengths.tolist() == [3, 2, 2]
    np.testing.assert_array_equal(episodes.observations[..., 0], [[0, 1, 2, 3], [10, 11, 12, 0], [20, 21, 22, 0]])
    np.testing.assert_allclose(episodes.actions[..., 0], [[0.1, 0.2, 0.3], [0.4, 0.5, 0], [0.6, -0.7, 0]])
    np.testing.assert_array_equal(episodes.rewards, [[1, 2, 3], [4, 5, 0], [6, 7, 0]])
    assert episodes.terminations.tolist() == [[False, False, True], [False] * 3, [False] * 3]
    assert episodes.action_low == -np.inf and episodes.action_high == np.inf


def test_terminals_end_and_timeouts_cut(write):
    check_three_episodes(read_d4rl(write()))


def test_without_timeouts_the_log_is_cut_where_observations_jump(write):
    check_three_episodes(read_d4rl(write(timeouts=None)))


@pytest.mark.parametrize("block", [1, 2, 4, 5, 6, 7])
def test_jumps_are_found_wherever_a_block_ends(write, monkeypatch, block):
    monkeypatch.setattr(d4rl, "_BLOCK", block)
    check_three_episodes(read_d4rl(write(timeouts=None)))


def test_a_terminal_at_a_timeout_is_a_termination(write):
    episodes = read_d4rl(write(terminals=LOG["terminals"] | LOG["timeouts"]))
    assert episodes.terminations.tolist() == [[False, False, True], [False, True, False], [False] * 3]


def test_without_next_observations_a_cut_episode_loses_its_last_step(write):
    episodes = read_d4rl(write(next_observations=None))
    assert episodes.lengths.tolist() == [3, 1, 1]
    np.testing.assert_array_equal(episodes.observations[..., 0], [[0, 1, 2, 2], [10, 11, 0, 0], [20, 21, 0, 0]])
    np.testing.assert_array_equal(episodes.rewards, [[1, 2, 3], [4, 0, 0], [6, 0, 0]])
    assert episodes.terminations.tolist() == [[False, False, True], [False] * 3, [False] * 3]
    # An episode of one step that led nowhere is none.
    cut = np.array([0, 0, 0, 1, 1, 0, 1], bool)
    assert read_d4rl(write(next_observations=None, timeouts=cut)).lengths.tolist() == [3, 1]
    with pytest.raises(UserError, match=r"log\.hdf5: no episode has a step whose next observation is known"):
        read_d4rl(write(next_observations=None, timeouts=np.ones(7, bool), terminals=np.zeros(7, bool)))


def test_arrays_of_more_axes_are_flattened(write):
    changes = {name: LOG[name][:, None] for name in ("rewards", "terminals", "timeouts")}
    changes |= {name: LOG[name][:, None] for name in ("observations", "next_observations")}
    check_three_episodes(read_d4rl(write(**changes)))
    check_three_episodes(read_d4rl(write(timeouts=None, next_observations=LOG["next_observations"][..., None])))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": None, "terminals": None}, "lacks actions, terminals; it holds metadata, next_obs.*, timeouts"),
        ({"rewards": LOG["rewards"][:5]}, r"must be of one length, at least 1, found \{.*'rewards': 5"),
        ({name: array[:0] for name, array in LOG.items()}, "of one length, at least 1"),
        ({"timeouts": None, "next_observations": None}, 'neither "timeouts" nor "next_observations", so where'),
        ({"rewards": LOG["rewards"][:, None].repeat(2, 1)}, r"rewards must hold one number for .*shape \(7, 2\)"),
        ({"terminals": np.zeros((7, 2), bool)}, r"terminals must hold one number for each step, found shape \(7, 2\)"),
        ({"rewards": np.float32(1)}, r"rewards must hold numbers for each step, found float32 of shape \(\)"),
        ({"rewards": h5py.Empty("f")}, "rewards must hold numbers for each step, found float32 of shape None"),
        ({"observations": np.full((7, 2), b"x")}, r"observations must hold numbers .* found \|S1 of shape \(7, 2\)"),
        ({"actions": np.zeros((7, 0))}, r"actions must hold at least one number for each step, found shape \(7, 0\)"),
        (
            {"next_observations": np.zeros((7, 3)), "timeouts": None},
            "next_observations hold 3 numbers a step, observations hold 2; they must be of one size",
        ),
        (
            {"terminals": np.where(np.arange(7) == 2, np.nan, 0)},
            "terminals at step 2 of the log is nan; it must be 0 or",
        ),
        ({"actions": np.where(np.arange(7) == 4, np.nan, 0)}, "episode 1: action at step 1, dimension 0 is nan"),
    ],
)
def test_what_cannot_be_used(write, changes, message):
    path = write(**changes)
    with pytest.raises(UserError, match=f"D4RL file {path}.*{message}"):
        read_d4rl(path)


def test_files_that_are_not_there_or_damaged(write, tmp_path):
    with pytest.raises(UserError, match=r"absent\.hdf5: no such file\. Download it"):
        read_d4rl(str(tmp_path / "absent.hdf5"))
    path = write()
    with open(path, "r+b") as file:
        file.truncate(900)
    with pytest.raises(UserError, match=r"log\.hdf5: cannot be read, so it is damaged"):
        read_d4rl(path)


def test_a_split_of_files_is_loaded(write):
    manifest = Manifest((TaskEntry("a", "train", write()), TaskEntry("b", "test", "absent-v0")))
    data = load_split(manifest, "train", progress=False)
    assert data.store.lengths.tolist() == [3, 2, 2]
    np.testing.assert_allclose([data.action_low[0], data.action_high[0]], [-0.7, 0.6])
    one = Manifest((TaskEntry("a", "train", write(terminals=np.zeros(7, bool), timeouts=np.zeros(7, bool))),))
    with pytest.raises(UserError, match=r"task 'a' \(D4RL file .*log\.hdf5\): has 1 episode; a train task needs"):
        load_split(one, "train", progress=False)
