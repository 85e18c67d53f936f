import csv
import io
import itertools
import math
import re
from typing import Any

import numpy as np
import pytest

from loratory.engine.runs.history.events import (
    AnswersData,
    CheckpointData,
    EvalData,
    EventData,
    FailedData,
    MemoryData,
    ResumedData,
    StatusData,
    StepData,
    WarningData,
)
from loratory.engine.runs.history.log import EventWriter, read_lines
from loratory.engine.runs.history.run_history import HistoryReader, read_history, seconds_left, seconds_per_step
from loratory.engine.runs.history.steps import rows_of_plain_steps
from loratory.engine.runs.summary import steps_table
from tests.event_log import write_log


def step(number: int, loss: float | None = None, **values: Any) -> StepData:
    defaults = {"epoch": number / 10, "learning_rate": 1e-4, "tokens": number * 100, "tokens_per_second": 500.0}
    return StepData(step=number, loss=1 / number if loss is None else loss, **{**defaults, **values})


def held_out(number: int, loss: float, **values: Any) -> EvalData:
    return EvalData(step=number, eval_loss=loss, eval_tokens=10, rows=2, seconds=1.0, **values)


@pytest.fixture
def log(tmp_path):
    return tmp_path / "events.jsonl"


def test_curves_losses_and_words_of_a_plain_run(log):
    write_log(
        log,
        StatusData(phase="training", message="Training.", total_steps=3),
        held_out(0, 3.0),
        *(step(number, grad_norm=0.5 if number == 2 else None) for number in (1, 2, 3)),
        held_out(2, 1.9),
        held_out(3, 2.0),
        WarningData(message="Rows were cut."),
        MemoryData(peak_process_bytes=7),
        StatusData(phase="finished", message="Done."),
    )
    history = read_history(log)

    assert history.steps.steps.tolist() == [1, 2, 3]
    assert history.steps.losses.tolist() == [1.0, 0.5, 1 / 3]
    assert np.isnan(history.steps.column("grad_norm")).tolist() == [True, False, True]
    assert (history.last_step, history.total_steps, history.attempt) == (3, 3, 1)
    assert history.base_eval is not None
    assert history.base_eval.eval_loss == 3.0
    assert [point.eval_loss for point in history.tuned_evals] == [1.9, 2.0]
    assert history.best_eval is not None
    assert history.best_eval.step == 2
    assert history.status.phase == "finished"
    assert [message.text for message in history.messages] == ["Training.", "Rows were cut.", "Done."]
    assert history.memory is not None
    assert history.memory.peak_process_bytes == 7


def test_resumed_supersedes_what_came_later_in_earlier_attempts(log):
    with EventWriter(log, 1) as events:
        events.append(held_out(0, 3.0))
        for number in range(1, 8):
            events.append(step(number, loss=1.0))
            if number in (5, 6):
                events.append(CheckpointData(step=number, name=f"step-{number}", size_bytes=1))
                events.append(held_out(number, 2.0))
        events.append(FailedData(cause="unexpected", what="It broke.", fix="Mend it."))
    write_log(log, ResumedData(step=5, checkpoint="step-5"), step(6, loss=9.0), step(7, loss=9.0), attempt=2)
    history = read_history(log)

    assert history.steps.steps.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert history.steps.losses.tolist() == [1, 1, 1, 1, 1, 9, 9]
    assert [point.step for point in history.evals] == [0, 5]
    assert [checkpoint.step for checkpoint in history.checkpoints] == [5]
    assert history.failed is None, "the failure of an earlier attempt is past"
    assert history.attempt == 2


def test_an_attempt_that_restarts_without_resumed_replaces_the_earlier_one(log):
    write_log(log, held_out(0, 3.0), step(1), step(2))
    write_log(log, held_out(0, 3.5), step(1, loss=8.0), attempt=2)
    history = read_history(log)

    assert history.steps.losses.tolist() == [8.0]
    assert [point.eval_loss for point in history.evals] == [3.5]


def test_following_reads_only_what_is_new_and_nothing_new_is_the_same_object(log, monkeypatch):
    reader = HistoryReader(log)
    assert len(reader.update().steps) == 0
    with EventWriter(log, 1) as events:
        events.append(step(1))
        first = reader.update()
        assert reader.update() is first
        events.append(step(2))
    opened: list[int] = []

    def remembering(path, offset, max_bytes):
        opened.append(offset)
        return read_lines(path, offset, max_bytes)

    monkeypatch.setattr("loratory.engine.runs.history.run_history.read_lines", remembering)
    second = reader.update()

    assert min(opened) == first.next_offset, "nothing before the offset is read again"
    assert second.last_step == 2
    assert first.last_step == 1, "what was handed out does not change"


def test_a_log_that_became_shorter_is_read_from_its_beginning(log):
    write_log(log, *(step(number, loss=1.0) for number in range(1, 4)))
    reader = HistoryReader(log)
    reader.update()
    log.unlink()
    write_log(log, step(1, loss=7.25))

    assert reader.update().steps.losses.tolist() == [7.25]


def test_series_that_were_handed_out_never_change(log):
    reader = HistoryReader(log)
    events = EventWriter(log, 1)
    for number in range(1, 6):
        events.append(step(number, loss=1.0))
    before = reader.update().steps
    again = EventWriter(log, 2)
    again.append(ResumedData(step=2))
    for number in range(3, 2000):
        again.append(step(number, loss=7.0))
    after = reader.update().steps

    assert before.losses.tolist() == [1.0] * 5
    assert after.losses[:3].tolist() == [1.0, 1.0, 7.0]
    assert len(after) == 1999
    with pytest.raises(ValueError, match="read-only"):
        before.losses[0] = 5.0


def test_the_quick_way_and_the_careful_way_read_the_same(log):
    with EventWriter(log, 1) as events:
        for number in range(1, 50):
            events.append(step(number, loss=math.nan if number == 7 else 1 / number, memory_bytes=number))
            if number % 10 == 0:
                events.append(held_out(number, 1.0))
    quick = read_history(log)
    # A field that the quick way does not expect sends the same lines down the careful way.
    log.write_bytes(log.read_bytes().replace(b'"attempt":1', b'"attempt":"1"'))
    careful = read_history(log)

    for name in ("step", "time", "loss", "grad_norm", "tokens", "memory_bytes"):
        np.testing.assert_array_equal(quick.steps.column(name), careful.steps.column(name))
    assert quick.evals == careful.evals
    assert np.isnan(quick.steps.losses[6])


def test_readings_of_gpus_are_read_both_ways_and_older_logs_have_none(log):
    readings = {number: {"gpu_utilization": 90.0 + number, "gpu_watts": 640.0} for number in (3, 6)}
    write_log(log, *(step(number, gpu=readings.get(number, {})) for number in range(1, 9)))
    content = log.read_bytes()
    quick = read_history(log)
    log.write_bytes(content.replace(b'"attempt":1', b'"attempt":"1"'))
    careful = read_history(log)
    log.write_bytes(re.sub(rb'"gpu":{[^}]*},', b"", content))
    older = read_history(log)

    for history in (quick, careful):
        steps, values = history.steps.metric("gpu_utilization")
        assert (steps.tolist(), values.tolist()) == ([3, 6], [93.0, 96.0])
        assert not len(history.steps.metric("gpu_celsius")[0])
        rows = list(csv.DictReader(io.StringIO(steps_table(history).to_csv(index=False))))
        assert [row["gpu_watts"] for row in rows[1:4]] == ["", "640.0", ""]
    assert older.steps.steps.tolist() == quick.steps.steps.tolist()
    assert not len(older.steps.metric("gpu_utilization")[0])
    assert rows_of_plain_steps(log.read_bytes().splitlines(), 1) is not None


def test_the_seconds_of_training_leave_out_the_pause_between_two_attempts(log):
    with EventWriter(log, 1) as events:
        for number in range(1, 8):
            events.append(step(number))
    with EventWriter(log, 2) as events:
        events.append(ResumedData(step=5))
    with EventWriter(log, 3) as events:
        events.append(ResumedData(step=5))
        for number in (6, 7):
            events.append(step(number))
    times = iter([10.0, 12.0, 14.0, 16.0, 18.0, 20.0, 22.0, 3000.0, 5000.0, 5060.0, 5062.0])
    log.write_bytes(re.sub(rb'"time":[0-9.]+', lambda _: b'"time":%f' % next(times), log.read_bytes()))

    history = read_history(log)

    assert history.resumes == (5, 5)
    assert history.seconds_of_training(np.arange(7)).tolist() == [0, 2, 4, 6, 8, 10, 12]
    assert history.seconds_of_training(np.array([4, 6])).tolist() == [8, 12]


def test_a_resume_counts_until_an_attempt_restarts_before_it(log):
    with EventWriter(log, 1) as events:
        events.append(step(1))
    with EventWriter(log, 2) as events:
        events.append(ResumedData(step=1))
        assert read_history(log).resumes == (1,)
        assert read_history(log).seconds_of_training(np.array([0])).tolist() == [0]
    with EventWriter(log, 3) as events:
        events.append(ResumedData(step=0))

    assert read_history(log).resumes == (0,)


def test_a_damaged_step_line_costs_that_step_only(log):
    write_log(log, *(step(number) for number in range(1, 6)))
    lines = log.read_bytes().split(b"\n")
    lines[2] = lines[2].replace(b'"loss"', b'"lost"')
    log.write_bytes(b"\n".join(lines))

    assert read_history(log).steps.steps.tolist() == [1, 2, 4, 5]


def test_an_empty_log_is_an_empty_history(log):
    history = read_history(log)

    assert history.last_step == 0
    assert history.mean_tokens_per_second() is None
    assert history.best_eval is None
    assert seconds_left(history) is None


def test_time_left_follows_the_pace_of_the_newest_steps(log, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    with EventWriter(log, 1) as events:
        events.append(StatusData(phase="training", total_steps=100))
        for number in range(1, 11):
            now[0] += 2.0
            events.append(step(number))
    history = read_history(log)

    assert seconds_per_step(history) == pytest.approx(2.0)
    assert seconds_left(history, clock=lambda: now[0]) == pytest.approx(180.0)
    assert seconds_left(history, clock=lambda: now[0] + 1) == pytest.approx(179.0)


def test_time_left_counts_evaluations_and_saves_and_is_never_zero(log, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.time", lambda: now[0])

    def left(after: float = 0.0) -> float | None:
        return seconds_left(read_history(log), clock=lambda: now[0] + after)

    def pass_time(seconds: float, data: EventData) -> None:
        now[0] += seconds
        events.append(data)

    with EventWriter(log, 1) as events:
        events.append(StatusData(phase="training", total_steps=10))
        pass_time(4, EvalData(step=0, eval_loss=3.0, eval_tokens=10, rows=5, seconds=4.0))
        for number in range(1, 6):
            pass_time(2, step(number))
        assert left() == pytest.approx(5 * 2 + 4)  # one evaluation at the end, as far as is known
        pass_time(6, EvalData(step=5, eval_loss=2.0, eval_tokens=10, rows=5, seconds=6.0))
        pass_time(3, CheckpointData(step=5, name="step-5", size_bytes=1))
        assert left() == pytest.approx(5 * 2 + 6 + 3 + 3)  # and the trained weights are saved
        for number in range(6, 11):
            pass_time(2, step(number))
        assert left() == pytest.approx(6 + 3 + 3)
        assert left(after=4) == pytest.approx(2 + 3 + 3)
        assert left(after=60) == pytest.approx(3 + 3)
        pass_time(9, EvalData(step=10, eval_loss=1.0, eval_tokens=10, rows=5, seconds=9.0))
        pass_time(0.2, CheckpointData(step=10, name="step-10", size_bytes=1))
        assert left() is None


@pytest.mark.parametrize("huge", ["1" + "0" * 400, "-" + "9" * 30, "[" * 3000])
def test_a_number_that_nothing_can_calculate_with_is_not_an_event(log, huge):
    write_log(log, StatusData(phase="training", message="Rows: 12345678901234567890.", total_steps=30), step(1))
    lines = log.read_bytes().splitlines(keepends=True)
    plain = lines[1].replace(b'"step":1', b'"step":' + huge.encode())
    total = lines[0].replace(b'"total_steps":30', b'"total_steps": ' + huge.encode())
    log.write_bytes(b"".join([*lines, plain, total]))

    history = read_history(log)

    assert history.last_step == 1
    assert history.total_steps == 30
    assert history.status.message == "Rows: 12345678901234567890."


def test_the_time_that_is_left_is_unknown_where_a_log_holds_no_time(log):
    write_log(log, StatusData(phase="training", total_steps=30), step(1), step(2))
    log.write_bytes(re.sub(rb'"time":[0-9.]+', b'"time":NaN', log.read_bytes()))

    assert seconds_left(read_history(log)) is None


def answers_at(step: int) -> AnswersData:
    return AnswersData(
        step=step, names=("Row 1",), prompts=("q",), references=("r",), answers=(f"a {step}",), seconds=1.0
    )


def test_answers_of_many_evaluations_are_thinned_out_evenly(log):
    write_log(log, *(answers_at(step) for step in range(0, 1000, 10)))

    steps = [point.step for point in read_history(log).answers]

    assert len(steps) <= 16
    assert steps[0] == 0
    assert steps[-1] == 990
    gaps = [later - earlier for earlier, later in itertools.pairwise(steps)]
    assert max(gaps) <= 3 * min(gaps)


def test_a_resumed_run_continues_its_answers(log):
    first = EvalData(step=0, eval_loss=2.0, eval_tokens=9, rows=1, seconds=1.0)
    write_log(log, answers_at(0), first, answers_at(5), answers_at(10))
    write_log(log, ResumedData(step=5), answers_at(10), attempt=2)

    assert [point.step for point in read_history(log).answers] == [0, 5, 10]
    assert [point.step for point in read_history(log).evals] == [0]
