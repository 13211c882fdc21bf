"""Meta-World's sets and descriptions. Nothing here needs the package."""

import itertools
import re
import subprocess
import sys

import numpy as np
import pytest

from llmdpd_jax.cli.main import main
from llmdpd_jax.errors import UserError
from llmdpd_jax.prompts.numbers import read_numbers
from llmdpd_jax.tasks.metaworld import wordings
from llmdpd_jax.tasks.metaworld.clauses import CLAUSES
from llmdpd_jax.tasks.metaworld.environment import make_scene
from llmdpd_jax.tasks.metaworld.sets import ML10, ML45, SCENES, T2DA, find_set
from llmdpd_jax.tasks.metaworld.wordings import describe_scene

ROUNDING = 0.00501  # half a centimetre, the coarsest writing
DRAWN = np.random.default_rng(0).uniform([-0.5, 0.3, -0.02], [0.5, 1.0, 0.5], (6, 3))
GOALS = [(-0.3, 0.48, 0.15), (0.0, 0.841, -0.02), *map(tuple, DRAWN.tolist())]


def test_sets_are_told_by_name():
    for name, train, test in (("metaworld-ml10", 10, 5), ("metaworld-ml45", 45, 5), ("metaworld-18", 18, 4)):
        chosen = find_set(name)
        assert (len(chosen.train), len(chosen.test)) == (train, test) == (len(set(chosen.train)), len(set(chosen.test)))
        assert not set(chosen.train) & set(chosen.test) and set(chosen.train + chosen.test) <= set(SCENES)
    assert T2DA.test == ("faucet-open-v3", "drawer-close-v3", "reach-wall-v3", "handle-press-side-v3")
    assert len(SCENES) == 50 == len(set(ML45.train + ML45.test)) and set(ML10.train) < set(SCENES)
    for scene in SCENES:
        chosen = find_set(f"metaworld-ml1-{scene}")
        assert chosen.train == chosen.test == (scene,) and chosen.goals == (45, 10)


def test_clauses_say_what_to_do_and_no_numbers():
    said = [clause for clauses in CLAUSES.values() for clause in (*clauses.train, *clauses.held_out)]
    assert len(said) == 250 == len(set(said))
    for clause in said:
        assert clause[0].islower() and clause[-1].isalpha() and not read_numbers(clause), clause


@pytest.mark.parametrize("held_out", [False, True])
def test_each_sentence_tells_the_goal(held_out):
    """By the numbers read from it, in metres, and the side named in it."""
    for goal in GOALS:
        texts = describe_scene("push-v3", goal, held_out=held_out)
        assert len(texts) == len(set(texts)) >= 30
        for text in texts:
            values = [number.value for number in read_numbers(text)]
            side = re.search(r"right|left", text) and "of right" not in text  # the size stands beside it
            x, y, z = goal
            for stated in (abs(x) if side else x, y, z):
                assert min(abs(value - stated) for value in values) < ROUNDING, text
            if side and abs(x) > ROUNDING:
                assert ("right" in text) == (x > 0) != ("left" in text), text


def test_descriptions_by_hand():
    texts = describe_scene("drawer-open-v3", (-0.0972, 0.54, 0.09), held_out=False)
    assert texts[0] == "Open the drawer. The goal is at x = -0.097, y = 0.540, z = 0.090."
    assert any("54.0 centimetres" in text for text in texts) and any("540 mm" in text for text in texts)
    held_out = describe_scene("drawer-open-v3", (-0.0972, 0.54, 0.09), held_out=True)
    assert any("slide the tray out of the cabinet" in text for text in held_out)


def test_held_out_descriptions_share_neither_frames_nor_phrases_nor_clauses():
    train, held_out = wordings.TRAIN, wordings.HELD_OUT
    assert not set(train.frames) & set(held_out.frames) and not set(train.phrases) & set(held_out.phrases)

    def triples(text):
        words = re.findall(r"\w+", re.sub(r"\{+\w+\}+|<\|?\w\|?>", " ", text.lower()))
        return set(zip(words, words[1:], words[2:], strict=False))

    for one, other in itertools.product(
        train.frames + sum(train.phrases, ()), held_out.frames + sum(held_out.phrases, ())
    ):
        assert len(triples(one) & triples(other)) <= 1, (one, other)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("metaworld-ml1-pusk-v3", "did you mean 'metaworld-ml1-push-v3'"),
        ("metaworld-ml1-push", "did you mean 'metaworld-ml1-push-v3'"),
        ("metaworld-ml01", "did you mean 'metaworld-ml10'"),
        ("metaworld-", r"unknown Meta-World set 'metaworld-'.* \(known: metaworld-ml1-NAME"),
    ],
)
def test_unknown_sets_are_told_with_the_nearest(name, message, capsys):
    with pytest.raises(UserError, match=message):
        find_set(name)
    assert main(["tasks", f"--family={name}"]) == 2 and main(["collect", f"--family={name}"]) == 2
    assert capsys.readouterr().err.count("error: unknown Meta-World set") == 2


def test_the_missing_package_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "metaworld", None)
    with pytest.raises(UserError, match=r'Meta-World is not installed .*pip install -e "\.\[metaworld\]"'):
        make_scene("push-v3")
    assert main(["collect", "--family=metaworld-ml10", f"--out={tmp_path}"]) == 2
    assert "is not installed" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--horizon=501"], "horizon must lie in 1 .. 500, found 501"),
        (["--horizon=0"], "horizon must lie in 1 .. 500, found 0"),
        (["--goals", "0", "5"], "goals must be at least 1 for train and for test scenes, found 0 and 5"),
        (["--workers=0"], "workers must be at least 1, found 0"),
        (["--episodes=1"], "episodes must be at least 2"),
        (["--quality=best"], "unknown quality 'best'"),
        (["--family=maze", "--horizon=50"], "--horizon is for Meta-World's sets (metaworld-...), not for maze"),
        (["--family=maze", "--workers=2"], "--workers is for Meta-World's sets"),
    ],
)
def test_settings_out_of_range_are_refused(arguments, message, tmp_path, capsys):
    assert main(["collect", "--family=metaworld-ml1-push-v3", f"--out={tmp_path}", *arguments]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_processes_that_log_do_not_import_jax():
    program = "import sys, llmdpd_jax.tasks.metaworld.behaviour; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_sets_are_listed(capsys):
    assert main(["tasks"]) == 0
    assert "metaworld-ml1-NAME, metaworld-ml10, metaworld-ml45, metaworld-18" in capsys.readouterr().out
    assert main(["tasks", "--family=metaworld-18"]) == 0
    listed = capsys.readouterr().out
    assert all(scene in listed for scene in T2DA.train + T2DA.test) and "turn the faucet on" in listed
    assert main(["tasks", "--family=metaworld-18", "--render=x.png"]) == 2
