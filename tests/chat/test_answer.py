"""Answers are those of transformers' own `generate`, one token a turn, and end for the right reason."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from loratory.engine.chat.contract import ChatChunk
from loratory.engine.chat.worker.answer import Answer, AnswerRules
from loratory.engine.chat.worker.weights import BranchWeights
from loratory.engine.config.results import SamplingConfig
from loratory.engine.errors import ModelError
from tests.chat.tiny_adapters import attach, load_base, lora, make_adapter, p_tuning, prefix_tuning, prompt_tuning

PROMPT = tuple(range(4, 40))
GREEDY = SamplingConfig(temperature=0, max_new_tokens=24)
NEVER = frozenset({-1})


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder):
    return AutoTokenizer.from_pretrained(tiny_model_folder)


@pytest.fixture(scope="module")
def lora_folder(tiny_model_folder, tmp_path_factory):
    return make_adapter(tiny_model_folder, tmp_path_factory.mktemp("answer") / "lora", lora())


@pytest.fixture(scope="module")
def prefix_folder(tiny_model_folder, tmp_path_factory):
    return make_adapter(tiny_model_folder, tmp_path_factory.mktemp("answer") / "prefix", prefix_tuning())


@pytest.fixture(scope="module")
def base(tiny_model_folder) -> BranchWeights:
    return BranchWeights(load_base(tiny_model_folder))


@pytest.fixture(scope="module")
def both(tiny_model_folder, lora_folder) -> dict[str, BranchWeights]:
    holder = load_base(tiny_model_folder)
    return {"base": BranchWeights(holder), "tuned": attach(holder, lora_folder)}


def rules(sampling=GREEDY, prompt=PROMPT, end_ids=NEVER, context_length=512) -> AnswerRules:
    return AnswerRules(prompt, end_ids, sampling, context_length)


def finish(answer: Answer) -> list[ChatChunk]:
    chunks = []
    while not answer.is_done:
        chunk = answer.advance()
        if chunk is not None:
            chunks.append(chunk)
    return chunks


def tokens_of(answer: Answer) -> list[int]:
    finish(answer)
    return list(answer.tokens)


def generate(model, **settings) -> list[int]:
    ids = torch.tensor([PROMPT])
    model.generation_config.eos_token_id = None
    with torch.inference_mode():
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pad_token_id=3, **settings)
    return out[0, len(PROMPT) :].tolist()


def test_greedy_answers_are_those_of_generate(base, both, tokenizer, tiny_model_folder, lora_folder):
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_folder).eval()
    expected_base = generate(plain, do_sample=False, max_new_tokens=24)
    expected_tuned = generate(PeftModel.from_pretrained(plain, lora_folder).eval(), do_sample=False, max_new_tokens=24)
    assert expected_base != expected_tuned
    assert len(set(expected_base)) > 12  # wanders, so a wrong token would show

    assert tokens_of(Answer("base", both["base"], rules(), tokenizer)) == expected_base
    assert tokens_of(Answer("tuned", both["tuned"], rules(), tokenizer)) == expected_tuned


@pytest.mark.parametrize("seed", [0, 7])
def test_drawn_answers_are_those_of_generate_with_the_same_seed(base, tokenizer, seed):
    values = {"temperature": 0.9, "top_k": 50, "top_p": 0.8, "repetition_penalty": 1.1, "max_new_tokens": 24}
    torch.manual_seed(seed)
    expected = generate(base.holder.model, do_sample=True, **values)

    assert tokens_of(Answer("base", base, rules(SamplingConfig(seed=seed, **values)), tokenizer)) == expected


def test_without_a_seed_each_answer_is_drawn_again(base, tokenizer):
    sampling = SamplingConfig(temperature=2.0, top_p=1.0, max_new_tokens=24)

    answers = {tuple(tokens_of(Answer("base", base, rules(sampling), tokenizer))) for _ in range(4)}

    assert len(answers) > 1


def test_prefix_tuning_answers_as_it_was_trained(tiny_model_folder, prefix_folder, tokenizer):
    """The reference is PEFT's forward pass over the whole sequence, which is what training runs."""
    tuned = attach(load_base(tiny_model_folder), prefix_folder, "prefix_tuning")
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_folder), prefix_folder).eval()
    ids = torch.tensor([PROMPT])
    with torch.inference_mode():
        for _ in range(24):
            logits = peft(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    expected = ids[0, len(PROMPT) :].tolist()

    assert tokens_of(Answer("tuned", tuned, rules(), tokenizer)) == expected
    assert tokens_of(Answer("base", BranchWeights(tuned.holder), rules(), tokenizer)) != expected


VIRTUAL_INPUTS = {"prompt_tuning": prompt_tuning(), "p_tuning": p_tuning()}


@pytest.mark.parametrize("method", VIRTUAL_INPUTS)
def test_virtual_tokens_among_the_inputs_answer_as_pefts_generate(
    tiny_model_folder, lora_folder, tokenizer, tmp_path, method
):
    folder = make_adapter(tiny_model_folder, tmp_path / "virtual", VIRTUAL_INPUTS[method])
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_folder), folder).eval()
    # With a cache, PEFT 0.21 looks for it under transformers' former name, and puts the virtual tokens before every token.
    expected = generate(peft, do_sample=False, max_new_tokens=24, use_cache=False)
    ids, labels = torch.tensor([PROMPT]), [-100, *PROMPT[1:]]
    with torch.inference_mode():
        outputs = peft(input_ids=ids, labels=torch.tensor([labels]))
    holder = load_base(tiny_model_folder)
    other, tuned = attach(holder, lora_folder, branch="second").adapter, attach(holder, folder, method)

    assert tokens_of(Answer("base", BranchWeights(holder), rules(), tokenizer)) != expected
    for active in (None, other):  # whichever branch had the last turn
        holder.switch_to(active)
        assert tokens_of(Answer("tuned", tuned, rules(), tokenizer)) == expected
        holder.switch_to(active)
        with torch.inference_mode():
            logits = tuned.next_logits(ids, tuned.new_cache())
        torch.testing.assert_close(logits, outputs.logits[:, -1], atol=1e-4, rtol=1e-4)
    with torch.inference_mode():
        losses = [sum(branch.token_losses(PROMPT, labels)) for branch in (tuned, BranchWeights(holder))]
    assert losses[0] == pytest.approx(float(outputs.loss) * (len(PROMPT) - 1), rel=1e-5)
    assert losses[1] != pytest.approx(losses[0], rel=1e-3)


def test_a_long_prompt_is_read_in_pieces_and_answered_the_same(base, tokenizer, monkeypatch):
    expected = tokens_of(Answer("base", base, rules(), tokenizer))
    monkeypatch.setattr("loratory.engine.chat.worker.answer.PIECE_TOKENS", 10)
    answer = Answer("base", base, rules(), tokenizer)

    assert [answer.advance() for _ in range(3)] == [None, None, None]
    assert tokens_of(answer) == expected


def test_an_architecture_without_a_cache_is_answered_too(base, tokenizer, monkeypatch):
    expected = tokens_of(Answer("base", base, rules(), tokenizer))
    monkeypatch.setattr(BranchWeights, "new_cache", lambda self: None)

    assert tokens_of(Answer("base", base, rules(), tokenizer)) == expected


def test_an_answer_ends_at_its_end_token_which_is_neither_counted_nor_shown(base, tokenizer):
    tokens = tokens_of(Answer("base", base, rules(), tokenizer))
    end = tokens[5]
    before = tokens[: tokens.index(end)]

    chunks = finish(Answer("base", base, rules(end_ids=frozenset({end})), tokenizer))

    assert chunks[-1].finish_reason == "eos"
    assert chunks[-1].tokens == len(before)
    assert "".join(chunk.text for chunk in chunks) == tokenizer.decode(before, skip_special_tokens=True)


@pytest.mark.parametrize(("room", "tokens", "reason"), [(100, 24, "length"), (3, 3, "context")])
def test_an_answer_ends_at_its_longest_or_where_the_context_does(base, tokenizer, room, tokens, reason):
    chunks = finish(Answer("base", base, rules(context_length=len(PROMPT) + room), tokenizer))

    assert (chunks[-1].finish_reason, chunks[-1].tokens) == (reason, tokens)
    assert [chunk.done for chunk in chunks] == [False] * (tokens - 1) + [True]


def test_a_prompt_that_fills_the_context_is_refused(base, tokenizer):
    with pytest.raises(ModelError, match=r"takes 36 tokens, and tiny holds 36\. Start a new conversation"):
        Answer("base", base, rules(context_length=len(PROMPT)), tokenizer)


def test_speed_counts_from_the_first_token(base, tokenizer):
    chunks = finish(Answer("base", base, rules(), tokenizer))

    assert chunks[0].tokens_per_second == 0
    assert chunks[0].first_token_seconds > 0
    assert all(chunk.tokens_per_second > 0 for chunk in chunks[1:])
    assert len({chunk.first_token_seconds for chunk in chunks}) == 1
