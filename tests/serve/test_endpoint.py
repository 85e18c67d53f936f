"""What clients get, with the official one asking, and a session that reports what the test wants."""

import itertools
import json
import threading
from typing import Any

import openai
import pytest
from openai import OpenAI

from loratory.engine.errors import DeviceError, ModelError, RunError, WorkerError
from loratory.engine.serve.model import ServedModel, StopScanner
from tests.serve.running import TARGET, ScriptedSession, listening
from tests.waiting import wait_until

HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def session() -> ScriptedSession:
    return ScriptedSession()


@pytest.fixture
def url(session):
    with listening(ServedModel(session, TARGET, "my-run", ("My title", "tuned"))) as address:
        yield address


@pytest.fixture
def client(url) -> OpenAI:
    return OpenAI(base_url=url, api_key="unused", max_retries=0, timeout=300)


def complete(client, **values):
    return client.chat.completions.create(**{"model": "my-run", "messages": HI, **values})


def test_run_and_base_are_listed(client):
    assert [model.id for model in client.models.list()] == ["my-run", "base"]
    assert client.models.retrieve("base").owned_by == "loratory"
    with pytest.raises(openai.NotFoundError, match="does not exist; available: my-run, base"):
        client.models.retrieve("gpt-5")
    with pytest.raises(openai.NotFoundError) as error_info:
        complete(client, model="gpt-5")
    assert error_info.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("name", "branch"),
    [("my-run", "tuned"), ("My title", "tuned"), ("tuned", "tuned"), ("base", "base"), ("org/base", "base")],
)
def test_the_model_decides_who_answers(client, session, name, branch):
    answer = complete(client, model=name)

    assert answer.model == name
    assert session.requests[0].branches == (branch,)


def test_a_whole_answer_has_text_reason_and_counts(client):
    answer = complete(client)

    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "Hello.", "stop")
    assert answer.usage.model_dump(include={"prompt_tokens", "completion_tokens", "total_tokens"}) == {
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "total_tokens": 10,
    }
    assert answer.object == "chat.completion"


def test_a_stream_says_the_same_piece_by_piece(client):
    chunks = list(complete(client, stream=True, stream_options={"include_usage": True}))

    assert [chunk.choices[0].delta.content for chunk in chunks if chunk.choices] == ["", "Hel", "lo", ".", None]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices] == [None] * 4 + ["stop"]
    assert chunks[-1].usage.total_tokens == 10
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_stream_begins_before_the_answer_ends(client, session):
    session.hold = threading.Event()
    stream = iter(complete(client, stream=True))

    assert next(stream).choices[0].delta.role == "assistant"
    assert next(stream).choices[0].delta.content == "Hel"
    assert session.ended == 0
    session.hold.set()
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "lo."


@pytest.mark.parametrize(("reason", "finish"), [("eos", "stop"), ("length", "length"), ("context", "length")])
def test_the_reason_of_the_end_is_reported_in_openais_words(client, session, reason, finish):
    session.finish = reason

    assert complete(client).choices[0].finish_reason == finish


def test_settings_arrive_as_the_chat_knows_them(client, session):
    complete(
        client,
        temperature=0.5,
        top_p=0.25,
        max_tokens=9,
        seed=-1,
        extra_body={"top_k": 5, "repetition_penalty": 1.5},
    )
    complete(client, max_completion_tokens=3, max_tokens=9, top_p=0, extra_body={"top_k": -1})
    complete(client, temperature=None, stop=None, n=1, user="me", frequency_penalty=0, tools=[], logprobs=False)

    first, second, third = (request.sampling for request in session.requests)
    assert (first.temperature, first.top_p, first.max_new_tokens, first.seed) == (0.5, 0.25, 9, 2**32 - 1)
    assert (first.top_k, first.repetition_penalty) == (5, 1.5)
    assert (second.max_new_tokens, second.top_k) == (3, 0)
    assert 0 < second.top_p < 1e-3
    assert third == type(third)()


def test_messages_arrive_as_the_chat_knows_them(client, session):
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    complete(
        client,
        messages=[
            {"role": "developer", "content": "Be short."},
            {"role": "user", "content": parts},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "42", "tool_call_id": "c1"},
        ],
    )

    system, user, assistant, tool = session.requests[0].messages
    assert (system.role, system.content) == ("system", "Be short.")
    assert user.content == "one two"
    assert (assistant.content, assistant.tool_calls[0].name) == ("", "look")
    assert (tool.role, tool.content, tool.tool_call_id) == ("tool", "42", "c1")


@pytest.mark.parametrize("stop", ["lo", ["nothing", "lo"], ["Hello.", "lo"]])
def test_stop_texts_end_the_answer_and_are_not_shown(client, session, stop):
    session.pieces = ("He", "l", "l", "o", " and more", " and more")

    answer = complete(client, stop=stop)

    assert answer.choices[0].message.content == "Hel"
    assert answer.choices[0].finish_reason == "stop"
    assert session.stopped == [session.requests[0].id]
    wait_until(lambda: session.ended == 1)


def test_the_ids_of_the_prompt_are_given_to_who_asks(client):
    assert complete(client, extra_body={"return_token_ids": True}).model_extra["prompt_token_ids"] == [1, 2, 3]
    first = next(iter(complete(client, stream=True, extra_body={"return_token_ids": True})))
    assert first.model_extra["prompt_token_ids"] == [1, 2, 3]
    assert "prompt_token_ids" not in complete(client).model_extra


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
SOUND = {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}
REFUSED = [
    ({"n": 2}, "n", "unsupported_parameter"),
    ({"logprobs": True}, "logprobs", "unsupported_parameter"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "unsupported_parameter"),
    ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
    ({"presence_penalty": 0.5}, "presence_penalty", "unsupported_parameter"),
    ({"temperature": 9}, "temperature", "invalid_value"),
    ({"top_p": 2}, "top_p", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"stop": [str(number) for number in range(17)]}, "stop", "invalid_value"),
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role", "invalid_value"),
    ({"messages": [{"role": "user", "content": [PICTURE]}]}, "messages", "unsupported_content"),
    ({"messages": [{"role": "user", "content": [SOUND]}]}, "messages.0.content", "invalid_value"),
    ({"extra_body": {"temprature": 1}}, "temprature", "unknown_parameter"),
]


@pytest.mark.parametrize(("values", "param", "code"), REFUSED, ids=[case[1] for case in REFUSED])
def test_what_cannot_be_done_is_refused_by_name(client, session, values, param, code):
    with pytest.raises(openai.BadRequestError) as error_info:
        complete(client, **values)

    assert (error_info.value.param, error_info.value.code) == (param, code)
    assert error_info.value.type == "invalid_request_error"
    assert session.requests == []


ENGINE_ERRORS = [
    (ModelError("The conversation takes 120 tokens, and it holds 100.", "Shorten it."), openai.BadRequestError),
    (WorkerError("The process ended.", "Try again."), openai.InternalServerError),
    (RunError("The model was unloaded while it answered.", "Load it again."), openai.InternalServerError),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("error", "kind"), ENGINE_ERRORS)
def test_what_goes_wrong_before_the_first_token_has_a_status(client, session, error, kind, stream):
    session.error = error

    with pytest.raises(kind) as error_info:
        complete(client, stream=stream)
    assert f"{error.what} {error.fix}" in str(error_info.value)


def test_what_goes_wrong_in_the_middle_ends_the_stream_with_an_error(client, session):
    session.error_at = (2, WorkerError("The process ended.", "Try again."))
    pieces: list[Any] = []

    with pytest.raises(openai.APIError, match="The process ended"):
        pieces.extend(chunk.choices[0].delta.content for chunk in complete(client, stream=True))
    assert pieces == ["", "Hel", "lo"]


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_stops_the_model(url, session, stream):
    import http.client
    from urllib.parse import urlsplit

    session.hold = threading.Event()
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=300)
    body = json.dumps({"model": "my-run", "messages": HI, "stream": stream})
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    wait_until(lambda: len(session.requests) == 1)
    assert session.stopped == []

    connection.sock.close()

    wait_until(lambda: session.stopped == [session.requests[0].id])
    wait_until(lambda: session.ended == 1)


def test_many_clients_are_answered_and_few_at_a_time(url, session):
    def request_answer() -> None:
        answer = complete(OpenAI(base_url=url, api_key="x", max_retries=0, timeout=300))
        assert answer.choices[0].message.content == "Hello."

    session.hold = threading.Event()
    threads = [threading.Thread(target=request_answer) for _ in range(20)]
    for thread in threads:
        thread.start()
    wait_until(lambda: session.at_once == 16)
    session.hold.set()
    for thread in threads:
        thread.join(300)

    wait_until(lambda: session.ended == 20)  # a client has its answer a moment before its iterator is closed
    assert session.most_at_once == 16


def test_a_model_that_made_room_for_a_run_is_loaded_again(client, session):
    session.unload()

    assert complete(client).choices[0].message.content == "Hello."
    assert session.loads == 2


def test_a_device_in_use_is_reported_with_when_to_come_back(client, session):
    session.unload()
    session.error = DeviceError("The CPU is in use for training (a run).", "Wait until it is free.")

    with pytest.raises(openai.InternalServerError, match="in use for training") as error_info:
        complete(client)
    assert error_info.value.status_code == 503
    assert error_info.value.response.headers["retry-after"] == "30"


def scan(pieces, stops):
    scanner = StopScanner(stops)
    records = []
    for piece in pieces:
        text, is_stopped = scanner.add(piece)
        records.append(text)
        if is_stopped:
            return records, True
    records.append(scanner.finish())
    return records, False


def splits(text):
    """Every way to cut a text into pieces."""
    for cuts in itertools.product((False, True), repeat=len(text) - 1):
        pieces, start = [], 0
        for position, cut in enumerate(cuts, 1):
            if cut:
                pieces.append(text[start:position])
                start = position
        yield [*pieces, text[start:]]


@pytest.mark.parametrize(
    ("text", "stops", "expected", "stopped"),
    [
        ("one END two", ["END"], "one ", True),
        ("aabaab", ["aab"], "", True),
        ("aaab", ["aab"], "a", True),
        ("EN EN EN", ["END"], "EN EN EN", False),
        ("xyz", ["yz", "xy"], "", True),
        ("ab", ["abc"], "ab", False),
        ("no stops", [], "no stops", False),
    ],
)
def test_what_is_kept_does_not_depend_on_how_it_arrives(text, stops, expected, stopped):
    for pieces in splits(text):
        texts, is_stopped = scan(pieces, stops)
        assert ("".join(texts), is_stopped) == (expected, stopped), pieces


def test_text_without_a_beginning_of_a_stop_is_shown_at_once():
    scanner = StopScanner(["\n\n"])

    assert scanner.add("hello") == ("hello", False)
    assert scanner.add(" you\n") == (" you", False)
    assert scanner.add("!") == ("\n!", False)
