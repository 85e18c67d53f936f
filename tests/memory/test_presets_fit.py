"""Every preset fits the device that its opening lines name, with the display and a few programs running next to it."""

import re

import pytest

from loratory.engine.config.presets import Preset, list_presets
from loratory.engine.hardware.device import Device
from loratory.engine.inspector.worker.inventory import inventory_of
from loratory.engine.memory.estimate import estimate_memory
from loratory.engine.models.catalog import find_in_catalog

GIB = 2**30
USED_BY_OTHERS = 0.06  # of a GPU's memory: a desktop with a browser


def device_of(preset: Preset) -> Device:
    if preset.memory_gib is not None:
        total = int(preset.memory_gib * GIB)
        return Device("cuda", 0, preset.device, total, int(total * (1 - USED_BY_OTHERS)), has_fast_bfloat16=True)
    free = int(float(re.search(r"([0-9.]+) GiB", preset.device)[1]) * GIB)
    return Device("cpu", 0, preset.device, free, free, has_fast_bfloat16=True, cores=2)


@pytest.mark.parametrize("preset", list_presets(), ids=lambda preset: preset.name)
def test_a_preset_fits_the_device_that_it_names(preset, monkeypatch):
    # Also where no C compiler is there for Triton's kernels, which take less.
    monkeypatch.setattr("loratory.engine.memory.workload.compiles_triton", lambda: False)
    config = preset.load()
    entry = find_in_catalog(config.model.id)
    assert entry is not None, "presets name models of the catalogue"
    shape = inventory_of(entry.config)

    estimate = estimate_memory(shape, config, device_of(preset))

    assert estimate.verdict == "fits", f"needs {estimate.needed_bytes / GIB:.1f} GiB"


def test_every_size_of_card_has_a_preset():
    sizes = {preset.memory_gib for preset in list_presets()}

    assert {None, 8, 12, 16, 24, 80} <= sizes
