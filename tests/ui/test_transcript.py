"""A conversation: who remembers what, how it is shown, and as a file."""

import json
import re
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from loratory.engine.chat.contract import ChatChunk
from loratory.engine.config.results import SamplingConfig
from loratory.engine.data.conversation import Conversation, Message
from loratory.engine.errors import DatasetError
from loratory.engine.evaluation.votes import AnswerModel
from loratory.ui.backend.conversation import (
    Answer,
    HeldOutPrompts,
    QuestionSettings,
    RowPrompt,
    SavedConversation,
    Turn,
    as_markdown,
    messages_of,
    read_conversation,
    row_prompt,
    versions_of,
    with_version,
)
from loratory.ui.views.chat import render_links, render_suggestions, render_transcript, some_prompts
from loratory.ui.views.html import markdown
from tests.fake_inspector import FakeInspector
from tests.invented_runs import a_config


def make_answer(branch: str, text: str) -> Answer:
    return Answer(branch, text=text, tokens=3, tokens_per_second=12.5, done=True, finish_reason="eos")


def test_each_branch_remembers_its_own_answers():
    turns = [
        Turn("one?", (make_answer("base", "B1"), make_answer("tuned", "T1"))),
        Turn("two?", (Answer("base"), Answer("tuned"))),
    ]

    base, tuned = messages_of(turns, "base", " be brief "), messages_of(turns, "tuned", "")

    assert [(m.role, m.content) for m in base] == [
        ("system", "be brief"), ("user", "one?"), ("assistant", "B1"), ("user", "two?"),
    ]  # fmt: skip
    assert [m.content for m in tuned] == ["one?", "T1", "two?"]
    assert [m.content for m in messages_of([Turn("only for tuned?", turns[0].answers[1:]), turns[1]], "base", "")] == [
        "two?"
    ]


def test_chunks_grow_the_answer_of_their_branch_only():
    turn = Turn("?", (Answer("base"), Answer("tuned")))

    chunk = ChatChunk(branch="tuned", text="It ", tokens=1, tokens_per_second=0.0, prompt_tokens=9)
    turn = turn.with_chunk(chunk).with_chunk(chunk.model_copy(update={"text": "scales", "tokens": 2}))

    assert {answer.branch: answer.text for answer in turn.answers} == {"tuned": "It scales", "base": ""}
    assert all(answer.done for answer in turn.end().answers)


def test_everything_that_was_said_is_escaped_and_line_breaks_stay():
    html = render_transcript([Turn("<b>me</b>", (make_answer("base", "1 < 2\n<script>x</script>"),))])

    assert "<script" not in html
    assert "&lt;b&gt;me&lt;/b&gt;" in html
    assert "1 &lt; 2<br />\n&lt;script&gt;" in html


@pytest.mark.parametrize(
    "hostile",
    [
        "![x](https://evil.example/a.png)",
        "![x][1]\n\n[1]: https://evil.example/a.png",
        "<img src=https://evil.example/a.png onerror=alert(1)>",
        "[x](javascript:alert(1))",
        "[x](data:text/html;base64,AAAA)",
        "<iframe src=//evil.example></iframe>",
        '<https://evil.example/"onmouseover=alert(1)>',
        "| a |\n|---|\n| <style>@import '//evil.example'</style> |",
        "```html\n<script src=//evil.example></script>\n```",
    ],
)
def test_an_answer_in_markdown_fetches_nothing_and_runs_nothing(hostile):
    html = markdown(hostile)
    tags = {name for name, _ in tags_of(html)}
    attributes = {attribute for _, names in tags_of(html) for attribute in names}

    assert tags <= {"div", "p", "a", "table", "thead", "tbody", "tr", "th", "td", "pre", "code", "br"}
    assert attributes <= {"class", "href", "target", "rel", "title"}
    assert not re.search(r'href="(?!https://|http://)', html)


def tags_of(html: str) -> list[tuple[str, list[str]]]:
    matches: list[tuple[str, list[str]]] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag, attrs):
            matches.append((tag, [name for name, _ in attrs]))

    Tags().feed(html)
    return matches


def test_markdown_keeps_lists_code_and_tables_and_its_headings_are_not_the_pages():
    html = markdown("# Title\n\n- **one**\n- two\n\n```\na < b\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |")

    assert '<p class="heading">Title</p>' in html
    for piece in ("<li><strong>one</strong></li>", "a &lt; b", "<td>2</td>"):
        assert piece in html


def test_each_answer_has_its_speed_its_end_and_the_size_of_its_context():
    html = render_transcript([Turn("?", (make_answer("base", "x"), Answer("tuned", text="y", tokens=1)))])

    assert "3 tokens · 12.5 tokens/s · stop token" in html
    assert 'class="text writing"' in html  # the other one is still being written
    assert "Base model" in html
    assert "Tuned" in html
    full = Turn("?", (Answer("tuned", "", tokens=30, prompt_tokens=113, done=True, finish_reason="eos"),))
    assert "(empty answer)" in render_transcript([full])
    assert "context 143 of 8,192" in render_transcript([full], context_tokens=8192)
    assert "context 143 tokens" in render_transcript([full])


def test_a_reference_is_shown_and_questions_can_be_edited_after_all_answers():
    turns = [Turn("?", (make_answer("tuned", "x"),), reference="<so>")]

    assert "&lt;so&gt;" in render_transcript(turns)
    assert "data-pick" not in render_transcript(turns)
    assert 'data-pick="edit:0"' in render_transcript(turns, can_edit=True)


def test_suggestions_are_different_questions_held_out_where_rows_are():
    prompts = HeldOutPrompts(FakeInspector()).of_run(a_config())  # type: ignore[arg-type]

    chosen = some_prompts(prompts, 3)

    assert len({prompt.question for prompt in chosen}) == len(chosen) == 3
    assert all(prompt.held_out and prompt.row % 7 == 3 for prompt in prompts)
    assert "&lt;b&gt;" in render_suggestions([RowPrompt(1, "Can I <b>?", "Yes.")])
    assert render_suggestions([]) == ""
    trained = HeldOutPrompts(FakeInspector()).of_run(a_config(dataset__eval_fraction=0.0))  # type: ignore[arg-type]
    assert "From the training set" in render_suggestions(some_prompts(trained, 1))


def test_rows_without_a_first_question_are_not_prompts():
    row = FakeInspector().preview(a_config().dataset, count=1).rows[0]
    silent = Conversation((Message("user", "What?"),))

    assert row_prompt(row).question == "What does lora_alpha do?"
    assert row_prompt(row.model_copy(update={"conversation": None})) is None
    assert row_prompt(row.model_copy(update={"conversation": silent})) is None
    with_system = Conversation((Message("system", "Be brief."), *row.conversation.messages))
    assert row_prompt(row.model_copy(update={"conversation": with_system})).system == "Be brief."


# As a file

TURNS = [
    Turn("Grüße?", (Answer("tuned", "Hallo.", 3, 12.5, 20, True, "eos"),), reference="Guten Tag."),
    Turn("</a><script>?", (Answer("tuned", "No.", 1, 0.0, 30, True, "length"),)),
]


@pytest.fixture
def conversation():
    return SavedConversation(model="SmolLM2", names={"tuned": "faq, rank 16"}, system="Be brief.", turns=TURNS)


def test_json_comes_back_as_it_was(conversation):
    opened = read_conversation(conversation.model_dump_json().encode())

    assert opened == conversation
    assert list(opened.turns) == TURNS


def test_a_file_of_an_earlier_version_is_read_and_hostile_versions_are_refused():
    old = {"turns": [{"question": "Why?", "answers": [], "asked": None}]}
    (turn,) = read_conversation(json.dumps(old).encode()).turns
    assert (turn.others, turn.version) == ((), 0)
    hostile: tuple[dict[str, object], ...] = ({"others": [[]]}, {"others": [["x"]]}, {"version": -1})
    for wrong in hostile:
        with pytest.raises(DatasetError):
            read_conversation(json.dumps({"turns": [{"question": "Why?", **wrong}]}).encode())


def test_versions_of_versions_come_back_in_order_and_from_a_file():
    first = [Turn("a"), Turn("b")]
    second = [Turn("c", others=versions_of(first, 0), version=1), Turn("d")]
    third = [*second[:1], Turn("e", others=versions_of(second, 1), version=1)]

    (opened,) = (read_conversation(SavedConversation(turns=third).model_dump_json().encode()).turns,)

    assert list(opened) == third
    assert [turn.question for turn in with_version(opened, 1, 0)] == ["c", "d"]
    assert [turn.question for turn in with_version(opened, 0, 0)] == ["a", "b"]
    assert with_version(with_version(opened, 0, 0), 0, 1) == third
    beyond = replace(first[0], others=((Turn("x"),),), version=9)  # as a file may have it
    assert len(versions_of([beyond], 0)) == 2


def test_the_markdown_names_models_settings_and_libraries_but_no_path():
    model = AnswerModel(name="Tuned", base="tiny", run="20260101-000000-000-abcd", checkpoint="step-40")
    settings = QuestionSettings({"tuned": model}, SamplingConfig(temperature=0.25, seed=7), "Be brief.")
    first = TURNS[0]
    turn = Turn(first.question, first.answers, first.reference, settings, ((TURNS[1],),))
    conversation = SavedConversation(turns=(turn,), title="faq / ../rank 16", libraries={"torch": "2.13.0"})

    text = as_markdown(conversation)

    for part in (
        "run 20260101-000000-000-abcd, checkpoint step-40",
        "temperature 0.25",
        "seed 7",
        "torch 2.13.0",
        "version 1 of 2",
    ):
        assert part in text
    assert conversation.file_name == "faq-..-rank-16-chat"
    assert SavedConversation(turns=(turn,)).file_name == "conversation-chat"


def test_actions_are_those_of_the_turn_and_long_answers_can_be_folded():
    turns = [
        Turn("a?", (make_answer("tuned", '"x"'),), others=((Turn("c?"),),)),
        Turn("b?", (make_answer("tuned", "y"),)),
    ]
    html = render_transcript(turns, can_edit=True, below={0: "<i>below</i>"})

    assert re.findall(r'data-pick="([^"]+)"', html) == [
        "edit:0", "retry:0", "branch:0", "prompt:0", "version:0:1", "edit:1", "retry:1", "prompt:1",
    ]  # fmt: skip
    assert "1 of 2" in html
    assert "<i>below</i>" in html
    assert 'data-copy="&quot;x&quot;"' in html
    assert html.count("answer tuned folds") == 2
    assert "folds" not in render_transcript([Turn("?", (Answer("tuned", "so far"),))]), "while it is written"


def test_the_links_hold_the_files_themselves(conversation):
    markdown, values = (b64decode(data).decode() for data in re.findall(r"base64,([^\"]+)", render_links(conversation)))

    assert markdown == as_markdown(conversation)
    for part in ("### faq, rank 16\n\nHallo.", "### Reference\n\nGuten Tag.", "Be brief."):
        assert part in markdown
    assert json.loads(values)["turns"][1]["question"] == "</a><script>?"
    assert render_links(SavedConversation()) == ""


@pytest.mark.parametrize("content", [b"", b"{}x", b'{"turns": [{"question": 1}]}', b"[]", b"\xff"])
def test_other_files_are_refused(content):
    with pytest.raises(DatasetError, match="not a conversation"):
        read_conversation(content)
