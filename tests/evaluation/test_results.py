"""Scores, intervals and the results file, against numbers worked out by hand."""

import dataclasses
import json

import numpy as np
import pytest
from rich.console import Console

from llmdpd_jax.errors import UserError
from llmdpd_jax.evaluation.aggregates import aggregate, interquartile_mean, score_table, stratified_bootstrap
from llmdpd_jax.evaluation.results import Results, Row, load_results, merge_results, score, write_results


def row(**changes) -> Row:
    fields = {
        "split": "test",
        "prompt": "text",
        "wording": "seen",
        "sampler": "ddim-5",
        "guidance": {"text": 1.0},
        "seed": 0,
        "task": "a",
        "episodes": 1,
        "returns": (-5.0,),
        "success": (True,),
        "score": 50.0,
    }
    return Row(**{**fields, **changes})


def results(*rows: Row, **changes) -> Results:
    fields = {
        "family": "point_robot",
        "checkpoint": "runs/x/10",
        "git": "abc",
        "config_hash": "1f",
        "device": "cpu",
        "wall_s": 2.0,
        "rows": rows,
    }
    return Results(**{**fields, **changes})


# --- Score ------------------------------------------------------------------------------------------------------------


def test_score_is_linear_between_the_references():
    np.testing.assert_allclose(score([-16.0, -9.0, -2.0, -23.0], random=-16.0, expert=-2.0), [0, 50, 100, -50])


@pytest.mark.parametrize("random, expert", [(-2.0, -2.0), (-1.0, -2.0), (float("nan"), 0.0), (0.0, float("inf"))])
def test_score_refuses_references_that_make_no_scale(random, expert):
    with pytest.raises(UserError, match=r"random=.*expert="):
        score([1.0], random, expert)


def test_scored_row_takes_the_mean_over_episodes():
    labels = {name: getattr(row(), name) for name in ("split", "prompt", "wording", "sampler", "guidance", "seed")}
    made = Row.scored(returns=np.array([-16.0, -2.0, -2.0]), random=-16.0, expert=-2.0, task="a", **labels)
    assert made.episodes == 3 and made.success is None
    assert made.score == pytest.approx(200 / 3)


# --- Aggregates -------------------------------------------------------------------------------------------------------


def test_interquartile_mean_drops_a_quarter_at_either_end():
    assert interquartile_mean(np.array([100.0, 1, 2, 3, 4, 5, 6, -100])) == pytest.approx(3.5)
    # n = 6: floor(6 / 4) = 1 value goes at either end, as in scipy.stats.trim_mean(x, 0.25)
    assert interquartile_mean(np.array([0.0, 1, 2, 3, 4, 50])) == pytest.approx(2.5)
    np.testing.assert_allclose(interquartile_mean(np.array([[7.0, 7, 7], [1, 2, 9]])), [7, 4])


def test_bootstrap_resamples_within_strata_only():
    # Strata far apart but without spread inside: every resample is the data themselves.
    strata = [np.full(5, 0.0), np.full(3, 100.0)]
    assert stratified_bootstrap(strata, lambda x: x.mean(-1)) == pytest.approx((37.5, 37.5))
    # Unstratified, the share of hundreds varies.
    low, high = stratified_bootstrap([np.concatenate(strata)], lambda x: x.mean(-1))
    assert low < 20 and high > 60


def test_bootstrap_reaches_every_value_of_a_stratum():
    low, high = stratified_bootstrap([np.arange(4.0)], lambda x: x.max(-1), level=0.999)
    assert high == 3.0
    low, high = stratified_bootstrap([np.arange(4.0)], lambda x: x.min(-1), level=0.999)
    assert low == 0.0


def test_bootstrap_interval_covers_the_true_mean_as_often_as_it_says():
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(300):
        strata = [centre + generator.normal(size=10) for centre in (-50.0, 0.0, 50.0)]
        low, high = stratified_bootstrap(strata, lambda x: x.mean(-1), replicates=500)
        hits += low <= 0.0 <= high
    # With ten runs per stratum the percentile bootstrap covers sqrt(9 / 10) of the width: about 93.7 %.
    assert 0.89 <= hits / 300 <= 0.98


def test_bootstrap_width_is_that_of_the_normal_approximation():
    values = np.random.default_rng(2).normal(size=400)
    low, high = stratified_bootstrap([values], lambda x: x.mean(-1))
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)


def test_aggregates_keep_settings_apart_and_come_in_order():
    rows = [
        row(prompt="text", split="train", score=1.0),
        row(prompt="text", wording="held_out", score=2.0),
        row(prompt="text", guidance={"text": 2.0}, score=3.0),
        row(prompt="text", score=4.0),
        row(prompt="text", variant="numbers only", score=5.0),
        row(prompt="none", score=6.0),
    ]
    found = [(x.group.variant, x.group.guidance, x.group.prompt, x.group.split, x.mean) for x in aggregate(rows)]
    usual, strong = (("text", 1.0),), (("text", 2.0),)
    assert found == [
        ("", usual, "none", "test", 6.0),
        ("", usual, "text", "test", 4.0),
        ("", usual, "text", "train", 1.0),
        ("", usual, "text", "test", 2.0),
        ("", strong, "text", "test", 3.0),
        ("numbers only", usual, "text", "test", 5.0),
    ]


def test_intervals_are_over_seeds_where_every_task_has_several():
    # No spread between the seeds of a task: no interval, though the tasks differ.
    rows = [row(task=task, seed=seed, score=value) for task, value in (("a", 10.0), ("b", 90.0)) for seed in (0, 1)]
    (entry,) = aggregate(rows)
    assert (entry.tasks, entry.seeds, entry.mean, entry.interval_over) == (2, 2, 50.0, "seeds")
    assert entry.mean_interval == pytest.approx((50.0, 50.0))


def test_intervals_are_over_tasks_where_there_is_one_seed():
    (entry,) = aggregate([row(task=str(index), score=float(value)) for index, value in enumerate([0, 100] * 8)])
    assert entry.interval_over == "tasks"
    low, high = entry.mean_interval
    # The mean of 16 fair coins: 50 ± 1.96 · 50 / 4.
    assert low == pytest.approx(25.5, abs=4) and high == pytest.approx(74.5, abs=4)


def test_a_single_row_has_no_interval():
    (entry,) = aggregate([row()])
    assert entry.mean == 50.0 and entry.mean_interval is None and entry.iqm_interval is None


def test_success_and_return_are_means():
    rows = [
        row(task="a", episodes=2, returns=(-1.0, -3.0), success=(True, False)),
        row(task="b", episodes=2, returns=(-4.0, -4.0), success=(True, True)),
    ]
    (entry,) = aggregate(rows)
    assert entry.success == 0.75 and entry.mean_return == -3.0
    assert aggregate([row(success=None)])[0].success is None


# --- File -------------------------------------------------------------------------------------------------------------


def test_file_round_trip(tmp_path, synthetic):
    written, _ = synthetic(seeds=2)
    write_results(tmp_path / "results.json", written)
    assert load_results(tmp_path) == written == load_results(tmp_path / "results.json")
    data = json.loads((tmp_path / "results.json").read_text())
    assert set(data) == {"family", "checkpoint", "git", "config_hash", "device", "wall_s", "rows"}
    assert "variant" not in data["rows"][0], "the field is written only where it says something"
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"], "no temporary file stays behind"


def test_variant_survives_the_file(tmp_path):
    write_results(tmp_path / "results.json", results(row(variant="numbers only")))
    assert load_results(tmp_path).rows[0].variant == "numbers only"


@pytest.mark.parametrize(
    "field, value, expected",
    [
        ("split", "validation", '"test", "train"'),
        ("prompt", "both", '"text\\+trajectory"'),
        ("wording", "unseen", '"held_out"'),
        ("guidance", {"text": "strong"}, "finite numbers"),
        ("seed", True, "integer"),
        ("seed", -1, "zero or more"),
        ("episodes", 0, "above zero"),
        ("returns", [1.0, float("nan")], "finite"),
        ("returns", [1.0, 2.0], "2 entries for 1 episodes"),
        ("success", [True, False], "2 entries for 1 episodes"),
        ("success", [1], "true and false"),
        ("score", None, "finite number"),
        ("task", "", "not empty"),
    ],
)
def test_bad_rows_are_named(tmp_path, field, value, expected):
    path = tmp_path / "results.json"
    write_results(path, results(row(), row(task="b")))
    data = json.loads(path.read_text())
    data["rows"][1][field] = value
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match=expected) as error:
        load_results(path)
    assert str(path) in str(error.value) and "rows[1]" in str(error.value) and f'"{field}"' in str(error.value)


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda data: data.pop("device"), 'field "device" is missing'),
        (lambda data: data["rows"][0].pop("sampler"), 'field "sampler" is missing'),
        (lambda data: data.update(mean=3.0), 'unknown field "mean"'),
        (lambda data: data["rows"][0].update(promt="text"), 'unknown field "promt"'),
        (lambda data: data.update(wall_s=-1), '"wall_s"'),
        (lambda data: data.update(rows={}), '"rows"'),
        (lambda data: data["rows"].append(data["rows"][0]), r"rows\[0\] and rows\[1\] are the same evaluation"),
    ],
)
def test_bad_files_are_explained(tmp_path, change, expected):
    path = tmp_path / "results.json"
    write_results(path, results(row()))
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match=expected):
        load_results(path)


def test_missing_and_truncated_files_are_explained(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_results(tmp_path)
    (tmp_path / "results.json").write_text('{"family": "point')
    with pytest.raises(UserError, match="not valid JSON"):
        load_results(tmp_path)


def test_invalid_results_are_not_written_over_valid_ones(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, results(row()))
    with pytest.raises(UserError, match='"score"'):
        write_results(path, results(row(score=float("nan"))))
    assert load_results(path) == results(row())


# --- Merge ------------------------------------------------------------------------------------------------------------


def test_merge_puts_seeds_together():
    merged = merge_results([results(row()), results(row(seed=1, score=70.0), checkpoint="runs/y/10")])
    assert merged.checkpoint == "runs/x/10, runs/y/10" and merged.device == "cpu" and merged.wall_s == 4.0
    (entry,) = aggregate(merged.rows)
    assert entry.seeds == 2 and entry.mean == 60.0


def test_merge_counts_a_repeated_row_once_and_refuses_contradictions():
    assert merge_results([results(row()), results(row())]).rows == (row(),)
    with pytest.raises(UserError, match=r"task a, prompt text.*seed 0"):
        merge_results([results(row()), results(row(score=51.0))])
    relabelled = dataclasses.replace(row(score=51.0), variant="later checkpoint")
    assert len(merge_results([results(row()), results(relabelled)]).rows) == 2


def test_merge_refuses_other_families():
    with pytest.raises(UserError, match="ant_dir, point_robot"):
        merge_results([results(row()), results(row(), family="ant_dir")])


# --- Table ------------------------------------------------------------------------------------------------------------


def printed(table, width=80) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table)
    return capture.get().splitlines()


def test_table_has_test_scores_first_and_train_scores_beside_them():
    rows = [row(score=80.0), row(task="b", score=90.0), row(task="c", split="train", score=99.0)]
    lines = printed(score_table(results(*rows)))
    (head,) = (line for line in lines if "test score" in line)
    assert head.index("test score") < head.index("train score")
    (cells,) = (line for line in lines if line.startswith("text"))
    assert "85.0 [80.0, 90.0]" in cells and cells.rstrip().endswith("99.0") and "100%" in cells


def test_table_fits_a_terminal_of_80_characters(synthetic):
    made, _ = synthetic(tasks=15, train_tasks=45)
    held_out = [dataclasses.replace(row, wording="held_out") for row in made.rows if "text" in row.prompt]
    lines = printed(score_table(dataclasses.replace(made, rows=made.rows + tuple(held_out))))
    assert sum(line.startswith("text+trajectory") for line in lines) == 2
    assert sum("[" in line and "]" in line for line in lines) == 6, "no interval is broken over two lines"


def test_table_shows_a_setting_only_where_settings_differ():
    rows = [row(), row(guidance={"text": 2.5}), row(variant="one[hot]")]
    text = "\n".join(printed(score_table(results(*rows)), width=120))
    assert "guidance" in text and "text 2.5" in text and "one[hot]" in text
    assert "sampler" not in text and "wording" not in text


def test_table_of_nothing_is_refused():
    with pytest.raises(UserError, match="no rows"):
        score_table(results())
