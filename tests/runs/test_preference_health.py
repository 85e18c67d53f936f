"""Preference runs that go wrong are called by name, from their events; those that go well are left alone."""

import json
import math
import re

import plotly.graph_objects as go
import pytest

from loratory.engine.config.objectives import LONGER_PREFERRED
from loratory.engine.config.training import TrainingConfig
from loratory.engine.runs.history.events import DataReportData, EvalData, ResumedData, StatusData, StepData
from loratory.engine.runs.history.log import EventWriter
from loratory.engine.runs.history.preference_health import preference_findings
from loratory.engine.runs.history.run_history import read_history
from tests.event_log import write_log

DPO = TrainingConfig(objective="dpo")
STEPS = 40


def log_of(tmp_path, metrics, *, held_out=None, chosen_longer=0.5, rows=40, loss=lambda share: 0.69 - 0.4 * share):
    """Write a run whose metrics follow from how far it is; `held_out` of its measurements, else the same."""
    log = tmp_path / "events.jsonl"
    with EventWriter(log, attempt=1) as writer:
        writer.append(
            DataReportData(
                train_rows=90, eval_rows=rows, dropped_rows=0, trained_tokens=900, masked_tokens=900,
                chosen_longer=chosen_longer,
            )
        )  # fmt: skip
        writer.append(StatusData(phase="training", total_steps=STEPS))
        for step in range(STEPS + 1):
            share = step / STEPS
            if step:
                writer.append(
                    StepData(
                        step=step, epoch=share, loss=loss(share), learning_rate=1e-4, tokens=step, tokens_per_second=1,
                        metrics=metrics(share),
                    )
                )  # fmt: skip
            if step % 10 == 0:
                measurement = (held_out or metrics)(share)
                writer.append(
                    EvalData(step=step, eval_loss=0.6, eval_tokens=rows, rows=rows, seconds=1, metrics=measurement)
                )
    return log


def rewards(chosen, rejected, *, accuracy=0.9, longer=0.5):
    return {
        "rewards/chosen": chosen, "rewards/rejected": rejected, "rewards/margins": chosen - rejected,
        "rewards/accuracies": accuracy, LONGER_PREFERRED: longer,
    }  # fmt: skip


def names(log, training=DPO):
    return [finding.name for finding in preference_findings(read_history(log), training)]


def test_a_run_that_learns_has_no_finding(tmp_path):
    assert names(log_of(tmp_path, lambda share: rewards(0.3 * share, -1.2 * share))) == []


def test_nothing_is_said_of_a_supervised_run_or_after_a_few_steps(tmp_path):
    log = log_of(tmp_path, lambda share: rewards(-3 * share, -5 * share))
    lines = log.read_text().splitlines(keepends=True)

    assert names(log, TrainingConfig()) == []
    log.write_text("".join(lines[:8]))
    assert names(log) == []


def test_chosen_answers_that_fall_with_rejected_ones_are_named_with_what_helps(tmp_path):
    log = log_of(tmp_path, lambda share: rewards(-0.5 * share, -2 * share))
    (result,) = preference_findings(read_history(log), DPO)

    assert result.name == "The chosen answers become unlikely together with the rejected ones"
    assert "-0.50 and -2.00" in result.fact
    assert "148 times less likely" in result.fact  # e to the fifth, at beta 0.1
    assert "Add sft to loss_type" in result.fix
    with_sft = TrainingConfig(objective="dpo", loss_type=("sigmoid", "sft"))
    assert "sft" not in preference_findings(read_history(log), with_sft)[0].fix
    # The same rewards at a higher beta are a small change.
    assert names(log, TrainingConfig(objective="dpo", beta=1.0)) == []
    assert names(log, TrainingConfig(objective="orpo")) == []  # its rewards are log-probabilities
    kto = preference_findings(read_history(log), TrainingConfig(objective="kto"))
    assert kto[0].name == "The good answers become unlikely together with the bad ones"


def test_rejected_answers_alone_may_fall(tmp_path):
    assert names(log_of(tmp_path, lambda share: rewards(-0.1 * share, -5 * share))) == []


def test_a_growing_margin_with_falling_held_out_accuracy_is_overfitting(tmp_path):
    def held_out(share):
        return rewards(0.2, -0.5, accuracy=0.9 - 0.3 * share)

    log = log_of(tmp_path, lambda share: rewards(share, -3 * share, accuracy=1.0), held_out=held_out)

    (result,) = preference_findings(read_history(log), DPO)
    assert result.name == "Overfitting"
    assert "60%" in result.fact
    assert "step 10" in result.fact
    assert names(log_of(tmp_path, lambda share: rewards(share, -3 * share), held_out=held_out, rows=10)) == []


def test_longer_answers_that_are_preferred_beyond_what_the_data_says_are_named(tmp_path):
    log = log_of(tmp_path, lambda share: rewards(share, -share, longer=0.5 + 0.4 * share), chosen_longer=0.55)

    (result,) = preference_findings(read_history(log), DPO)

    assert result.name == "Answers grow longer"
    assert "90%" in result.fact
    assert "55%" in result.fact
    assert "sigmoid_norm" in result.fix
    log = log_of(tmp_path, lambda share: rewards(share, -share, longer=0.9), chosen_longer=0.9)
    assert names(log) == [], "the data reports it"


def test_a_run_that_changes_nothing_is_named_after_its_first_half(tmp_path):
    log = log_of(tmp_path, lambda share: rewards(1e-4 * share, 0.0, accuracy=0.5))
    assert names(log) == ["Nothing is learned"]

    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:18]))
    assert names(log) == []


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_left_to_the_verdict(loss, tmp_path):
    log = log_of(tmp_path, lambda share: rewards(-3 * share, -5 * share), loss=lambda share: 0.5 if share < 1 else loss)

    assert names(log) == []


# The metrics of steps, as far as the history keeps them


def test_metrics_of_steps_are_read_back_and_a_resumed_run_drops_those_beyond(tmp_path):
    log = log_of(tmp_path, lambda share: rewards(share, -share))
    steps, values = read_history(log).steps.metric("rewards/chosen")
    assert steps.tolist() == list(range(1, STEPS + 1))
    assert values[-1] == 1.0

    with EventWriter(log, attempt=2) as writer:
        writer.append(ResumedData(step=30))
        writer.append(
            StepData(step=31, epoch=1, loss=0.5, learning_rate=1e-4, tokens=1, tokens_per_second=1, metrics={"rewards/chosen": 7.0})
        )  # fmt: skip
    steps, values = read_history(log).steps.metric("rewards/chosen")
    assert steps.tolist() == list(range(1, 32))
    assert values[-1] == 7.0
    assert read_history(log).steps.metric("rewards/margins")[0][-1] == 30
    assert read_history(log).steps.metric("no such metric")[0].size == 0


@pytest.mark.parametrize("metric", ["[1]", '"x"', '{"rewards/chosen": "many"}', '{"rewards/chosen": [1]}', "7"])
def test_a_forged_metric_costs_its_step_and_no_more(metric, tmp_path):
    log = log_of(tmp_path, lambda share: rewards(share, -share))
    lines = log.read_text().splitlines(keepends=True)
    broken = re.sub(r'"metrics":\{[^}]*\}', lambda _: f'"metrics":{metric}', lines[10])
    assert broken != lines[10]
    log.write_text("".join([*lines[:10], broken, *lines[11:]]))

    assert len(read_history(log).steps.metric("rewards/chosen")[0]) == STEPS - 1


# As charts


def figure(value):
    chart = json.loads(re.sub(r"var\(--[a-z-]+\)", "#0072B2", value))
    return go.Figure(data=chart["data"], layout=chart["layout"]), chart


def test_rewards_margin_accuracy_and_length_are_small_charts_of_one_figure(tmp_path):
    from loratory.ui.views.step_charts import reward_figure

    history = read_history(log_of(tmp_path, lambda share: rewards(share, -share), chosen_longer=0.6))

    plot, chart = figure(reward_figure(history, DPO, "run-1"))

    titles = [annotation.text for annotation in plot.layout.annotations]
    assert [title for title in titles if title not in ("chosen", "rejected")][:3] == [
        "Rewards (β · log-ratio)",
        "Margin",
        "Preferred correctly",
    ]
    assert "in the data 60%" in titles
    assert {trace.name for trace in plot.data} >= {"chosen", "rejected, held-out", "margin", "train", "held-out"}
    shares = [trace for trace in plot.data if trace.name == "held-out"]
    assert all(0 not in trace.x for trace in shares), "before the first step every pair is a tie"
    assert "held-out rows" in chart["label"]
    assert reward_figure(history, TrainingConfig(), "run-1") == ""


def test_ratings_have_their_kl_and_log_probabilities(tmp_path):
    from loratory.ui.views.step_charts import reward_figure

    ratings = {"rewards/chosen": 1.0, "rewards/rejected": -1.0, "rewards/margins": 2.0, "logps/chosen": -9.0, "logps/rejected": -8.0, "kl": 0.4}  # fmt: skip
    history = read_history(log_of(tmp_path, lambda _: ratings))

    plot, _ = figure(reward_figure(history, TrainingConfig(objective="kto"), "run-1"))

    titles = [annotation.text for annotation in plot.layout.annotations]
    assert any("KL to reference" in title for title in titles)
    assert {"good", "bad"} <= set(titles)
    assert {trace.name for trace in plot.data} >= {"KL", "good", "bad, held-out"}


def test_before_anything_was_measured_there_is_no_chart(tmp_path):
    from loratory.ui.views.step_charts import reward_figure

    log = tmp_path / "events.jsonl"
    write_log(log, StatusData(phase="training", total_steps=9))

    assert reward_figure(read_history(log), DPO, "run-1") == ""
