"""Prompts of a test set are answered as a chat answers them, whether a model can answer side by side or not."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from loratory.engine.chat.worker.weights import BranchWeights
from loratory.engine.config.results import SamplingConfig, TestSet
from loratory.engine.data.render.tokenize import PromptFacts, TokenizedRow
from loratory.engine.evaluation.worker.answers import BatchedAnswers
from loratory.engine.evaluation.worker.samples import PromptWriter
from loratory.engine.scoring.session import ScoringSession
from loratory.engine.training.answers import decode
from tests.chat.tiny_adapters import attach, load_base, lora, make_adapter, prefix_tuning
from tests.evaluation.test_batched_answers import LIVELY, PROMPTS, alone
from tests.tiny_model import make_tiny_model

MOST = 20
SCORERS = TestSet.model_validate({"source": "rows.jsonl", "scorers": [{"scorer": "length"}]}).scorers
ROWS = [
    TokenizedRow(number, 0, list(ids), [-100] * len(ids), prompt=PromptFacts(f"prompt {number}", {"topic": "a"}))
    for number, ids in enumerate(PROMPTS)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("writer") / "tiny-llama", **LIVELY)


@pytest.fixture(scope="module", params=["base", "lora", "prefix", "int8"])
def weights(request, folder, tmp_path_factory):
    """Return the weights of a plan with one branch; for int8, the plan alone says so."""
    holder, adapters = load_base(folder), {"lora": lora(), "prefix": prefix_tuning()}
    branch = BranchWeights(holder)
    if (adapter := adapters.get(request.param)) is not None:
        branch = attach(holder, make_adapter(folder, tmp_path_factory.mktemp("adapter") / request.param, adapter))
    quantization = "int8" if request.param == "int8" else "none"
    plan = SimpleNamespace(model=SimpleNamespace(quantization=quantization))
    return SimpleNamespace(plan=plan, branch=lambda _: branch, kind=request.param)


def write(weights, rows=ROWS, copies=1, temperature=0.0, between=lambda: None):
    tokenizer = AutoTokenizer.from_pretrained(weights.branch("base").holder.model.config._name_or_path)
    sampling = SamplingConfig(temperature=temperature, top_p=1.0, max_new_tokens=MOST, seed=3)
    writer = PromptWriter(weights, "base", tokenizer, SCORERS, sampling, copies, between, tag="topic")
    with ScoringSession(SCORERS) as session, torch.inference_mode():
        return tokenizer, writer.answer(rows, session)


def test_the_likeliest_answers_are_those_of_a_chat_in_the_order_of_the_rows(weights, monkeypatch):
    batches = []
    monkeypatch.setattr(
        "loratory.engine.evaluation.worker.answers.BatchedAnswers",
        lambda *rows, **how: batches.append(rows) or BatchedAnswers(*rows, **how),
    )
    order = [3, 0, 4, 1, 2]
    tokenizer, prompts = write(weights, [ROWS[number] for number in order])

    expected = alone(weights.branch("base"))
    assert [prompt.row for prompt in prompts] == order
    assert [prompt.tag for prompt in prompts] == ["a"] * 5
    for prompt in prompts:
        (answer,) = prompt.answers
        assert answer.tokens == len(expected[prompt.row])
        assert answer.text == decode(expected[prompt.row], tokenizer)
        assert answer.is_cut
    assert bool(batches) == (weights.kind in ("base", "lora")), "the others affect each other, or have virtual tokens"


def test_several_answers_differ_and_are_repeated_by_their_seed(weights):
    _, first = write(weights, ROWS[:2], copies=3, temperature=1.0)
    _, again = write(weights, ROWS[:2], copies=3, temperature=1.0)

    texts = [[answer.text for answer in prompt.answers] for prompt in first]
    assert all(len(set(of_prompt)) == 3 for of_prompt in texts)
    assert texts == [[answer.text for answer in prompt.answers] for prompt in again]


def test_a_stop_ends_it(weights):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(weights, between=stop)
