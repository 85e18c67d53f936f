from dataclasses import replace

import pytest

from loratory.engine.errors import ConfigError, DeviceError, MemoryUnknownError
from loratory.engine.hardware.device import Device
from loratory.engine.hardware.devices import device_options, device_problems
from loratory.engine.memory.estimate import Estimator, estimate_memory
from loratory.engine.runs.prediction import most_likely
from loratory.engine.runs.provenance import read_provenance
from loratory.engine.supervision.launch import Launcher, Preflight
from loratory.engine.supervision.queue import WaitingRun, plan_starts
from tests.supervision.fake_preflight import SHAPE, config, resolve
from tests.supervision.fake_runs import GIB, apple, cpu, gpu


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"])
def test_an_optimizer_that_the_device_cannot_run_is_refused_with_the_nearest(preflight, store, optimizer):
    with pytest.raises(ConfigError) as error_info:
        Launcher(store, preflight).start(config(training={"optim": optimizer}))
    (problem,) = error_info.value.problems
    assert problem.field == "training.optim"
    assert "adamw_torch is the nearest" in problem.message
    assert store.ids() == []
    assert device_problems(config(training={"optim": optimizer}), gpu(0)) == []


def test_all_that_the_device_cannot_do_is_said_together(preflight):
    impossible = config(
        training={"optim": "adamw_8bit"},
        model={"id": "some/model", "attn_implementation": "flash_attention_2", "compute_dtype": "float16"},
    )
    with pytest.raises(ConfigError) as error_info:
        preflight.check(impossible)
    assert {problem.field for problem in error_info.value.problems} == {
        "training.optim", "model.attn_implementation", "model.compute_dtype",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("error", "log_text"),
    [(MemoryUnknownError("Layers of unknown size.", "It may train all the same."), "Layers of unknown size"),
     (AssertionError("a mistake of ours"), "a mistake of ours")],
    ids=["unknown to the estimate", "a mistake of the estimate"],
)  # fmt: skip
def test_a_model_that_cannot_be_estimated_starts_without_a_prediction(
    home, store, inspector, monkeypatch, caplog, error, log_text
):
    def fail(*_args):
        raise error

    monkeypatch.setattr("loratory.engine.runs.prediction.needs_of", fail)
    preflight = Preflight(home, inspector, devices=lambda: (cpu(),), resolve=resolve)
    run = Launcher(store, preflight).start(config())

    assert read_provenance(run.folder).predicted_bytes is None
    assert log_text in caplog.text


def test_an_estimate_for_apples_gpu_reports_that_no_one_measured_it(home, inspector):
    preflight = Preflight(home, inspector, devices=lambda: (apple(), cpu()), resolve=resolve)

    assert preflight.check(config()).provenance.predicted_bytes > 0
    on_gpu, processor = (estimate_memory(SHAPE, config(), device) for device in (apple(), cpu()))
    assert on_gpu.device_kind == "mps"
    assert "never measured" in on_gpu.notes[0]
    assert on_gpu.needed_bytes / on_gpu.expected_bytes > processor.needed_bytes / processor.expected_bytes


SPREAD = {"run": {"devices": [0, 1], "device_map": "balanced"}}


@pytest.mark.parametrize("launcher", ["accelerate", "local"])
def test_devices_that_would_idle_are_refused(home, inspector, launcher):
    preflight = Preflight(home, inspector, devices=lambda: (gpu(0), gpu(1), cpu()), resolve=resolve)
    spread_config = config(run={"devices": [0, 1], "launcher": launcher})

    if launcher == "accelerate":
        assert preflight.check(spread_config).config.run.devices == (0, 1)
        return
    with pytest.raises(ConfigError, match="one process trains a whole model on one") as error_info:
        preflight.check(spread_config)
    assert [problem.field for problem in error_info.value.problems] == ["run.devices"]


def test_a_model_too_large_for_one_gpu_may_start_on_two(home, inspector):
    def check(settings, *gpus):
        return Preflight(home, inspector, devices=lambda: (*gpus, cpu()), resolve=resolve).check(settings)

    alone = check(config(run={"devices": [0]}), gpu(0)).provenance.predicted_bytes
    spread = check(config(**SPREAD), gpu(0), gpu(1)).provenance.predicted_bytes
    small = [replace(gpu(index), total_bytes=(alone + spread) // 2) for index in (0, 1)]

    assert spread < alone
    assert check(config(**SPREAD), *small).provenance.predicted_bytes == spread
    with pytest.raises(DeviceError, match="This run needs about"):
        check(config(run={"devices": [0]}), *small)
    with pytest.raises(DeviceError, match="GiB on cuda:1, and Test GPU 1 has"):
        check(config(**SPREAD), gpu(0), replace(small[1], total_bytes=1000))


def card(index: int, total_gib: float, free_gib: float, *, fast: bool = True) -> Device:
    return Device("cuda", index, f"Card {index}", int(total_gib * GIB), int(free_gib * GIB), has_fast_bfloat16=fast)


@pytest.mark.parametrize(
    ("cards", "starts_on"),
    [
        ((card(0, 0.1, 0.1), card(1, 24, 24)), "Card 1"),  # the first is too small
        ((card(0, 24, 0.1), card(1, 16, 9)), "Card 1"),  # the first is in use by other programs
        ((card(0, 8, 5), card(1, 48, 40)), "Card 0"),  # both have room
        ((card(0, 24, 0.1), card(1, 24, 0.1, fast=False)), "Card 0"),  # neither has: the run waits
    ],
)
def test_a_run_is_checked_for_the_card_on_which_the_queue_starts_it(home, inspector, store, cards, starts_on):
    preflight = Preflight(home, inspector, devices=lambda: (*cards, cpu()), resolve=resolve)

    provenance = read_provenance(Launcher(store, preflight).start(config()).folder)
    waits = WaitingRun("a", config().run, provenance.predicted_bytes, provenance.predicted_on)
    plan = plan_starts([waits], (*cards, cpu()), {})

    shape = inspector.module_inventory(None)
    chosen = most_likely(shape, config(), device_options((*cards, cpu()), config().run))
    assert [device.name for device in chosen] == [starts_on]
    assert provenance.predicted_bytes == Estimator(shape, chosen[0]).need(config()).expected_bytes
    assert provenance.predicted_on.keys() == {"Card 0", "Card 1"}
    roomy = any(provenance.predicted_on[card.name] <= card.free_bytes for card in cards)
    assert [device.name for devices in plan.starts.values() for device in devices] == ([starts_on] if roomy else [])


def test_a_run_that_no_card_can_hold_is_refused_by_the_largest(home, inspector):
    cards = (card(0, 0.1, 0.1), card(1, 0.2, 0.2))
    preflight = Preflight(home, inspector, devices=lambda: (*cards, cpu()), resolve=resolve)

    with pytest.raises(DeviceError, match=r"Card 1 has 0\.2 GiB in all"):
        preflight.check(config())
