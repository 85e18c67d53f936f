"""State that comes back bit by bit, from files that nothing has to be run to read."""

import random

import bitsandbytes
import numpy as np
import pytest
import torch
from transformers.optimization import Adafactor

from loratory.engine.training.checkpoints.state_files import (
    load_optimizer,
    load_random_state,
    random_state,
    save_nested,
)

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "sgd with momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2),
    "adafactor": lambda p: Adafactor(p, lr=1e-2, scale_parameter=False, relative_step=False),
    "adamw 8bit": lambda p: bitsandbytes.optim.AdamW8bit(p, lr=1e-2),
    "paged adamw": lambda p: bitsandbytes.optim.PagedAdamW32bit(p, lr=1e-2),
    "paged adamw 8bit": lambda p: bitsandbytes.optim.PagedAdamW8bit(p, lr=1e-2),
}


def make_parameters():
    generator = torch.Generator().manual_seed(0)
    # The second one is large enough for 8-bit state.
    return [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in ((3, 5), (80, 100), (7,))]


class PageFile:
    """Managed memory as bitsandbytes hands it out: tensors next to the GPU's own, which say that they are paged."""

    def __init__(self, monkeypatch, at_least=5000):
        self.handed_out = []
        self.at_least = at_least
        monkeypatch.setattr(
            bitsandbytes.optim.optimizer.Optimizer8bit,
            "get_state_buffer",
            lambda *arguments, **keywords: self._buffer(*arguments, **keywords),
        )

    def _buffer(self, optimizer, parameter, dtype=torch.float32):
        buffer = torch.zeros_like(parameter, dtype=dtype)
        if parameter.numel() >= self.at_least:
            buffer.is_paged, buffer.page_deviceid = True, 0
            optimizer.page_mng.paged_tensors.append(buffer)
            self.handed_out.append(buffer)
        return buffer


def take_steps(optimizer, parameters, count, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_an_optimizer_continues_as_if_nothing_had_happened(tmp_path, make):
    parameters = make_parameters()
    optimizer = make(parameters)
    take_steps(optimizer, parameters, 3, seed=1)
    save_nested(optimizer.state_dict(), tmp_path / "optimizer.safetensors")
    copies = [torch.nn.Parameter(p.detach().clone()) for p in parameters]
    take_steps(optimizer, parameters, 3, seed=2)

    again = make(copies)
    load_optimizer(again, tmp_path / "optimizer.safetensors")
    take_steps(again, copies, 3, seed=2)

    for parameter, copy in zip(parameters, copies, strict=True):
        assert torch.equal(parameter, copy)


def test_every_generator_continues_where_it_was(tmp_path):
    def draw():
        return random.random(), float(np.random.rand()), float(np.random.randn()), torch.randn(3).tolist()

    draw()
    np.random.randn()  # leaves a second normal number behind, which belongs to the state
    (tmp_path / "random.safetensors").write_bytes(random_state())
    expected = [draw() for _ in range(3)]
    draw()

    load_random_state(tmp_path / "random.safetensors")

    assert [draw() for _ in range(3)] == expected


class FakeGenerators:
    """Generators of some devices, as torch.cuda or torch.mps has them."""

    def __init__(self, *states):
        self.states = [torch.tensor([state], dtype=torch.uint8) for state in states]

    def get_all(self):
        return [state.clone() for state in self.states]

    def set_all(self, states):
        self.states = [state.clone() for state in states]

    def numbers(self):
        return [int(state) for state in self.states]


@pytest.fixture
def gpus(monkeypatch):
    """Pretends that there are GPUs whose generators have these states."""

    def build(*states):
        generators = FakeGenerators(*states)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(states))
        monkeypatch.setattr(torch.cuda, "get_rng_state_all", generators.get_all)
        monkeypatch.setattr(torch.cuda, "set_rng_state_all", generators.set_all)
        return generators

    return build


def test_the_generators_of_all_gpus_continue_in_order(tmp_path, gpus):
    gpus(*range(12))  # more than ten: as text, cuda/10 stands before cuda/2
    (tmp_path / "random.safetensors").write_bytes(random_state())
    generators = gpus(*[99] * 12)

    load_random_state(tmp_path / "random.safetensors")

    assert generators.numbers() == list(range(12))


def test_other_gpus_than_before_keep_their_generators(tmp_path, gpus):
    gpus(1, 2)
    (tmp_path / "random.safetensors").write_bytes(random_state())
    generators = gpus(7)

    load_random_state(tmp_path / "random.safetensors")

    assert generators.numbers() == [7]


def test_apples_generator_continues(tmp_path, monkeypatch):
    generator = FakeGenerators(5)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: generator.get_all()[0])
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state: generator.set_all([state]))
    (tmp_path / "random.safetensors").write_bytes(random_state())
    generator.set_all([torch.tensor([9], dtype=torch.uint8)])

    load_random_state(tmp_path / "random.safetensors")

    assert generator.numbers() == [5]


@pytest.mark.parametrize("make", [OPTIMIZERS["paged adamw"], OPTIMIZERS["paged adamw 8bit"]], ids=["32bit", "8bit"])
def test_a_paged_optimizer_is_paged_after_a_checkpoint(tmp_path, monkeypatch, make):
    pages = PageFile(monkeypatch)
    # bitsandbytes asks the driver to move what is paged; there is none here.
    monkeypatch.setattr(bitsandbytes.optim.optimizer.Optimizer8bit, "prefetch_state", lambda self, p: None)
    parameters = make_parameters()
    optimizer = make(parameters)
    monkeypatch.setattr(optimizer.page_mng, "paged_tensors", [])
    take_steps(optimizer, parameters, 2, seed=1)
    save_nested(optimizer.state_dict(), tmp_path / "optimizer.safetensors")
    before = list(pages.handed_out)
    pages.handed_out.clear()

    again = make([torch.nn.Parameter(p.detach().clone()) for p in parameters])
    load_optimizer(again, tmp_path / "optimizer.safetensors")

    large, small = again.state[again.param_groups[0]["params"][1]], again.state[again.param_groups[0]["params"][0]]
    assert len(before) == 2
    for was, name in zip(before, ("state1", "state2"), strict=True):
        assert large[name].is_paged
        assert any(large[name] is buffer for buffer in again.page_mng.paged_tensors)
        assert torch.equal(large[name], was)
        assert not hasattr(small[name], "is_paged")
