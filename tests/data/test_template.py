"""Templates made complete and frozen."""

import time

import pytest

from loratory.engine.data.conversation import Conversation, Message
from loratory.engine.data.records import RowProblemError
from loratory.engine.data.render.adapt import abilities_of
from loratory.engine.data.render.template import (
    apply_template,
    control_token_ids,
    control_token_pattern,
    freeze_template,
    stop_token_ids,
    tokenizer_fingerprint,
)
from loratory.engine.data.render.tokenize import RenderOptions, prompt_ids
from loratory.engine.errors import ModelError, ModelLimitError
from tests.data.conversations import render_conversation
from tests.data.families import bpe_tokenizer, family, template_text, tokenizer_of

TALK = Conversation((Message("system", "Be brief."), Message("user", "One?"), Message("assistant", "Two.")))


def test_a_base_model_gets_the_default_template_and_keeps_it_when_saved(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = bpe_tokenizer(("</s>", "<unk>"))
    frozen = freeze_template(tokenizer)

    assert tokenizer.eos_token == "</s>"
    assert tokenizer.pad_token == "<unk>"
    (warning,) = frozen.warnings
    assert "no chat template" in warning
    assert warning in frozen.notes
    (row,) = render_conversation(0, TALK, tokenizer, RenderOptions(None)).rows
    assert row.text == "Be brief.\n\n### Instruction:\nOne?\n\n### Response:\nTwo.</s>\n\n"
    assert tokenizer.decode([label for label in row.labels if label != -100]) == "Two.</s>"

    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert freeze_template(again).notes == ()
    assert prompt_ids(TALK.messages[:2], again) == prompt_ids(TALK.messages[:2], tokenizer)
    assert tokenizer_fingerprint(again) == tokenizer_fingerprint(tokenizer)


def test_the_default_template_begins_with_bos_where_the_tokenizer_does():
    from tokenizers.processors import TemplateProcessing

    tokenizer = bpe_tokenizer(("<s>", "</s>", "<pad>"))
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = "<s>", "</s>", "<pad>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    freeze_template(tokenizer)

    assert prompt_ids(TALK.messages[:2], tokenizer)[0] == tokenizer.bos_token_id


def test_pad_is_never_the_token_that_ends_an_answer():
    tokenizer = bpe_tokenizer(("<|im_start|>", "<|im_end|>", "<|endoftext|>"))
    tokenizer.chat_template = template_text("qwen2_5.jinja")
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.pad_token = "<|im_end|>"  # ends a turn, though it is not eos

    frozen = freeze_template(tokenizer)

    assert (len(frozen.notes), frozen.warnings) == (1, ())  # no one would have wanted another
    assert set(stop_token_ids(tokenizer)) == set(tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"]))
    assert tokenizer.pad_token_id not in stop_token_ids(tokenizer)
    assert tokenizer.pad_token_id < len(tokenizer)


def test_pad_stays_what_it_was_where_it_ends_nothing():
    tokenizer = tokenizer_of(family("llama3.1"))

    assert tokenizer.pad_token == "<|finetune_right_pad_id|>"
    assert freeze_template(tokenizer).notes == ()


def test_a_tokenizer_that_cannot_end_an_answer_is_refused():
    with pytest.raises(ModelError, match="ends an answer"):
        freeze_template(bpe_tokenizer(("<unk>",)))


def test_a_template_that_asks_for_the_date_gets_the_same_one_every_day():
    tokenizer = tokenizer_of(family("llama3.1"))
    tokenizer.chat_template = template_text("llama3_2.jinja")
    frozen = freeze_template(tokenizer)

    assert "Today Date: 01 Jan 2025" in render_conversation(0, TALK, tokenizer, RenderOptions(None)).rows[0].text
    assert any("2025-01-01" in note for note in frozen.notes)


def test_a_computed_date_format_is_frozen_too():
    tokenizer = tokenizer_of(family("qwen2.5"), frozen=False)
    tokenizer.chat_template = (
        "{% set f = '%Y' %}{{ strftime_now(f) }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    freeze_template(tokenizer)
    once = tokenizer.chat_template
    freeze_template(tokenizer)

    assert apply_template(tokenizer, [{"role": "user", "content": "x"}], [], prompt=False) == "2025-01-01x"
    assert tokenizer.chat_template == once


def test_a_template_that_loops_for_ever_is_stopped(monkeypatch):
    monkeypatch.setattr("loratory.engine.data.render.template.TEMPLATE_SECONDS", 0.2)
    tokenizer = tokenizer_of(family("qwen2.5"))
    tokenizer.chat_template = (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
        "{% endfor %}{% endfor %}{% endfor %}"
    )
    start = time.process_time()

    with pytest.raises(ModelLimitError, match="computed for more than"):
        apply_template(tokenizer, [{"role": "user", "content": "x"}], [], prompt=False)

    assert time.process_time() - start < 30


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('only on Tuesdays') }}", "only on Tuesdays"),
        ("{{ messages[99]['content'] }}", "refuses it"),
        ("{% for", "refuses it"),
        ("{{ ''.__class__.__mro__ }}", "refuses it"),
    ],
)
def test_a_template_that_fails_reports_it_in_a_sentence(template, message):
    tokenizer = tokenizer_of(family("qwen2.5"))
    tokenizer.chat_template = template

    with pytest.raises(RowProblemError, match=message) as problem:
        apply_template(tokenizer, [{"role": "user", "content": "x"}], [], prompt=False)
    assert "\n" not in problem.value.problem


@pytest.mark.parametrize(
    ("file_name", "expected"),
    [
        ("gemma.jinja", {"system": False, "repeated_roles": False, "tool_calls": False, "reasoning": "inline"}),
        ("qwen3.jinja", {"system": True, "tool_list": True, "parallel_calls": True, "reasoning": "field"}),
        ("llama3_1.jinja", {"tool_list": True, "tool_calls": True, "parallel_calls": False}),
        ("gptoss.jinja", {"tool_calls": True, "parallel_calls": False, "reasoning": "field"}),
        ("deepseekv3.jinja", {"tool_list": False, "tool_calls": True, "text_arguments": True, "reasoning": "none"}),
        ("smolvlm.jinja", {"text_parts": True}),
    ],
)
def test_what_templates_can_express_is_found_out(file_name, expected):
    tokenizer = tokenizer_of(family("qwen2.5"))
    tokenizer.chat_template = template_text(file_name)

    abilities = abilities_of(tokenizer)

    assert {name: getattr(abilities, name) for name in expected} == expected


def test_fingerprints_tell_templates_and_vocabularies_apart():
    prints = {tokenizer_fingerprint(tokenizer_of(family(name))) for name in ("qwen3", "qwen2.5", "gemma")}
    other_tokenizer = tokenizer_of(family("gemma"))
    other_tokenizer.chat_template += " "

    assert len(prints | {tokenizer_fingerprint(other_tokenizer)}) == 4


def test_a_template_that_changes_is_asked_again_what_it_can_express():
    tokenizer = tokenizer_of(family("qwen2.5"))
    assert abilities_of(tokenizer).system

    tokenizer.chat_template = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}{% endfor %}"

    assert not abilities_of(tokenizer).system


def test_tokens_that_are_made_special_later_are_known_at_once():
    tokenizer = bpe_tokenizer(("</s>",))
    tokenizer.eos_token = "</s>"
    word = tokenizer.convert_ids_to_tokens(tokenizer("adapter", add_special_tokens=False)["input_ids"])[-1]
    assert control_token_ids(tokenizer) == {tokenizer.eos_token_id}
    assert not control_token_pattern(tokenizer).search(word)

    tokenizer.pad_token = word

    assert control_token_ids(tokenizer) == {tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert control_token_pattern(tokenizer).search(word)
    tokenizer.add_tokens(["<extra>"])
    assert control_token_pattern(tokenizer).search("<extra>")
