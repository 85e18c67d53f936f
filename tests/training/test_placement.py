"""Where a run trains: a GPU before Apple's, before the processor, unless the settings say the processor."""

import pytest
import torch

from engine.config.load import config_from_mapping
from engine.hardware.device import Device
from engine.training import placement
from engine.training.placement import choose_placement

PROCESSOR = Device("cpu", 0, "a processor", 8 << 30, 8 << 30, supports_bfloat16=False, cores=2)
GPU = Device("cuda", 0, "a GPU", 8 << 30, 8 << 30, supports_bfloat16=True)


@pytest.fixture
def machine(monkeypatch):
    """A machine with a GPU or without, of Apple's make or not."""
    threads = torch.get_num_threads()

    def build(*, cuda: bool, mps: bool) -> None:
        monkeypatch.setattr(placement, "list_devices", lambda: (GPU, PROCESSOR) if cuda else (PROCESSOR,))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    yield build
    torch.set_num_threads(threads)


def chosen(**run):
    config = config_from_mapping({"model": {"id": "m"}, "dataset": {"source": "d"}, "run": run})
    return choose_placement(config)


@pytest.mark.parametrize(
    ("cuda", "mps", "kind"),
    [(True, False, "cuda"), (False, True, "mps"), (False, False, "cpu"), (True, True, "cuda")],
)
def test_the_quickest_device_there_is(machine, cuda, mps, kind):
    machine(cuda=cuda, mps=mps)

    assert chosen().torch_device.type == kind


def test_the_processor_where_it_is_asked_for(machine):
    machine(cuda=True, mps=True)

    assert chosen(devices="cpu").torch_device.type == "cpu"


def test_apples_gpu_is_described_by_the_memory_that_it_shares(machine):
    machine(cuda=False, mps=True)

    assert chosen().device == PROCESSOR


@pytest.mark.parametrize(("rank", "expected"), [("0", 0), ("1", 1)])
def test_a_launched_process_takes_the_gpu_of_its_rank(machine, monkeypatch, rank, expected):
    machine(cuda=True, mps=False)
    monkeypatch.setenv("LOCAL_RANK", rank)
    other = Device("cuda", 1, "another GPU", 8 << 30, 8 << 30, supports_bfloat16=True)
    monkeypatch.setattr(placement, "list_devices", lambda: (GPU, other, PROCESSOR))

    assert chosen().torch_device.index == expected
