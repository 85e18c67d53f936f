"""Chat with a GPU that is lent for each answer: the real client and a real model, against a stand-in for the device API."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from loratory.engine.chat import zero_gpu
from loratory.engine.chat.contract import AdapterChoice, ChatRequest, ChatTarget
from loratory.engine.chat.session import ChatSession
from loratory.engine.chat.zero_gpu import ZeroGpu
from loratory.engine.config.results import SamplingConfig
from loratory.engine.config.run import ModelConfig
from loratory.engine.data.conversation import Message
from loratory.engine.errors import DeviceError
from loratory.engine.hardware.processor import describe_processor
from loratory.engine.paths import LoratoryHome
from tests.chat import zero_gpu_on_a_cpu
from tests.chat.device_api import BUSY, NO_QUOTA, DeviceApi, Refusal
from tests.chat.tiny_adapters import lora, make_adapter
from tests.waiting import wait_until

FINDS_TESTS = {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}  # for `zero_gpu_on_a_cpu`
TOKEN = "head.eyJ1c2VyIjoiYWRhIn0.canary"


class Here(ZeroGpu):
    """Lends the processor."""

    device = property(lambda _: describe_processor())


def question(text="What is a rank?", tokens=6, **more):
    sampling = SamplingConfig(temperature=0, max_new_tokens=tokens)
    return ChatRequest(messages=(Message("user", text),), branches=("tuned",), sampling=sampling, **more)


def stream_answer(session, **more):
    return list(session.stream(question(**more)))


@pytest.fixture(scope="module")
def api():
    with DeviceApi() as stand_in:
        yield stand_in
    assert stand_in.mistakes == []


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    own_home = LoratoryHome(tmp_path_factory.mktemp("home"))
    own_home.make_writable()
    return own_home


@pytest.fixture(scope="module")
def target(tiny_model_folder, tmp_path_factory):
    folder = make_adapter(tiny_model_folder, tmp_path_factory.mktemp("run") / "lora", lora())
    # In a given precision: measuring the quicker one computes in the parent, whose threads a forked child lacks.
    model = ModelConfig(id=str(tiny_model_folder), compute_dtype="float32")
    return ChatTarget(model=model, tuned=AdapterChoice(folder=folder))


@pytest.fixture(scope="module", autouse=True)
def no_gpu_is_needed():
    with pytest.MonkeyPatch.context() as patch:
        if not torch.cuda.is_available():
            patch.setattr(zero_gpu, "WORKER_MODULE", zero_gpu_on_a_cpu.MODULE)
        yield


@pytest.fixture(scope="module")
def session(api, home, target):
    pytest.importorskip("spaces")
    chat = ChatSession(home, choose=lambda _: describe_processor(), zero_gpu=Here(api.variables | FINDS_TESTS))
    chat.load(target)
    assert api.parameters_of("/schedule") == []  # a GPU is lent to answers alone
    yield chat
    chat.unload()


@pytest.fixture(autouse=True)
def lends(api):
    api.refusal, api.queues = None, False
    api.free.clear()
    api.requests.clear()


@pytest.mark.parametrize(
    ("title", "message", "message_start"),
    [
        ("ZeroGPU quota exceeded", "Space app has reached its GPU limit. Try", "The ZeroGPU quota of this Space"),
        ("ZeroGPU quota exceeded", "You have exceeded your quota", "Your ZeroGPU quota"),
        ("ZeroGPU quota exceeded", "No GPU was available after 60s. Try", "Hugging Face lends no GPU"),
        ("ZeroGPU of tomorrow", "<script>", "Hugging Face lends no GPU for this answer now (ZeroGPU of tomorrow)."),
    ],
)
def test_refusals_are_explained_in_our_words(title, message, message_start):
    pytest.importorskip("spaces")
    from loratory.engine.chat.worker.zero_gpu import _gpu_error

    assert _gpu_error(SimpleNamespace(title=title, message=message)).what.startswith(message_start)


def test_only_a_space_on_zero_gpu_has_one_and_only_its_variables_are_passed_on(api):
    assert ZeroGpu.read({"SPACES_ZERO_DEVICE_API_URL": "http://x"}) is None
    assert ZeroGpu.read({**api.variables, "HF_TOKEN": "hf_canary", "SPACE_ID": "ada/x"}).variables == api.variables


@pytest.mark.e2e
def test_the_space_reports_its_function_before_the_page(api, home):
    pytest.importorskip("spaces")
    ZeroGpu(api.variables | FINDS_TESTS).report(home.logs / "report.log")
    assert api.requests == [("/startup-report", {})]


def test_a_report_that_fails_is_reported_with_a_message(tmp_path, monkeypatch):
    monkeypatch.setattr("loratory.engine.chat.zero_gpu.WORKER_MODULE", "loratory.engine.chat.worker.no_such_module")
    with pytest.raises(DeviceError, match=r"could not register.*See report.log"):
        ZeroGpu({"SPACES_ZERO_GPU": "true"}).report(tmp_path / "report.log")


@pytest.mark.e2e
def test_an_answer_is_that_of_the_model_and_counted_for_who_asks(session, api):
    first, again = stream_answer(session, gpu_token=TOKEN), stream_answer(session)

    assert "".join(chunk.text for chunk in first) == "".join(chunk.text for chunk in again)
    assert (again[-1].tokens, again[-1].finish_reason) == (6, "length")
    assert [values.get("token") for values in api.parameters_of("/schedule")] == [TOKEN, None]
    assert [values["fail"] for values in api.parameters_of("/release")] == ["false", "false"]
    assert len(api.parameters_of("/allow")) <= 1  # the child that holds the weights answers again


@pytest.mark.e2e
def test_two_answers_at_once_get_a_gpu_each(session, api):
    with ThreadPoolExecutor(2) as pool:
        texts = list(pool.map(lambda _: "".join(chunk.text for chunk in stream_answer(session, tokens=40)), range(2)))
    assert texts[0] == texts[1]
    assert len(api.parameters_of("/release")) == 2


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("refusal", "token", "message_start"),
    [
        (BUSY, TOKEN, "lends no GPU .* Try again in a minute"),
        (Refusal(401), TOKEN, "lends no GPU"),
        (Refusal(500), TOKEN, "ZeroGPU cannot be used"),
    ],
)
def test_a_refusal_is_reported_with_a_message(session, api, home, refusal, token, message_start):
    api.refusal = refusal
    with pytest.raises(DeviceError, match=message_start):
        stream_answer(session, gpu_token=token)
    assert "canary" not in "".join(file.read_text() for file in home.logs.glob("*.log"))


@pytest.mark.e2e
def test_a_wait_is_shown_and_can_be_stopped(session, api):
    api.queues = True
    request, waits = question(), threading.Event()
    observations = []

    def follow() -> None:
        for chunk in session.stream(request):
            observations.append(chunk)
            waits.set()

    following = threading.Thread(target=follow)
    following.start()
    assert waits.wait(300)
    session.stop(request.id)
    following.join(300)

    assert observations[0].note == "waiting for a GPU …"
    assert (observations[-1].finish_reason, observations[-1].note) == ("stopped", "")
    api.free.set()
    wait_until(lambda: api.parameters_of("/release"))  # what is lent too late is given back
    api.queues = False
    assert stream_answer(session)[-1].finish_reason == "length"


@pytest.mark.e2e
def test_a_killed_process_leaves_no_child_with_a_gpu(session, api):
    stream_answer(session)
    children = [child for child in psutil.Process(session._active.process.pid).children() if child.pid in api.children]
    assert children
    loaded = session._active
    os.kill(loaded.process.pid, 9)
    wait_until(lambda: not loaded.is_alive)  # or the next test would find its model loaded
    wait_until(lambda: not any(map(is_at_work, children)))


@pytest.mark.e2e
def test_without_a_quota_the_same_is_answered_on_the_processor(session, api, target):
    message_start = r"Your ZeroGPU quota.*\(30s requested vs. 12s left, try again in 3:05:00\). Load the model again"
    session.load(target)
    lent = stream_answer(session)
    api.refusal = NO_QUOTA
    with pytest.raises(DeviceError, match=message_start):
        stream_answer(session, gpu_token=TOKEN)
    assert "Load it again to chat on the CPU" in session.state.note

    session.load(target)
    assert "".join(chunk.text for chunk in stream_answer(session)) == "".join(chunk.text for chunk in lent)
    assert len(api.parameters_of("/schedule")) == 2


def is_at_work(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
