"""A sweep as the page shows it: its table, and a chart for as many settings as it has."""

import itertools
import json

import plotly.graph_objects as go
import pytest

from loratory.engine.runs.sweep_result import SweepResult, sweep_result
from loratory.ui.views.sweep import render_sweep, render_sweep_plan, sweep_figure
from tests.runs.test_sweep_result import row

RATE, RANK, LENGTH = "training.learning_rate", "adapter.r", "training.max_length"


def result_of(*axes: tuple[str, tuple[str, ...]], seeds: tuple[str, ...] = ("",)) -> SweepResult:
    """Return the result of a whole sweep, whose losses fall from run to run, by 0.1 of a seed and 1 of a combination."""
    names, rows = [name for name, _ in axes], []
    for number, values in enumerate(itertools.product(*(values for _, values in axes))):
        for shift, seed in enumerate(seeds):
            swept = dict(zip(names, values, strict=True)) | ({"training.seed": seed} if seed else {})
            rows.append(row(9 - number - shift / 10, held_out=f"rows of {seed}", swept=swept))
    result = sweep_result(rows[::-1], "abcd1234")
    assert result is not None
    return result


def figure(result: SweepResult) -> tuple[go.Figure, dict]:
    chart = json.loads(sweep_figure(result))
    return go.Figure(data=chart["data"], layout=chart["layout"]), chart


def test_a_sweep_is_its_conclusion_and_a_row_for_each_combination_the_best_first():
    html = render_sweep(result_of((RATE, ("1e-4", "<b>")), seeds=("1", "2")))

    assert (
        '<div class="sentence" role="status" aria-live="polite">Best: learning rate &lt;b&gt;: held-out loss 7.950'
        in html
    )
    assert html.index(">learning rate &lt;b&gt;</td>") < html.index(">learning rate 1e-4</td>")
    assert html.count("2 of 2") == 2
    assert "Use these settings" in html
    assert "Use these settings" not in render_sweep(sweep_result([row(None, "running")], "abcd1234"))


def test_a_line_with_intervals_for_one_setting():
    plot, chart = figure(result_of((RANK, ("8", "16", "32")), seeds=("1", "2")))

    (trace,) = plot.data
    assert (trace.type, trace.x, trace.y) == ("scatter", ("8", "16", "32"), (8.95, 7.95, 6.95))
    assert trace.error_y.array == pytest.approx([0.6353] * 3, rel=1e-3)
    assert plot.layout.xaxis.type == "category"  # as typed, not 8 to 32 on a scale
    assert plot.layout.yaxis.type == "linear"
    assert chart["label"].startswith("Best: r 32")


def test_a_heat_map_for_two_settings():
    plot, _ = figure(result_of((RATE, ("1e-4", "2e-4")), (RANK, ("8", "16"))))

    (trace,) = plot.data
    assert trace.type == "heatmap"
    assert list(zip(trace.x, trace.y, trace.z, strict=True)) == [
        ("1e-4", "8", 9.0), ("1e-4", "16", 8.0), ("2e-4", "8", 7.0), ("2e-4", "16", 6.0),
    ]  # fmt: skip
    assert trace.text == ("9.000", "8.000", "7.000", "6.000")
    assert plot.layout.yaxis.type == plot.layout.xaxis.type == "category"


def test_parallel_sets_for_more_settings():
    plot, _ = figure(result_of((RATE, ("1e-4", "2e-4")), (RANK, ("8", "16")), (LENGTH, ("256", "512"))))

    (trace,) = plot.data
    assert trace.type == "parcats"
    assert [dimension.label for dimension in trace.dimensions] == ["learning_rate", "r", "max_length", "held-out loss"]
    assert len(trace.line.color) == len(trace.dimensions[0]["values"]) == 8


def test_combinations_with_fewer_seeds_are_listed_last_and_not_drawn():
    rows = [row(2.0 + rank / 100 + seed / 10, seed=str(seed), swept={RANK: str(rank), "training.seed": str(seed)}) for rank in (8, 16) for seed in (1, 2)]  # fmt: skip
    few = row(1.0, seed="1", swept={RANK: "64", "training.seed": "1"})
    failed = row(None, "failed", seed="2", swept={RANK: "64", "training.seed": "2"})
    result = sweep_result([few, failed, *rows], "abcd1234")

    assert result is not None
    html = render_sweep(result)
    assert html.index(">r 8</td>") < html.index(">r 16</td>") < html.index(">r 64</td>")
    assert "1 of 2" in html
    assert set(figure(result)[0].data[0].x) == {"8", "16"}
    incomparable = sweep_result([*rows, row(1.0, swept={RANK: "8"}), row(1.0, swept={RANK: "16"}, held_out="others")], "abcd1234")  # fmt: skip
    assert incomparable is not None
    assert sweep_figure(incomparable) == ""


def test_a_single_measured_combination_has_no_chart():
    assert sweep_figure(result_of((RANK, ("8",)), seeds=("1", "2", "3"))) == ""


def test_a_plan_without_an_estimate_says_so():
    assert render_sweep_plan(1, None, {}) == (
        '<p class="small" role="status">1 run, time unknown until a similar run. Memory unknown.</p>'
    )
