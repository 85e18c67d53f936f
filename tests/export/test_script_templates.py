"""Chat templates and tokenizers with ways of their own: a stand-alone script makes the run's very tokens of all."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from engine.data.render.template import DEFAULT_TEMPLATE
from engine.inspector.worker.load_tokenizer import load_tokenizer
from engine.models.source import ModelSource
from tests.data.families import FAMILIES, family, sentencepiece_tokenizer, template_text, tokenizer_of
from tests.data.test_unusual_templates import MOVING_SYSTEM
from tests.export.test_script import (
    CHAT,
    assert_whole,
    make_config,
    names_of,
    script_of,
    sequences_of,
    sequences_of_run,
    write_lines,
)
from tests.tiny_model import make_tiny_model

TOKENIZER_FILES = ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory) -> Path:
    """A model without a tokenizer; read-only."""
    folder = make_tiny_model(tmp_path_factory.mktemp("plain") / "model")
    for name in TOKENIZER_FILES:
        (folder / name).unlink(missing_ok=True)
    return folder


def model_with(tokenizer, plain_folder: Path, folder: Path) -> Path:
    shutil.copytree(plain_folder, folder)
    tokenizer.save_pretrained(folder)
    return folder


def with_template(template: str | None, name: str = "qwen2.5"):
    tokenizer = tokenizer_of(family(name), frozen=False)
    tokenizer.chat_template = template
    return tokenizer


def user_turn(question: str) -> dict[str, str]:
    return {"role": "user", "content": question}


def assistant_turn(answer: str, **more: str) -> dict[str, str]:
    return {"role": "assistant", "content": answer, **more}


def thought_text(n: int) -> str:
    return f"<think>\nIt may be {n}.\n</think>\n\nIt is {n}."


TWO_TURNS = [{"messages": [*row["messages"], *CHAT[n - 1]["messages"]]} for n, row in enumerate(CHAT)]
REASONED = [
    {
        "messages": [
            user_turn(f"{n}?"),
            assistant_turn(thought_text(n) if n % 3 else "No."),
            user_turn("And?"),
            assistant_turn(thought_text(n + 1)),
        ]
    }
    for n in range(12)
]
REASONED_IN_FIELDS = [
    {
        "messages": [
            user_turn(f"{n}?"),
            assistant_turn("One.", reasoning_content=f"Or {n}."),
            user_turn("And?"),
            assistant_turn("Two."),
        ]
    }
    for n in range(12)
]
EMPTY_THOUGHTS = [{"prompt": f"{n}?", "completion": f"<think>\n\n</think>\n\nIt is {n}."} for n in range(12)]
SYSTEMS = [
    {"messages": [SYSTEM, *row["messages"], *[SYSTEM] * (n % 2), *CHAT[n - 1]["messages"]]}
    for n, row in enumerate(CHAT)
]
REPEATED = [
    {
        "messages": [
            user_turn("Hello."),
            user_turn(f"{n}?"),
            assistant_turn(f"{n}."),
            *[assistant_turn("Or so.")] * (n % 2),
            user_turn("Thanks."),
            assistant_turn(""),
        ]
    }
    for n in range(12)
]
OPENING = [{"messages": [*[assistant_turn("Hello.")] * (n % 2), *row["messages"]]} for n, row in enumerate(CHAT)]
MELTING = [
    {
        "messages": [
            user_turn(f"{n} ?"),
            assistant_turn("is a rank of an adapter"),
            user_turn("and ?"),
            assistant_turn(f"a number and {n}"),
        ]
    }
    for n in range(12)
]
ROWS: dict[str, Any] = {
    "two turns": TWO_TURNS,
    "reasoning": REASONED,
    "reasoning in fields": REASONED_IN_FIELDS,
    "empty reasoning": EMPTY_THOUGHTS,
    "system turns": SYSTEMS,
    "repeated roles": REPEATED,
    "an opening answer": OPENING,
    "words of one token with what is before them": MELTING,
}


@pytest.mark.exhaustive(quick=3)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", [*(one.name for one in FAMILIES), "llama2"])
def test_a_familys_template_is_followed(name, rows, plain_folder, home, tmp_path):
    tokenizer = sentencepiece_tokenizer() if name == "llama2" else tokenizer_of(family(name), frozen=False)
    model = model_with(tokenizer, plain_folder, tmp_path / "model")
    source = str(write_lines(tmp_path / "rows.jsonl", ROWS[rows]))
    config = make_config(model, source, {"max_length": 800})

    expected = sequences_of_run(config, home)

    assert sequences_of(script_of(config, home)) == expected
    assert all(expected)


TURNS = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
PARTS = (
    "{% for m in messages %}<|im_start|>{% for p in m['content'] %}{{ p['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
)
CLOSING = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
THINKING = CLOSING.replace(
    "{{ m['content'] }}",
    "{{ '<think>\n' + m.get('reasoning_content', '') + '\n</think>\n\n' if m['role'] == 'assistant' }}{{ m['content'] }}",
)
TEMPLATES = {
    "a system prompt that moves": MOVING_SYSTEM,
    "turns without an end": TURNS + "{% if add_generation_prompt %}assistant: {% endif %}",
    "parts of text": PARTS + "{% if add_generation_prompt %}<|im_start|>{% endif %}",
    "closed reasoning": THINKING
    + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}",
    "reasoning that is cut out": CLOSING.replace("{{ m['content'] }}", "{{ m['content'].split('</think>')[-1] }}")
    + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "no template": None,
}


@pytest.mark.exhaustive(quick=2)
@pytest.mark.parametrize(
    "rows", ["reasoning", "system turns", "repeated roles", "words of one token with what is before them"]
)
@pytest.mark.parametrize("name", TEMPLATES)
def test_an_unusual_template_is_followed(name, rows, plain_folder, home, tmp_path):
    model = model_with(with_template(TEMPLATES[name]), plain_folder, tmp_path / "model")
    # What this template refuses of rows that it does not take is refused by both.
    source = str(write_lines(tmp_path / "rows.jsonl", [*ROWS[rows], *CHAT]))
    config = make_config(model, source, {"max_length": 800})

    script = script_of(config, home)
    assert sequences_of(script) == sequences_of_run(config, home)
    assert_whole(script, tmp_path)


SEVERAL_ANSWERS = [
    {
        "prompt": [user_turn(f"{n}?"), assistant_turn("Hm."), user_turn("So?")],
        "completion": [assistant_turn(f"{n}."), user_turn("More?"), assistant_turn(f"{n + 1}.")],
    }
    for n in range(12)
]


@pytest.mark.exhaustive(quick=2)
@pytest.mark.parametrize("train_on", ["assistant", "completion", "last_assistant", "all"])
@pytest.mark.parametrize(
    "rows", [SEVERAL_ANSWERS, REPEATED, SYSTEMS], ids=["a completion of turns", "repeated", "systems"]
)
def test_the_answers_that_count_are_those_of_the_run(rows, train_on, plain_folder, home, tmp_path):
    model = model_with(tokenizer_of(family("gemma"), frozen=False), plain_folder, tmp_path / "model")
    source = str(write_lines(tmp_path / "rows.jsonl", rows))
    config = make_config(model, source, {"max_length": 800}, train_on=train_on)

    script = script_of(config, home)
    assert sequences_of(script) == sequences_of_run(config, home)
    assert_whole(script, tmp_path)


# From the ninth answer on it tells no more than the last question: the ninth is not asked for as it is written.
FORGETFUL = CLOSING.replace("in messages", "in (messages[-2:] if messages | length > 17 else messages)")


@pytest.mark.parametrize("template", [FORGETFUL, template_text("qwen3.jinja")], ids=["forgetful", "qwen3"])
def test_turns_far_beyond_the_cut_are_not_looked_at(template, plain_folder, home, tmp_path):
    if template == FORGETFUL:
        template += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    rows = [
        {"messages": [turn for m in range(20) for turn in (user_turn(f"{n} {m}?"), assistant_turn(thought_text(m)))]}
        for n in range(6)
    ]
    model = model_with(with_template(template, "qwen3"), plain_folder, tmp_path / "model")
    source = str(write_lines(tmp_path / "rows.jsonl", rows))

    for max_length in (120, 300):
        config = make_config(model, source, {"max_length": max_length})
        assert sequences_of(script_of(config, home)) == sequences_of_run(config, home)


def test_rows_that_the_template_refuses_are_left_out(plain_folder, home, tmp_path, capsys):
    refusing = "{% if 'never' in messages[0]['content'] %}{{ raise_exception('never say never') }}{% endif %}"
    model = model_with(
        with_template(f"{refusing}{CLOSING}{{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"),
        plain_folder,
        tmp_path / "model",
    )
    rows = [*CHAT, {"messages": [user_turn("never"), assistant_turn("ever")]}]
    config = make_config(model, str(write_lines(tmp_path / "rows.jsonl", rows)))

    assert sequences_of(script_of(config, home)) == sequences_of_run(config, home)
    assert (
        "1 rows are left out, the first because the chat template refuses it: never say never"
        in capsys.readouterr().out
    )


def test_a_base_model_gets_the_plain_template_behind_its_own_opening(plain_folder, home, tmp_path):
    tokenizer = with_template(None, "llama3")
    bos = ("<|begin_of_text|>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    model = model_with(tokenizer, plain_folder, tmp_path / "model")
    config = make_config(model, str(write_lines(tmp_path / "rows.jsonl", CHAT)))

    (train, held_out) = sequences_of(script_of(config, home))

    assert (train, held_out) == sequences_of_run(config, home)
    assert all(ids[0] == tokenizer.bos_token_id for ids, _ in train + held_out)
    assert json.dumps(DEFAULT_TEMPLATE) in script_of(config, home)


def test_a_model_that_is_elsewhere_settles_its_template_where_the_script_runs(plain_folder, home, tmp_path):
    source = str(write_lines(tmp_path / "rows.jsonl", CHAT))
    away = names_of(make_config(Path("someone/somewhere"), source), home)
    bare = model_with(with_template(None), plain_folder, tmp_path / "bare")
    own = model_with(with_template("{{ strftime_now('%Y') }}"), plain_folder, tmp_path / "own")
    computed = model_with(with_template("{{ strftime_now(form) }}"), plain_folder, tmp_path / "computed")

    clock = "{{ strftime_now('%d %m') }}"
    named = model_with(
        with_template({"default": clock, "tool_use": f"{clock}{{{{ tools }}}}"}), plain_folder, tmp_path / "2"
    )

    assert away["load_tokenizer"](str(bare)).chat_template == DEFAULT_TEMPLATE
    for model in (own, computed, named):
        frozen = load_tokenizer(ModelSource(str(model), "own"))[0].chat_template
        assert away["load_tokenizer"](str(model)).chat_template == frozen
        here = names_of(make_config(model, source), home)
        assert here["load_tokenizer"](str(model)).chat_template == frozen


def test_a_tokenizer_that_ends_nothing_is_refused_where_no_run_has_chosen_its_end(plain_folder, home, tmp_path):
    tokenizer = with_template(CLOSING)
    tokenizer.eos_token = None
    model = model_with(tokenizer, plain_folder, tmp_path / "model")
    names = names_of(make_config(model, str(write_lines(tmp_path / "rows.jsonl", CHAT))), home)

    with pytest.raises(SystemExit, match="names no token that ends an answer"):
        names["load_tokenizer"](str(model))
