"""What a real worker takes of a GPU, next to what was predicted: every method on the demo model, and real shapes."""

import pytest

from loratory.engine.config.run import ModelConfig
from loratory.engine.inspector.worker.inventory import module_inventory
from loratory.engine.memory.estimate import Estimator
from loratory.engine.training.worker import EXIT_FINISHED
from tests.gpu.cuda_training import CELLS, sections_of, the_gpu, write_long_answers
from tests.training.worker_runs import WorkerRuns, data_of_events

pytestmark = [pytest.mark.gpu, pytest.mark.e2e]

LENGTH = 1024
# Shape, quantization, rows at once, checkpointing.
CASES = [
    ("0.5B", "none", 1, False),
    ("0.5B", "none", 8, True),
    ("1.5B", "none", 2, True),
    ("1.5B", "nf4", 1, False),
    ("1.5B", "nf4", 8, True),
    ("8B", "nf4", 1, False),
    ("8B", "nf4", 2, True),
    ("8B", "nf4", 8, True),
]

WITHIN = 0.06  # of the tensors that were measured


def assert_predicted(need, memory):
    """Tensors within six percent; what PyTorch held, and the process, below their bounds.

    Args:
        need: `loratory.engine.memory.device_need.DeviceNeed` of the run.
        memory: `loratory.engine.runs.history.events.MemoryData`, the run's last.
    """
    error = need.allocated_bytes / memory.peak_allocated_bytes - 1
    assert abs(error) <= WITHIN, f"tensors: {error:+.1%}"
    # Without the context and the margin of the process, which PyTorch's allocator does not hold.
    assert memory.peak_reserved_bytes <= need.reserved_bound_bytes, "PyTorch held more than its bound"
    assert memory.peak_allocated_bytes <= memory.peak_reserved_bytes
    if memory.peak_device_process_bytes is not None:  # a driver within a container may not tell
        assert memory.peak_reserved_bytes < memory.peak_device_process_bytes <= need.needed_bytes, "the process"


def measure_run(run, home, cuda_workers, show):
    """Train; compare what was taken with what was predicted."""
    config, gpu = run.folder.read_config(), the_gpu()
    shape = module_inventory(ModelConfig(id=config.model.id), home)
    need = Estimator(shape, gpu).need(config)
    if need.needed_bytes > gpu.free_bytes:
        pytest.skip(
            f"the estimate needs {need.needed_bytes / 2**30:.0f} GiB, and {gpu.free_bytes / 2**30:.0f} are free"
        )

    assert cuda_workers.run(run) == EXIT_FINISHED, cuda_workers.end_of_log()

    assert data_of_events(run, "data_report")[0].truncated_rows > 0  # rows fill the length that the estimate is for
    memory = data_of_events(run, "memory")[-1]
    show(
        gpu=gpu.name,
        predicted_allocated=need.allocated_bytes,
        measured_allocated=memory.peak_allocated_bytes,
        predicted_reserved=need.reserved_bytes,
        measured_reserved=memory.peak_reserved_bytes,
        bound_of_reserved=need.reserved_bound_bytes,
        measured_process=memory.peak_device_process_bytes,
        needed=need.needed_bytes,
    )
    assert_predicted(need, memory)


@pytest.mark.parametrize(("method", "quantization"), CELLS, ids=[f"{m}-{q}" for m, q in CELLS])
def test_the_demo_model_stays_within_what_was_predicted(
    method, quantization, home, cuda_runs, cuda_workers, show, tmp_path
):
    data = write_long_answers(tmp_path / "long.jsonl", 60, word_count=128)
    run = cuda_runs.create(**sections_of(method, quantization), dataset={"source": str(data)})

    measure_run(run, home, cuda_workers, show)


@pytest.mark.parametrize(
    ("shape", "quantization", "batch", "checkpointing"),
    CASES,
    ids=["-".join((s, q, str(b), "checkpointed" if c else "kept")) for s, q, b, c in CASES],
)
def test_real_shapes_stay_within_what_was_predicted(
    shape, quantization, batch, checkpointing, home, in_shape, cuda_workers, show, tmp_path
):
    runs = WorkerRuns(
        home, in_shape(shape), write_long_answers(tmp_path / "long.jsonl", 8 * batch + 8, word_count=LENGTH)
    )
    run = runs.create(
        model={"quantization": quantization},
        adapter={"r": 16, "lora_alpha": 32},
        training={
            "max_length": LENGTH,
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": 1,
            "gradient_checkpointing": checkpointing,
            "max_steps": 4,
            "save_steps": 4,
            "eval_steps": 4,
        },
        run={"devices": "auto"},
    )

    measure_run(run, home, cuda_workers, show)
