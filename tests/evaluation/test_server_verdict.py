"""What the figures of a server check say: one cause for each, and none where answers are the run's."""

import json

import pytest

from loratory.engine.data.conversation import Message
from loratory.engine.endpoint import Endpoint
from loratory.engine.errors import ModelError
from loratory.engine.evaluation.server_check import (
    Evidence,
    Fit,
    Reading,
    ServerCheck,
    ServerCheckConfig,
    describe_check,
    read_check,
)
from loratory.engine.evaluation.worker.server_check import CheckedServer, _with_ids
from loratory.engine.runs.webhook import WebhookError
from tests.evaluation.planted_server import Planted, serving
from tests.tiny_model import make_tiny_model


def fit(excess, difference=None):
    return Fit(tokens=100, likeliest=1 - excess / 4, excess=excess, difference=difference)


RIGHT: dict[Reading, Fit] = {"tuned": fit(0.001), "base": fit(2.0), "bos_twice": fit(0.01), "bos_missing": fit(0.01)}
WRONG = {"tuned": fit(0.3), "base": fit(2.0), "bos_twice": fit(0.3), "bos_missing": fit(0.3)}
SAME = {"tuned": fit(0.001, 0.02), "base": fit(2.0, 2.0)}
COUNTS = {"more_tokens": (0, 0), "more_of_turns": 0, "more_of_system": 0}


@pytest.mark.parametrize(
    ("cause", "figures"),
    [
        ("same", {"chat": RIGHT, "completion": SAME, **COUNTS}),
        ("same", {"chat": RIGHT, "completion": {}}),
        ("same", {"chat": RIGHT, "completion": {}, **COUNTS}),
        ("not_applied", {"chat": {**RIGHT, "tuned": fit(2.0), "base": fit(0.001)}, "completion": {}, **COUNTS}),
        ("other_model", {"chat": {"tuned": fit(3.0), "base": fit(3.0)}, "completion": {}, **COUNTS}),
        ("quantization", {"chat": WRONG, "completion": {"tuned": fit(0.1, 0.17), "base": fit(2.0, 2.0)}, **COUNTS}),
        ("quantization", {"chat": WRONG, "completion": {}, **COUNTS}),
        ("bos_twice", {"chat": RIGHT, "completion": SAME, "more_tokens": (1, 1), "more_of_turns": 1}),
        ("bos_twice", {"chat": {**RIGHT, "tuned": fit(0.01), "bos_twice": fit(0.001)}, "completion": {}}),
        ("bos_missing", {"chat": RIGHT, "completion": SAME, "more_tokens": (-1, -1), "more_of_turns": -1}),
        ("system_prompt", {"chat": WRONG, "completion": SAME, "more_tokens": (9, 9), "more_of_turns": 9}),
        ("template", {"chat": WRONG, "completion": SAME, "more_tokens": (9, 9), "more_of_turns": 14}),
        ("template", {"chat": WRONG, "completion": SAME, "more_tokens": (-9,), "more_of_turns": -7, "runs_on": 0.5}),
        ("template", {"chat": {"tuned": fit(3.0), "base": fit(3.0)}, "completion": {}, "more_tokens": (-3, 2)}),
        ("runs_on", {"chat": RIGHT, "completion": SAME, **COUNTS, "runs_on": 0.5}),
        ("sampling", {"chat": WRONG, "completion": SAME, **COUNTS, "repeats": 0.98}),
        ("unclear", {"chat": WRONG, "completion": SAME, **COUNTS}),
        ("unclear", {"chat": WRONG, "completion": {}}),
        ("unclear", {"chat": dict.fromkeys(RIGHT, Fit(tokens=0, likeliest=0, excess=0)), "completion": {}}),
        ("sampling", {"chat": WRONG, "completion": SAME, **COUNTS, "changing": 0.8}),
    ],
)
def test_figures_name_one_cause(cause, figures):
    check = ServerCheck(evidence=Evidence(server="ollama", model="m", prompts=2, **figures))

    assert [finding.cause for finding in check.findings] == [cause]
    assert check.is_same is (cause == "same")
    assert all(finding.fix for finding in check.findings) is (cause != "same")
    assert list(describe_check(check))


def test_the_fix_is_that_of_the_server():
    evidence = Evidence(
        server="vllm", model="m", prompts=2, chat={**RIGHT, "tuned": fit(2.0), "base": fit(0.0)}, completion={}
    )

    assert "--enable-lora" in ServerCheck(evidence=evidence).findings[0].fix


def test_a_check_belongs_to_one_state_of_a_run(tmp_path):
    check = ServerCheck(
        evidence=Evidence(server="", model="m", prompts=1, chat=RIGHT, completion={}), checkpoint="step-4"
    )
    (tmp_path / "server-check.json").write_text(check.model_dump_json())

    assert read_check(tmp_path, "step-4") == check
    assert read_check(tmp_path) is None


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = make_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny")
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def checked(url, **settings):
    return CheckedServer(ServerCheckConfig(url=url, max_new_tokens=4, **settings), allows_private=True)


def test_a_request_asks_for_the_likeliest_tokens_and_the_key_is_in_no_message(tiny, monkeypatch):
    monkeypatch.setenv("LORATORY_SERVER_KEY", "sk-secret")
    faulty = Planted(*tiny)
    with serving(faulty) as url:
        server = checked(url)
        answer = server.complete([3, 4, 5], "abc")

    assert (server.model, server.kind) == ("planted", "vllm")
    assert answer.prompt_tokens == 3
    assert len(answer.log_probabilities) > 0
    body = faulty.bodies[-1]
    assert (body["temperature"], body["prompt"], body["repeat_penalty"]) == (0, [3, 4, 5], 1.0)
    assert "sk-secret" not in json.dumps(faulty.bodies)


def test_a_model_that_the_server_lacks_is_refused_with_those_it_has(tiny):
    with serving(Planted(*tiny)) as url, pytest.raises(ModelError, match="no model other; it has planted"):
        checked(url, model="other")


def test_a_server_that_is_not_there_is_refused():
    with pytest.raises(ModelError, match="did not answer: ConnectError"):
        checked("http://127.0.0.1:9/v1")


@pytest.mark.parametrize(
    "url", ["ftp://host/v1", "http://user:secret@host/v1", "http://host/v1?key=secret", "file:///etc/passwd"]
)
def test_an_address_of_another_kind_is_refused_without_being_repeated(url):
    with pytest.raises(ModelError) as error_info:
        checked(url)
    assert "secret" not in str(error_info.value)


def test_a_lab_asks_no_private_address(tiny):
    faulty = Planted(*tiny)
    with serving(faulty) as url, pytest.raises(WebhookError, match="private network"):
        CheckedServer(ServerCheckConfig(url=url), allows_private=False)
    assert faulty.bodies == []


def test_a_response_that_is_no_answer_is_refused():
    endpoint = Endpoint({"endpoint": "http://127.0.0.1:9/v1", "model": "m", "answer_tokens": 1}, None, 1.0)

    assert endpoint.request("/models")[0] == 0


def test_an_answer_of_a_base_that_answers_alike_says_so():
    chat = {**RIGHT, "base": fit(0.001)}
    check = ServerCheck(evidence=Evidence(server="", model="m", prompts=2, chat=chat, completion={}, **COUNTS))

    assert check.is_same
    assert "do not show whether the adapter is applied" in check.findings[0].text


class Hostile(Planted):
    """Answers with what no server should."""

    def chat(self, body):
        values = [float("nan"), 1e999, None]
        content = [{"token": "", "logprob": value} for value in values]
        choice = {"message": {"content": "word " * 10_000}, "finish_reason": "stop", "logprobs": {"content": content}}
        return {"choices": [choice], "usage": {"prompt_tokens": float("inf")}}


def test_numbers_that_are_none_are_left_out(tiny):
    with serving(Hostile(*tiny)) as url:
        answer = checked(url).chat((Message("user", "Hello."),))

    assert (answer.prompt_tokens, answer.log_probabilities) == (None, ())
    cut = _with_ids(answer, tiny[1], 4)
    assert (len(cut.ids), cut.ends) == (4, False)
