"""The loss curve as SVG: everything lies inside of it, and its words say what it shows."""

import math
import re
import uuid

import pytest

from engine.runs.history.events import EvalData, StatusData, StepData
from engine.runs.history.log import EventWriter
from engine.runs.history.run_history import read_history
from ui.views.loss_svg import loss_words, render_loss_svg, render_loss_table


def a_history(tmp_path, losses, evals=(), total=None):
    """A history with these losses, and held-out losses by step."""
    path = tmp_path / f"{uuid.uuid4().hex}.jsonl"
    with EventWriter(path, attempt=1) as writer:
        writer.append(StatusData(phase="training", total_steps=total))
        for step, loss in evals:
            writer.append(EvalData(step=step, eval_loss=loss, eval_tokens=9, rows=3, seconds=0.1))
        for step, loss in enumerate(losses, start=1):
            writer.append(
                StepData(step=step, epoch=0.1, loss=loss, learning_rate=1e-3, tokens=step, tokens_per_second=9.0)
            )
    return read_history(path)


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
        [0.0, 0.0],
        [1e-9, 2e-9, 1e-9],
        [1e6, 3.0, 2.0],
        [-4.0, -5.0, 2.0],
        [3.0, math.nan, 2.0, math.inf, 1.0],
        [5.0 - n / 400 for n in range(2_000)],
    ],
)
@pytest.mark.parametrize("width", [340, 760])
def test_every_point_lies_inside(tmp_path, losses, width):
    svg = render_loss_svg(a_history(tmp_path, losses, [(0, 2.0), (2, 1.5)]), width, 230)

    result = points(svg)
    assert result
    assert all(0 <= x <= width and 0 <= y <= 230 for x, y in result)
    assert "nan" not in svg
    assert "inf" not in svg
    assert len(svg) < 40_000


def test_lower_losses_are_lower_and_later_steps_further_right(tmp_path):
    svg = render_loss_svg(a_history(tmp_path, [3.0, 2.0, 1.0]), 760, 280)
    raw = points(svg)[:3]

    assert [x for x, _ in raw] == sorted(x for x, _ in raw)
    assert [y for _, y in raw] == sorted(y for _, y in raw)


def test_a_run_that_has_hardly_begun_has_no_curve(tmp_path):
    assert render_loss_svg(a_history(tmp_path, [3.0]), 760, 280) == ""
    assert render_loss_svg(a_history(tmp_path, []), 760, 280) == ""
    assert render_loss_table(a_history(tmp_path, [])) == ""


def test_the_base_models_line_is_there_where_it_was_measured(tmp_path):
    with_base = a_history(tmp_path, [3.0, 2.0], [(0, 2.5), (2, 1.5)])
    assert "base model 2.50" in render_loss_svg(with_base, 760, 280)
    assert "base model" not in render_loss_svg(a_history(tmp_path, [3.0, 2.0]), 760, 280)


def test_the_words_say_what_the_curve_shows(tmp_path):
    history = a_history(tmp_path, [3.0, 2.0], [(0, 2.5), (2, 1.5)])

    words = loss_words(history)

    assert words == (
        "Training loss falls from 3.00 to 2.00 in 2 steps; held-out loss 2.50 before training and 1.50 at step 2."
    )
    assert words in render_loss_svg(history, 760, 280)


def test_a_loss_that_rises_is_not_said_to_fall(tmp_path):
    assert "falls" not in loss_words(a_history(tmp_path, [2.0, 3.0]))


def test_the_table_has_the_last_step_and_every_held_out_loss(tmp_path):
    table = render_loss_table(
        a_history(tmp_path, [3.0 - n / 100 for n in range(150)], [(0, 3.1), (70, 2.2), (150, 1.6)])
    )

    assert '<td class="r">150</td>' in table
    assert "2.200" in table
    assert table.count("<tr>") < 20
