"""The demo model learns from rewards: tried before, trained for two steps, and measured on held-out prompts and a test set."""

import json

import pytest

from loratory.engine.paths import local_owner
from loratory.engine.runs.history.run_history import read_history
from loratory.engine.runs.store import RunStore
from tests.e2e.test_scripts_for_real import loratory

pytestmark = pytest.mark.e2e

SMALL = (
    "training.max_steps=2", "training.eval_steps=2", "training.num_generations=4", "training.max_completion_length=8",
    "training.per_device_train_batch_size=2", "dataset.max_samples=20", "training.learning_rate=0.01",
    # Of answers this short, none may be right; their lengths always differ.
    "training.rewards=[{scorer: number}, {scorer: length, unit: characters, at_least: 60, falloff: 60}]",
)  # fmt: skip
CHANGES = [word for setting in SMALL for word in ("--set", setting)]


@pytest.fixture(scope="module")
def home(module_home):
    return module_home


def test_rewards_are_tried_learned_from_and_measured(home, tmp_path):
    tried = json.loads(loratory("try-reward", "quickstart-grpo-cpu", *CHANGES, "--prompts", 3, "--json", home=home))
    assert len(tried["prompts"]) == 3
    assert {len(prompt["answers"]) for prompt in tried["prompts"]} == {4}
    assert next(bad["reward"] for bad in tried["bad_answers"]) == 0.0, "the empty answer has no number"
    assert tried["verdict"]["kind"] in ("can_learn", "too_hard", "solved", "hackable")
    assert tried["facts"]["step_seconds"] > 0

    record = json.loads(loratory("train", "quickstart-grpo-cpu", *CHANGES, "--json", home=home))
    assert record["status"] == "completed"
    history = read_history(RunStore(home, local_owner()).get(record["run_id"]).folder.events)
    assert len(history.steps.metric("reward")[0]) == 2
    assert {point.step for point in history.evals if point.reward is not None} == {0, 2}
    assert history.rollouts[0].answers == 8

    start = ("--set", f"adapter.warm_start={record['run_id']}")
    again = json.loads(
        loratory("try-reward", "quickstart-grpo-cpu", *CHANGES, *start, "--prompts", 3, "--json", home=home)
    )
    texts, texts_of_base = (
        [answer["text"] for prompt in result["prompts"] for answer in prompt["answers"]] for result in (again, tried)
    )
    assert texts != texts_of_base, "the model that training starts from answers"

    rows = [{"prompt": f"What is {n} + 1? Reply with the number only.", "answer": str(n + 1)} for n in range(4)]
    test = tmp_path / "sums.jsonl"
    test.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    arguments = (
        "--test",
        test,
        "--scorer",
        "number",
        "--scorer",
        "{scorer: length, at_most: 3}",
        "--no-forgetting",
        "--json",
    )
    result = json.loads(loratory("evaluate", record["run_id"], *arguments, home=home))
    held_out, own = result["tests"]
    assert (held_out["name"], own["name"]) == ("Held-out prompts", "sums.jsonl")
    assert set(own["branches"]) == {"base", "tuned"}
    assert len(own["prompts"]["tuned"]) == 4
    assert own["scorers"] == ["Number", "Length"]
