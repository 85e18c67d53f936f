"""A conversation: who remembers what, and how it is shown."""

from engine.chat.contract import ChatChunk
from tests.fakes import FakeInspector
from tests.invented_runs import a_config
from ui.views.suggestions import first_questions, render_suggestions
from ui.views.transcript import Answer, Turn, messages_of, render_transcript


def said(branch: str, text: str) -> Answer:
    return Answer(branch, text=text, tokens=3, tokens_per_second=12.5, done=True, finish_reason="eos")


def test_each_branch_remembers_its_own_answers():
    turns = [Turn("one?", (said("base", "B1"), said("tuned", "T1"))), Turn("two?", (Answer("base"), Answer("tuned")))]

    base, tuned = messages_of(turns, "base", " be brief "), messages_of(turns, "tuned", "")

    assert [(m.role, m.content) for m in base] == [
        ("system", "be brief"), ("user", "one?"), ("assistant", "B1"), ("user", "two?"),
    ]  # fmt: skip
    assert [m.content for m in tuned] == ["one?", "T1", "two?"]


def test_a_question_that_a_branch_never_answered_is_not_in_its_memory():
    turns = [Turn("only for tuned?", (said("tuned", "T"),)), Turn("for both?", (Answer("base"),))]

    assert [m.content for m in messages_of(turns, "base", "")] == ["for both?"]


def test_chunks_grow_the_answer_of_their_branch_only():
    turn = Turn("?", (Answer("base"), Answer("tuned")))

    chunk = ChatChunk(branch="tuned", text="It ", tokens=1, tokens_per_second=0.0, prompt_tokens=9)
    turn = turn.with_chunk(chunk).with_chunk(chunk.model_copy(update={"text": "scales", "tokens": 2}))

    assert turn.answer_of("tuned").text == "It scales"
    assert turn.answer_of("base").text == ""
    assert all(answer.done for answer in turn.ended().answers)


def test_everything_that_was_said_is_escaped_and_line_breaks_stay():
    html = render_transcript([Turn("<b>me</b>", (said("base", "1 < 2\n<script>x</script>"),))])

    assert "<script" not in html
    assert "&lt;b&gt;me&lt;/b&gt;" in html
    assert "1 &lt; 2\n&lt;script&gt;" in html


def test_speed_and_reason_of_the_end_stand_under_each_answer():
    html = render_transcript([Turn("?", (said("base", "x"), Answer("tuned", text="y", tokens=1)))])

    assert "3 tokens · 12.5 tokens/s · ended by itself" in html
    assert 'class="text writing"' in html  # the other one is still being written
    assert "Base model" in html
    assert "Tuned" in html


def test_an_empty_answer_is_said_to_be_empty():
    silent = Answer("tuned", done=True, finish_reason="eos")

    assert "it said nothing" in render_transcript([Turn("?", (silent,))])


def test_suggestions_are_different_questions_from_the_data():
    page = FakeInspector().preview(a_config().dataset, count=40)

    questions = first_questions(page, 3)

    assert len(questions) == len(set(questions)) == 3
    assert "&lt;b&gt;" in render_suggestions(["Can I <b>?"])
    assert render_suggestions([]) == ""
