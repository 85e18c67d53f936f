from dataclasses import replace

import pytest

from loratory.engine.config.run import RunSection
from loratory.engine.hardware.device import Device
from loratory.engine.hardware.lease import LeaseHolder
from loratory.engine.processes.liveness import ProcessIdentity
from loratory.engine.supervision.queue import QueueOrder, WaitingRun, plan_starts
from tests.supervision.fake_runs import GIB, cpu, gpu


def waiting(run_id: str, needed_gib: float | None = None, devices: object = "auto") -> WaitingRun:
    return WaitingRun(run_id, RunSection(devices=devices), None if needed_gib is None else int(needed_gib * GIB))


def held_by(title: str = "Run X", purpose: str = "training") -> LeaseHolder:
    return LeaseHolder(purpose=purpose, title=title, process=ProcessIdentity.current())


def start_names(plan) -> dict[str, list[str]]:
    return {run_id: [f"{device.kind}:{device.index}" for device in devices] for run_id, devices in plan.starts.items()}


def test_one_device_takes_one_run_and_the_others_say_what_they_wait_for():
    plan = plan_starts([waiting("a"), waiting("b")], [cpu()], {})

    assert start_names(plan) == {"a": ["cpu:0"]}
    assert plan.reasons == {"b": ("earlier_run", "a comes first.", "")}


def test_the_run_that_comes_first_is_called_by_its_name():
    first, second, third = (waiting(f"20261129-212729-019-{end}") for end in ("370e", "370f", "3710"))
    queue = [first._replace(title="faq"), second._replace(title="faq"), third._replace(title="sweep, lr 1e-4")]
    plan = plan_starts(queue, [cpu()], {})

    assert [why.cause for why in plan.reasons.values()] == ["faq · 370e comes first.", "faq · 370e comes first."]


def test_a_leased_device_is_not_used_and_its_holder_is_named():
    plan = plan_starts([waiting("a")], [cpu()], {"cpu": held_by("qwen", "chat")})

    assert not plan.starts
    assert plan.reasons["a"] == ("device_in_use", "The CPU is in use for chat (qwen).", "")
    assert plan.awaited_leases == ("cpu",)


def test_two_gpus_take_two_runs_the_freer_one_first():
    plan = plan_starts([waiting("a"), waiting("b"), waiting("c")], [gpu(0, 10), gpu(1, 20), cpu()], {})

    assert start_names(plan) == {"a": ["cuda:1"], "b": ["cuda:0"]}


def test_a_run_waits_until_the_free_memory_covers_its_need_other_programs_included():
    plan = plan_starts([waiting("a", needed_gib=12)], [gpu(0, free_gib=8), cpu()], {})

    assert not plan.starts
    assert plan.reasons["a"] == ("memory", "It needs 12.0 GiB, and Test GPU 0 has 8.0 of 24.0 GiB free.", "")
    assert start_names(plan_starts([waiting("a", needed_gib=12)], [gpu(0, free_gib=12)], {})) == {"a": ["cuda:0"]}


def test_no_one_overtakes_on_a_device_that_the_first_in_line_waits_for():
    plan = plan_starts([waiting("large", 20), waiting("small", 1)], [gpu(0, free_gib=8)], {})

    assert not plan.starts
    assert plan.reasons["small"] == ("earlier_run", "large comes first.", "")


def test_a_run_for_another_device_need_not_wait_behind():
    queue = [waiting("gpu-run", devices=(0,)), waiting("cpu-run", devices="cpu")]
    plan = plan_starts(queue, [gpu(0), cpu()], {"cuda:0": held_by()})

    assert start_names(plan) == {"cpu-run": ["cpu:0"]}


def test_a_run_on_several_gpus_needs_them_all():
    queue = [waiting("pair", devices=(0, 1))]

    assert start_names(plan_starts(queue, [gpu(0), gpu(1)], {})) == {"pair": ["cuda:0", "cuda:1"]}
    assert not plan_starts(queue, [gpu(0), gpu(1)], {"cuda:1": held_by()}).starts


def test_a_device_that_is_held_for_the_run_itself_keeps_only_others_from_it():
    own = held_by().model_copy(update={"run_id": "pair"})

    alone = plan_starts([waiting("pair", devices=(0, 1))], [gpu(0), gpu(1)], {"cuda:0": own})
    assert start_names(alone) == {"pair": ["cuda:0", "cuda:1"]}
    other = plan_starts([waiting("other", devices=(0,))], [gpu(0)], {"cuda:0": own})
    assert other.reasons == {"other": ("device_in_use", "GPU 0 is in use for training (Run X).", "")}


def test_a_run_needs_on_each_card_what_was_predicted_for_that_card():
    needs_less_on_1 = waiting("a", 12)._replace(needed_on={"Test GPU 0": 12 * GIB, "Test GPU 1": 6 * GIB})
    cards = [gpu(0, 8), gpu(1, 7), cpu()]

    assert start_names(plan_starts([needs_less_on_1], cards, {})) == {"a": ["cuda:1"]}
    plan = plan_starts([needs_less_on_1], cards, {"cuda:1": held_by()})
    assert plan.reasons["a"].cause == "It needs 12.0 GiB, and Test GPU 0 has 8.0 of 24.0 GiB free."


def test_a_card_that_is_too_small_for_a_run_is_left_to_others():
    small = replace(gpu(0, 8), total_bytes=8 * GIB)
    queue = [waiting("large", 12), waiting("little", 2)]

    plan = plan_starts(queue, [small, gpu(1), cpu()], {"cuda:1": held_by()})

    assert start_names(plan) == {"little": ["cuda:0"]}
    assert plan.reasons["large"].reason == "device_in_use"


def test_auto_waits_for_apples_gpu_where_there_is_one():
    apple = Device("mps", 0, "Apple M2 GPU", 16 * GIB, 12 * GIB, has_fast_bfloat16=True)

    assert start_names(plan_starts([waiting("a"), waiting("b", devices="cpu")], [apple, cpu()], {})) == {
        "a": ["mps:0"],
        "b": ["cpu:0"],
    }
    plan = plan_starts([waiting("a")], [apple, cpu()], {"mps": held_by("qwen", "chat")})
    assert plan.reasons == {"a": ("device_in_use", "Apple's GPU is in use for chat (qwen).", "")}


def test_a_device_that_is_not_there_is_reported():
    plan = plan_starts([waiting("a", devices=(3,))], [gpu(0), cpu()], {})

    assert plan.reasons["a"] == (
        "device_missing",
        "There is no CUDA device 3; there is 0 (Test GPU 0).",
        "Set run.devices to one of these numbers, to auto, or to cpu.",
    )


@pytest.fixture
def order(home):
    return QueueOrder(home)


def test_runs_start_by_age_except_where_someone_moved_them(order, home):
    queue = ["run-1", "run-2", "run-3"]
    assert order.sort(["run-3", "run-1", "run-2"]) == queue

    assert order.move("run-3", queue, position=0) == ["run-3", "run-1", "run-2"]
    assert QueueOrder(home).sort(queue) == ["run-3", "run-1", "run-2"], "the order survives a restart"
    assert order.sort([*queue, "run-4"])[-1] == "run-4", "a new run waits behind"
    assert order.move("run-1", queue, position=99) == ["run-3", "run-2", "run-1"]
    assert order.sort(["run-1", "run-2"]) == ["run-2", "run-1"], "those that started no longer count"


def test_a_torn_order_is_not_an_order(order, home):
    order.move("b", ["a", "b"], position=0)
    (home.server / "queue.json").write_bytes(b'{"moved": ["b"')
    assert order.sort(["b", "a"]) == ["a", "b"]


def test_a_run_moves_one_place_at_a_time_or_to_an_end(order):
    waiting = ["a", "b", "c", "d"]

    assert order.shift("c", waiting, "up") == ["a", "c", "b", "d"]
    assert order.shift("a", waiting, "down") == ["c", "a", "b", "d"]
    assert order.shift("d", waiting, "first") == ["d", "c", "a", "b"]
    assert order.shift("d", waiting, "up") == ["d", "c", "a", "b"]
    assert order.shift("c", waiting, "last") == ["d", "a", "b", "c"]
    assert order.shift("c", waiting, "down") == ["d", "a", "b", "c"]
