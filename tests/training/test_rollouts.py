"""Runs that learn from rewards: they learn, resume exactly, stop between tokens, and survive scorers that fail."""

import json

import pytest

from loratory.engine.runs.control import request_cancel, request_stop
from loratory.engine.training.worker import EXIT_FINISHED
from tests.tiny_model import make_tiny_model
from tests.training.worker_runs import WorkerRuns, data_of_events, history_of, losses_of
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

TRAINING = {
    "objective": "grpo",
    "rewards": [{"scorer": "regex", "pattern": "a"}],
    "max_completion_length": 8,
    "num_generations": 6,
    "max_steps": 6,
    "save_steps": 2,
    "eval_steps": 3,
    "learning_rate": 0.02,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
}


@pytest.fixture(scope="session")
def lively_model_folder(tmp_path_factory):
    """With wide random weights and a head of its own, which an adapter can steer."""
    folder = tmp_path_factory.mktemp("lively") / "tiny-llama"
    return make_tiny_model(folder, tie_word_embeddings=False, initializer_range=0.2)


@pytest.fixture
def rollouts(home, lively_model_folder, tmp_path):
    """Return a maker of runs over prompts."""
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"Count to {n}.", "letter": "a"}) + "\n" for n in range(24)))
    runs = WorkerRuns(home, lively_model_folder, file)
    return lambda **training: runs.create(training=TRAINING | training)


def result_of(run):
    """Return what a run logged and saved, without times."""
    steps = [(step.step, step.loss, step.grad_norm) for step in data_of_events(run, "step")]
    return {step: values for step, *values in steps}, (run.folder.adapter / "adapter_model.safetensors").read_bytes()


def test_rewards_rise(workers, rollouts):
    run = rollouts(max_steps=20, eval_steps=20, num_generations=8)

    assert workers.run(run.folder.path) == EXIT_FINISHED

    rewards = [step.metrics["reward"] for step in data_of_events(run, "step")]
    assert sum(rewards[:3]) / 3 < 0.7
    assert sum(rewards[-3:]) / 3 > 0.95
    first, *_, last = data_of_events(run, "eval")
    assert last.reward == -last.eval_loss > first.reward
    names = {
        "entropy", "frac_reward_zero_std", "rewards/regex/mean", "rewards/regex/std", "completions/mean_length",
        "completions/clipped_ratio", "clip_ratio/region_mean", "sampling/importance_sampling_ratio/mean",
    }  # fmt: skip
    assert names <= data_of_events(run, "step")[0].metrics.keys()
    rollout = data_of_events(run, "rollout")[0]
    assert rollout.answers == 32
    assert rollout.samples[0].prompt.startswith("Count to")
    assert all(sample.scores in ((0.0,), (1.0,)) for sample in rollout.samples)


@pytest.mark.parametrize(
    ("fault", "iterations"),
    [
        ("rollout:token#30=kill", 1),
        ("rollout:scoring#3=kill", 2),
        ("training:pass#4=kill", 1),
        ("training:pass#4=kill", 2),
    ],
)
def test_a_killed_run_continues_as_if_it_had_not_been(fault, iterations, workers, rollouts):
    settings = {"num_iterations": iterations, "save_steps": 3, "beta": 0.04 * (iterations - 1)}
    whole, run = rollouts(**settings), rollouts(**settings)
    assert workers.run(whole.folder.path) == EXIT_FINISHED

    assert workers.run(run.folder.path, fault) != EXIT_FINISHED
    assert workers.run(run.folder.path) == EXIT_FINISHED

    assert result_of(run) == result_of(whole)


@pytest.mark.parametrize("point", ["rollout:token#20", "rollout:scoring#3"])
def test_a_stop_ends_a_rollout_with_the_step_before(point, workers, rollouts, tmp_path):
    run, whole = rollouts(), rollouts()
    assert workers.run(whole.folder.path) == EXIT_FINISHED
    pid = workers.start(run.folder.path, f"{point}=wait:{tmp_path / 'go'}")
    wait_until(lambda: bool(data_of_events(run, "step")))
    request_stop(run)
    (tmp_path / "go").touch()
    assert workers.wait(pid) == EXIT_FINISHED

    status = data_of_events(run, "status")[-1]
    step = history_of(run).last_step
    assert (status.phase, status.stopped_by) == ("stopped", "request")
    assert f"Saved after step {step:,} of 6" in status.message
    (run.folder.path / "control" / "stop").unlink(missing_ok=True)
    assert workers.run(run.folder.path) == EXIT_FINISHED
    assert result_of(run) == result_of(whole)


def test_a_cancel_ends_a_rollout_at_once(workers, rollouts, tmp_path):
    run = rollouts()
    pid = workers.start(run.folder.path, f"rollout:token#20=wait:{tmp_path / 'go'}")
    wait_until(lambda: bool(data_of_events(run, "rollout")))
    steps = len(losses_of(run))
    request_cancel(run)
    (tmp_path / "go").touch()
    workers.wait(pid)

    assert data_of_events(run, "status")[-1].stopped_by == "cancel"
    assert len(losses_of(run)) == steps


def test_a_scorer_without_scores_is_counted_and_trains_nothing(workers, rollouts):
    missing = [{"scorer": "equals", "column": "solution"}]
    run = rollouts(rewards=missing, max_steps=2)

    assert workers.run(run.folder.path) == EXIT_FINISHED

    for step in data_of_events(run, "step"):
        assert step.metrics["scorer_errors"] == 24
        assert step.grad_norm == 0
        assert "reward" not in step.metrics


def test_answers_of_the_data_are_references(workers, home, lively_model_folder, tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"question": f"{n}?", "answer": "a"}) + "\n" for n in range(12)))
    scorer = {"scorer": "contains", "whole_words": False}
    run = WorkerRuns(home, lively_model_folder, file).create(training=TRAINING | {"rewards": [scorer], "max_steps": 1})

    assert workers.run(run.folder.path) == EXIT_FINISHED

    samples = data_of_events(run, "rollout")[0].samples
    assert [sample.scores == (1.0,) for sample in samples] == ["a" in sample.answer.lower() for sample in samples]
    assert data_of_events(run, "data_report")[0].trained_tokens == 0


def test_cut_answers_can_be_left_out(workers, rollouts):
    run = rollouts(mask_truncated_completions=True, max_completion_length=1, max_steps=1)

    assert workers.run(run.folder.path) == EXIT_FINISHED

    (step,) = data_of_events(run, "step")
    assert step.metrics["completions/clipped_ratio"] > 0.9
    assert step.trained_tokens == round(24 * (1 - step.metrics["completions/clipped_ratio"]))
