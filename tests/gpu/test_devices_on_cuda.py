"""What the driver reports of GPUs is what torch finds, and a run that has a GPU trains on it or reports why not."""

import os
import subprocess
import sys
import time

import pytest
import torch

from loratory.engine.hardware.cuda import GPU_READINGS, GpuMeter, gpu_process_bytes
from loratory.engine.hardware.device import visible_only
from loratory.engine.hardware.devices import list_devices
from loratory.engine.hardware.libraries import installed_torch, note_architectures
from loratory.engine.training.placement import in_torch_order
from loratory.engine.training.worker import EXIT_FAILED, EXIT_FINISHED
from tests.gpu.cuda_training import the_gpu
from tests.training.worker_runs import data_of_events

pytestmark = pytest.mark.gpu

MIB = 2**20


def gpus():
    return in_torch_order([device for device in list_devices() if device.kind == "cuda"])


def test_the_driver_and_torch_report_the_same_of_each_gpu():
    result = gpus()
    if any(gpu.is_mig for gpu in result):
        pytest.skip("torch shows one MIG instance at a time; see the test below")
    if len(result) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        pytest.skip("torch numbers several GPUs by speed here, unless CUDA_DEVICE_ORDER is PCI_BUS_ID")

    assert len(result) == torch.cuda.device_count()
    for index, gpu in enumerate(result):
        properties = torch.cuda.get_device_properties(index)
        free, _ = torch.cuda.mem_get_info(index)
        assert gpu.name == properties.name.removeprefix("NVIDIA ")
        assert gpu.capability == (properties.major, properties.minor)
        with torch.cuda.device(index):
            assert gpu.has_fast_bfloat16 == torch.cuda.is_bf16_supported(including_emulation=False)
        assert gpu.total_bytes == pytest.approx(properties.total_memory, rel=0.05)
        assert gpu.free_bytes == pytest.approx(free, rel=0.05, abs=1024 * MIB)
        assert gpu.uuid == f"GPU-{properties.uuid}"


def test_no_gpu_that_torch_works_on_has_an_obstacle(home):
    note_architectures(home, str(torch.__version__), torch.cuda.get_arch_list())

    assert installed_torch(home).architectures == tuple(torch.cuda.get_arch_list())
    assert [gpu.obstacle for gpu in gpus()] == [None] * len(gpus())


def test_the_driver_counts_at_least_what_torch_holds(cuda):
    memory = torch.empty(256 * MIB, dtype=torch.uint8, device=cuda)
    torch.cuda.synchronize()

    process_bytes = gpu_process_bytes(gpus()[0].index)

    if process_bytes is None:
        pytest.skip("this driver does not tell what a process takes")
    assert process_bytes >= torch.cuda.memory_reserved() >= memory.nbytes


def test_a_mig_instance_has_the_memory_that_torch_finds_in_it():
    instances = [gpu for gpu in gpus() if gpu.is_mig]
    if not instances:
        pytest.skip("no GPU here is cut into MIG instances")
    show = "import torch; print(torch.cuda.device_count(), torch.cuda.get_device_properties(0).total_memory)"

    for instance in instances:
        environment = {**os.environ, **visible_only((instance,))}
        answer = subprocess.run(
            [sys.executable, "-c", show], env=environment, capture_output=True, text=True, check=True, timeout=120
        )
        count, total = answer.stdout.split()
        assert count == "1"
        assert int(total) == pytest.approx(instance.total_bytes, rel=0.05)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("visible", "devices"), [("63", "auto"), ("", [0])], ids=["a number that is not there", "all hidden"]
)
def test_a_run_whose_gpu_is_hidden_fails_instead_of_training_on_the_processor(
    visible, devices, cuda_runs, cuda_workers
):
    run = cuda_runs.create(run={"devices": devices})

    assert cuda_workers.run(run, visible=visible) == EXIT_FAILED

    (failure,) = data_of_events(run, "failed")
    assert "CUDA_VISIBLE_DEVICES" in failure.what
    assert data_of_events(run, "step") == []


@pytest.mark.e2e
def test_a_worker_finds_its_gpu_by_uuid(cuda_runs, cuda_workers):
    gpu, run = the_gpu(), cuda_runs.create(run={"devices": "auto"})
    if not gpu.uuid:
        pytest.skip("this driver does not tell UUIDs")

    assert cuda_workers.run(run, visible=gpu.uuid) == EXIT_FINISHED, cuda_workers.end_of_log()

    assert data_of_events(run, "parameters")[0].device == gpu.name


def test_the_driver_reports_what_the_gpu_does_in_less_than_a_thousandth_of_the_time():
    meter, began = GpuMeter((gpus()[0].index,)), time.perf_counter()

    count = 0
    while time.perf_counter() - began < 5:
        readings = meter.read()
        count += bool(readings)
        assert set(readings) <= set(GPU_READINGS)

    assert 1 <= count <= 6
