"""Which hardware a run gets at Hugging Face, what it costs, and for how long."""

import pytest
from huggingface_hub import JobHardwareInfo

from loratory.engine.config.load import config_from_mapping
from loratory.engine.errors import ConfigError, DeviceError, HubUnreachableError
from loratory.engine.places.huggingface_jobs.account import (
    HardwareList,
    HubLogin,
    estimate_limit_hours,
    flavor_named,
    read_flavors,
)
from loratory.engine.supervision.launch import Preflight
from tests.fake_inspector import FakeInspector
from tests.hub.jobs import HARDWARE
from tests.supervision.fake_runs import cpu

FLAVORS = read_flavors(JobHardwareInfo(**machine) for machine in HARDWARE)


def test_machines_with_one_known_device_are_offered_the_cheapest_first():
    assert [flavor.name for flavor in FLAVORS] == [
        "cpu-basic", "cpu-upgrade", "t4-small", "l4x1", "a10g-large", "l40sx1", "a100-large"
    ]  # fmt: skip
    assert flavor_named(FLAVORS, "l4x1").price_per_hour_usd == pytest.approx(0.8)
    l4, t4 = flavor_named(FLAVORS, "l4x1").device, flavor_named(FLAVORS, "t4-small").device
    assert (l4.has_fast_bfloat16, l4.capability) == (True, (8, 9))
    assert not t4.has_fast_bfloat16
    assert 21e9 < l4.total_bytes < 24e9


def test_an_unknown_gpu_is_left_out_and_an_unknown_unit_is_a_minute():
    strange = HARDWARE[3] | {"accelerator": {**HARDWARE[3]["accelerator"], "model": "X9000"}}
    assert read_flavors([JobHardwareInfo(**strange)]) == ()
    hourly = JobHardwareInfo(**(HARDWARE[3] | {"unitCostUSD": 0.8, "unitLabel": "hour"}))
    assert read_flavors([hourly])[0].price_per_hour_usd == 0.8


@pytest.mark.parametrize(("parameters", "tokens", "hours"), [(135e6, 1e5, 0.5), (8e9, 1e6, 2.5), (8e9, 1e12, 72.0)])
def test_a_time_limit_grows_with_the_work_and_has_an_end(parameters, tokens, hours):
    assert estimate_limit_hours(flavor_named(FLAVORS, "l4x1"), int(parameters), tokens) == hours


def test_prices_are_asked_once_an_hour():
    requests = []

    class Api:
        def list_jobs_hardware(self):
            requests.append(1)
            return [JobHardwareInfo(**machine) for machine in HARDWARE]

    hardware = HardwareList(lambda: HubLogin(Api()))
    with pytest.raises(HubUnreachableError):
        hardware.known()
    assert hardware.refresh() == hardware.refresh() == hardware.known() == FLAVORS
    assert len(requests) == 1


def check(home, resolve, flavors=lambda: FLAVORS, **sections):
    mapping = {"model": {"id": "some/model"}, "dataset": {"source": "data.jsonl"}, **sections}
    mapping["run"] = {"where": "jobs", **mapping.get("run", {})}
    preflight = Preflight(home, FakeInspector(), devices=lambda: (cpu(),), resolve=resolve, flavors=flavors)
    return preflight.check(config_from_mapping(mapping))


@pytest.fixture
def resolve():
    from loratory.engine.models.source import ModelSource

    return lambda config, *_: ModelSource("/nowhere", config.id, hub_id=config.id, revision="c" * 40)


def test_the_cheapest_gpu_that_covers_the_bound_is_settled_with_a_time_limit(home, resolve):
    checked = check(home, resolve)

    assert checked.config.jobs.flavor == "t4-small"
    assert checked.config.jobs.limit_hours >= 0.5
    assert checked.provenance.predicted_memory.reserved_bytes


def test_what_was_chosen_is_kept(home, resolve):
    jobs = check(home, resolve, jobs={"flavor": "a100-large", "limit_hours": 3}).config.jobs

    assert (jobs.flavor, jobs.limit_hours) == ("a100-large", 3)


def test_a_processor_is_taken_only_when_asked_for(home, resolve):
    assert check(home, resolve, run={"devices": "cpu"}).config.jobs.flavor == "cpu-basic"


def test_hardware_that_is_not_there_is_refused_with_the_list(home, resolve):
    with pytest.raises(DeviceError) as error_info:
        check(home, resolve, jobs={"flavor": "l4x4"})

    assert "no hardware l4x4" in error_info.value.what
    assert "a100-large" in error_info.value.fix


def test_a_run_that_no_machine_holds_is_refused_before_anything_is_sent(home, resolve):
    small = tuple(flavor for flavor in FLAVORS if flavor.name == "t4-small")
    with pytest.raises(DeviceError, match="the largest GPU of one job"):
        check(home, resolve, lambda: small, training={"per_device_train_batch_size": 512, "max_length": 8192})


def test_settings_of_this_machine_do_not_travel(home, resolve):
    with pytest.raises(ConfigError) as error_info:
        check(home, resolve, run={"devices": [0]}, training={"report_to": ["tensorboard"]})

    assert {problem.field for problem in error_info.value.problems} >= {"run.devices", "training.report_to"}


def test_without_an_answer_of_hugging_face_nothing_is_started(home, resolve):
    def away():
        raise HubUnreachableError("Away.", "Wait.")

    with pytest.raises(HubUnreachableError):
        check(home, resolve, away)
