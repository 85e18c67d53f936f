"""The demo run of a Space: filed once, out of people's way, shared, and shown with what was computed for it."""

import itertools
import threading
import time

import pytest

from loratory.engine.accounts.people import DEMO_OWNER
from loratory.engine.chat.contract import ChatTarget
from loratory.engine.errors import DatasetError, DeviceError, ModelError
from loratory.engine.hardware.lease import LeaseBook, LeaseHolder
from loratory.engine.lab.rules import is_shared
from loratory.engine.lab.supervision import SNAPSHOT_FILE, QueuedRun, QueueSnapshot
from loratory.engine.processes.liveness import ProcessIdentity
from loratory.engine.runs.control import resume_is_requested
from loratory.engine.space.demo_chat import DemoBusyError, demo_session
from tests.fake_chat import FakeChatSession
from tests.invented_runs import InventedRun, a_config, write_run
from tests.space.demo_parts import a_demo, with_run, with_sample
from tests.waiting import PATIENCE_SECONDS, wait_until

LONG_AGO = 9_000.0


@pytest.fixture
def demo(tmp_path):
    return a_demo(tmp_path)


@pytest.fixture
def without_pauses(monkeypatch):
    """Let a demo look, and try again, at once."""
    for name in ("_POLL_SECONDS", "_REPEAT_SECONDS"):
        monkeypatch.setattr(f"loratory.engine.space.demo.{name}", 0.001)


def queue_of_people(demo, *reasons, owner="bea"):
    """Let runs of a person wait."""
    waiting = tuple(QueuedRun(owner=owner, run_id=f"run-{n}", reason=reason) for n, reason in enumerate(reasons))
    path = demo.home.server / SNAPSHOT_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(QueueSnapshot(waiting=waiting).model_dump_json())


def test_a_space_without_a_run_gets_one_and_only_one(demo):
    assert demo.run is None

    demo.advance()
    demo.advance()

    (run,) = demo.launcher.started
    assert demo.run == run
    assert run.owner == DEMO_OWNER
    assert run.folder.read_config().model.id == "smollm2-135m-instruct"


def test_a_run_that_was_brought_back_is_not_trained_again(demo):
    brought_back = with_run(demo)

    for _ in range(4):
        demo.advance()

    assert demo.run == brought_back
    assert demo.launcher.started == []
    assert is_shared(brought_back.folder)


def test_a_completed_run_is_shown_rather_than_a_newer_one(demo):
    completed = with_run(demo)
    with_run(demo, InventedRun(state="running", steps=3))

    assert demo.run == completed


def test_a_failed_run_is_tried_again_when_the_server_starts_and_not_before(demo, tmp_path):
    failed = with_run(demo, InventedRun(state="failed", age_seconds=LONG_AGO))
    demo.advance()
    demo.advance()
    again = demo.run
    assert again != failed
    assert len(demo.launcher.started) == 1

    later = a_demo(tmp_path / "other")
    failed_now = with_run(later, InventedRun(state="failed", age_seconds=-10))
    later.advance()
    later.advance()
    assert later.runs.list() == [failed_now]


@pytest.mark.parametrize("reason", ["device_in_use", "memory", "other_persons_run"])
def test_the_run_stops_while_a_person_waits_for_a_device(demo, reason):
    run = with_run(demo, InventedRun(state="running", steps=9))
    queue_of_people(demo, reason)

    demo.advance()

    assert run.folder.stop_request.exists()


def test_the_run_does_not_stop_for_itself_or_for_runs_that_need_no_device(demo):
    run = with_run(demo, InventedRun(state="running", steps=9))
    for owner, reason in ((DEMO_OWNER, "device_in_use"), ("bea", "maintenance"), ("bea", "executor_queue")):
        queue_of_people(demo, reason, owner=owner)
        demo.advance()

    assert not run.folder.stop_request.exists()


@pytest.mark.parametrize("state", ["stopped", "interrupted"])
def test_the_run_continues_once_no_run_waits(demo, state):
    run = with_run(demo, InventedRun(state=state, steps=9))
    queue_of_people(demo, "device_in_use")
    demo.advance()
    assert not resume_is_requested(demo.home, run)

    queue_of_people(demo)
    demo.advance()

    assert resume_is_requested(demo.home, run)


def test_rows_are_shown_while_it_trains_and_answers_once_it_has_completed(demo):
    run = with_run(demo, InventedRun(state="running", steps=9))
    demo.advance()
    sample = demo.sample_of(run)
    assert len(sample.page.rows) == 3
    assert all(row.sequences for row in sample.page.rows)
    assert sample.answers is None

    run.folder.write_state(run.folder.read_state().model_copy(update={"state": "completed"}))
    demo.advance()

    answers = demo.sample_of(run).answers
    assert len(answers) == 3
    assert answers[0].reference
    assert answers[0].base.text != answers[0].tuned.text


def test_without_held_out_rows_nothing_is_asked_and_nothing_tried_again(demo, monkeypatch):
    run = write_run(demo.runs, a_config(dataset__eval_fraction=0.0), InventedRun())
    with_sample(demo)
    assert demo.sample_of(run).answers == ()

    monkeypatch.setattr(demo.inspector, "held_out", None)
    demo.advance()


def test_what_was_computed_is_found_again(demo, tmp_path):
    run = with_run(demo)
    with_sample(demo)
    request_count = len(demo.chat.session.requests)

    session = FakeChatSession(0.0)
    later = a_demo(tmp_path, session)
    later.advance()

    assert later.sample_of(run) == demo.sample_of(run)
    assert session.requests == []
    assert request_count == 3
    demo.sample_path(run).write_text("{ torn")
    assert a_demo(tmp_path).sample_of(run).page is None


def test_a_failure_is_reported_without_a_path_and_tried_a_few_times(demo, without_pauses, monkeypatch):
    tries: list[None] = []

    def refuse(*_args, **_more):
        tries.append(None)
        raise DatasetError(f"{demo.home.root}/uploads cannot be read.", "Look.")

    monkeypatch.setattr(demo.launcher, "start", refuse)
    demo.start()
    wait_until(lambda: len(tries) == 5)
    time.sleep(0.05)
    demo.close()

    assert len(tries) == 5
    assert demo.problem == "the folder of this Space/uploads cannot be read."


def test_the_run_is_preempted_although_the_page_cannot_be_made(demo, without_pauses, monkeypatch):
    run = with_run(demo, InventedRun(state="running", steps=9))
    tries: list[None] = []

    def refuse(*_args, **_more):
        tries.append(None)
        raise ModelError("The tokenizer cannot be read.", "Look.")

    monkeypatch.setattr(demo.inspector, "preview", refuse)
    demo.start()
    wait_until(lambda: len(tries) == 5)
    queue_of_people(demo, "device_in_use")
    wait_until(run.folder.stop_request.exists)
    demo.close()


def test_a_mistake_of_ours_does_not_end_the_thread(demo, without_pauses, monkeypatch):
    start = demo.launcher.start
    tries: list[None] = []

    def fail_once(*args, **more):
        tries.append(None)
        if len(tries) == 1:
            raise ZeroDivisionError
        return start(*args, **more)

    monkeypatch.setattr(demo.launcher, "start", fail_once)
    demo.start()
    wait_until(lambda: demo.run is not None)
    demo.close()


def member_holds_the_processor(home, owner="bea"):
    """Let a person's chat have the CPU; returns the book."""
    book = LeaseBook(home)
    holder = LeaseHolder(
        purpose="chat", title="secret of bea", process=ProcessIdentity.current(), owner=owner, preemptible=True
    )
    (home.server).mkdir(parents=True, exist_ok=True)
    book.take(("cpu",), holder)
    return book


def test_a_question_asks_no_run_to_make_room(demo):
    run = with_run(demo)
    book = member_holds_the_processor(demo.home)

    with pytest.raises(DemoBusyError) as error_info:
        demo.chat.answer(run, "What is r?")

    assert "secret" not in str(error_info.value)
    assert demo.chat.session.state.phase == "empty"
    assert not book.is_preemption_requested(ProcessIdentity.current())


def test_a_real_session_asks_no_run_to_make_room_either(demo, monkeypatch):
    run = with_run(demo)
    book = member_holds_the_processor(demo.home)
    session = demo_session(demo.home)
    monkeypatch.setattr("loratory.engine.hardware.device_job.JsonLinesProcess", NoProcess)

    with pytest.raises(DeviceError):
        session.load(ChatTarget.of_run(run.folder.path))

    assert not book.is_preemption_requested(ProcessIdentity.current())


class NoProcess:
    """A process that is there and does nothing."""

    def __init__(self, *_args, **_more):
        self.pid = 1

    def start(self):
        """Nothing to start."""

    def close(self, **_more):
        """Nothing to end."""


def test_the_model_is_unloaded_when_a_person_waits_for_the_processor(demo):
    run = with_run(demo)
    demo.chat.answer(run, "What is r?")
    assert demo.chat.session.state.phase == "ready"
    book = member_holds_the_processor(demo.home, owner=DEMO_OWNER)
    book.request_preemption("cpu")

    demo.chat.answer(run, "And alpha?")

    assert demo.chat.session.state.phase == "empty"


def test_one_question_at_a_time(tmp_path):
    reached, let = threading.Event(), threading.Event()

    class Slow(FakeChatSession):
        def stream(self, request):
            reached.set()
            assert let.wait(300)
            yield from super().stream(request)

    demo = a_demo(tmp_path, Slow(0.0))
    run = with_run(demo)
    first = threading.Thread(target=demo.chat.answer, args=(run, "first"))
    first.start()
    assert reached.wait(300)
    try:
        with pytest.raises(DemoBusyError, match="Another question is being answered"):
            demo.chat.answer(run, "second")
    finally:
        let.set()
        first.join()
    assert demo.chat.answer(run, "third").tuned.text


def test_an_answer_that_takes_too_long_ends_with_what_there_is(tmp_path):
    class Endless(FakeChatSession):
        """Has one word for each model, and is at the next one until it is stopped."""

        def __init__(self):
            super().__init__(0.0)
            self.is_stopped = threading.Event()

        def stream(self, request):
            self._stopped.clear()
            chunks = super().stream(request)
            yield from itertools.islice(chunks, len(request.branches))
            assert self.is_stopped.wait(PATIENCE_SECONDS)
            self._stopped.add(request.id)
            yield from chunks

        def stop(self, request_id=None):
            self.is_stopped.set()

    demo = a_demo(tmp_path, Endless())
    run = with_run(demo)
    demo.chat.answer_seconds = 0.05

    answers = demo.chat.answer(run, "What is r?")

    assert answers.base.text.startswith("Alpha")
    assert answers.base.finish_reason == "stopped"


def test_a_model_that_does_not_load_in_time_is_unloaded(tmp_path):
    class Stuck(FakeChatSession):
        def __init__(self):
            super().__init__(0.0)
            self.unloaded = threading.Event()

        def load(self, target, on_progress=None):
            assert self.unloaded.wait(300)
            raise ModelError("Loading was ended.", "Load it again.")

        def unload(self):
            self.unloaded.set()

    demo = a_demo(tmp_path, Stuck())
    run = with_run(demo)
    demo.chat.load_seconds = 0.05

    with pytest.raises(DemoBusyError, match="cannot answer now"):
        demo.chat.answer(run, "What is r?")
