"""Where a run trains: a GPU before Apple's, before the processor, unless the settings say the processor."""

import pytest
import torch

from engine.config.load import config_from_mapping
from engine.hardware.apple import AppleSystem
from engine.hardware.device import Device, MemoryNow
from engine.training import placement
from engine.training.placement import choose_placement

PROCESSOR = Device("cpu", 0, "a processor", 8 << 30, 8 << 30, has_fast_bfloat16=False, cores=2)
GPU = Device("cuda", 0, "a GPU", 8 << 30, 8 << 30, has_fast_bfloat16=True)


@pytest.fixture
def machine(monkeypatch):
    """A machine with a GPU or without, of Apple's make or not."""
    threads = torch.get_num_threads()

    def build(*, cuda: bool, mps: bool) -> None:
        monkeypatch.setattr(placement, "list_devices", lambda: (GPU, PROCESSOR) if cuda else (PROCESSOR,))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 0)

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


@pytest.mark.parametrize("asked", [True, False], ids=["torch tells", "torch does not"])
def test_apples_gpu_is_described_by_the_memory_that_it_shares(machine, monkeypatch, asked):
    machine(cuda=False, mps=True)
    monkeypatch.setattr(placement, "this_system", lambda: AppleSystem("darwin", "arm64", "14.5", "Apple M2"))
    monkeypatch.setattr(placement, "memory_now", lambda: MemoryNow(8 << 30, 6 << 30))
    if asked:
        monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 5 << 30)
    else:
        monkeypatch.delattr(torch.mps, "recommended_max_memory")

    device = chosen().device

    assert (device.kind, device.name) == ("mps", "Apple M2 GPU")
    assert (device.total_bytes, device.free_bytes) == ((5 << 30, 5 << 30) if asked else (8 << 30, 6 << 30))


@pytest.mark.parametrize(("rank", "expected"), [("0", 0), ("1", 1)])
def test_a_launched_process_takes_the_gpu_of_its_rank(machine, monkeypatch, rank, expected):
    machine(cuda=True, mps=False)
    monkeypatch.setenv("LOCAL_RANK", rank)
    other = Device("cuda", 1, "another GPU", 8 << 30, 8 << 30, has_fast_bfloat16=True)
    monkeypatch.setattr(placement, "list_devices", lambda: (GPU, other, PROCESSOR))

    assert chosen().torch_device.index == expected
