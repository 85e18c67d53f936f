"""Runs that learn from rewards and go wrong are called by name, from their events; those that go well are left alone."""

import json

import pytest

from loratory.engine.config.training import TrainingConfig
from loratory.engine.runs.history.events import EvalData, RolloutData, RolloutSample, StatusData, StepData
from loratory.engine.runs.history.log import EventWriter
from loratory.engine.runs.history.reward_health import health_findings, reward_names
from loratory.engine.runs.history.run_history import read_history
from loratory.engine.runs.history.verdict import judge
from loratory.engine.runs.summary import RunSummary
from loratory.ui.views.loss_chart import held_out_points
from loratory.ui.views.run_view import loss_words, run_choices
from loratory.ui.views.step_charts import reward_figure
from tests.invented_runs import a_config

STEPS = 20
NUMBER = {"scorer": "number"}


def training(*rewards, **settings):
    return TrainingConfig.model_validate({"objective": "grpo", "beta": 0, "rewards": rewards or (NUMBER,), **settings})


def healthy(share):
    """Return the metrics of a run that learns, by how far it is."""
    return {
        "reward": 0.2 + 0.6 * share, "frac_reward_zero_std": 0.2, "completions/mean_length": 20.0 - 5 * share,
        "completions/clipped_ratio": 0.1, "entropy": 1.5 - 0.5 * share, "scorer_errors": 0.0,
    }  # fmt: skip


def log_of(tmp_path, metrics=healthy, held_out=lambda share: 0.3 + 0.5 * share, steps=STEPS, reason=""):
    log = tmp_path / "events.jsonl"
    with EventWriter(log, attempt=1) as writer:
        writer.append(StatusData(phase="training", total_steps=STEPS))
        for step in range(steps + 1):
            share = step / STEPS
            if step:
                values = healthy(share) | metrics(share)
                writer.append(
                    StepData(
                        step=step, epoch=share, loss=0.1, learning_rate=1e-4, tokens=step, tokens_per_second=1, metrics=values
                    )
                )  # fmt: skip
            if step % 5 == 0:
                reward = {"reward": held_out(share)}
                writer.append(
                    EvalData(step=step, eval_loss=-reward["reward"], eval_tokens=9, rows=30, seconds=1, metrics=reward)
                )
        if reason:
            sample = RolloutSample(prompt="2 + 2?", answer="4", scores=(None,), reasons=(reason,), advantage=0.0)
            writer.append(
                RolloutData(step=1, samples=(sample,), answers=8, tokens=80, generation_seconds=1, scoring_seconds=1)
            )
    return log


def findings(log, config=None):
    return health_findings(read_history(log), config or training())


@pytest.mark.parametrize("steps", [STEPS, 4])
def test_a_run_that_learns_and_one_that_has_just_begun_have_no_finding(tmp_path, steps):
    assert findings(log_of(tmp_path, steps=steps)) == ()


@pytest.mark.parametrize(
    ("metrics", "name", "fact"),
    [
        (lambda _: {"frac_reward_zero_std": 0.95, "reward": 0.0}, "Tied groups", "In 95% of the groups all answers earn the same, 0.00"),
        (lambda _: {"completions/clipped_ratio": 0.7}, "Cut answers", "70% of the answers are cut at 512 tokens."),
        (lambda share: {"entropy": 2.0 - 1.9 * share}, "Entropy collapse", "The entropy of the answers fell from 1.7"),
        (lambda share: {"completions/mean_length": 10 + 90 * share}, "Answers grow", "Answers had 2"),
        (lambda share: {"completions/mean_length": 100 - 90 * share}, "Answers shrink", "Answers had 8"),
    ],
)  # fmt: skip
def test_a_run_that_goes_wrong_is_named_with_its_figures(tmp_path, metrics, name, fact):
    (finding,) = findings(log_of(tmp_path, metrics))
    assert finding.name == name
    assert finding.fact.startswith(fact)
    assert finding.fix


def test_tied_groups_at_the_highest_reward_need_harder_prompts(tmp_path):
    log = log_of(tmp_path, lambda _: {"frac_reward_zero_std": 0.9, "reward": 1.0})
    assert findings(log)[0].fix == "Choose harder prompts."


def test_a_scorer_that_fails_is_named_with_its_reason(tmp_path):
    # Of 2 x 4 x 8 answers a step.
    log = log_of(tmp_path, lambda _: {"scorer_errors": 16.0}, reason="It raised KeyError: 'topic'.")
    (finding,) = findings(log, training())
    assert (finding.name, finding.fact) == (
        "A scorer fails",
        "25% of the verdicts are missing: It raised KeyError: 'topic'.",
    )


def test_a_reward_that_rises_while_held_out_prompts_fall_is_hacked(tmp_path):
    (finding,) = findings(log_of(tmp_path, held_out=lambda share: 0.5 - 0.4 * share))
    assert finding.name.startswith("The reward is hacked")
    assert "on held-out prompts it fell from 0.40 at step 5 to 0.10" in finding.fact


def test_a_format_that_is_learned_alone_is_named_by_its_scorers(tmp_path):
    two = training(NUMBER, {"scorer": "length"})
    log = log_of(tmp_path, lambda share: {"rewards/number/mean": 0.2, "rewards/length/mean": 0.3 + 0.6 * share})

    (finding,) = findings(log, two)

    assert finding.name == "One reward alone is learned"
    assert finding.fact.startswith("length rose from 0.3")
    assert "while number stays at 0.20" in finding.fact


def test_scorers_of_one_kind_are_numbered():
    assert reward_names(training(NUMBER, {"scorer": "length"}, NUMBER)) == ["number", "length", "number#2"]


def test_reward_curves_have_the_line_of_the_base_and_a_curve_for_each_scorer(tmp_path):
    two = training(NUMBER, {"scorer": "length"})
    log = log_of(tmp_path, lambda share: {"rewards/number/mean": share, "rewards/length/mean": share / 2})

    chart = json.loads(reward_figure(read_history(log), two, "run-1"))

    text = json.dumps(chart)
    for title in ("Reward", "By scorer", "Tied groups", "Tokens an answer", "Cut answers", "Entropy, nats"):
        assert title in text
    assert "base, held-out 0.30" in text
    assert "KL to reference" not in text
    assert reward_figure(read_history(log_of(tmp_path / "..", steps=0)), two, "run-1") == ""


def test_a_task_that_is_learned_has_no_finding_about_answers_that_became_the_same(tmp_path):
    def learned(share):
        return {"reward": min(1.0, 0.2 + share), "frac_reward_zero_std": share, "entropy": 2.0 - 1.95 * share}

    assert findings(log_of(tmp_path, learned)) == ()


def test_the_verdict_is_about_the_reward_and_the_lists_name_it(tmp_path):
    log = log_of(tmp_path)
    with EventWriter(log, attempt=1) as writer:
        writer.append(StatusData(phase="finished"))
    history = read_history(log)
    config = a_config(training__objective="grpo", training__rewards=[NUMBER])

    verdict = judge(history, config)

    assert verdict.text == "Learned well: The reward on held-out prompts went from 0.30 to 0.80."
    summary = RunSummary(
        id="x", owner="ann", name="sums", state="completed", is_rewarded=True, best_eval_loss=-0.8, base_eval_loss=-0.3
    )
    assert loss_words(summary) == ("reward 0.800", "0.30 before training")
    assert "loss" not in run_choices([summary])[0][0]
    assert held_out_points(history) == []
