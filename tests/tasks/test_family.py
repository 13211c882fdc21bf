"""The registry of task families."""

import subprocess
import sys

import pytest

from llmdpd_jax.errors import UserError
from llmdpd_jax.tasks import family
from llmdpd_jax.tasks.family import family_names, get_family, register_family


def test_known_family_is_found():
    found = get_family("point_robot")
    assert found.name == "point_robot" and found is get_family("point_robot")
    assert (found.observation_size, found.action_size, found.horizon) == (2, 2, 20)
    env = found.make_env()
    assert (env.observation_size, env.action_size) == (found.observation_size, found.action_size)


def test_unknown_family_names_the_nearest_and_all():
    known = ", ".join(family_names())
    with pytest.raises(UserError, match=rf"'point_robt'; did you mean 'point_robot'\? \(known: {known}\)"):
        get_family("point_robt")


def test_a_family_can_be_added_once(monkeypatch):
    monkeypatch.setattr(family, "_FACTORIES", dict(family._FACTORIES))
    register_family("mine", lambda: "a family")
    assert get_family("mine") == "a family" and "mine" in family_names()
    with pytest.raises(UserError, match="'mine' is already registered"):
        register_family("mine", lambda: None)


def test_parameters_must_be_those_of_the_family():
    with pytest.raises(UserError, match=r"task a: .*\['goal_x', 'goal_y'\], found \['angle', 'goal_x'\]"):
        get_family("point_robot").parameter_array({"goal_x": 0.1, "angle": 1.0}, "task a")


def test_reading_a_manifest_does_not_import_brax():
    code = "import sys, llmdpd_jax.tasks.manifest; assert 'brax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_environment_prints_nothing():
    result = subprocess.run(
        [sys.executable, "-c", "import llmdpd_jax.tasks.point_robot"], check=True, capture_output=True, text=True
    )
    assert result.stdout == ""


def test_the_environment_comes_in_the_familys_physics_or_in_another():
    cheetah = get_family("cheetah_vel")
    assert cheetah.environment().backend == "spring"
    env = cheetah.environment("positional")
    assert env.backend == "positional" and (env.observation_size, env.action_size) == (17, 6)
    with pytest.raises(UserError, match=r"unknown physics backend 'newton' \(known: generalized, mjx, positional"):
        cheetah.environment("newton")
    with pytest.raises(UserError, match=r"'maze' has no robot of Brax's, so it has no backend 'spring'"):
        get_family("maze").environment("spring")
    with pytest.raises(UserError, match=r"hopper in the physics backend 'spring' would not feel all factors"):
        get_family("hopper_params").environment("spring")
