"""What a job asks a scheduler for: RAM from the estimate, time from the measured pace or from the arithmetic."""

import pytest

from loratory.engine.config.run import DatasetConfig, SlurmConfig
from loratory.engine.data.contract import RowLengths
from loratory.engine.hardware.device import Device, known_device
from loratory.engine.places.run_place import SlurmCluster
from loratory.engine.places.slurm.place import ClusterPlace, GpuType
from loratory.engine.runs.prediction import (
    RunPlan,
    estimated_hours,
    host_memory_bytes,
    in_half_hours,
    measured_hours,
    tflops_of,
)
from loratory.engine.runs.summary import RunSummary
from tests.benchmarks.published.shapes import PublishedSizes, published_shape
from tests.fake_inspector import a_report
from tests.supervision.fake_runs import GIB, config_for, cpu

SIZES = PublishedSizes(
    hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, vocab_size=128256
)
LARGE = published_shape("8b", SIZES)
SMALL = published_shape(
    "tiny",
    PublishedSizes(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=400),
)
A100 = known_device("A100 80 GB").device()


def ram_gib(shape=LARGE, device=A100, processes=1, rows=None, **sections) -> float:
    return host_memory_bytes(shape, config_for(**sections), device, processes, rows) / GIB


def test_an_adapter_on_a_gpu_needs_far_less_ram_than_its_weights():
    assert 8 <= ram_gib() <= 14
    assert ram_gib(SMALL) == 4
    assert ram_gib() == int(ram_gib()), "whole GiB"


def test_processes_full_tuning_sharding_and_rows_need_more_ram():
    whole = LARGE.num_parameters * 2 / GIB
    rows = RowLengths(tokens=(1000, 3000), trained=(500, 500), count=1_000_000)

    assert ram_gib(processes=4) >= 4 * (ram_gib() - 1)  # whole GiB
    assert ram_gib(adapter={"method": "none"}) > LARGE.num_parameters * 12 / GIB
    assert ram_gib(run={"launcher": "accelerate", "fsdp": "full_shard", "devices": [0, 1]}, processes=2) > 2 * whole
    assert ram_gib(rows=rows) - ram_gib() == pytest.approx(2e9 * 32 / GIB * 1.3, abs=1)


def test_a_run_on_the_processor_needs_what_the_estimate_bounds():
    config = config_for(run={"devices": "cpu"})

    assert host_memory_bytes(LARGE, config, cpu()) > LARGE.num_parameters * 2
    assert host_memory_bytes(SMALL, config, cpu()) == 4 * GIB


def test_the_time_of_an_earlier_run_there_comes_before_arithmetic():
    config, plan = config_for(), RunPlan(100, 8, 2_000_000, 1_000_000, is_estimate=False)
    run = {"id": "a", "owner": "ann", "name": "", "model": config.model.id, "method": config.method_name, "attempt": 1}
    done = {**run, "state": "completed", "started": 0.0, "ended": 3600.0, "trained_tokens": 500_000}
    there = RunSummary(**done, device="slurm 7 · node2 · 1×a100", created=2.0)
    others = [
        there.model_copy(update={"device": "slurm 8 · node2 · 1×h100", "created": 3.0}),
        there.model_copy(update={"state": "failed", "created": 4.0}),
        there.model_copy(update={"attempt": 2, "created": 5.0}),
        there.model_copy(update={"model": "other", "created": 6.0}),
        there.model_copy(update={"trained_tokens": 0, "created": 7.0}),
        there.model_copy(update={"ended": 360.0, "created": 1.0}),
    ]

    assert measured_hours(config, plan, "1×a100", [*others, there]) == pytest.approx(0.4 + 2 * 1.5)
    assert measured_hours(config, plan, "2×a100", [*others, there]) is None


def test_time_limits_are_half_hours_with_an_end():
    assert in_half_hours(estimated_hours(int(8e9), 1e6, 121), 72) == 2.5
    assert in_half_hours(estimated_hours(int(8e9), 1e12, 121), 72) == 72


def test_a_job_requests_the_smallest_gpu_ram_and_time_unless_a_person_set_them():
    types = tuple(GpuType(name=name, memory_gib=size) for name, size in (("a100", 80), ("t4", 15)))
    cluster = ClusterPlace(gpu_types=types, limit_hours=24)
    report = a_report(DatasetConfig(source="data.jsonl"), None, 1024)
    report = report.model_copy(update={"total_tokens": 10**9, "row_lengths": None})
    place = SlurmCluster(lambda: cluster, tuple)

    def slurm_section(**slurm) -> SlurmConfig:
        config = config_for(run={"where": "slurm"}, slurm=slurm)
        ((device,),) = place.suitable(place.options(config), config, LARGE)
        return place.complete(config, device, LARGE, report).slurm

    assert slurm_section() == SlurmConfig(gpu_type="a100", memory_gib=ram_gib(), limit_hours=24)
    assert slurm_section(gpu_type="t4", memory_gib=7, limit_hours=3, gpus=2) == SlurmConfig(
        gpu_type="t4", memory_gib=7, limit_hours=3, gpus=2
    )
    assert slurm_section(gpus=4).memory_gib >= 4 * (ram_gib() - 1)


def test_a_gpu_that_schedulers_name_in_their_own_way_is_known():
    names = {"a100": 312, "nvidia_h100_80gb_hbm3": 989, "tesla_t4": 65, "mystery": 65}

    for name, tflops in names.items():
        assert tflops_of(Device("cuda", 0, name, 80 * GIB, 80 * GIB, has_fast_bfloat16=True)) == tflops
