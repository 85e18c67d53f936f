"""Verdicts on recorded curves: short trainings on the sample loratory-faq, of SmolLM2 or of a model of two layers."""

import math
from pathlib import Path

import numpy as np
import pytest

from loratory.engine.config.run import RunConfig
from loratory.engine.runs.history.events import CheckpointData, DataReportData, EvalData, StatusData, StepData
from loratory.engine.runs.history.run_history import read_history
from loratory.engine.runs.history.verdict import Forgetting, Verdict, judge
from tests.event_log import write_log
from tests.invented_runs import a_config

CURVES = Path(__file__).parent / "curves"
EPOCHS = {"training__max_steps": -1, "training__num_train_epochs": 2}


def verdict_on(name: str, forgetting: Forgetting | None = None, **changes) -> Verdict | None:
    return judge(read_history(CURVES / f"{name}.jsonl"), config_of(**changes), forgetting)


def config_of(**changes) -> RunConfig:
    return a_config(**{**EPOCHS, "dataset__eval_fraction": 0.15, "training__early_stopping_patience": None, **changes})


@pytest.mark.parametrize(
    ("name", "title", "fact"),
    [
        ("diverged", "Diverged", "5.76 at the beginning and 15.21 at step 7"),
        ("rate_high", "Learning rate too high", "The held-out loss rose from 2.58 to 3."),
        ("overfits", "Overfits since step 96", "rose from 2.68 to 2.94; the training loss fell to 1.6"),
        ("rate_low", "Learning rate too low", "The gradient did not shrink"),
        ("unconverged", "Not converged", "still fell by 2.3% for each tenth of the steps, to 3.00"),
        ("one_epoch", "One epoch is enough", "5.34 after the first epoch and 5.32 at the end"),
        ("learned", "Learned well", "The held-out loss went from 5.75 to 2.58"),
        ("smollm2", "Learned well", "The held-out loss went from 4.55 to 2.90"),
    ],
)
def test_a_recorded_run_gets_its_verdict(name, title, fact):
    epochs = {"unconverged": 1, "one_epoch": 3}.get(name, 2)

    verdict = verdict_on(name, training__num_train_epochs=epochs)

    assert verdict.name == title
    assert fact in verdict.fact
    assert (verdict.fix == "") == (title == "Learned well")


def test_a_learning_rate_changes_by_three_or_to_the_usual_one():
    assert verdict_on("diverged", training__learning_rate=3e-4).settings == {"training.learning_rate": 1e-4}
    assert verdict_on("diverged", training__learning_rate=1.0).settings == {"training.learning_rate": 2e-4}
    assert verdict_on("rate_low", training__learning_rate=1e-6).settings == {"training.learning_rate": 2e-4}
    assert verdict_on("rate_low", training__learning_rate=1e-4).settings == {"training.learning_rate": 3e-4}


def test_overfitting_is_cured_by_the_best_checkpoint_where_it_is_needed():
    best_result = verdict_on("overfits", training__early_stopping_patience=3)
    there = verdict_on("overfits", training__save_total_limit=1000)
    deleted = verdict_on("overfits", training__save_total_limit=1)

    assert "The result has the weights of step 96" in best_result.fact
    assert (best_result.fix, best_result.step, best_result.settings) == ("", None, {})
    assert (there.step, there.settings) == (96, {})
    assert (deleted.step, deleted.settings) == (None, {"training.load_best_model_at_end": True})


def test_a_longer_or_shorter_run_is_offered_in_epochs():
    assert verdict_on("unconverged", training__num_train_epochs=1).settings == {"training.num_train_epochs": 2}
    assert verdict_on("one_epoch", training__num_train_epochs=3).settings == {"training.num_train_epochs": 1}
    assert verdict_on("unconverged", training__max_steps=76).name == "Learned well", "its length is the person's own"


def test_what_it_forgot_comes_before_praise():
    assert verdict_on("learned", Forgetting(0.12)).name == "Forgot 12%"
    assert verdict_on("learned", Forgetting(0.02)).name == "Learned well"
    assert verdict_on("learned", Forgetting(0.12)).settings == {}, "no general rows are there"


def test_general_rows_are_mixed_in_and_doubled_while_it_still_forgets(tmp_path):
    log = run_of(tmp_path / "log", 1 + 2 * np.exp(-np.linspace(0, 6, 60)), [3, 1.2, 1.02, 1.01, 1.0])
    report = DataReportData(train_rows=90, eval_rows=9, dropped_rows=0, trained_tokens=40_000, masked_tokens=9)
    write_log(log, report, StatusData(phase="finished"))
    forgot, name = Forgetting(0.12, "set:general-tiny", 20_000), "set:general-tiny"
    mixes = []
    for mix in ({}, {name: 0.2}, {f"{name}@3": 0.4}, {name: 3.0}, {name: 4.0}):
        verdict = judge(read_history(log), config_of(dataset__mix={"sample:loratory-chat": 1.0, **mix}), forgot)
        mixes.append(verdict.settings)

    assert mixes[:4] == [
        {"dataset.mix": {"sample:loratory-chat": 1.0, name: weight}} for weight in (0.2, 0.4, 0.8, 4.0)
    ]
    assert mixes[4] == {}, "rows that are read more often are learned by heart"
    assert verdict.fix == "Train fewer epochs, or mix in general data."


def test_during_a_run_only_what_is_certain_is_said(tmp_path):
    def judge_until(name: str, line: str) -> Verdict | None:
        lines = (CURVES / f"{name}.jsonl").read_text().splitlines(keepends=True)
        end = next(number for number, text in enumerate(lines) if line in text)
        (tmp_path / "log").write_text("".join(lines[: end + 1]))
        return judge(read_history(tmp_path / "log"), config_of())

    assert judge_until("learned", '"step":135,"eval_loss"') is None
    assert judge_until("rate_low", '"step":135,"eval_loss"') is None
    assert judge_until("overfits", '"step":108,"eval_loss"') is None, "one higher loss is no trend"
    assert judge_until("overfits", '"step":180,"eval_loss"').name == "Overfits since step 96"
    assert judge_until("rate_high", '"step":60,"eval_loss"').name == "Learning rate too high"


def run_of(path: Path, losses, held_out=(), *, norms=None, finished=True) -> Path:
    """Write a run of these losses, with a held-out loss before the first step and after each equal part."""
    total = len(losses)
    events = [StatusData(phase="training", total_steps=total)]
    measured = {round(number * total / max(1, len(held_out) - 1)): loss for number, loss in enumerate(held_out)}
    for step in range(total + 1):
        if step:
            norm = 1.0 if norms is None else norms[step - 1]
            events.append(
                StepData(
                    step=step, epoch=step / total, loss=losses[step - 1], learning_rate=1e-4, tokens=step,
                    tokens_per_second=1, grad_norm=norm,
                )
            )  # fmt: skip
        if step in measured:
            events.append(EvalData(step=step, eval_loss=measured[step], eval_tokens=9, rows=9, seconds=1))
    events.append(StatusData(phase="finished" if finished else "training"))
    write_log(path, *events)
    return path


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("fall", [0.0, 0.3, 1.5])
def test_ordinary_noise_is_no_alarm(fall, seed, tmp_path):
    random = np.random.default_rng(seed)
    steps = int(random.integers(25, 300))
    share = np.linspace(0, 1, steps)
    losses = 3 - fall * (1 - np.exp(-4 * share)) + random.normal(0, 0.4, steps)
    held_out = 3 - fall * (1 - np.exp(-4 * np.linspace(0, 1, 11))) + random.normal(0, 0.008, 11)

    running = judge(read_history(run_of(tmp_path / "log", losses, held_out, finished=False)), config_of())

    assert running is None


def test_a_spike_that_recovers_is_no_alarm(tmp_path):
    losses = np.linspace(3, 2, 100)
    losses[60:66] = 5

    assert judge(read_history(run_of(tmp_path / "log", losses, finished=False)), config_of()) is None


def test_too_few_steps_are_not_judged(tmp_path):
    assert judge(read_history(run_of(tmp_path / "log", np.linspace(3, 9, 19), [3, 4, 5])), config_of()) is None


def test_a_held_out_loss_that_does_not_fall_is_a_question_of_the_data(tmp_path):
    verdict = judge(read_history(run_of(tmp_path / "log", np.linspace(3, 2, 60), [3, 3.01, 2.99, 3.0])), config_of())

    assert verdict.name == "The held-out loss did not fall"
    assert verdict.settings == {}


def test_without_held_out_rows_the_training_loss_is_judged(tmp_path):
    assert judge(read_history(run_of(tmp_path / "log", np.linspace(3, 2, 60))), config_of()).name == "Learned"
    flat = run_of(tmp_path / "flat", np.full(60, 3.0) + np.tile([0.0, 0.004], 30))
    assert judge(read_history(flat), config_of()).name == "Learning rate too low"
    flat_gradient = run_of(tmp_path / "flat-gradient", np.full(60, 3.0), norms=np.geomspace(1, 1e-4, 60))
    assert judge(read_history(flat_gradient), config_of()).name == "The training loss did not fall"


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_named_alone(loss, tmp_path):
    log = run_of(tmp_path / "log", [3.0, 2.9, loss], finished=False)
    for objective in ("sft", "dpo"):
        assert judge(read_history(log), config_of(training__objective=objective)).name == "Diverged"


# How long each phase took


def seconds_of(path: Path) -> dict[str, float]:
    return {phase: round(seconds, 2) for phase, seconds in read_history(path).phase_seconds.items() if seconds}


def test_the_time_of_a_run_is_divided_among_its_phases(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("loratory.engine.runs.history.log.time.time", lambda: now[0])

    def write(seconds: float, data, attempt: int = 1) -> None:
        now[0] += seconds
        write_log(tmp_path / "log", data, attempt=attempt)

    def step(number: int) -> StepData:
        return StepData(step=number, epoch=0, loss=1, learning_rate=1, tokens=number, tokens_per_second=1)

    write(0, StatusData(phase="loading_model"))
    write(4, StatusData(phase="preparing"))
    write(1, StatusData(phase="evaluating"))
    write(2, EvalData(step=0, eval_loss=3, eval_tokens=1, rows=1, seconds=2))
    write(0, StatusData(phase="training", total_steps=4))
    for number in (1, 2):
        write(3, step(number))
    write(5, EvalData(step=2, eval_loss=2, eval_tokens=1, rows=1, seconds=5))
    write(1.5, CheckpointData(step=2, name="step-2", size_bytes=1, seconds=0.5))
    write(500, StatusData(phase="loading_model"), attempt=2)
    write(2, StatusData(phase="training"), attempt=2)
    for number in (3, 4):
        write(3, step(number), attempt=2)
    write(0.25, CheckpointData(step=4, name="step-4", size_bytes=1), attempt=2)
    write(0, StatusData(phase="saving"), attempt=2)
    write(0.5, StatusData(phase="finished"), attempt=2)

    times = seconds_of(tmp_path / "log")

    assert times == {
        "loading_model": 6, "preparing": 1, "evaluating": 7, "training": 13, "saving": 1.25,
    }  # fmt: skip


def test_the_times_of_a_recorded_run_add_up():
    history = read_history(CURVES / "smollm2.jsonl")

    assert sum(history.phase_seconds.values()) == pytest.approx(history.last_time - 1764000000, abs=0.1)
    assert min(history.phase_seconds.values()) >= 0
    assert list(history.phase_seconds) == [
        "loading_model",
        "reading_data",
        "preparing",
        "evaluating",
        "training",
        "saving",
    ]
    assert history.phase_seconds["evaluating"] == pytest.approx(sum(point.seconds for point in history.evals), rel=0.02)
