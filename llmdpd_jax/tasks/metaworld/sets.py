"""Meta-World's tasks and the sets of them that `llmdpd collect` knows by a name. Nothing here needs the package.

| set | tasks that are trained on, and unseen ones |
|---|---|
| `metaworld-ml1-NAME` | other goals of one task, as ML1 |
| `metaworld-ml10`, `metaworld-ml45` | other tasks, those of ML10 and ML45 |
| `metaworld-18` | 18 tasks and 4 others, those of T2DA (arXiv 2504.15046) |

What Meta-World calls a task is called a *scene* here (`push-v3`): a task of a manifest is a scene with a goal.
"""

import difflib
from dataclasses import dataclass

from llmdpd_jax.errors import UserError
from llmdpd_jax.tasks.metaworld.clauses import CLAUSES

PREFIX = "metaworld-"
_ML1 = f"{PREFIX}ml1-"
SCENES = tuple(CLAUSES)


@dataclass(frozen=True)
class SceneSet:
    """Scenes to train on and unseen ones; where they are the same, the goals differ."""

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    goals: tuple[int, int]  # by default, of each train scene and of each test scene

    def scenes(self, split: str) -> tuple[str, ...]:
        """Those of a split, "train" or "test"."""
        return self.train if split == "train" else self.test


ML10 = SceneSet(
    f"{PREFIX}ml10",
    train=(
        "reach-v3",
        "push-v3",
        "pick-place-v3",
        "door-open-v3",
        "drawer-close-v3",
        "button-press-topdown-v3",
        "peg-insert-side-v3",
        "window-open-v3",
        "sweep-v3",
        "basketball-v3",
    ),
    test=("drawer-open-v3", "door-close-v3", "shelf-place-v3", "sweep-into-v3", "lever-pull-v3"),
    goals=(5, 5),
)
_ML45_TEST = ("bin-picking-v3", "box-close-v3", "hand-insert-v3", "door-lock-v3", "door-unlock-v3")
ML45 = SceneSet(
    f"{PREFIX}ml45",
    train=tuple(scene for scene in SCENES if scene not in _ML45_TEST),
    test=_ML45_TEST,
    goals=(1, 1),
)
# T2DA's code lists these 22 in this order and tests on numbers 1, 4, 14 and 15, counted from 0 (NJU-RL/T2DA:
# evaluate_parallel.py, config/metaworld_config.py). Its wrapper of Meta-World is not published: version 3 for its 2,
# and one goal for each scene, are assumptions.
_T2DA = (
    "faucet-close-v3",
    "faucet-open-v3",
    "door-lock-v3",
    "door-unlock-v3",
    "drawer-close-v3",
    "window-close-v3",
    "window-open-v3",
    "coffee-button-v3",
    "drawer-open-v3",
    "door-open-v3",
    "button-press-v3",
    "button-press-topdown-v3",
    "button-press-topdown-wall-v3",
    "button-press-wall-v3",
    "reach-wall-v3",
    "handle-press-side-v3",
    "handle-press-v3",
    "handle-pull-v3",
    "plate-slide-back-v3",
    "plate-slide-side-v3",
    "plate-slide-v3",
    "plate-slide-back-side-v3",
)
_T2DA_TEST = (1, 4, 14, 15)
T2DA = SceneSet(
    f"{PREFIX}18",
    train=tuple(scene for i, scene in enumerate(_T2DA) if i not in _T2DA_TEST),
    test=tuple(_T2DA[i] for i in _T2DA_TEST),
    goals=(1, 1),
)
_SETS = {chosen.name: chosen for chosen in (ML10, ML45, T2DA)}
KNOWN = (f"{_ML1}NAME", *_SETS)  # for messages and lists


def find_set(name: str) -> SceneSet:
    """The set of that name. Raises `UserError` naming the nearest."""
    if name in _SETS:
        return _SETS[name]
    scene = name.removeprefix(_ML1)
    if name.startswith(_ML1) and scene in CLAUSES:
        return SceneSet(name, train=(scene,), test=(scene,), goals=(45, 10))
    near = difflib.get_close_matches(name, [*_SETS, *(_ML1 + each for each in SCENES)], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(
        f"unknown Meta-World set {name!r}{hint} (known: {', '.join(KNOWN)}, where NAME is one of Meta-World's 50 "
        "tasks, such as push-v3)"
    )
