"""Each failure has a cause in plain words and a fix."""

import errno
import math

import pytest
import torch

from loratory.engine.config.load import config_from_mapping
from loratory.engine.errors import ConfigError, DatasetError, ModelError, Problem, StorageError
from loratory.engine.training.failure import DivergedError, check_loss, explain, is_disk_full, is_out_of_memory


def config(**training):
    return config_from_mapping({"model": {"id": "m"}, "dataset": {"source": "d"}, "training": training})


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_memory_that_ran_out_is_recognized_with_advice(error):
    failure = explain(error, config())

    assert is_out_of_memory(error)
    assert failure.cause == "out_of_memory"
    assert "loratory estimate" in failure.fix


def test_apples_gpu_is_named_with_what_it_shares():
    error = RuntimeError(
        "MPS backend out of memory (MPS allocated: 17.9 GB, max allowed: 18.1 GB). Tried to allocate 1 GB."
    )

    failure = explain(error, config())

    assert failure.cause == "out_of_memory"
    assert failure.what == "Apple's GPU ran out of memory, which it shares with all programs."
    assert failure.fix.endswith("Closing other programs helps as well.")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_recognized(error):
    assert is_disk_full(error)
    assert explain(error, None).cause == "disk_full"


def test_a_full_disk_is_recognized_behind_our_own_error():
    ours = StorageError("events.jsonl cannot be written.", "Free some space.")
    ours.__cause__ = OSError(errno.ENOSPC, "No space left on device")

    assert is_disk_full(ours)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ConfigError([Problem("a", "b")]), "config"),
        (DatasetError("No rows.", "Add some."), "dataset"),
        (ModelError("No model.", "Choose one."), "model"),
        (ValueError("what is this"), "unexpected"),
    ],
)
def test_other_errors_keep_their_cause(error, cause):
    failure = explain(error, config())

    assert failure.cause == cause
    assert failure.what
    assert failure.fix


def test_an_unexpected_error_shows_one_short_line():
    failure = explain(ValueError("first line " * 100 + "\nTraceback: secret"), config())

    assert "secret" not in failure.what
    assert len(failure.what) < 300


@pytest.mark.parametrize(
    ("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (2.0, math.nan), (2.0, math.inf), (9.0, 1.0)]
)
def test_a_run_that_cannot_recover_is_ended(loss, norm):
    with pytest.raises(DivergedError) as error_info:
        check_loss(7, loss, norm, first_loss=3.0, vocabulary=500)

    assert "step 7" in error_info.value.what
    assert "learning rate" in error_info.value.fix


@pytest.mark.parametrize(
    ("first_loss", "vocabulary", "bound"),
    [(3.0, 500, math.log(500) + 2), (12.0, 500, 24.0), (3.0, None, math.inf)],
    ids=["two nats above guessing", "twice a start worse than guessing", "preferences have none"],
)
def test_a_loss_may_rise_up_to_its_bound(first_loss, vocabulary, bound):
    for loss in (0.0, min(bound, 1e9)):
        check_loss(7, loss, 100.0, first_loss, vocabulary)
    with pytest.raises(DivergedError):
        check_loss(7, bound + 0.01, 100.0, first_loss, vocabulary)
