import errno
import gc
import os
import resource
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from loratory.engine.errors import StorageError
from loratory.engine.runs.history import events
from loratory.engine.runs.history.events import (
    CheckpointData,
    EvalData,
    Event,
    StatusData,
    StepData,
    WarningData,
)
from loratory.engine.runs.history.log import EventWriter, last_event, read_events, read_lines
from tests.event_log import write_log


def step(number: int, loss: float = 2.0) -> StepData:
    return StepData(step=number, epoch=0.1, loss=loss, learning_rate=1e-4, tokens=100, tokens_per_second=50.0)


def steps_of(read: Sequence[Event]) -> list[int]:
    return [event.data.step for event in read if isinstance(event.data, StepData)]


@pytest.fixture
def log(tmp_path):
    return tmp_path / "events.jsonl"


def test_what_was_appended_is_read_back_in_order(log):
    write_log(
        log,
        StatusData(phase="training", total_steps=2),
        step(1),
        EvalData(step=1, eval_loss=1.5, eval_tokens=10, rows=2, seconds=0.1),
    )

    batch = read_events(log)

    assert [(event.seq, event.attempt, event.kind) for event in batch.events] == [
        (1, 1, "status"), (2, 1, "step"), (3, 1, "eval"),
    ]  # fmt: skip
    assert batch.next_offset == log.stat().st_size
    assert read_events(log, batch.next_offset).events == ()


def test_half_written_last_line_is_left_for_the_next_read(log):
    write_log(log, step(1))
    whole = log.read_bytes()
    log.write_bytes(whole + whole[:-20])

    batch = read_events(log)
    assert steps_of(batch.events) == [1]
    assert batch.next_offset == len(whole)

    log.write_bytes(whole + whole)
    assert len(read_events(log, batch.next_offset).events) == 1


def test_seq_continues_across_attempts_and_a_torn_line_is_removed(log):
    write_log(log, step(1), step(2))
    log.write_bytes(log.read_bytes() + b'{"v":1,"seq":3,"att\0\0\0')

    write_log(log, step(3), attempt=2)

    assert [(event.seq, event.attempt) for event in read_events(log).events] == [(1, 1), (2, 1), (3, 2)]
    assert b"\0" not in log.read_bytes()


def test_a_log_that_is_one_torn_line_starts_again(log):
    log.write_bytes(b"x" * 200_000)

    with EventWriter(log, attempt=1) as writer:
        assert writer.append(step(1)).seq == 1
    assert [event.seq for event in read_events(log).events] == [1]


def test_unknown_kinds_fields_and_broken_lines_are_skipped(log):
    write_log(log, step(1))
    line = log.read_bytes()
    future = line.replace(b'"kind":"step"', b'"kind":"hologram"')
    newer_line = line.replace(b'"v":1', b'"v":2,"mood":"good"').replace(b'"step":1', b'"step":2,"shade":7')
    log.write_bytes(line + future + b"\xff\xfe not json\n\n" + newer_line)

    assert steps_of(read_events(log).events) == [1, 2]


def test_words_with_line_separators_stay_one_line(log):
    write_log(log, WarningData(message="a\nb\r\u2028c\x0bd"))

    (event,) = read_events(log).events
    assert event.data == WarningData(message="a\nb\r\u2028c\x0bd")


def test_last_event_is_found_behind_a_long_tail_of_other_lines(log):
    write_log(log, *(step(number) for number in range(1, 4)))
    log.write_bytes(log.read_bytes() + b"nonsense\n" * 30_000 + b'{"torn')

    event = last_event(log)
    assert event is not None
    assert event.seq == 3
    assert last_event(log.with_name("absent")) is None


def test_a_bounded_read_makes_progress_and_loses_nothing(log):
    write_log(log, *(step(number) for number in range(1, 101)))

    steps, offset = [], 0
    while (batch := read_lines(log, offset, max_bytes=50)).next_offset != offset:  # less than one line
        steps += steps_of([events.parse_event(line) for line in batch.lines])
        offset = batch.next_offset

    assert steps == list(range(1, 101))
    assert [event.seq for event in read_events(log).events] == list(range(1, 101))


def test_rare_events_are_on_the_disk_and_steps_do_not_wait_for_it(log, monkeypatch):
    writer = EventWriter(log, attempt=1)
    sync_calls: list[int] = []
    monkeypatch.setattr(os, "fsync", sync_calls.append)

    writer.append(step(1))
    assert writer._descriptor not in sync_calls
    writer.append(CheckpointData(step=1, name="step-1", size_bytes=10))
    assert sync_calls.count(writer._descriptor) == 1


def test_a_full_disk_leaves_whole_lines_and_the_event_can_be_appended_again(log):
    writer = EventWriter(log, attempt=1)
    writer.append(step(1))
    size = log.stat().st_size
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"events\.jsonl cannot be written"):
            writer.append(step(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert log.stat().st_size == size

    assert writer.append(step(2)).seq == 2
    assert steps_of(read_events(log).events) == [1, 2]


def test_events_of_several_threads_do_not_mix(log):
    with EventWriter(log, attempt=1) as writer, ThreadPoolExecutor(4) as threads:
        threads.map(lambda _: [writer.append(step(n)) for n in range(100)], range(4))

    assert [event.seq for event in read_events(log).events] == list(range(1, 401))


class Interrupted(BaseException):
    """What a signal handler raises, as that of the worker does."""


@pytest.fixture
def signal_at():
    """Delivers a SIGTERM, whose handler raises, at the n-th point of a call at which Python lets signals in."""

    def interrupt(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGTERM, interrupt)

    def deliver(place: int, call) -> bool:
        """Whether the call came so far."""
        events_traced = 0

        def profile(_frame, event, _argument) -> None:
            nonlocal events_traced
            events_traced += event != "c_call"  # on entering Python code, and when a call has returned
            if events_traced == place:
                signal.raise_signal(signal.SIGTERM)

        gc.disable()  # in a finalizer of what other tests left behind, the exception would be lost
        sys.setprofile(profile)
        try:
            call()
        except Interrupted:
            return True
        finally:
            sys.setprofile(None)
            gc.enable()
        return False

    yield deliver
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("data", [step(7), WarningData(message="Odd.")], ids=["a step", "an event that is synced"])
def test_a_signal_at_any_point_costs_at_most_the_event_that_it_interrupts(tmp_path, signal_at, monkeypatch, data):
    write, has_interrupted, position = os.write, True, 0
    while has_interrupted:
        position += 1
        log = tmp_path / f"{position}.jsonl"
        with EventWriter(log, attempt=1) as writer:
            known = [writer.append(step(1)), writer.append(step(2))]
            has_interrupted = signal_at(position, lambda: writer.append(data))
            known.append(writer.append(step(3)))

            def full(descriptor: int, line: bytes) -> int:
                write(descriptor, line[:20])
                raise OSError(errno.ENOSPC, "No space left on device")

            with monkeypatch.context() as patch:
                patch.setattr(os, "write", full)
                with pytest.raises(StorageError):
                    writer.append(step(4))
            known.append(writer.append(step(5)))

        events = read_events(log).events
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert len(events) == log.read_bytes().count(b"\n"), "no line is damaged"
        assert [event for event in events if event in known] == known, "what was reported as written is there"
        assert len(events) - len(known) in (0, 1)
    assert position > 15
