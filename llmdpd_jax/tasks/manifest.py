"""The task manifest `tasks.json`: which data, descriptions and split each task of a multi-task data set has.

    {"family": "point_robot", "env": "point_robot", "horizon": 20,
     "tasks": [{"name": "train-00", "split": "train", "dataset": "point_robot/mixed-e100-s0/train-00-v0",
                "descriptions": ["Navigate to position (0.31, -0.42)", ...], "held_out_descriptions": [...],
                "parameters": {"goal_x": 0.31, "goal_y": -0.42}, "reference": {"random": -16.2, "expert": -2.1}}]}

Only `tasks` with `name`, `split` and `dataset` are required. `dataset` is a Minari id, or the path of a D4RL file
("medium.hdf5") as seen from the manifest. `family` is a label; `env` names a registered task family, whose environment
can then evaluate (left out: the family, if one of that name is registered). Without one, policies are scored in the
Gymnasium environment that a task's Minari data set was logged in, or that its `gym_env` names: an id, "HalfCheetah-v5",
or the arguments of `gymnasium.make`, {"id": "Pendulum-v1", "g": 5.0}. Other fields are ignored, unless they look like a
misspelt one.
"""

import dataclasses
import difflib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmdpd_jax.errors import UserError
from llmdpd_jax.tasks.family import SPLITS, family_names, get_family

FILE_NAME = "tasks.json"
_D4RL_SUFFIXES = (".hdf5", ".h5")


@dataclass(frozen=True)
class Reference:
    """Mean returns of two policies on a task; a score is 0 at `random` and 100 at `expert`."""

    random: float
    expert: float


@dataclass(frozen=True)
class TaskEntry:
    """One task of a manifest."""

    name: str
    split: str
    dataset: str  # Minari id, or absolute path of a D4RL file
    descriptions: tuple[str, ...] = ()
    held_out_descriptions: tuple[str, ...] = ()  # wordings that training never reads
    parameters: Mapping[str, float] | None = None
    reference: Reference | None = None
    gym_env: Mapping[str, Any] | None = None  # arguments of `gymnasium.make`, "id" among them

    @property
    def is_file(self) -> bool:
        """Whether its data are a D4RL file."""
        return self.dataset.endswith(_D4RL_SUFFIXES)

    @property
    def source(self) -> str:
        """How messages name its data."""
        return f"D4RL file {self.dataset}" if self.is_file else f"Minari data set {self.dataset!r}"


@dataclass(frozen=True)
class Manifest:
    """A multi-task data set."""

    tasks: tuple[TaskEntry, ...]
    family: str = "unnamed"
    env: str | None = None  # a registered task family, needed only to evaluate
    horizon: int | None = None
    path: Path | None = dataclasses.field(default=None, compare=False)  # where it was read from or written to

    @property
    def where(self) -> str:
        """How messages name this manifest."""
        return str(self.path) if self.path else "task manifest"


@dataclass(frozen=True)
class TaskSplit:
    """The tasks of one split, and nothing of the others. Training is handed this, never the manifest."""

    split: str
    tasks: tuple[TaskEntry, ...]
    where: str
    closed: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)  # other tasks' names -> split

    def task(self, name: str) -> TaskEntry:
        """The task of that name.

        Raises:
            UserError: it belongs to another split, so opening it here would leak; or there is none of that name.
        """
        for task in self.tasks:
            if task.name == name:
                return task
        if name in self.closed:
            raise UserError(
                f"{self.where}: task {name!r} is a {self.closed[name]} task and stays closed here: "
                f"only the {self.split} split was opened"
            )
        raise UserError(f"{self.where}: no task {name!r}{_nearest(name, [t.name for t in self.tasks])}")


def require_split(manifest: Manifest, split: str) -> TaskSplit:
    """Opens the tasks of one split.

    Raises:
        UserError: `split` is not one of SPLITS, or the manifest has no task in it.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r} (known: {', '.join(SPLITS)})")
    tasks = tuple(task for task in manifest.tasks if task.split == split)
    if not tasks:
        raise UserError(f'{manifest.where}: no task has "split": "{split}"; mark at least one task of "tasks" with it')
    closed = {task.name: task.split for task in manifest.tasks if task.split != split}
    return TaskSplit(split, tasks, manifest.where, closed)


def load_manifest(path: str | Path) -> Manifest:
    """Reads and checks a manifest; `path` is the file, or the folder that holds `tasks.json`.

    Raises:
        UserError: the file is missing or no JSON, or a field is missing, of the wrong kind, contradicts another one
            or is misspelt. The message names file, task and field.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such task manifest; `llmdpd collect` writes one") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file; a task manifest is JSON in UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    return dataclasses.replace(parse_manifest(data, str(path), path.parent), path=path)


def save_manifest(manifest: Manifest, path: str | Path) -> Manifest:
    """Writes the manifest so that a reader sees the old file or the new one, never half of it.

    Fields that are absent (None or empty) are left out. Returns the manifest with its new `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {key: value for key, value in dataclasses.asdict(manifest).items() if key != "path" and value is not None}
    data["tasks"] = [{key: value for key, value in task.items() if value not in (None, ())} for task in data["tasks"]]
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(data, file, indent=1, ensure_ascii=False)
            file.write("\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return dataclasses.replace(manifest, path=path)


def parse_manifest(data: Any, where: str, folder: Path = Path()) -> Manifest:
    """The manifest that decoded JSON describes; see `load_manifest`.

    `where` begins each message; paths of data are seen from `folder`.
    """
    fields = _Fields(data, where)
    fields.refuse_misspelt("family", "env", "horizon", "tasks")
    family = fields.text("family", None)
    env = fields.text("env", None)
    if env is not None:
        try:
            get_family(env)
        except UserError as error:
            raise UserError(f'{where}: "env": {error}') from None
    elif family in family_names():
        env = family
    horizon = fields.get("horizon", None)
    if horizon is not None and (type(horizon) is not int or horizon < 1):
        raise UserError(f'{where}: "horizon" must be a whole number of steps, at least 1, found {horizon!r}')
    entries = fields.get("tasks")
    if not isinstance(entries, list) or not entries:
        raise UserError(f'{where}: "tasks" must be a list of at least one task')
    tasks = tuple(_parse_task(entry, f"{where}: tasks[{i}]", where, folder) for i, entry in enumerate(entries))
    _check_together(tasks, where)
    return Manifest(tasks, family or env or "unnamed", env, horizon)


def _parse_task(data: Any, position: str, where: str, folder: Path) -> TaskEntry:
    name = _Fields(data, position).text("name")
    fields = _Fields(data, f"{where}: task {name!r}")
    fields.refuse_misspelt(*(field.name for field in dataclasses.fields(TaskEntry)))
    split = fields.text("split")
    if split not in SPLITS:
        raise UserError(f'{fields.where}: "split" must be one of {", ".join(SPLITS)}, found {split!r}')
    parameters = fields.numbers("parameters")
    reference = fields.numbers("reference")
    if reference is not None:
        if set(reference) != {"random", "expert"}:
            raise UserError(f'{fields.where}: "reference" must hold "random" and "expert", found {sorted(reference)}')
        reference = Reference(**reference)
        if not reference.expert > reference.random:
            raise UserError(
                f'{fields.where}: "reference": expert must be above random, or no score can be computed; found '
                f"{reference.expert} (expert) and {reference.random} (random)"
            )
    dataset = fields.text("dataset")
    if dataset.endswith(_D4RL_SUFFIXES):
        dataset = os.path.abspath(folder / dataset)  # the manifest may be written elsewhere
    return TaskEntry(
        name=name,
        split=split,
        dataset=dataset,
        descriptions=fields.texts("descriptions"),
        held_out_descriptions=fields.texts("held_out_descriptions"),
        parameters=parameters,
        reference=reference,
        gym_env=_parse_gym_env(fields),
    )


def _parse_gym_env(fields: "_Fields") -> dict[str, Any] | None:
    value = fields.get("gym_env", None)
    if isinstance(value, str) and value.strip():
        return {"id": value}
    if value is not None and not (isinstance(value, dict) and isinstance(value.get("id"), str)):
        raise UserError(
            f'{fields.where}: "gym_env" must be the id of a Gymnasium environment, such as "HalfCheetah-v5", or an '
            f'object with "id" and other arguments of gymnasium.make, found {_kind(value)}'
        )
    return value


def _check_together(tasks: tuple[TaskEntry, ...], where: str) -> None:
    """What must hold between tasks."""
    by_name, by_dataset = {}, {}
    named = next((task for task in tasks if task.parameters is not None), None)
    for task in tasks:
        if task.name in by_name:
            raise UserError(f'{where}: two tasks have the name {task.name!r}; "name" must be unique')
        by_name[task.name] = task
        twin = by_dataset.setdefault(task.dataset, task)
        if twin is not task:
            leak = " of another split, so test data would be trained on" if twin.split != task.split else ""
            raise UserError(
                f'{where}: task {task.name!r}: "dataset" {task.dataset!r} is also that of task {twin.name!r}{leak}'
            )
        if task.parameters is not None and set(task.parameters) != set(named.parameters):
            raise UserError(
                f'{where}: task {task.name!r}: "parameters" are {sorted(task.parameters)}, '
                f"those of task {named.name!r} are {sorted(named.parameters)}"
            )


class _Fields:
    """Typed access to a JSON object, with messages that name it."""

    def __init__(self, data: Any, where: str):
        if not isinstance(data, dict):
            raise UserError(f"{where}: must be a JSON object, found {_kind(data)}")
        self.data, self.where = data, where

    def get(self, name: str, *default: Any) -> Any:
        if name in self.data:
            return self.data[name]
        if default:
            return default[0]
        raise UserError(f'{self.where}: "{name}" is missing')

    def text(self, name: str, *default: Any) -> Any:
        value = self.get(name, *default)
        if name in self.data and (not isinstance(value, str) or not value.strip()):
            raise UserError(f'{self.where}: "{name}" must be a non-empty string, found {_kind(value)}')
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.get(name, [])
        if not isinstance(value, list) or not all(isinstance(text, str) and text.strip() for text in value):
            raise UserError(f'{self.where}: "{name}" must be a list of non-empty strings')
        return tuple(value)

    def numbers(self, name: str) -> dict[str, float] | None:
        value = self.get(name, None)
        if value is None:
            return None
        if not isinstance(value, dict) or not value:
            raise UserError(f'{self.where}: "{name}" must be an object of numbers, found {_kind(value)}')
        for key, number in value.items():
            if type(number) not in (int, float) or not math.isfinite(number):
                raise UserError(f'{self.where}: "{name}": {key!r} must be a finite number, found {number!r}')
        return {key: float(number) for key, number in value.items()}

    def refuse_misspelt(self, *known: str) -> None:
        for name in self.data:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            if name not in known and near:
                raise UserError(f'{self.where}: unknown field "{name}"; did you mean "{near[0]}"?')


def _kind(value: Any) -> str:
    return "an empty string" if value == "" else f"{value!r:.60} ({type(value).__name__})"


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
