"""The demo model in its real process: what a person reads is what transformers and PEFT say."""

from pathlib import Path

import psutil
import pytest

from loratory.engine.chat.contract import AdapterChoice, ChatRequest, ChatTarget
from loratory.engine.chat.session import ChatSession
from loratory.engine.config.results import SamplingConfig
from loratory.engine.config.run import ModelConfig
from loratory.engine.data.conversation import Message
from loratory.engine.hardware.processor import describe_processor
from loratory.engine.models.source import resolve_model
from tests.chat.tiny_adapters import lora, make_adapter

pytestmark = pytest.mark.e2e

DEMO = ModelConfig(id="smollm2-135m-instruct")
QUESTION = (Message("user", "Tell me a short story about a lighthouse."),)
GREEDY = SamplingConfig(temperature=0, max_new_tokens=16)


@pytest.fixture(scope="module")
def folder(demo_home):
    return Path(resolve_model(DEMO, demo_home).location)


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory):
    return make_adapter(
        folder, tmp_path_factory.mktemp("demo") / "lora", lora(r=8, target_modules="all-linear"), scale=0.05
    )


@pytest.fixture(scope="module")
def session(demo_home):
    session = ChatSession(demo_home, choose=lambda _: describe_processor())
    yield session
    session.unload()


def say(session: ChatSession, *branches: str) -> dict[str, str]:
    answers = dict.fromkeys(branches, "")
    for chunk in session.stream(ChatRequest(messages=QUESTION, branches=branches, sampling=GREEDY)):
        answers[chunk.branch] += chunk.text
    return answers


@pytest.mark.parametrize(("quantization", "share"), [("nf4", 0.6), ("int8", 0.75)])
def test_fewer_bits_take_less_and_answer_too(session, adapter, quantization, share):
    whole = session.load(ChatTarget(model=DEMO, tuned=AdapterChoice(folder=adapter)))
    pid = session._active.process.pid

    quantized = session.load(ChatTarget(model=DEMO, tuned=AdapterChoice(folder=adapter), quantization=quantization))

    assert not psutil.pid_exists(pid)
    assert quantized.method == ("QLoRA" if quantization == "nf4" else "LoRA on int8")
    assert quantized.weights_bytes < share * whole.weights_bytes
    assert all(say(session, "base", "tuned").values())
