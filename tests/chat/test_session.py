"""The session and its process, with a real one that holds the tiny model."""

import signal
import threading

import psutil
import pytest

from loratory.engine.chat.contract import AdapterChoice, ChatRequest, ChatTarget
from loratory.engine.chat.session import ChatSession
from loratory.engine.config.results import SamplingConfig
from loratory.engine.config.run import ModelConfig
from loratory.engine.data.conversation import Message
from loratory.engine.errors import DeviceError, ModelError, RunError, WorkerError
from loratory.engine.hardware.device_job import models_in_use
from loratory.engine.hardware.lease import LeaseBook, LeaseHolder
from loratory.engine.hardware.processor import describe_processor
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.liveness import ProcessIdentity
from tests.chat.held_worker import MODULE as HELD_WORKER
from tests.chat.held_worker import hold_worker
from tests.chat.tiny_adapters import lora, make_adapter
from tests.tiny_model import make_tiny_model
from tests.waiting import wait_until

QUESTION = (Message("user", "What is a rank?"),)
LONG = SamplingConfig(temperature=0, max_new_tokens=200)
SHORT = SamplingConfig(temperature=0, max_new_tokens=6)


@pytest.fixture(scope="module")
def target(tiny_model_folder, tmp_path_factory) -> ChatTarget:
    return ChatTarget.of_run(make_adapter(tiny_model_folder, tmp_path_factory.mktemp("session") / "lora", lora()))


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    home = LoratoryHome(tmp_path_factory.mktemp("home"))
    session = ChatSession(home, choose=lambda _: describe_processor())
    yield session
    session.unload()


@pytest.fixture(scope="module", autouse=True)
def answers_can_be_held():
    """Use a worker that can be held: a tiny model generates 200 tokens too quickly to observe."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loratory.engine.chat.session.WORKER_MODULE", HELD_WORKER)
        yield


@pytest.fixture
def hold(session):
    """Hold long answers after their first token; `hold.unlink()` lets them continue."""
    with hold_worker(session.home) as file:
        yield file


def pid_of(session: ChatSession) -> int:
    pid = session._active.process.pid
    assert pid is not None
    return pid


def wait_until_gone(pid: int) -> None:
    wait_until(lambda: not psutil.pid_exists(pid))


def stream_answers(session: ChatSession, *branches: str, sampling=SHORT):
    return list(session.stream(ChatRequest(messages=QUESTION, branches=branches, sampling=sampling)))


def test_a_session_begins_empty_and_reports_it(home):
    session = ChatSession(home)

    assert session.state.phase == "empty"
    with pytest.raises(RunError, match="No model is loaded"):
        stream_answers(session, "base")
    with pytest.raises(RunError, match="No model is loaded"):
        session.prompt(QUESTION)
    session.stop()
    session.unload()


def test_what_is_loaded_answers_on_both_branches(session, target):
    phases = []

    model = session.load(target, lambda progress: phases.append((progress.phase, session.state.phase)))

    assert phases[0] == ("starting", "loading")
    assert phases[-1] == ("ready", "loading")
    state = session.state
    assert (state.phase, state.target, state.model) == ("ready", target, model)
    assert [use.purpose for use in models_in_use(session.home)] == ["chat"]  # its model stays in the cache
    assert state.process_bytes > model.weights_bytes
    chunks = stream_answers(session, "base", "tuned")
    assert [chunk.branch for chunk in chunks] == ["base", "tuned"] * 6
    assert [chunk.finish_reason for chunk in chunks if chunk.done] == ["length", "length"]
    assert {chunk.prompt_tokens for chunk in chunks} == {len(session.prompt(QUESTION).ids)}
    assert session.prompt(QUESTION).text.endswith("<|im_start|>assistant\n")


def test_a_short_answer_does_not_wait_for_a_long_one(session, target, hold):
    session.load(target)
    long = session.stream(ChatRequest(messages=QUESTION, sampling=LONG))
    next(long)

    assert stream_answers(session, "tuned")[-1].tokens == 6
    assert session.state.generating == 1
    hold.unlink()
    assert next(long).tokens == 2
    long.close()
    assert session.state.generating == 0


def test_stop_ends_one_answer_and_no_other(session, target, hold):
    session.load(target)
    request = ChatRequest(messages=QUESTION, sampling=LONG)
    other_request = ChatRequest(messages=QUESTION, sampling=LONG)
    first, second = session.stream(request), session.stream(other_request)
    next(first), next(second)

    session.stop(request.id)

    assert list(first)[-1].finish_reason == "stopped"
    hold.unlink()
    assert list(second)[-1].finish_reason == "length"


def test_a_request_that_is_stopped_before_it_begins_ends_at_once(session, target):
    session.load(target)
    request = ChatRequest(messages=QUESTION, branches=("base", "tuned"), sampling=SHORT)
    stream = session.stream(request)  # begins with the first `next`

    session.stop(request.id)

    chunks = list(stream)
    assert [(chunk.branch, chunk.tokens, chunk.finish_reason) for chunk in chunks] == [
        ("base", 0, "stopped"), ("tuned", 0, "stopped"),
    ]  # fmt: skip
    assert session.state.generating == 0


def test_one_id_serves_one_request_at_a_time(session, target, hold):
    session.load(target)
    request = ChatRequest(messages=QUESTION, sampling=LONG)
    stream = session.stream(request)
    next(stream)

    with pytest.raises(RunError, match="already running"):
        next(session.stream(request))
    session.stop(request.id)
    assert list(stream)[-1].finish_reason == "stopped"


def test_a_branch_that_is_not_there_is_refused(session, target):
    session.load(target)

    with pytest.raises(RunError, match=r"without a second branch; it has base, tuned"):
        stream_answers(session, "second")


def test_another_adapter_on_the_same_base_keeps_the_process(session, target, tiny_model_folder, tmp_path):
    session.load(target)
    pid = pid_of(session)
    other = make_adapter(tiny_model_folder, tmp_path / "other", lora(), seed=3)

    session.load(ChatTarget.of_run(other))

    assert pid_of(session) == pid


def test_what_cannot_be_loaded_is_reported_and_leaves_nothing_loaded(session, target, tiny_model_folder, tmp_path):
    session.load(target)
    pid = pid_of(session)
    stranger = make_adapter(make_tiny_model(tmp_path / "deep", num_hidden_layers=4), tmp_path / "stranger", lora())
    wrong = ChatTarget(model=ModelConfig(id=str(tiny_model_folder)), tuned=AdapterChoice(folder=stranger))

    with pytest.raises(ModelError, match="stranger has weights for"):
        session.load(wrong)

    wait_until_gone(pid)
    assert session.state.phase == "empty"
    assert "stranger has weights for" in session.state.failure.what
    session.load(target)
    assert session.state.failure is None


def test_another_base_ends_the_process_of_the_former(session, target, tmp_path):
    session.load(target)
    pid = pid_of(session)
    other = make_tiny_model(tmp_path / "other-base", seed=4)

    session.load(ChatTarget.of_model(ModelConfig(id=str(other))))

    wait_until_gone(pid)
    assert session.state.model.branches == ("base",)


def test_unloading_ends_the_process_and_the_answers(session, target, hold):
    session.load(target)
    pid = pid_of(session)
    stream = session.stream(ChatRequest(messages=QUESTION, sampling=LONG))
    next(stream)

    session.unload()

    wait_until_gone(pid)
    assert session.state.phase == "empty"
    with pytest.raises(RunError, match="unloaded while it answered"):
        list(stream)
    with pytest.raises(RunError, match="No model is loaded"):
        stream_answers(session, "tuned")


def test_unloading_ends_a_loading(session, target):
    loading_started, go = threading.Event(), threading.Event()
    errors = []

    def wait_in_the_midst(progress):
        if progress.phase == "loading_model":
            loading_started.set()
            go.wait(300)

    def load():
        try:
            session.load(target, wait_in_the_midst)
        except WorkerError as error:
            errors.append(error)

    session.unload()
    loading = threading.Thread(target=load)
    loading.start()
    assert loading_started.wait(300)
    with pytest.raises(RunError, match="A model is already being loaded"):
        session.load(target)

    session.unload()

    go.set()
    loading.join(300)
    assert "Loading was stopped" in str(errors[0])
    assert session.state.phase == "empty"


def test_a_device_that_another_person_holds_is_not_taken(session, target, monkeypatch):
    session.unload()
    monkeypatch.setattr("loratory.engine.chat.session._LEAVING_SECONDS", 0.1)
    other = ProcessIdentity.current()
    book = LeaseBook(session.home)
    book.take(["cpu"], LeaseHolder(purpose="training", title="a long run", process=other))
    try:
        with pytest.raises(DeviceError, match=r"The CPU is in use for training \(a long run\)"):
            session.load(target)
        assert session.state.phase == "empty"
    finally:
        book.release(other)


def test_an_idle_model_releases_its_device_to_a_run_that_waits(session, target, monkeypatch, hold):
    monkeypatch.setattr("loratory.engine.chat.session._POLL_SECONDS", 0.05)
    monkeypatch.setattr(session, "preemptible_after_seconds", 0.0)
    session.load(target)
    pid = pid_of(session)
    book = LeaseBook(session.home)
    assert book.holder("cpu").purpose == "chat"
    stream = session.stream(ChatRequest(messages=QUESTION, sampling=LONG))
    next(stream)

    polls, limit = [], session._idle_limit
    monkeypatch.setattr(session, "_idle_limit", lambda: polls.append(True) or limit())  # read at every poll
    assert book.request_preemption("cpu")
    wait_until(lambda: len(polls) >= 3)
    hold.unlink()

    assert list(stream)[-1].finish_reason == "length"  # not in the middle of an answer
    wait_until(lambda: not psutil.pid_exists(pid) or (book.request_preemption("cpu") and False))  # as a waiting run
    assert "because a run waited for its device" in session.state.note
    assert book.holder("cpu") is None


def test_an_idle_model_expires_where_the_lab_limits_it_although_no_run_waits(session, target, monkeypatch):
    monkeypatch.setattr("loratory.engine.chat.session._POLL_SECONDS", 0.05)
    session.load(target)
    pid = pid_of(session)
    messages: list[str] = []
    monkeypatch.setattr(session, "on_unload", messages.append)
    assert session.state.expires_after_seconds is None
    monkeypatch.setattr(session, "expires_after_seconds", 0.01)
    wait_until_gone(pid)
    wait_until(lambda: bool(messages))

    assert session.state.phase == "empty"
    assert "because it was idle for" in session.state.note
    assert messages == [session.state.note]


def test_a_process_that_dies_is_noticed_and_replaced(session, target, hold):
    session.load(target)
    stream = session.stream(ChatRequest(messages=QUESTION, sampling=LONG))
    next(stream)

    psutil.Process(pid_of(session)).send_signal(signal.SIGKILL)

    with pytest.raises(WorkerError, match=r"was ended by signal 9 \(often: out of memory\)"):
        list(stream)
    assert session.state.phase == "empty"
    assert session.load(target).branches == ("base", "tuned")
    assert stream_answers(session, "tuned")[-1].done
