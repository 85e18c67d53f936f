"""What is measured on held-out pairs and rated completions."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from torch.nn import functional
from transformers import AutoModelForCausalLM

from loratory.engine.chat.contract import Branch, ChatTarget
from loratory.engine.config.load import config_from_mapping, config_to_yaml
from loratory.engine.config.objectives import DPO, KTO
from loratory.engine.config.results import EvaluationConfig
from loratory.engine.evaluation.job import (
    BranchLoss,
    EvaluationJob,
    EvaluationRequest,
    EvaluationResult,
    preference_sentences,
)
from loratory.engine.evaluation.preference import describe_ratings, measure_ratings
from loratory.engine.hardware.processor import describe_processor
from tests.chat.tiny_adapters import lora, make_adapter
from tests.evaluation.conftest import evaluate, held_out, order_of, write_run


def write_preference_run(folder: Path, base: Path, rows: list[dict], objective: str, **adapter: str) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = write_run(folder / "tuned", base, file, lora(), "lora")
    make_adapter(base, run / "adapter", lora(), seed=2)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["adapter"] |= adapter
    settings["training"] |= {"objective": objective, "beta": 0.3}
    (run / "config.yaml").write_text(config_to_yaml(config_from_mapping(settings)))
    return run


def test_pairs_are_measured_for_base_start_and_result(home, base, run, tmp_path):
    rows = [
        {"prompt": f"What is {n} and one?", "chosen": f"It is {n + 1}.", "rejected": f"No idea, {n} maybe?"}
        for n in range(40)
    ]
    tuned = write_preference_run(tmp_path, base, rows, "dpo", warm_start=str(run / "adapter"))
    request = EvaluationRequest(
        target=ChatTarget.of_run(tuned),
        settings=EvaluationConfig(answered_rows=1, max_new_tokens=4, general_text=False),
    )

    order, _ = EvaluationJob(home, request)._order(describe_processor())
    result = evaluate(home, order)

    preference = result.preference
    assert preference is not None
    assert (preference.pairs, preference.reference, preference.beta, result.start) == (8, "second", 0.3, "adapter")
    pairs = held_out(tuned, home, order, DPO)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    margins: dict[Branch, list[float]] = {"base": expected_margins(model, pairs)}
    model = PeftModel.from_pretrained(model, run / "adapter", adapter_name="second").eval()
    margins["second"] = expected_margins(model, pairs)
    model.load_adapter(tuned / "adapter", adapter_name="tuned")
    model.set_adapter("tuned")
    margins["tuned"] = expected_margins(model.eval(), pairs)
    for branch, expected in margins.items():
        assert preference.branches[branch].margin == pytest.approx(sum(expected) / 8, rel=1e-4, abs=1e-4)
        assert preference.branches[branch].preferred == sum(margin > 0 for margin in expected)
    gains = [now - then for now, then in zip(margins["tuned"], margins["second"], strict=True)]
    assert preference.branches["tuned"].reward_margin == pytest.approx(0.3 * sum(gains) / 8, rel=1e-3, abs=1e-4)
    assert preference.branches["tuned"].gained_pairs == sum(gain > 0 for gain in gains)
    assert preference.branches["second"].gained_pairs is None
    assert set(result.answered_rows[0].answers) == {"base", "tuned", "second"}
    assert "held-out pairs" in preference_sentences(result)[0]


def test_the_rewards_of_ratings_are_those_that_training_logs(home, base, tmp_path):
    rows = [{"prompt": f"What is {n} and one?", "completion": f"It is {n + 1}.", "label": n % 3 > 0} for n in range(40)]
    tuned = write_preference_run(tmp_path, base, rows, "kto")

    order = order_of(tuned, general_text=False)
    result = evaluate(home, order)

    ratings = result.ratings
    assert ratings is not None
    rows = held_out(tuned, home, order, KTO)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    before = [log_probability(model, row) for row in rows]
    model = PeftModel.from_pretrained(model, tuned / "adapter").eval()
    after = [log_probability(model, row) for row in rows]
    rewards = [(0.3 * (now - then), row.desirable) for now, then, row in zip(after, before, rows, strict=True)]
    good, bad = ([reward for reward, label in rewards if label is kind] for kind in (True, False))
    assert (ratings.desirable, ratings.undesirable, ratings.reference) == (len(good), len(bad), "base")
    assert good
    assert bad
    own = ratings.branches["tuned"]
    assert own.reward_desirable == pytest.approx(sum(good) / len(good), rel=1e-3, abs=1e-4)
    assert own.reward_undesirable == pytest.approx(sum(bad) / len(bad), rel=1e-3, abs=1e-4)
    assert own.right == sum(reward > 0 for reward in good) + sum(reward < 0 for reward in bad)
    assert result.preference_accuracy == own.right / 8
    assert "base" not in ratings.branches
    tokens = sum(label >= 0 for row in rows if row.desirable for label in row.labels[1:])
    loss = -sum(now for now, row in zip(after, rows, strict=True) if row.desirable)
    assert (result.rows, result.losses["tuned"].tokens) == (len(good), tokens)
    assert result.losses["tuned"].loss == pytest.approx(loss / tokens, rel=1e-4)
    assert {row.row for row in result.answered_rows} <= {row.row for row in rows if row.desirable}
    assert result.gain is not None
    warm = order.run.model_copy(update={"adapter": order.run.adapter.model_copy(update={"warm_start": "gone"})})
    without_start = evaluate(
        home, order.model_copy(update={"run": warm, "settings": EvaluationConfig(max_rows=1, answered_rows=0)})
    )
    assert without_start.ratings is None
    assert any("can no longer be loaded" in note for note in without_start.notes)


def test_ratings_of_one_label_or_one_row_are_named_as_such():
    ratings = measure_ratings(
        {"base": [-2.0, -2.0, -2.0], "tuned": [-1.0, -2.0, -3.0]}, [True, True, True], "base", 0.5
    )

    assert ratings is not None
    assert (ratings.right, ratings.undesirable, ratings.branches["tuned"].difference) == (
        1,
        0,
        None,
    )  # no gain is not right
    sentences = describe_ratings(ratings, {"base": "the base model"})
    assert "(1 of 3 desirable)" in sentences[0]
    assert "Mean reward +0.000. Every completion is desirable" in sentences[2]
    alone = measure_ratings({"second": [-2.0], "base": [-9.0], "tuned": [-3.0]}, [False], "second", 0.1)
    assert alone is not None
    assert alone.accuracy == 1.0
    assert (alone.branches["base"].right, alone.branches["base"].reward_desirable) == (1, None)
    losses = {"base": BranchLoss.from_loss(2.0, 5), "tuned": BranchLoss.from_loss(1.0, 5)}
    assert EvaluationResult(losses=losses, rows=3, scores={}, ratings=ratings).gain == 0.5
    assert EvaluationResult(losses=losses, rows=1, scores={}, ratings=alone).gain is None  # it should not be given
    assert "between 21% and 100%" in describe_ratings(alone, {"second": "its start"})[0]
    assert measure_ratings({"base": [-1.0], "tuned": [-1.0]}, [True], "second", 0.1) is None  # the start is gone
    assert measure_ratings({"base": [], "tuned": []}, [], "base", 0.1) is None


@torch.inference_mode()
def log_probability(model, row) -> float:
    """Of the trained tokens, the whole sequence at once."""
    labels = torch.tensor(row.labels[1:])
    logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1].float()
    return -float(functional.cross_entropy(logits, labels, reduction="sum"))


def expected_margins(model, pairs) -> list[float]:
    """By how much each chosen answer is likelier than the rejected one."""
    return [log_probability(model, pair) - log_probability(model, pair.rejected) for pair in pairs]
