"""The official client with a real model in a real process: the same answers as in the chat."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import OpenAI
from safetensors.torch import load_file, save_file

from loratory.engine.accounts.accounts import open_database
from loratory.engine.accounts.lab import LabSettings, save_settings
from loratory.engine.accounts.limits import LabLimits
from loratory.engine.chat.contract import ChatRequest, ChatTarget
from loratory.engine.chat.session import ChatSession
from loratory.engine.config.results import SamplingConfig
from loratory.engine.config.run import ModelConfig
from loratory.engine.data.conversation import Message
from loratory.engine.hardware.lease import LeaseBook
from loratory.engine.hardware.processor import describe_processor
from loratory.engine.models.source import resolve_model
from loratory.engine.paths import LoratoryHome
from loratory.engine.serve.model import ServedModel
from tests.chat.tiny_adapters import lora, make_adapter
from tests.serve.running import listening
from tests.tiny_model import make_tiny_model
from tests.waiting import count_living, wait_until

pytestmark = pytest.mark.e2e

SYSTEM, QUESTION = "Answer in one word.", "What is a rank?"
ASKED = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
TURNS = (Message("system", SYSTEM), Message("user", QUESTION))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    return adapter_in(tmp_path_factory.mktemp("served"))


def adapter_in(folder: Path, **config_values: object) -> Path:
    base = make_tiny_model(folder / "tiny-llama", tie_word_embeddings=False, initializer_range=0.4, **config_values)
    return make_adapter(base, folder / "my-adapter", lora())


def endless_adapter_in(folder: Path) -> Path:
    """Its greedy answers continue for minutes: it never writes an end token, and its context is long."""
    adapter = adapter_in(folder, max_position_embeddings=1 << 17)
    weights = folder / "tiny-llama" / "model.safetensors"
    tensors = load_file(weights)
    tensors["lm_head.weight"][:4] = 0.0  # the special tokens
    save_file(tensors, weights, metadata={"format": "pt"})
    return adapter


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    session = ChatSession(LoratoryHome(tmp_path_factory.mktemp("home")), choose=lambda _: describe_processor())
    yield session
    session.unload()


@pytest.fixture(scope="module")
def client(session, adapter):
    with listening(ServedModel(session, ChatTarget.of_run(adapter), "my-adapter", ("tuned",))) as url:
        yield OpenAI(base_url=url, api_key="unused", max_retries=0, timeout=300)


def say(client: OpenAI, model: str, **values: Any) -> str:
    stream = client.chat.completions.create(model=model, messages=ASKED, stream=True, **values)
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream)  # type: ignore[union-attr]


@pytest.mark.parametrize(("model", "branch"), [("my-adapter", "tuned"), ("base", "base")])
def test_the_client_gets_what_the_chat_says(client, session, model, branch):
    sampling = SamplingConfig(temperature=0, max_new_tokens=12)
    chat = "".join(
        chunk.text for chunk in session.stream(ChatRequest(messages=TURNS, branches=(branch,), sampling=sampling))
    )

    assert say(client, model, temperature=0, max_tokens=12) == chat
    whole = client.chat.completions.create(model=model, messages=ASKED, temperature=0, max_tokens=12)
    assert whole.choices[0].message.content == chat
    assert whole.usage.completion_tokens == 12
    assert whole.choices[0].finish_reason == "length"


def test_an_endless_answer_delays_no_other_and_an_idle_endpoint_of_a_lab_expires(home, monkeypatch):
    monkeypatch.setattr("loratory.engine.chat.session._POLL_SECONDS", 0.05)
    open_database(home).close()  # makes it a lab's
    save_settings(home, LabSettings(limits=LabLimits(idle_minutes=1)))
    messages: list[str] = []
    own = home.for_person("ann")
    adapter = endless_adapter_in(own.uploads)
    session = ChatSession(own, choose=lambda _: describe_processor(), on_unload=messages.append)
    polls: list[float | None] = []
    expires_after = session._expires_after
    monkeypatch.setattr(session, "_expires_after", lambda: polls.append(expires_after()) or polls[-1])
    leases = LeaseBook(home)
    greedy = {"temperature": 0, "max_tokens": 12}

    def let_a_minute_pass() -> None:
        session._idle_since -= 61

    with contextlib.ExitStack() as stack:
        stack.callback(session.unload)
        url = stack.enter_context(listening(ServedModel(session, ChatTarget.of_run(adapter), "mine")))
        client = OpenAI(base_url=url, api_key="unused", max_retries=0, timeout=300)
        assert session.state.expires_after_seconds == 60
        stream: Any = client.chat.completions.create(
            model="mine", messages=ASKED, stream=True, temperature=0, max_tokens=100_000
        )
        next(stream)

        answer = say(client, "mine", **greedy)
        assert say(client, "base", **greedy) != answer

        wait_until(lambda: session.state.generating == 1)  # the long one is still being written
        let_a_minute_pass()
        count_before = len(polls)
        wait_until(lambda: len(polls) > count_before + 2)
        assert session.state.phase == "generating"
        assert messages == []

        stream.close()  # who leaves frees the model within a moment
        wait_until(lambda: session.state.phase == "ready")
        client.models.list()

        let_a_minute_pass()

        wait_until(lambda: bool(messages))
        assert messages == ["tiny-llama was unloaded, because it was idle for 1 min."]
        assert leases.holder("cpu") is None
        assert say(client, "mine", **greedy) == answer
        assert leases.holder("cpu").owner == "ann"


def test_a_prompt_too_long_is_the_clients_mistake(client):
    import openai

    with pytest.raises(openai.BadRequestError, match="tokens, and tiny-llama holds 512"):
        say(client, "my-adapter", extra_body={"messages": [{"role": "user", "content": "word " * 600}]})


def test_the_command_serves_the_demo_model_with_an_adapter_and_ends_without_a_trace(demo_home, tmp_path):
    base = resolve_model(ModelConfig(id="smollm2-135m-instruct"), demo_home).location
    adapter = make_adapter(Path(base), tmp_path / "demo-adapter", lora(r=8, target_modules="all-linear"), scale=0.05)
    process = subprocess.Popen(
        [sys.executable, "-m", "loratory.engine.cli", "serve", str(adapter), "--port", "0", "--json"],
        env={**os.environ, "LORATORY_HOME": str(demo_home.root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        record = json.loads(process.stdout.readline())
        assert record["models"] == ["demo-adapter", "base"]
        client = OpenAI(base_url=record["url"], api_key="unused", max_retries=0, timeout=300)
        answers = {name: say(client, name, temperature=0, max_tokens=12) for name in record["models"]}
        pids = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        process.send_signal(signal.SIGTERM)
        assert process.wait(300) == 0, process.stderr.read()
    finally:
        process.kill()
    assert all(answers.values())
    assert answers["demo-adapter"] != answers["base"]
    wait_until(lambda: count_living(pids) == 0)
