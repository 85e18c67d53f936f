"""Ollama's templates render what the trained ones do, or are not written."""

import pytest

from loratory.engine.chat.worker.answer import render_prompt
from loratory.engine.data.conversation import Message
from loratory.engine.errors import ModelError
from loratory.engine.export.gguf.go_template import (
    NotTranslatableError,
    OllamaTemplate,
    sample_conversations,
    translate,
)
from tests.data.families import FAMILIES, tokenizer_of
from tests.tiny_model import make_tiny_tokenizer

SMOLLM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful AI assistant<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def renderer(tokenizer):
    return lambda messages: render_prompt(messages, tokenizer).text


def translate_template(tokenizer, implied_bos: str = "") -> OllamaTemplate:
    return translate(renderer(tokenizer), implied_bos)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_each_family_is_translated_exactly_or_refused(family):
    tokenizer = tokenizer_of(family)
    render = renderer(tokenizer)
    try:
        template = translate_template(tokenizer)
    except (NotTranslatableError, ModelError):
        assert family.name in {"gpt-oss"}, "every other family only puts fixed words between turns"
        return

    for conversation in sample_conversations():
        assert template.render(conversation) == render(conversation)


def test_ollama_reads_the_branches_by_which_the_words_are_proved():
    template = OllamaTemplate("<start system>", "<start user>", "<system user>", "<answer>", "<next user>", "<ask>")

    assert template.go_text == (
        '{{ $last := "" }}{{ range .Messages }}'
        '{{ if eq .Role "system" }}<start system>{{ .Content }}'
        '{{ else if eq .Role "user" }}'
        '{{ if eq $last "system" }}<system user>{{ else if eq $last "assistant" }}<next user>'
        "{{ else }}<start user>{{ end }}{{ .Content }}"
        '{{ else if eq .Role "assistant" }}<answer>{{ .Content }}{{ end }}'
        "{{ $last = .Role }}{{ end }}"
        '{{ if ne $last "assistant" }}<ask>{{ end }}'
    )
    turns = [Message("system", "S"), Message("user", "U"), Message("assistant", "A"), Message("user", "V")]
    assert template.render(turns) == "<start system>S<system user>U<answer>A<next user>V<ask>"
    assert template.render(turns[1:3]) == "<start user>U<answer>A"


def test_a_default_system_prompt_stands_where_the_conversation_has_none():
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = SMOLLM
    template = translate_template(tokenizer)

    assert template.render([Message("user", "Hi")]).startswith(
        "<|im_start|>system\nYou are a helpful AI assistant<|im_end|>"
    )
    own = template.render([Message("system", "Be brief."), Message("user", "Hi")])
    assert own == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_the_token_that_llama_cpp_puts_first_is_left_to_it():
    family = next(family for family in FAMILIES if family.bos is not None)
    tokenizer = tokenizer_of(family)

    with_bos, without = translate_template(tokenizer), translate_template(tokenizer, tokenizer.bos_token)

    question = [Message("user", "Hi")]
    assert with_bos.render(question) == tokenizer.bos_token + without.render(question)
    with pytest.raises(NotTranslatableError, match="does not begin with the token"):
        translate_template(make_tiny_tokenizer(), "<s>")


def test_an_unfinished_answer_is_gone_on_with():
    template = translate_template(make_tiny_tokenizer())

    text = template.render([Message("user", "Count."), Message("assistant", "One, two,")])

    assert text.endswith("<|im_start|>assistant\nOne, two,")


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ loop.index }}. {{ m.role }}: {{ m.content }}\n{% endfor %}assistant: ",  # counts turns
        "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}\n{% endfor %}assistant: ",  # changes words
        "{% for m in messages %}{{ m.role }}: {{ m.content.split('\n')[0] }}\n{% endfor %}assistant: ",  # cuts them
        "{% for m in messages %}{{ m.role }} {{ '{{' }} {{ m.content }}\n{% endfor %}assistant: ",  # Go's own marks
    ],
)
def test_what_does_more_than_put_words_between_turns_is_not_translated(template):
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = template

    with pytest.raises((NotTranslatableError, ModelError)):
        translate_template(tokenizer)
