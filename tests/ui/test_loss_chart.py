"""What the curves show: figures, checked with Plotly's own validation, and SVG that lies inside its box."""

import json
import math
import re
import uuid

import plotly.graph_objects as go
import pytest

from loratory.engine.runs.history.events import CheckpointData, EvalData, ResumedData, StatusData, StepData
from loratory.engine.runs.history.log import EventWriter
from loratory.engine.runs.history.run_history import RunHistory, read_history
from loratory.engine.runs.usage import Cost
from loratory.ui.views.loss_chart import SERIES, ChartView, loss_figure, loss_words, overlay_figure, render_loss_svg
from loratory.ui.views.step_charts import small_figures


@pytest.fixture
def history(tmp_path):
    """Write and read a history with these losses, and held-out losses by step."""

    def make(losses, evals=(), total=None, more=(), gpu=(), time=None) -> RunHistory:
        log = tmp_path / f"{uuid.uuid4().hex}.jsonl"
        with EventWriter(log, attempt=1) as writer:
            writer.append(StatusData(phase="training", total_steps=total))
            for step, loss in evals:
                writer.append(EvalData(step=step, eval_loss=loss, eval_tokens=9, rows=3, seconds=0.1))
            for step, loss in enumerate(losses, start=1):
                writer.append(
                    StepData(
                        step=step, epoch=0.1, loss=loss, learning_rate=1e-4, grad_norm=1.0, tokens=step * 100,
                        tokens_per_second=500.0, memory_bytes=2**30, gpu=gpu[step - 1] if gpu else {},
                    )
                )  # fmt: skip
            for data in more:
                writer.append(data)
        if time is not None:
            log.write_bytes(re.sub(rb'"time":[0-9.]+', b'"time":' + time, log.read_bytes()))
        return read_history(log)

    return make


@pytest.fixture
def training(history):
    """Return a history of so many steps whose loss falls, measured on held-out rows at both ends."""

    def make(steps: int) -> RunHistory:
        return history([3.0 - step / steps for step in range(1, steps + 1)], [(0, 2.71), (steps, 1.92)], steps)

    return make


def parse_figure(value: str) -> tuple[go.Figure, dict]:
    """Return the figure as Plotly accepts it, which raises for unknown attributes; CSS colours are replaced first."""
    chart = json.loads(re.sub(r"var\(--[a-z-]+\)", "#0072B2", value))
    return go.Figure(data=chart["data"], layout=chart["layout"]), chart


def test_the_loss_chart_shows_raw_smoothed_and_held_out_curves_and_the_base_model(training):
    figure, chart = parse_figure(loss_figure(training(40), ChartView(), "run-1"))

    traces = {trace.name: trace for trace in figure.data}
    assert set(traces) == {"train, each step", "train, smoothed", "held-out", "base model"}
    assert list(traces["held-out"].x) == [0, 40]
    assert list(traces["base model"].y) == [2.71, 2.71]
    assert traces["held-out"].marker.symbol == "diamond"
    assert figure.layout.annotations[0].text == "base model 2.71"
    assert "held-out loss 1.92" in chart["label"]


def test_every_colour_follows_the_theme_and_nothing_paints_the_ground(training):
    chart = json.loads(loss_figure(training(40), ChartView(), "run-1"))

    assert all(trace["line"]["color"].startswith("var(--") for trace in chart["data"])
    assert chart["layout"]["paper_bgcolor"] == chart["layout"]["plot_bgcolor"] == "rgba(0,0,0,0)"


def test_zoom_survives_new_steps_but_not_another_axis(training):
    def revision(steps: int, log_axis: bool) -> str:
        return json.loads(loss_figure(training(steps), ChartView(log_axis=log_axis), "run-1"))["layout"]["uirevision"]

    assert revision(10, False) == revision(20, False)
    assert revision(10, False) != revision(10, True)


def test_a_long_run_is_thinned_and_keeps_its_newest_point(training):
    figure, chart = parse_figure(loss_figure(training(20_000), ChartView(), "run-1"))

    raw = figure.data[0]
    assert len(raw.x) <= 1500
    assert raw.x[-1] == 20_000
    assert len(json.dumps(chart)) < 150_000


def test_losses_that_are_not_numbers_leave_a_gap_and_valid_json(history):
    figure, _ = parse_figure(loss_figure(history([2.0, math.nan, math.inf, 1.5]), ChartView(), "run-1"))

    assert list(figure.data[0].x) == [1, 4]


def test_a_run_without_held_out_rows_has_no_base_line(history):
    figure, _ = parse_figure(loss_figure(history([3.0, 2.0]), ChartView(smoothing=0), "run-1"))

    assert [trace.name for trace in figure.data] == ["train, each step"]
    assert not figure.layout.annotations


def test_memory_has_the_predicted_peak_as_a_line(training):
    figure, _ = parse_figure(small_figures(training(30), int(1.5 * 2**30), "run-1"))

    names = [trace.name for trace in figure.data]
    assert names == ["Learning rate", "Gradient norm", "Tokens per second", "Memory, GiB", "predicted"]
    assert list(figure.data[-1].y) == [1.5, 1.5]
    assert list(figure.data[3].y)[-1] == 1.0


def test_eight_runs_are_distinguished_by_colour_and_by_dash(training):
    runs = [(f"run {number}", training(30), None) for number in range(9)]

    figure, chart = parse_figure(overlay_figure(runs, ChartView()))

    lines = [trace for trace in figure.data if trace.mode == "lines"]
    assert [trace.name for trace in lines] == [f"run {number}" for number in range(8)]
    assert len({trace.line.dash for trace in lines}) == 8
    assert len({colour for colour, _ in SERIES}) == 8
    assert [trace["meta"] for trace in chart["data"]] == [number for number in range(8) for _ in ("train", "held-out")]


# Where steps are on the other x axes


def scales_of(value: str) -> list[dict]:
    return json.loads(value)["scales"]


def test_a_chart_has_where_each_step_is_on_the_other_axes(training):
    scale, *others = scales_of(loss_figure(training(30), ChartView(), "run-1"))

    assert others == []
    assert list(scale) == ["step", "epoch", "tokens seen", "minutes of training"]
    assert scale["step"] == list(range(31))
    assert scale["tokens seen"] == [step * 100 for step in range(31)]
    assert scale["minutes of training"] == sorted(scale["minutes of training"])


def test_a_known_cost_is_an_axis_that_ends_at_it(training):
    run = training(30)
    scale = scales_of(loss_figure(run, ChartView(), "run-1", Cost(1.5, "USD")))[0]

    assert scale["cost, USD"][0] == 0
    assert scale["cost, USD"][-1] == 1.5
    assert scale["cost, USD"] == sorted(scale["cost, USD"])
    assert "cost" in scales_of(loss_figure(run, ChartView(), "run-1", Cost(1.5, "")))[0]


def test_costs_in_two_currencies_are_two_axes_of_which_no_two_runs_have_one(training):
    runs = [("one", training(9), Cost(1.5, "USD")), ("two", training(9), Cost(2, "EUR")), ("three", training(9), None)]

    titles = [set(scale) for scale in scales_of(overlay_figure(runs, ChartView()))]

    assert set.intersection(*titles) == {"step", "epoch", "tokens seen", "minutes of training"}
    assert [titles[0] - titles[2], titles[1] - titles[2]] == [{"cost, USD"}, {"cost, EUR"}]


def test_raw_and_smoothed_losses_have_the_same_steps_so_both_can_be_read_at_each(training):
    figure, _ = parse_figure(loss_figure(training(20_000), ChartView(), "run-1"))

    assert list(figure.data[0].x) == list(figure.data[1].x)


def test_numbers_that_a_foreign_log_has_instead_of_times_leave_valid_json(history):
    run = history([3.0, 2.0], time=b"NaN")

    assert scales_of(loss_figure(run, ChartView(), "run-1", Cost(1.5, "USD")))[0]["minutes of training"] == [0, 0, 0]


# Marks


def marks_of(value: str) -> go.Scatter | None:
    figure, _ = parse_figure(value)
    return {trace.name: trace for trace in figure.data}.get("checkpoints and resumes")


def test_checkpoints_and_resumes_are_marked_below_the_curves(history):
    run = history(
        [3.0] * 40, more=[CheckpointData(step=20, name="step-20", size_bytes=41_000_000), ResumedData(step=20)]
    )

    value = loss_figure(run, ChartView(), "run-1")

    marks = marks_of(value)
    assert list(marks.x) == [20, 20]
    assert list(marks.marker.symbol) == ["square", "triangle-right"]
    assert list(marks.text) == ["checkpoint, 41.0 MB", "resumed from step 20"]
    layout = json.loads(value)["layout"]
    assert layout["yaxis2"]["domain"][1] < layout["yaxis"]["domain"][0]
    assert layout["xaxis"]["anchor"] == marks.yaxis == "y2"


def test_without_checkpoints_the_curves_have_the_whole_chart(training):
    value = loss_figure(training(40), ChartView(), "run-1")

    assert marks_of(value) is None
    assert "domain" not in json.loads(value)["layout"]["yaxis"]


def test_marks_of_a_long_run_are_few(history):
    saved = [CheckpointData(step=step, name=f"step-{step}", size_bytes=1) for step in range(1, 2001)]

    assert len(marks_of(loss_figure(history([3.0] * 2000, more=saved), ChartView(), "run-1")).x) <= 61


def test_a_held_out_point_has_how_it_was_measured(training):
    traces = {trace["name"]: trace for trace in json.loads(loss_figure(training(9), ChartView(), "run-1"))["data"]}

    assert traces["held-out"]["text"][-1] == "3 rows, 0.1 s"


# Readings of GPUs


def test_what_gpus_report_has_small_charts_only_where_it_was_measured(history):
    without, _ = parse_figure(small_figures(history([3.0, 2.0]), None, "run-1"))
    readings = [{"gpu_utilization": 97.0, "gpu_watts": 640.0}, {}, {"gpu_utilization": 99.0, "gpu_watts": 655.5}]
    measured, chart = parse_figure(small_figures(history([3.0, 2.0, 1.0], gpu=readings), None, "run-1"))

    assert [trace.name for trace in without.data] == [
        "Learning rate",
        "Gradient norm",
        "Tokens per second",
        "Memory, GiB",
    ]
    assert [trace.name for trace in measured.data[4:]] == ["GPU utilization, %", "GPU power, W"]
    assert list(measured.data[4].x) == [1, 3]
    assert list(measured.data[5].y) == [640.0, 655.5]
    assert "GPU power, W" in chart["label"]
    assert "GPU temperature" not in chart["label"]


# As SVG, for pages without JavaScript


def points(svg):
    """All coordinates of its curves."""
    return [
        tuple(map(float, pair.split(","))) for line in re.findall(r'points="([^"]+)"', svg) for pair in line.split()
    ]


@pytest.mark.parametrize(
    "losses",
    [
        [3.0, 2.0, 1.0],
        [1.0, 1.0, 1.0],
        [1e-9, 2e-9, 1e-9],
        [-4.0, -5.0, 2.0],
        [3.0, math.nan, 2.0, math.inf, 1.0],
        [5.0 - n / 400 for n in range(2_000)],
    ],
)
def test_every_point_lies_inside(history, losses):
    width = 340
    svg = render_loss_svg(history(losses, [(0, 2.0), (2, 1.5)]), width, 230)

    result = points(svg)
    assert result
    assert all(0 <= x <= width and 0 <= y <= 230 for x, y in result)
    assert "nan" not in svg
    assert "inf" not in svg
    assert len(svg) < 40_000


def test_lower_losses_are_lower_and_later_steps_further_right(history):
    svg = render_loss_svg(history([3.0, 2.0, 1.0]), 760, 280)
    raw = points(svg[svg.index('class="each"') :])[:3]

    assert [x for x, _ in raw] == sorted(x for x, _ in raw)
    assert [y for _, y in raw] == sorted(y for _, y in raw)


def test_a_run_that_has_hardly_begun_has_no_curve(history):
    assert render_loss_svg(history([3.0]), 760, 280) == ""
    assert render_loss_svg(history([]), 760, 280) == ""


def test_the_base_models_line_is_there_where_it_was_measured(history):
    with_base = history([3.0, 2.0], [(0, 2.5), (2, 1.5)])
    assert "base model 2.50" in render_loss_svg(with_base, 760, 280)
    assert "base model" not in render_loss_svg(history([3.0, 2.0]), 760, 280)


def test_the_description_states_what_the_curve_shows(history):
    with_base = history([3.0, 2.0], [(0, 2.5), (2, 1.5)])

    sentence = loss_words(with_base)

    assert sentence == (
        "Training loss falls from 3.00 to 2.00 in 2 steps; held-out loss 1.50 at step 2, 2.50 before training."
    )
    assert sentence in render_loss_svg(with_base, 760, 280)
    assert "falls" not in loss_words(history([2.0, 3.0]))
