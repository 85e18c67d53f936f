"""Functions become part of a script: what depends on the facts alone is settled, everything else stays as it is written."""

from dataclasses import replace

import pytest

from engine.config.methods.base import Source
from engine.export.script.facts import facts
from engine.export.script.settle import literal, settle
from engine.export.script.specialize import assemble
from engine.export.script.worker import encoding, rows

FACTS = replace(facts, title="a run", results=("one", "two"))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("if facts.title:\n    a = 1\nelse:\n    a = 2\n", "a = 1\n"),
        ("if not facts.title:\n    a = 1\nelse:\n    # why\n    a = 2\n", "# why\na = 2\n"),
        ("if x:\n    a = 1\nelif facts.title:\n    a = 2\n", "if x:\n    a = 1\nelse:\n    a = 2\n"),
        ("if x:\n    a = 1\nelif not facts.title:\n    a = 2\n", "if x:\n    a = 1\n"),
        ("if not facts.title:\n    a = 1\nelif x:\n    a = 2\n", "if x:\n    a = 2\n"),
        ("if facts.title and x:\n    a = 1\n", "if x:\n    a = 1\n"),
        ("if x or not facts.title:\n    a = 1\n", "if x:\n    a = 1\n"),
        ("if facts.title == 'other' and x:\n    a = 1\n", ""),
        ("a = (x if facts.title else y) + 1\n", "a = x + 1\n"),
        ("a = x or ''\n", "a = x or ''\n"),
        ("a = facts.title.join(x)\n", 'a = "a run".join(x)\n'),
        (
            "f(\n    a=1,\n    **facts.data.open_arguments,\n)\n",
            'f(\n    a=1,\n    encoding="utf-8-sig",\n    newline="\\n",\n)\n',
        ),
        ("f(a, **({'b': c} if facts.title else {}))\n", "f(a, b=c)\n"),
        ("f(a, **({'b': c} if not facts.title else {}))\n", "f(a)\n"),
        ("a = getattr(torch, facts.model.compute)\n", "a = torch.float32\n"),
        (
            "def f():\n    if facts.title:\n        return 1\n    if x:\n        g()\n    return 2\n",
            "def f():\n    return 1\n",
        ),
    ],
)
def test_what_the_facts_decide_is_settled(source, expected):
    assert settle(source, FACTS) == expected


def test_a_script_has_what_its_functions_need_and_no_more():
    text = assemble(["engine.export.script.worker.rows"], ["digest"], FACTS)

    assert "import hashlib\n" in text
    assert "json" not in text
    assert "def digest" in text
    assert "def read_rows" not in text
    assert "SEED" not in text


def test_plain_code_has_no_annotations_and_no_main():
    text = assemble(["engine.export.script.worker.short"], ["main"], FACTS, plain=True)

    assert "def to_prompt_completion(row):" in text
    assert "def main" not in text
    assert text.splitlines()[-1].startswith("tokenizer.save_pretrained(")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ('a "b"\n', '"a \\"b\\"\\n"'),
        ([1, 2.5, None, True], "[1, 2.5, None, True]"),
        ((1, 2), "(1, 2)"),
        ({3, 1}, "{1, 3}"),
        ({"a": ["b"]}, '{"a": ["b"]}'),
        (Source("find(model)"), "find(model)"),
    ],
)
def test_values_are_written_as_python(value, written):
    assert literal(value) == written


def test_the_parts_run_as_they_are_written():
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}

    messages = rows.conversation(row)

    assert messages == row["messages"]
    assert encoding.answer_places(messages) == [1]
    assert rows.digest(messages) == rows.digest(rows.conversation(dict(row)))
