"""Answers from a cache of fixed size are those from a growing one, token by token, also where the pass of a token is repeated.

A processor has no CUDA graphs: a stand-in records the pass and computes it again, from the same tensors into the same tensor.
"""

import gc

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, DynamicCache

from loratory.engine.chat.worker import static_cache
from loratory.engine.chat.worker.adapter import AdaptedBase
from loratory.engine.chat.worker.answer import Answer, AnswerRules
from loratory.engine.chat.worker.static_cache import FixedCaches, LentCache, reason_against
from loratory.engine.chat.worker.weights import BranchWeights
from loratory.engine.config.optimizations import VARIABLE
from loratory.engine.config.results import SamplingConfig
from tests.chat.tiny_adapters import attach, load_base, lora, make_adapter, prefix_tuning, prompt_tuning
from tests.tiny_model import make_tiny_model

PROMPT = tuple(range(4, 40))
GREEDY = SamplingConfig(temperature=0, max_new_tokens=24)
SAMPLED = SamplingConfig(temperature=0.9, top_k=50, top_p=0.8, repetition_penalty=1.1, seed=7, max_new_tokens=24)
LIVELY = {"tie_word_embeddings": False, "initializer_range": 0.4}
WINDOW = {"sliding_window": 16, **LIVELY}
FAMILIES: dict[str, dict] = {
    "qwen3": LIVELY,
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512, **LIVELY},  # learned positions
    "mistral": WINDOW,
    "gemma2": {"attn_implementation": "eager", **WINDOW},
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"], **WINDOW},
}


class Recorder:
    """Stands in for CUDA graphs."""

    def __init__(self, fails_at=0):
        self.record_count = self.repeat_count = 0
        self._fails_at = fails_at

    def capture(self, one_token):
        self.record_count += 1
        if self.record_count == self._fails_at:
            one_token()  # as far as the pass may have come
            raise RuntimeError("operation not permitted when stream is capturing")
        result = one_token()

        def repeat():
            self.repeat_count += 1
            return result.copy_(one_token())

        return repeat


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder):
    return AutoTokenizer.from_pretrained(tiny_model_folder)


@pytest.fixture(scope="module")
def holder(tiny_model_folder, tmp_path_factory) -> dict[str, BranchWeights]:
    """Return a base with three adapters, of which the last keeps PEFT's own pass."""
    root = tmp_path_factory.mktemp("static")
    base = load_base(tiny_model_folder)
    adapters = {}
    for name, config in (
        ("tuned", lora()),
        ("second", lora(r=2, target_modules="all-linear")),
        ("dora", lora(use_dora=True)),
    ):
        folder = make_adapter(tiny_model_folder, root / name, config, seed=len(name))
        adapters[name] = attach(base, folder, name, name)
    return {"base": BranchWeights(base), **adapters}


@pytest.fixture(autouse=True)
def without_fixed_caches(holder):
    yield
    holder["base"].holder.fixed_caches = FixedCaches(holder["base"].holder.model, "not in this test")


def use_fixed_caches(base: AdaptedBase, recorder=None) -> FixedCaches:
    base.fixed_caches = FixedCaches(base.model, capture=recorder.capture if recorder is not None else None)
    return base.fixed_caches


def answer(weights, tokenizer, sampling=GREEDY, prompt=PROMPT) -> Answer:
    return Answer("base", weights, AnswerRules(prompt, frozenset({-1}), sampling, 512), tokenizer)


def finish(answer: Answer) -> list[int]:
    while not answer.is_done:
        answer.advance()
    return list(answer.tokens)


@pytest.mark.exhaustive(quick=2)
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("recorder", [None, Recorder()], ids=["computed", "repeated"])
@pytest.mark.parametrize("branch", ["base", "tuned", "second", "dora"])
def test_answers_are_those_of_a_growing_cache(holder, tokenizer, branch, recorder, sampling):
    weights = holder[branch]
    expected = finish(answer(weights, tokenizer, sampling))
    assert len(set(expected)) > 12  # wanders, so a wrong token would show
    use_fixed_caches(weights.holder, recorder)

    first = answer(weights, tokenizer, sampling)
    assert isinstance(first._cache, LentCache)
    before = recorder.repeat_count if recorder is not None else 0
    assert finish(first) == expected
    assert finish(answer(weights, tokenizer, sampling)) == expected  # in the same memory
    if recorder is not None:
        assert recorder.repeat_count - before == 2 * 23  # the prompt's pass gives the first token


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", FAMILIES)
def test_families_and_windows_answer_the_same(family, tokenizer, tmp_path):
    values = dict(FAMILIES[family])
    loading = {"attn_implementation": values.pop("attn_implementation", "sdpa")}
    base = load_base(make_tiny_model(tmp_path / family, model_type=family, **values), **loading)
    assert reason_against(base.model) == ""
    weights = BranchWeights(base)
    expected = finish(answer(weights, tokenizer))
    recorder = Recorder()
    use_fixed_caches(base, recorder)

    assert finish(answer(weights, tokenizer)) == expected
    assert len(set(expected)) > 6
    assert recorder.repeat_count == 23


def test_a_second_answer_of_a_branch_has_a_growing_cache_until_the_first_is_done(holder, tokenizer):
    use_fixed_caches(holder["base"].holder, Recorder())
    first, second = answer(holder["base"], tokenizer), answer(holder["base"], tokenizer)

    assert isinstance(first._cache, LentCache)
    assert isinstance(second._cache, DynamicCache)
    assert finish(first) == finish(second)
    assert isinstance(answer(holder["base"], tokenizer)._cache, LentCache)
    given_up = answer(holder["base"], tokenizer)
    given_up.advance()
    del given_up  # as when a request fails
    gc.collect()
    assert isinstance(answer(holder["base"], tokenizer)._cache, LentCache)


def test_a_longer_conversation_gets_a_larger_cache_and_another_graph(holder, tokenizer, monkeypatch):
    monkeypatch.setattr(static_cache, "_FEWEST_POSITIONS", 64)
    recorder = Recorder()
    use_fixed_caches(holder["base"].holder, recorder)
    long = tuple(4 + number % 300 for number in range(150))

    sizes = []
    for prompt in (PROMPT, PROMPT, long, PROMPT):
        running_answer = answer(holder["base"], tokenizer, prompt=prompt)
        sizes.append(running_answer._cache._slot.cache.positions)
        finish(running_answer)

    assert sizes == [64, 64, 256, 256]
    assert recorder.record_count == 2


def test_what_cannot_be_recorded_is_computed_and_reported_once(holder, tokenizer, capfd):
    expected = finish(answer(holder["base"], tokenizer))
    recorder = Recorder(fails_at=1)
    caches = use_fixed_caches(holder["base"].holder, recorder)

    running_answer = answer(holder["base"], tokenizer)
    assert finish(running_answer) == expected
    assert isinstance(answer(holder["base"], tokenizer)._cache, DynamicCache)
    assert finish(answer(holder["tuned"], tokenizer)) != expected

    log = capfd.readouterr().err
    assert log.count("Answers without a static cache: a token's pass cannot be recorded") == 1
    assert "RuntimeError" in caches.why_not
    assert recorder.record_count == 1


def test_a_graph_that_gives_other_logits_is_not_used(holder, tokenizer, capfd):
    expected = finish(answer(holder["base"], tokenizer))

    class Wrong(Recorder):
        def capture(self, one_token):
            repeat = super().capture(one_token)
            return lambda: repeat() + 100

    caches = use_fixed_caches(holder["base"].holder, Wrong())

    assert finish(answer(holder["base"], tokenizer)) == expected
    assert caches.why_not == "a repeated CUDA graph gives other logits"


def test_memory_that_is_short_is_left_to_growing_caches(holder, tokenizer, monkeypatch, capfd):
    caches = use_fixed_caches(holder["base"].holder, Recorder())
    free = [3 * 2**20]
    monkeypatch.setattr(static_cache, "free_bytes", lambda _device: free[0])

    # 2 layers of keys and values, 2 heads of 16 numbers of 4 bytes, 1,024 positions: half a MiB
    assert isinstance(answer(holder["base"], tokenizer)._cache, LentCache)
    caches.clear()
    free[0] = 2**20 - 1
    assert isinstance(answer(holder["base"], tokenizer)._cache, DynamicCache)
    assert "a cache of 1,024 positions takes 0.00 of at most" in capfd.readouterr().err
    free[0] = 2**20
    assert isinstance(answer(holder["base"], tokenizer)._cache, LentCache)


def test_caches_and_graphs_are_dropped_when_adapters_change(tiny_model_folder, tokenizer, tmp_path):
    base = load_base(tiny_model_folder)
    recorder = Recorder()
    use_fixed_caches(base, recorder)
    finish(answer(BranchWeights(base), tokenizer))
    folder = make_adapter(tiny_model_folder, tmp_path / "lora", lora())
    tuned = finish(answer(attach(base, folder), tokenizer))
    base.detach_all()
    other = make_adapter(tiny_model_folder, tmp_path / "other", lora(), seed=5)

    assert finish(answer(attach(base, other), tokenizer)) != tuned
    assert recorder.record_count == 3


@pytest.mark.parametrize("config", [prefix_tuning(), prompt_tuning()], ids=["prefix", "prompt"])
def test_virtual_tokens_keep_a_growing_cache_and_the_log_reports_it(
    config, tiny_model_folder, tokenizer, tmp_path, capfd
):
    base = load_base(tiny_model_folder)
    folder = make_adapter(tiny_model_folder, tmp_path / "virtual", config)
    tuned = attach(base, folder, "prefix_tuning")
    expected = finish(answer(tuned, tokenizer))
    recorder = Recorder()
    use_fixed_caches(base, recorder)

    assert finish(answer(tuned, tokenizer)) == expected
    assert finish(answer(BranchWeights(base), tokenizer)) != expected
    assert recorder.record_count == 1
    assert capfd.readouterr().err.count("tuned has virtual tokens before the prompt") == 1


def test_models_that_cannot_have_one_are_named(tiny_model_folder, tmp_path, monkeypatch):
    assert load_base(tiny_model_folder).fixed_caches.why_not == "needs CUDA"
    model = load_base(tiny_model_folder).model
    monkeypatch.setenv(VARIABLE, "static_cache")
    assert "LORATORY_WITHOUT" in reason_against(model)
    monkeypatch.delenv(VARIABLE)
    model.config._attn_implementation = "flex_attention"
    assert "flex_attention does not support a mask" in reason_against(model)
    quantized = load_base(tiny_model_folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True)).model
    assert "int8" in reason_against(quantized)
    mamba = make_tiny_model(tmp_path / "mamba", model_type="mamba", state_size=4)
    assert reason_against(AutoModelForCausalLM.from_pretrained(mamba)) != ""
