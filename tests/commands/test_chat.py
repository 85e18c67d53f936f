"""`loratory chat`, with a partner that repeats what it is asked."""

import io
import json
from typing import Any, ClassVar

import pytest

from loratory.engine.chat.contract import ChatChunk, LoadedModel, PromptView
from loratory.engine.cli import run_command
from loratory.engine.commands.chat import TerminalConversation
from loratory.engine.config.results import SamplingConfig
from loratory.engine.errors import ModelError, RunError
from loratory.engine.interface.names import find_target
from loratory.engine.paths import local_owner
from loratory.engine.runs.store import RunStore

MODULES = ("loratory.engine.commands.chat", "loratory.engine.commands.configs")
MODEL = LoadedModel(
    name="tiny",
    method="LoRA",
    branches=("base", "tuned"),
    device="Test CPU",
    dtype="bfloat16",
    quantization="none",
    weights_bytes=1000,
    adapter_bytes=10,
    context_length=512,
)


class Echo:
    """Answers with the branch and the last question, word by word; loads anything."""

    sessions: ClassVar[list["Echo"]] = []

    def __init__(self, home=None) -> None:
        self.requests: list[Any] = []
        self.target = None
        self.unloaded = False
        self.interrupt_after: int | None = None
        Echo.sessions.append(self)

    def load(self, target, on_progress=None):
        self.target = target
        return MODEL

    def prompt(self, messages):
        return PromptView(text="".join(f"<{message.role}>{message.content}" for message in messages), ids=(1, 2, 3))

    def stream(self, request):
        self.requests.append(request)
        if "fail" in request.messages[-1].content:
            raise ModelError("The context is full.", "Start again.")
        (branch,) = request.branches
        answer = [f"{branch}:", *request.messages[-1].content.split()]
        for number, word in enumerate(answer, start=1):
            if self.interrupt_after == number:
                raise KeyboardInterrupt
            done = number == len(answer)
            yield ChatChunk(
                branch=branch,
                text=f"{word} ",
                tokens=number,
                tokens_per_second=5.0,
                prompt_tokens=3,
                done=done,
                finish_reason="eos" if done else None,
            )

    def unload(self):
        self.unloaded = True


@pytest.fixture
def echo(monkeypatch, home):
    Echo.sessions = []
    monkeypatch.setattr("loratory.engine.commands.chat.ChatSession", Echo)
    return Echo


def converse(*lines: str, partner=None, opening=()) -> tuple[str, Echo]:
    partner = partner or Echo()
    waiting = iter(lines)
    out = io.StringIO()

    def read_line(_):
        try:
            return next(waiting)
        except StopIteration:
            raise EOFError from None

    TerminalConversation(partner, MODEL, opening, SamplingConfig(), ("tuned",), read_line, out).run()
    return out.getvalue(), partner


def test_one_question_is_answered_as_one_json_object(echo, run_id, capsys):
    code = run_command(["chat", run_id, "--prompt", "What is alpha?", "--json"], MODULES)

    answer = json.loads(capsys.readouterr().out)
    assert code == 0
    assert answer["prompt_ids"] == [1, 2, 3]
    assert answer["text"] == "tuned: What is alpha? "
    assert (answer["tokens"], answer["tokens_per_second"]) == (4, 5.0)
    assert echo.sessions[0].unloaded


def test_settings_reach_the_request(echo, run_id):
    options = ["--temperature", "0", "--top-k", "5", "--top-p", "0.5", "--repetition-penalty", "1.2"]
    more = ["--max-tokens", "9", "--seed", "3", "--base", "--system", "Be brief.", "--checkpoint", "step-4"]

    assert run_command(["chat", run_id, "--prompt", "hi", *options, *more], MODULES) == 0

    (session,) = echo.sessions
    (request,) = session.requests
    assert request.sampling == SamplingConfig(
        temperature=0, top_k=5, top_p=0.5, repetition_penalty=1.2, max_new_tokens=9, seed=3
    )
    assert request.branches == ("base",)
    assert [(message.role, message.content) for message in request.messages] == [
        ("system", "Be brief."),
        ("user", "hi"),
    ]
    assert session.target.tuned.checkpoint == "step-4"


def test_every_setting_out_of_bounds_is_named(echo, run_id, capsys):
    code = run_command(["chat", run_id, "--prompt", "hi", "--temperature", "9", "--top-p", "0"], MODULES)

    message = capsys.readouterr().err
    assert code == 1
    assert "temperature: 9.0 is out of range" in message
    assert "top_p: 0.0 is out of range" in message
    assert echo.sessions == []


def test_the_process_is_ended_also_when_the_answer_fails(echo, run_id):
    assert run_command(["chat", run_id, "--prompt", "fail"], MODULES) == 1
    assert echo.sessions[0].unloaded


def test_run_names_a_run_a_folder_or_a_model(home, run_id, tmp_path):
    store = RunStore(home, local_owner())
    adapter, model = tmp_path / "adapter", tmp_path / "model"
    adapter.mkdir()
    model.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (model / "config.json").write_text("{}")

    assert find_target(run_id, store).tuned.folder == store.get(run_id).folder.path
    assert find_target(run_id[-4:], store).tuned.folder == store.get(run_id).folder.path
    assert find_target(str(adapter), store).tuned.folder == adapter
    assert find_target(str(model), store).model.id == str(model)
    assert find_target("smollm2-135m-instruct", store).model.id == "smollm2-135m-instruct"
    assert find_target("org/model", store).model.id == "org/model"
    with pytest.raises(RunError, match="List the runs with `loratory runs`, or name a model or a folder"):
        find_target("nothing-like-it", store)


def test_a_conversation_remembers_its_turns():
    output, partner = converse("one", "two")

    roles = [(message.role, message.content) for message in partner.requests[-1].messages]
    assert roles == [("user", "one"), ("assistant", "tuned: one "), ("user", "two")]
    assert "tuned: two" in output
    assert "(2 tokens, 5.0 per second)" in output


def test_both_branches_answer_the_same_question():
    output, partner = converse("/both", "one", "two")

    assert [request.branches for request in partner.requests] == [("base",), ("tuned",)] * 2
    assert partner.requests[0].messages == partner.requests[1].messages
    assert "[base]\nbase: one" in output
    assert partner.requests[2].messages[1].content == "tuned: one "


def test_an_answer_can_be_had_again_and_a_conversation_restarted():
    _, partner = converse("/system Be brief.", "one", "/again", "/new", "two")

    contents = [[message.content for message in request.messages] for request in partner.requests]
    assert contents == [["Be brief.", "one"], ["Be brief.", "one"], ["Be brief.", "two"]]


def test_an_error_is_shown_and_the_conversation_continues():
    output, partner = converse("fail", "/nonsense", "one")

    assert "The context is full. Start again." in output
    assert "There is no command /nonsense." in output
    assert [message.content for message in partner.requests[-1].messages] == ["one"]


def test_an_interrupted_answer_keeps_what_it_had():
    partner = Echo()
    partner.interrupt_after = 3
    output, _ = converse("one two three", "/prompt", partner=partner)

    assert "(stopped)" in output
    assert "<user>one two three<assistant>tuned: one \n(3 tokens)" in output


def test_a_conversation_is_saved_and_never_over_another_file(tmp_path):
    file = tmp_path / "talk.json"

    output, _ = converse("one", f"/save {file}", f"/save {file}", "/save", "/save ~nobody-of-that-name/x")

    assert [turn["role"] for turn in json.loads(file.read_text())["messages"]] == ["user", "assistant"]
    assert "talk.json exists already." in output
    assert "No file was named." in output
    assert "~nobody-of-that-name/x cannot be used (Could not determine home directory)" in output
