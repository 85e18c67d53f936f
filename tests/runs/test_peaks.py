"""Peaks of memory, predicted and measured: what is recorded, and what is compared with what."""

import pytest

from loratory.engine.config.load import config_from_mapping
from loratory.engine.hardware.device import Device
from loratory.engine.inspector.worker.inventory import inventory_of
from loratory.engine.memory.estimate import estimate_memory
from loratory.engine.models.catalog import find_in_catalog
from loratory.engine.runs.history.events import MemoryData, StatusData, StepData
from loratory.engine.runs.history.run_history import read_history
from loratory.engine.runs.prediction import needs_of
from loratory.engine.runs.provenance import MemoryFigures, Provenance, predicted_figures
from loratory.engine.runs.store import RunStore
from loratory.engine.runs.summary import summarize
from tests.event_log import write_log

CONFIG = config_from_mapping({"model": {"id": "m"}, "dataset": {"source": "-"}})
FORETOLD = MemoryFigures(allocated_bytes=10, reserved_bytes=12, process_bytes=15)
ON_GPU = MemoryData(peak_allocated_bytes=9, peak_reserved_bytes=13, peak_process_bytes=40, peak_device_process_bytes=16)


@pytest.mark.parametrize(
    ("kind", "known"),
    [("cuda", {"allocated", "reserved", "process"}), ("mps", {"reserved"}), ("cpu", {"process"})],
)
def test_what_is_foretold_is_what_the_device_will_be_measured_by(kind, known):
    shape = inventory_of(find_in_catalog("Qwen/Qwen3-0.6B").config)
    device = Device(kind, 0, "a device", 2**36, 2**36, has_fast_bfloat16=True)
    estimate = estimate_memory(shape, CONFIG, device)

    figures = predicted_figures(needs_of(shape, CONFIG, [device])[0], kind)

    expected = {
        "allocated": estimate.allocated_bytes, "reserved": estimate.reserved_bytes, "process": estimate.expected_bytes,
    }  # fmt: skip
    assert {name: figures.bytes_of(name) for name in expected} == {
        name: size if name in known else None for name, size in expected.items()
    }


def test_lists_compare_the_hold_of_the_allocator_and_charts_the_tensors_on_a_gpu():
    assert (FORETOLD.of_run, FORETOLD.of_step) == (12, 10)
    assert (MemoryFigures().of_run, MemoryFigures().of_step) == (None, None)
    on_cpu = MemoryFigures(process_bytes=15)
    assert (on_cpu.of_run, on_cpu.of_step) == (15, 15)


def test_a_runs_row_has_both_sets_of_figures(home):
    run = RunStore(home, "ann").create(CONFIG, Provenance(predicted_bytes=15, predicted_memory=FORETOLD))
    write_log(run.folder.events, ON_GPU)

    row = summarize(run)

    assert row.predicted_memory == FORETOLD
    assert row.measured_memory == MemoryFigures(allocated_bytes=9, reserved_bytes=13, process_bytes=16)
    assert (row.predicted_bytes, row.peak_memory_bytes) == (12, 13)


def test_a_process_that_grew_after_its_last_report_is_shown_at_its_size(home):
    run = RunStore(home, "ann").create(CONFIG, Provenance())
    write_log(
        run.folder.events,
        MemoryData(peak_process_bytes=40),
        *(
            StepData(step=step, epoch=1, loss=1, learning_rate=1, tokens=1, tokens_per_second=1, memory_bytes=resident)
            for step, resident in enumerate((39, 52, None, 50), start=1)
        ),
    )

    row = summarize(run)

    assert (row.peak_memory_bytes, row.measured_memory) == (52, MemoryFigures(process_bytes=52))


def test_peaks_of_earlier_attempts_count(tmp_path):
    log = tmp_path / "events.jsonl"
    for attempt, reserved in ((1, 30), (2, 20)):
        write_log(
            log,
            StatusData(phase="training"),
            MemoryData(peak_reserved_bytes=reserved, peak_process_bytes=attempt),
            attempt=attempt,
        )

    memory = read_history(log).memory

    assert (memory.peak_reserved_bytes, memory.peak_process_bytes, memory.peak_allocated_bytes) == (30, 2, None)
