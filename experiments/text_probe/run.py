"""How exactly is a description read? From prompt representations to task parameters, on unseen tasks.

    python experiments/text_probe/run.py --splits 20

Three kinds of parameters: a goal on a plane, a speed, a heading (as cosine and sine). 60 tasks each, split into 45
train and 15 test tasks in 20 ways. A representation is fitted to the train tasks in train wordings, and tested on the
test tasks in wordings it was fitted to ("seen"), in other sentences with other phrases ("unseen wording"), in the train
sentences with a unit no train wording has ("unseen unit": in the table of `prompts.units`, "unknown unit": not in it
either) and with six decimals ("unseen precision"). The score is R2, pooled over splits, tasks and wordings.

Writes results.json beside this file and docs/text_probe.png, and prints the table. What is in results.json is not
computed again, and what the LLM has read is kept in its cache, so the script can be interrupted. Hours on one CPU core.
"""

import argparse
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from llmdpd_jax.models.llm.encoder import TextEncoder, TextEncoderSettings
from llmdpd_jax.models.llm.weights import cache_folder
from llmdpd_jax.models.prompt_encoder import TextReader
from llmdpd_jax.prompts.cache import cached_prompts
from llmdpd_jax.prompts.table import TextTable, make_table, normalise_table, text_statistics
from llmdpd_jax.tasks.wording import Quantity, WordingSet
from llmdpd_jax.tasks.wordings.direction import direction_phrases, direction_wordings
from llmdpd_jax.tasks.wordings.point import point_wordings
from llmdpd_jax.tasks.wordings.velocity import velocity_wordings
from llmdpd_jax.types import Array, TextPrompt

HERE = Path(__file__).parent
PICTURE = HERE.parent.parent / "docs" / "text_probe.png"

TASKS, TRAIN_TASKS, TASK_SEED = 60, 45, 7
WIDTH = 64  # of the reader, as model.context_width
BATCH, LEARNING_RATE = 32, 2e-3  # a batch reads as many texts as one update of the method does
SPLITS_PER_CALL = 5
ALPHAS = 10.0 ** np.arange(-2, 7)
MISREAD = 0.2  # a prediction farther off than this in any of its values

# Columns of the table: the tasks' wordings they are measured on.
COLUMNS = {
    "seen": "train",
    "unseen wording": "held_out",
    "unseen unit": "unseen_unit",
    "unseen precision": "unseen_precision",
    "unknown unit": "unknown_unit",
}


@dataclass(frozen=True)
class Kind:
    """A kind of task parameter."""

    name: str
    wordings: Callable[[], WordingSet]
    draw: Callable[[np.random.Generator], np.ndarray]  # [TASKS, P] parameters
    phrases: Callable[[np.ndarray], dict]  # fields of the templates for one task's parameters [P]
    target: Callable[[np.ndarray], np.ndarray]  # [TASKS, P] -> [TASKS, K], what is to be predicted
    steps: int  # of fitting a reader; headings take longest
    dials: int = 0  # model.number_dials: for what comes round again


KINDS = (
    Kind(
        "point",
        point_wordings,
        lambda rng: rng.uniform(-1, 1, (TASKS, 2)),
        lambda p: {"x": Quantity(p[0]), "y": Quantity(p[1])},
        lambda p: p,
        steps=4000,
    ),
    Kind(
        "velocity",
        velocity_wordings,
        lambda rng: rng.uniform(0, 3, (TASKS, 1)),
        lambda p: {"v": Quantity(p[0])},
        lambda p: p,
        steps=2500,
    ),
    Kind(
        "direction",
        direction_wordings,
        lambda rng: rng.uniform(0, 2 * np.pi, (TASKS, 1)),
        lambda p: direction_phrases(p[0]),
        lambda p: np.concatenate([np.cos(p), np.sin(p)], axis=1),
        steps=6000,
        dials=4,
    ),
)


@dataclass(frozen=True)
class Method:
    """A representation of descriptions and what is fitted to it: `ridge` on one vector per text, or a TextReader."""

    encoder: TextEncoderSettings
    ridge: str = ""  # "states": mean of the LLM's states; "tokens": counts of tokens
    use_llm: bool = True
    use_numbers: bool = True
    most_splits: int = 1000
    most_wordings: tuple[int, int] = (1000, 1000)  # train wordings, and wordings of each other column


DIGITS = TextEncoderSettings(hide_numbers=False, units=False)  # the LLM reads the digits: each task's texts anew
METHODS = {
    "this method": Method(TextEncoderSettings()),
    "without the table of units": Method(TextEncoderSettings(units=False), most_splits=3),
    "random-initialised LLM": Method(TextEncoderSettings(random_seed=0), most_splits=3),
    "numbers only": Method(TextEncoderSettings(), use_llm=False, most_splits=3),
    "LLM only": Method(DIGITS, use_numbers=False, most_splits=3, most_wordings=(12, 4)),
    "mean-pooled LLM states": Method(DIGITS, ridge="states", most_wordings=(12, 4)),
    "bag of tokens": Method(DIGITS, ridge="tokens", most_wordings=(120, 1000)),
}


# --- texts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Texts:
    """Descriptions of all tasks of a kind: rows of `flat` for each column, [TASKS, wordings]."""

    flat: list[str]
    rows: dict[str, np.ndarray]
    target: np.ndarray  # [TASKS, K]


def spread(items: Sequence[str], most: int) -> list[str]:
    """At most so many of the items, from first to last."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int))]


def make_texts(kind: Kind, method: Method) -> Texts:
    """The descriptions that a method is fitted to and tested on."""
    parameters = kind.draw(np.random.default_rng(TASK_SEED))
    flat, rows = [], {}
    for column, group in COLUMNS.items():
        most = method.most_wordings[0 if column == "seen" else 1]
        templates = spread(getattr(kind.wordings(), group), most)
        phrases = [kind.phrases(p) for p in parameters]
        rows[column] = len(flat) + np.arange(TASKS * len(templates)).reshape(TASKS, -1)
        flat += [template.format(**fields) for fields in phrases for template in templates]
    return Texts(flat, rows, kind.target(parameters).astype(np.float32))


def make_splits(splits: int) -> np.ndarray:
    """[splits, TASKS] tasks in random order; the first TRAIN_TASKS are train tasks."""
    return np.stack([np.random.default_rng([TASK_SEED, split]).permutation(TASKS) for split in range(splits)])


def prompts_of(texts: Texts, settings: TextEncoderSettings) -> list[TextPrompt]:
    return cached_prompts(TextEncoder(settings), texts.flat, cache_folder() / "embeddings", progress=True)


# --- the reader ------------------------------------------------------------------------------------------------------


class Probe(nn.Module):
    """A TextReader and a linear map of what it read."""

    size: int
    use_llm: bool
    use_numbers: bool
    dials: int

    @nn.compact
    def __call__(self, prompt: TextPrompt, key: Array | None = None) -> Array:
        read = TextReader(WIDTH, self.use_llm, self.use_numbers, dials=self.dials)(prompt, key)
        return nn.Dense(self.size)(read)


def pick(table: TextTable, rows: Array) -> TextPrompt:
    """The prompts [..., L, ...] in the given rows [...]."""
    return TextPrompt(
        table.states[table.state_rows[rows]], table.mask[rows], table.numbers[rows], table.number_index[rows]
    )


def fit(probe: Probe, steps: int, table: TextTable, rows: Array, targets: Array, order: Array, key: Array) -> dict:
    """Parameters fitted to a split's train tasks. rows [TASKS, V], standardised targets [TASKS, K], order [TASKS]."""
    optimiser = optax.chain(
        optax.clip_by_global_norm(10.0), optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps, 0.1))
    )
    key_init, key = jax.random.split(key)
    params = probe.init(key_init, pick(table, rows[:1, 0]))

    def step(carry, i):
        params, state = carry
        key_task, key_wording, key_read = jax.random.split(jax.random.fold_in(key, i), 3)
        task = order[jax.random.randint(key_task, (BATCH,), 0, TRAIN_TASKS)]
        prompt = pick(table, rows[task, jax.random.randint(key_wording, (BATCH,), 0, rows.shape[1])])

        def loss(params):
            return jnp.mean((probe.apply(params, prompt, key_read) - targets[task]) ** 2)

        updates, state = optimiser.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimiser.init(params)), jnp.arange(steps))[0][0]


@partial(jax.jit, static_argnums=(0, 1))
def fit_and_predict(
    probe: Probe, steps: int, table: TextTable, rows: dict[str, Array], targets: Array, orders: Array, keys: Array
) -> dict[str, Array]:
    """Predictions [S, test tasks, wordings, K] for each column, of S splits one after the other."""

    def split(inputs):
        order, key = inputs
        train = targets[order[:TRAIN_TASKS]]
        mean, std = train.mean(0), train.std(0)
        params = fit(probe, steps, table, rows["seen"], (targets - mean) / std, order, key)

        def predict(chunk):
            return probe.apply(params, pick(table, chunk)) * std + mean

        return {column: jax.lax.map(predict, those[order[TRAIN_TASKS:]]) for column, those in rows.items()}

    return jax.lax.map(split, (orders, keys))


def read_with_reader(kind: Kind, texts: Texts, method: Method, orders: np.ndarray) -> dict[str, np.ndarray]:
    """As `fit_and_predict`, from descriptions."""
    prompts = prompts_of(texts, method.encoder)
    # States of 576 dimensions are needed for the few texts that the LLM read only.
    table = make_table(prompts, [1] * len(prompts))
    train = [prompts[i] for i in texts.rows["seen"].reshape(-1)]
    table = jax.tree.map(jnp.asarray, normalise_table(text_statistics(make_table(train, [1] * len(train))), table))
    probe = Probe(texts.target.shape[1], method.use_llm, method.use_numbers, kind.dials)
    keys = jax.random.split(jax.random.key(TASK_SEED), len(orders))
    parts = []
    for first in range(0, len(orders), SPLITS_PER_CALL):
        chosen = slice(first, first + SPLITS_PER_CALL)
        predicted = fit_and_predict(probe, kind.steps, table, texts.rows, texts.target, orders[chosen], keys[chosen])
        parts.append(jax.tree.map(np.asarray, predicted))
    return {column: np.concatenate([part[column] for part in parts]) for column in texts.rows}


# --- ridge -----------------------------------------------------------------------------------------------------------


@cache
def token_counts(texts: tuple[str, ...]) -> np.ndarray:
    """Counts [P, tokens] of words, digits and marks."""
    split = [re.findall(r"[a-z_]+|\S", text.lower()) for text in texts]
    place = {token: i for i, token in enumerate(dict.fromkeys(token for tokens in split for token in tokens))}
    counts = np.zeros((len(split), len(place)), np.float32)
    for row, tokens in zip(counts, split, strict=True):
        np.add.at(row, [place[token] for token in tokens], 1.0)
    return counts


def ridge_fits(features: np.ndarray, targets: np.ndarray, alphas: Sequence[float]) -> np.ndarray:
    """Weights [alphas, F, K] of ridge regression of centred targets [N, K] on centred features [N, F]."""
    power, axes = np.linalg.eigh(features.T @ features)
    projected = axes.T @ (features.T @ targets)
    return np.stack([axes @ (projected / (np.maximum(power, 0.0) + alpha)[:, None]) for alpha in alphas])


def ridge(features: np.ndarray, targets: np.ndarray, tasks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights [F, K] and offset [K]; alpha is chosen by leaving out fifths of the tasks [N] in turn."""
    folds = np.searchsorted(np.unique(tasks), tasks) % 5
    errors = np.zeros(len(ALPHAS))
    for fold in range(5):
        inside, outside = folds != fold, folds == fold
        center, mean = features[inside].mean(0), targets[inside].mean(0)
        weights = ridge_fits(features[inside] - center, targets[inside] - mean, ALPHAS)
        predicted = np.einsum("nf,afk->ank", features[outside] - center, weights) + mean
        errors += ((predicted - targets[outside]) ** 2).sum((1, 2))
    center, mean = features.mean(0), targets.mean(0)
    weights = ridge_fits(features - center, targets - mean, ALPHAS[[errors.argmin()]])[0]
    return weights, mean - center @ weights


def read_with_ridge(kind: Kind, texts: Texts, method: Method, orders: np.ndarray) -> dict[str, np.ndarray]:
    """Predictions [S, test tasks, wordings, K] for each column."""
    del kind
    if method.ridge == "states":
        features = np.stack([prompt.states.mean(0) for prompt in prompts_of(texts, method.encoder)])
    else:
        features = token_counts(tuple(texts.flat))
    predictions = {column: [] for column in texts.rows}
    for order in orders:
        train = texts.rows["seen"][order[:TRAIN_TASKS]]
        tasks = np.repeat(order[:TRAIN_TASKS], train.shape[1])
        mean, std = features[train.reshape(-1)].mean(0), features[train.reshape(-1)].std(0)
        scaled = (features - mean) / np.where(std > 0, std, 1.0)
        weights, offset = ridge(scaled[train.reshape(-1)], texts.target[tasks], tasks)
        for column, rows in texts.rows.items():
            predictions[column].append(scaled[rows[order[TRAIN_TASKS:]]] @ weights + offset)
    return {column: np.stack(parts) for column, parts in predictions.items()}


# --- scores ----------------------------------------------------------------------------------------------------------


def scores(texts: Texts, orders: np.ndarray, predictions: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """For each column R2 (mean over the K values), its least over splits, and the share of misread descriptions."""
    result = {}
    for column, predicted in predictions.items():
        target = np.broadcast_to(texts.target[orders[:, TRAIN_TASKS:]][:, :, None], predicted.shape)
        error = (predicted - target) ** 2
        by_split = 1 - (error.sum((1, 2)) / ((target - target.mean((1, 2), keepdims=True)) ** 2).sum((1, 2))).mean(-1)
        pooled = 1 - (error.sum((0, 1, 2)) / ((target - target.mean((0, 1, 2))) ** 2).sum((0, 1, 2))).mean()
        train = {texts.flat[i] for i in texts.rows["seen"][orders[0, :TRAIN_TASKS]].reshape(-1)}
        test = [texts.flat[i] for i in texts.rows[column][orders[0, TRAIN_TASKS:]].reshape(-1)]
        result[column] = {
            "r2": float(pooled),
            "r2_worst_split": float(by_split.min()),
            "misread": float((np.sqrt(error).max(-1) > MISREAD).mean()),
            "identical_texts": float(np.mean([text in train for text in test])),  # of the first split
        }
    return result


def table_lines(results: dict, what: str = "r2") -> list[str]:
    """The results as markdown."""
    lines = [f"| parameters | representation | {' | '.join(COLUMNS)} |", "|---|---" + "|---" * len(COLUMNS) + "|"]
    for kind, methods in results.items():
        for name, entry in methods.items():
            cells = [entry["scores"][column][what] for column in COLUMNS]
            text = [f"{cell:.1%}" if what == "misread" else f"{cell:.3f}".replace("-", "−") for cell in cells]
            lines.append(f"| {kind} | {name} | {' | '.join(text)} |")
    return lines


def picture(results: dict) -> Figure:
    """R2 of all representations by kind and column; what is below 0 is drawn at 0."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = figure.subplots(1, len(results), sharey=True)
    for panel, (kind, methods) in zip(panels, results.items(), strict=True):
        for i, (name, entry) in enumerate(methods.items()):
            heights = [max(entry["scores"][column]["r2"], 0.0) for column in COLUMNS]
            panel.bar(
                np.arange(len(COLUMNS)) + (i - len(methods) / 2 + 0.5) / (len(methods) + 1),
                heights,
                1 / (len(methods) + 1),
                label=name,
                color=f"C{i}",
            )
        panel.set_title(kind)
        panel.set_xticks(np.arange(len(COLUMNS)), [column.replace(" ", "\n") for column in COLUMNS], fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("R² on unseen tasks (below 0 drawn as 0)")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False
    )
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--splits", type=int, default=20, help="train/test splits of the tasks")
    parser.add_argument("--kinds", nargs="+", default=[kind.name for kind in KINDS], help="of parameters, if not all")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()

    kinds = [kind for kind in KINDS if kind.name in options.kinds]

    def known() -> dict:
        return json.loads(options.out.read_text()) if options.out.exists() else {}

    for name, method in METHODS.items():
        for kind in kinds:
            splits = min(options.splits, method.most_splits)
            done = known().get(kind.name, {}).get(name)
            if done and done["splits"] == splits:
                continue
            began = time.monotonic()
            texts, orders = make_texts(kind, method), make_splits(splits)
            predictions = (read_with_ridge if method.ridge else read_with_reader)(kind, texts, method, orders)
            entry = {
                "splits": splits,
                "wordings": {column: rows.shape[1] for column, rows in texts.rows.items()},
                "seconds": round(time.monotonic() - began, 1),
                "scores": scores(texts, orders, predictions),
            }
            results = known()  # another process may have added kinds of its own
            results.setdefault(kind.name, {})[name] = entry
            part = options.out.with_suffix(".part")
            part.write_text(json.dumps(results, indent=1) + "\n")
            os.replace(part, options.out)
            print(f"{kind.name}, {name}: {entry['seconds']} s", flush=True)
    results = known()
    results = {kind.name: {name: results[kind.name][name] for name in METHODS} for kind in kinds}
    print("\n".join([*table_lines(results), "", *table_lines(results, "misread")]))
    picture(results).savefig(options.picture, dpi=120)


if __name__ == "__main__":
    main()
