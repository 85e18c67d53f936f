"""GPUs to estimate for that are not here: found by any spelling, with what programs can have of their memory."""

import pytest

from loratory.engine.config.load import config_from_mapping
from loratory.engine.errors import DeviceError
from loratory.engine.hardware.device import KNOWN_DEVICES, find_known_device, known_device
from loratory.engine.hardware.devices import device_problems
from tests.benchmarks.published.gpus import memory_of_gpu


@pytest.mark.parametrize("name", ["RTX 4090", "rtx4090", "RTX-4090", "rtx 4090 24 GB", "  Rtx_4090 "])
def test_a_device_is_found_however_it_is_spelled(name):
    assert known_device(name).name == "RTX 4090"


@pytest.mark.parametrize("name", ["", "4090", "RTX 40", "a100", "../../etc/passwd", "RTX 4090\n" * 10_000])
def test_what_names_no_device_is_refused_with_all_names(name):
    assert find_known_device(name) is None
    with pytest.raises(DeviceError) as error_info:
        known_device(name)

    assert len(error_info.value.what) < 150
    assert all(device.name in error_info.value.fix for device in KNOWN_DEVICES)


def test_names_and_titles_are_unique():
    assert len({device.title for device in KNOWN_DEVICES} | {device.name for device in KNOWN_DEVICES}) >= len(
        KNOWN_DEVICES
    )
    assert all(find_known_device(device.name) is find_known_device(device.title) is device for device in KNOWN_DEVICES)


def test_usable_memory_is_what_published_measurements_say_that_programs_see():
    for device in KNOWN_DEVICES:
        if device.capability is not None:
            published = memory_of_gpu(device.title)
            assert published is not None, device.name
            assert device.device().total_bytes == pytest.approx(published, rel=0.012), device.name
        assert device.memory_gib < device.sold_gb


def test_capability_decides_what_a_device_can_do():
    config = config_from_mapping(
        {"model": {"id": "m", "attn_implementation": "flash_attention_2"}, "dataset": {"source": "d"}}
    )
    t4, l4 = known_device("T4").device(), known_device("L4").device()

    assert not t4.has_fast_bfloat16
    assert l4.has_fast_bfloat16
    assert [problem.field for problem in device_problems(config, t4)] == ["model.attn_implementation"]
    assert device_problems(config, l4) == []
    assert known_device("Apple M-series 16 GB").device().kind == "mps"
