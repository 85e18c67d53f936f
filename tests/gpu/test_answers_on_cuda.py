"""Answers whose tokens repeat a CUDA graph, or that are written side by side, are those computed one by one, and come faster."""

import time

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from loratory.engine.chat.target import PlannedWeights
from loratory.engine.chat.worker.adapter import AdaptedBase
from loratory.engine.chat.worker.answer import Answer, AnswerRules
from loratory.engine.chat.worker.static_cache import FixedCaches, LentCache
from loratory.engine.chat.worker.weights import BranchWeights
from loratory.engine.config.results import SamplingConfig
from loratory.engine.evaluation.worker.answers import BatchedAnswers, most_rows
from loratory.engine.models.prepared import DEMO_MODEL_ID
from tests.chat.tiny_adapters import lora, make_adapter

pytestmark = [pytest.mark.gpu, pytest.mark.e2e]

PROMPT = tuple(range(100, 164))
TOKENS = 64
BASES = {
    "float32": {"dtype": torch.float32},
    "nf4": {
        "dtype": torch.float32,
        "quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32),
    },
}


def load(folder, **values):
    model = AutoModelForCausalLM.from_pretrained(folder, device_map={"": "cuda:0"}, **values)
    return AdaptedBase(model.eval(), "demo")


def begin(weights, folder, prompt=PROMPT, **sampling):
    values = {"temperature": 0, "max_new_tokens": TOKENS, **sampling}
    rules = AnswerRules(prompt, frozenset({-1}), SamplingConfig(**values), 2048)
    return Answer("base", weights, rules, AutoTokenizer.from_pretrained(folder))


def finish(*answers):
    """Let answers take turns; returns what each answered."""
    while not all(answer.is_done for answer in answers):
        for answer in answers:
            if not answer.is_done:
                answer.advance()
    return [answer.tokens for answer in answers]


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "seed": 7}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("base", BASES)
def test_answers_of_base_and_tuned_are_those_of_a_growing_cache(base, sampling, demo_home, tmp_path):
    folder = demo_home.models / DEMO_MODEL_ID
    holder = load(folder, **BASES[base])
    adapter = holder.attach(
        PlannedWeights(folder=make_adapter(folder, tmp_path / "lora", lora(), scale=0.02), name="lora", method="lora"),
        "tuned",
    )
    branches = [BranchWeights(holder), BranchWeights(holder, adapter)]
    caches, holder.fixed_caches = holder.fixed_caches, FixedCaches(holder.model, "to compare with")
    expected = finish(*(begin(weights, folder, **sampling) for weights in branches))
    holder.fixed_caches = caches

    answers = [begin(weights, folder, **sampling) for weights in branches]
    assert all(isinstance(answer._cache, LentCache) for answer in answers)
    result = finish(*answers)

    assert caches.why_not == ""
    assert all(place.repeat is not None for place in caches._places.values())
    assert len(caches._places) == 2
    assert result == expected
    assert result[0] != result[1]


def test_a_graph_answers_faster(in_shape, show):
    folder = in_shape("0.5B")
    holder = load(folder, dtype=torch.bfloat16)
    caches, holder.fixed_caches = holder.fixed_caches, FixedCaches(holder.model, "to compare with")
    speeds = {}
    for name, used in (("growing", holder.fixed_caches), ("graph", caches)) * 2:  # the first of each warms up
        holder.fixed_caches = used
        answer = begin(BranchWeights(holder), folder)
        while not answer.tokens:
            answer.advance()
        torch.cuda.synchronize()
        began, first = time.perf_counter(), len(answer.tokens)
        finish(answer)
        torch.cuda.synchronize()
        speeds[name] = (len(answer.tokens) - first) / (time.perf_counter() - began)

    show(
        gpu=torch.cuda.get_device_name(0), tokens_per_second=speeds, ratio=round(speeds["graph"] / speeds["growing"], 2)
    )
    assert caches.why_not == ""
    assert speeds["graph"] > speeds["growing"]


@torch.inference_mode()
def test_answers_side_by_side_are_those_one_by_one(demo_home, show):
    folder = demo_home.models / DEMO_MODEL_ID
    weights = BranchWeights(load(folder, dtype=torch.float32))
    prompts = [PROMPT[:length] for length in range(64, 52, -1)]
    began = time.perf_counter()
    expected = [list(finish(begin(weights, folder, prompt))[0]) for prompt in prompts]
    alone = time.perf_counter() - began
    assert most_rows(weights, len(PROMPT) + TOKENS) >= len(prompts)

    began = time.perf_counter()
    answers = BatchedAnswers(weights, prompts, [TOKENS] * len(prompts), frozenset())
    assert answers.keeps_rows_apart()
    while not answers.is_done:
        answers.advance()

    show(gpu=torch.cuda.get_device_name(0), ratio=round(alone / (time.perf_counter() - began), 2))
    assert answers.tokens == expected
