"""State that comes back bit by bit, from files that nothing has to be run to read."""

import random

import bitsandbytes
import numpy as np
import pytest
import torch
from transformers.optimization import Adafactor, get_cosine_schedule_with_warmup

from engine.training.state_files import (
    load_optimizer,
    load_plain,
    load_random_state,
    random_state,
    save_optimizer,
    save_plain,
)

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "sgd with momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2),
    "adafactor": lambda p: Adafactor(p, lr=1e-2, scale_parameter=False, relative_step=False),
    "adamw 8bit": lambda p: bitsandbytes.optim.AdamW8bit(p, lr=1e-2),
    "paged adamw": lambda p: bitsandbytes.optim.PagedAdamW32bit(p, lr=1e-2),
}


def make_parameters():
    generator = torch.Generator().manual_seed(0)
    # The second one is large enough for 8-bit state.
    return [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in ((3, 5), (80, 100), (7,))]


def take_steps(optimizer, parameters, count, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_an_optimizer_goes_on_as_if_nothing_had_happened(tmp_path, make):
    parameters = make_parameters()
    optimizer = make(parameters)
    take_steps(optimizer, parameters, 3, seed=1)
    save_optimizer(optimizer, tmp_path / "optimizer.safetensors")
    copies = [torch.nn.Parameter(p.detach().clone()) for p in parameters]
    take_steps(optimizer, parameters, 3, seed=2)

    again = make(copies)
    load_optimizer(again, tmp_path / "optimizer.safetensors")
    take_steps(again, copies, 3, seed=2)

    for parameter, copy in zip(parameters, copies, strict=True):
        assert torch.equal(parameter, copy)


def test_a_schedule_is_plain_json(tmp_path):
    def schedule():
        optimizer = torch.optim.SGD(make_parameters(), lr=0.1)
        return get_cosine_schedule_with_warmup(optimizer, 3, 20)

    first = schedule()
    for _ in range(7):
        first.optimizer.step()
        first.step()
    save_plain(first.state_dict(), tmp_path / "scheduler.json")
    second = schedule()
    second.load_state_dict(load_plain(tmp_path / "scheduler.json"))

    assert second.get_last_lr() == first.get_last_lr()
    first.step()
    second.step()
    assert second.get_last_lr() == first.get_last_lr()


def test_every_generator_goes_on_where_it_was(tmp_path):
    def draw():
        return random.random(), float(np.random.rand()), float(np.random.randn()), torch.randn(3).tolist()

    draw()
    np.random.randn()  # leaves a second normal number behind, which belongs to the state
    (tmp_path / "random.safetensors").write_bytes(random_state())
    expected = [draw() for _ in range(3)]
    draw()

    load_random_state(tmp_path / "random.safetensors")

    assert [draw() for _ in range(3)] == expected
