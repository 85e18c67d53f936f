"""Answers that are written side by side are those written one by one, token by token."""

import pytest
import torch
from transformers import AutoTokenizer

from loratory.engine.chat.worker.adapter import AdaptedBase
from loratory.engine.chat.worker.answer import Answer, AnswerRules
from loratory.engine.chat.worker.weights import BranchWeights
from loratory.engine.config.results import SamplingConfig
from loratory.engine.evaluation.worker import answers as answers_module
from loratory.engine.evaluation.worker.answers import BatchedAnswers, batches_of_prompts, most_rows
from loratory.engine.generation.worker import batch as batch_module
from tests.chat.tiny_adapters import attach, load_base, lora, make_adapter, prefix_tuning
from tests.tiny_model import make_tiny_model

LENGTHS = (40, 33, 33, 12, 3)
PROMPTS = [tuple(4 + (7 * row + 3 * index) % 250 for index in range(length)) for row, length in enumerate(LENGTHS)]
MOST = 20
ALL_MOST = (MOST,) * len(PROMPTS)
LIVELY = {"tie_word_embeddings": False, "initializer_range": 0.4}
FAMILIES: dict[str, dict] = {
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "mistral": {"sliding_window": 16},
    "gemma3_text": {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
}


@pytest.fixture(scope="module")
def tiny_model_folder(tmp_path_factory):
    """With wide random weights and a head of its own, so answers wander instead of repeating a token."""
    return make_tiny_model(tmp_path_factory.mktemp("lively") / "tiny-llama", **LIVELY)


@pytest.fixture(scope="module")
def branches(tiny_model_folder, tmp_path_factory) -> dict[str, BranchWeights]:
    folder = make_adapter(tiny_model_folder, tmp_path_factory.mktemp("side") / "lora", lora())
    holder = load_base(tiny_model_folder)
    return {"base": BranchWeights(holder), "tuned": attach(holder, folder)}


def alone(weights, end_ids=frozenset(), most=ALL_MOST) -> list[list[int]]:
    tokenizer, result = AutoTokenizer.from_pretrained(weights.holder.model.config._name_or_path), []
    for prompt, tokens in zip(PROMPTS, most, strict=True):
        sampling = SamplingConfig(temperature=0, max_new_tokens=tokens)
        answer = Answer("base", weights, AnswerRules(prompt, end_ids, sampling, None), tokenizer)
        while not answer.is_done:
            answer.advance()
        result.append(list(answer.tokens))
    return result


@torch.inference_mode()
def together(weights, end_ids=frozenset(), most=ALL_MOST) -> list[list[int]]:
    answers = BatchedAnswers(weights, PROMPTS, most, end_ids)
    assert answers.keeps_rows_apart()
    while not answers.is_done:
        answers.advance()
    return answers.tokens


@pytest.mark.exhaustive
@pytest.mark.parametrize("pieces", [512, 20], ids=["whole", "in pieces"])
@pytest.mark.parametrize("branch", ["base", "tuned"])
def test_answers_are_those_of_single_rows(branches, branch, pieces, monkeypatch):
    expected = alone(branches[branch])
    assert len({token for tokens in expected for token in tokens}) > 25  # they wander: a wrong token would show
    branches["base" if branch == "tuned" else "tuned"].new_cache()  # had the last turn
    monkeypatch.setattr(batch_module, "PIECE_TOKENS", pieces)

    assert together(branches[branch]) == expected


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", FAMILIES)
def test_families_and_windows_answer_the_same(family, tmp_path):
    weights = BranchWeights(
        load_base(make_tiny_model(tmp_path / family, model_type=family, **LIVELY, **FAMILIES[family]))
    )

    assert most_rows(weights, 60) > 1
    assert together(weights) == alone(weights)


def test_each_row_ends_by_itself(branches):
    whole = alone(branches["base"])
    end_ids = frozenset({whole[1][4], whole[3][0]})
    most = (5, MOST, 1, MOST, 9)
    expected = alone(branches["base"], end_ids, most)
    assert expected[3] == []
    # A row that has its end token takes a step for it.
    steps = [len(tokens) + (len(tokens) < limit) for tokens, limit in zip(expected, most, strict=True)]
    assert len(set(steps)) > 2

    with torch.inference_mode():
        answers = BatchedAnswers(branches["base"], PROMPTS, most, end_ids)
        counts = []
        while not answers.is_done:
            answers.advance()
            counts.append(answers.complete_count)

    assert answers.tokens == expected
    assert counts == [sum(step_count <= step for step_count in steps) for step in range(1, max(steps) + 1)]


def test_a_model_that_mixes_rows_is_noticed(branches, monkeypatch):
    forward = AdaptedBase.forward

    def mixing(self, ids, cache, positions=None, **padding):
        padding.pop("attention_mask", None)
        return forward(self, ids, cache, positions, **padding)

    monkeypatch.setattr(AdaptedBase, "forward", mixing)

    with torch.inference_mode():
        assert not BatchedAnswers(branches["base"], PROMPTS, ALL_MOST, frozenset()).keeps_rows_apart()


def test_rows_are_as_many_as_memory_holds(branches, tiny_model_folder, tmp_path, monkeypatch):
    weights = branches["base"]
    # Keys and values of 2 layers, 2 heads of 16 numbers of 4 bytes, twice; and logits of 4 bytes, four times.
    a_row = 2 * 100 * 2 * 2 * 2 * 16 * 4 + 4 * 4 * weights.holder.model.config.vocab_size
    with torch.inference_mode():
        for rows in (1, 2, 5):
            monkeypatch.setattr(answers_module, "free_bytes", lambda _device, rows=rows: 2 * rows * a_row + 1)
            assert most_rows(weights, 100) == rows
        monkeypatch.setattr(answers_module, "free_bytes", lambda _device: 0)
        assert most_rows(weights, 100) == 1
        monkeypatch.setattr(answers_module, "free_bytes", lambda _device: 2**40)
        assert most_rows(weights, 100) == 8
        folder = make_adapter(tiny_model_folder, tmp_path / "prefix", prefix_tuning())
        assert most_rows(attach(load_base(tiny_model_folder), folder, "prefix_tuning"), 100) == 1
        mamba = BranchWeights(load_base(make_tiny_model(tmp_path / "mamba", model_type="mamba", state_size=4)))
        assert most_rows(mamba, 100) == 1


def test_batches_have_prompts_of_like_length():
    lengths = [90, 7, 88, 23, 2, 22, 86]

    assert batches_of_prompts(lengths, 8) == [[0, 2, 6], [3, 5], [1], [4]]
    assert batches_of_prompts(lengths, 2) == [[0, 2], [6], [3, 5], [1], [4]]
    assert batches_of_prompts(lengths, 1) == [[0], [2], [6], [3], [5], [1], [4]]
    assert batches_of_prompts([], 8) == []
