"""A run needs no less where its rows may be longer or its batches larger, although its loss goes in fewer chunks before."""

import pytest

from loratory.engine.config.load import config_from_mapping
from loratory.engine.config.rules import LOSS_CHUNK_BYTES, LOSS_CHUNK_BYTES_CPU
from loratory.engine.hardware.device import Device
from loratory.engine.inspector.worker.inventory import inventory_of
from loratory.engine.memory.device_need import need_on_device
from loratory.engine.memory.estimate import Estimator
from loratory.engine.memory.layers.losses import chunk_sizes, logit_width, positions_of_larger_chunks
from loratory.engine.memory.workload import workload_of_step
from loratory.engine.models.catalog import find_in_catalog

GIB = 2**30
GEMMA, QWEN, TINY = "google/gemma-2-2b-it", "Qwen/Qwen3-4B", "HuggingFaceTB/SmolLM2-135M-Instruct"
CHECKPOINTED = {"gradient_checkpointing": True, "gradient_accumulation_steps": 1}
CASES = {
    "a capped head": (GEMMA, "cuda", {"model": {"quantization": "nf4"}, "training": CHECKPOINTED}),
    "a frozen head": (QWEN, "cuda", {"training": CHECKPOINTED}),
    "a frozen head, kept activations": (QWEN, "cuda", {}),
    "a head that is trained": (QWEN, "cuda", {"adapter": {"method": "none"}, "training": CHECKPOINTED}),
    "a head that is saved in full": (QWEN, "cuda", {"adapter": {"modules_to_save": ["lm_head"]}}),
    "under autocast": (TINY, "cuda", {"adapter": {"method": "ia3"}, "training": CHECKPOINTED}),
    "behind a prefix": (TINY, "cuda", {"adapter": {"method": "prefix_tuning"}}),
    "a processor": (TINY, "cpu", {"training": CHECKPOINTED}),
}


@pytest.fixture(params=[False, True], ids=["eager", "fused"], autouse=True)
def fused_loss(request, monkeypatch):
    """Whether Triton's kernel makes the loss on CUDA, whose chunks over a frozen head hold twice the positions."""
    monkeypatch.setattr("loratory.engine.memory.workload.compiles_triton", lambda: request.param)
    return request.param


@pytest.fixture(scope="module")
def estimators():
    cache = {}

    def build_workload(model, kind):
        if (model, kind) not in cache:
            device = Device(kind, 0, "a device", 80 * GIB, 80 * GIB, has_fast_bfloat16=True)
            cache[model, kind] = Estimator(inventory_of(find_in_catalog(model).config), device)
        return cache[model, kind]

    return build_workload


def config_of(sections, *, length, batch):
    training = {"per_device_train_batch_size": batch, "max_length": length, "gradient_accumulation_steps": 4}
    return config_from_mapping(
        {"model": {"id": "m"} | sections.get("model", {}), "dataset": {"source": "-"}}
        | {name: values for name, values in sections.items() if name != "model"}
        | {"training": training | sections.get("training", {})}
    )


def edges(estimator, sections, batch):
    """Lengths up to which a batch goes in one, two, three and four chunks."""
    workload = workload_of_step(estimator.shape, config_of(sections, length=64, batch=1), estimator.device)
    adapter = sections.get("adapter", {})
    is_trained = adapter.get("method") == "none" or "modules_to_save" in adapter
    width = logit_width(workload, head_is_trained=is_trained)
    chunk_bytes = LOSS_CHUNK_BYTES if estimator.device.kind == "cuda" else LOSS_CHUNK_BYTES_CPU
    fit = [chunks * chunk_bytes // (width * estimator.shape.vocab_size) for chunks in (1, 2, 3, 4)]
    return [positions // batch + 1 for positions in fit]


def step_need(estimator, config):
    """Of the longest rows alone."""
    workload = workload_of_step(estimator.shape, config, estimator.device)
    return need_on_device(estimator.peak(workload).tensors, workload, estimator.device)


@pytest.mark.exhaustive(quick=2)
@pytest.mark.parametrize(("model", "kind", "sections"), CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("batch", [1, 3])
def test_need_grows_with_the_length(estimators, model, kind, sections, batch):
    estimator = estimators(model, kind)
    lengths = sorted(
        {max(32, edge + beside) for edge in edges(estimator, sections, batch) for beside in (-9, -1, 0, 1, 2, 17)}
    )

    needs = [estimator.need(config_of(sections, length=length, batch=batch)) for length in lengths]

    for figure in ("expected_bytes", "needed_bytes"):
        values = [getattr(need, figure) for need in needs]
        assert values == sorted(values), dict(zip(lengths, values, strict=True))


@pytest.mark.exhaustive(quick=2)
@pytest.mark.parametrize(("model", "kind", "sections"), CASES.values(), ids=CASES.keys())
def test_need_grows_with_the_batch(estimators, model, kind, sections):
    estimator = estimators(model, kind)
    length = max(32, edges(estimator, sections, 4)[0])

    needs = [estimator.need(config_of(sections, length=length, batch=batch)).needed_bytes for batch in range(1, 18)]

    assert needs == sorted(needs)


def test_rows_just_beyond_a_chunk_need_what_those_within_it_do(estimators, fused_loss):
    model, kind, sections = CASES["a capped head"]
    estimator = estimators(model, kind)
    edge = edges(estimator, sections, 1)[0]
    within, beyond = (config_of(sections, length=length, batch=1) for length in (edge, edge + 1))

    less = 0.97 if fused_loss else 0.95  # the kernel holds a fraction of what separate operations do
    assert step_need(estimator, beyond).expected_bytes < less * step_need(estimator, within).expected_bytes
    assert estimator.estimate_step(within).needed_bytes == estimator.estimate(within).needed_bytes
    assert estimator.estimate_step(beyond).needed_bytes == step_need(estimator, beyond).needed_bytes
    assert estimator.estimate_step(beyond).needed_bytes < estimator.estimate(beyond).needed_bytes
    run = estimator.need(beyond).expected_bytes
    assert step_need(estimator, within).expected_bytes <= run < 1.01 * step_need(estimator, within).expected_bytes


@pytest.mark.parametrize(("vocabulary", "chunk_bytes"), [(7, 1000), (3, 40), (1000, 4_400), (262_144, 2**28)])
def test_no_shorter_step_has_larger_chunks_than_those_that_are_counted(vocabulary, chunk_bytes):
    largest, pair = 0, 0  # of one chunk, and of two side by side
    for positions in range(1, 3_000):
        sizes = chunk_sizes(positions, vocabulary, chunk_bytes)
        largest, pair = max(largest, sizes[0]), max(pair, sum(sizes[:2]) if len(sizes) > 1 else 0)

        shorter = positions_of_larger_chunks(positions, vocabulary, chunk_bytes)
        chunks = [sizes, *([chunk_sizes(shorter, vocabulary, chunk_bytes)] if shorter else [])]

        assert max(each[0] for each in chunks) == largest
        assert max(sum(each[:2]) if len(each) > 1 else 0 for each in chunks) == pair
