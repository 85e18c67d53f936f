"""What each of several equal devices holds when they train together: copies, shares of everything, or some of the layers."""

from dataclasses import replace
from typing import Literal

from pydantic import BaseModel, ConfigDict

from engine.config.run import RunConfig
from engine.memory.device.device_need import need_on_device
from engine.memory.estimate import Estimator, judge
from engine.memory.result import Verdict
from engine.memory.run_workload import workload_of_run
from engine.memory.workload import Workload

Sharing = Literal["DDP", "FSDP", "device_map"]

_MEANINGS: dict[Sharing, str] = {
    "DDP": "Each device holds the whole model and trains on its own rows.",
    "FSDP": "Weights, gradients and optimizer state are divided; each layer is put together while it runs.",
    "device_map": "Each device holds some of the layers, and they work in turn: for models that one cannot hold.",
}


class DeviceShare(BaseModel):
    """One way of training on several devices, and what each of them needs for it."""

    model_config = ConfigDict(frozen=True)

    sharing: Sharing
    meaning: str  # one sentence
    devices: int
    expected_bytes: int  # on each device, or on the fullest where they differ
    needed_bytes: int  # the same; nine runs in ten stay below
    each_needed_bytes: tuple[int, ...] = ()  # where the devices differ, of each in order
    verdict: Verdict


def share_among(estimator: Estimator, config: RunConfig, devices: int) -> tuple[DeviceShare, ...]:
    """Figures for so many devices like the estimator's, each of which gets a whole batch of `config`.

    Raises:
        ConfigError: If the adapter matches no module of the model, or a setting is absurd.
        ModelError: If the model's shape lacks what a decoder needs.
    """
    alone = replace(workload_of_run(estimator.shape, config, estimator.device), data_parallel=1)
    shares = (
        _share("DDP", replace(alone, data_parallel=devices), estimator, devices),
        _share("FSDP", replace(alone, sharded=devices), estimator, devices),
    )
    if devices > estimator.structure.num_layers:
        return shares
    return (*shares, _spread(alone, estimator, devices))


def _spread(workload: Workload, estimator: Estimator, devices: int) -> DeviceShare:
    needs = estimator.split_needs(workload, devices)
    fullest = max(needs, key=lambda need: need.needed_bytes)
    return DeviceShare(
        sharing="device_map",
        meaning=_MEANINGS["device_map"],
        devices=devices,
        expected_bytes=fullest.expected_bytes,
        needed_bytes=fullest.needed_bytes,
        each_needed_bytes=tuple(need.needed_bytes for need in needs),
        verdict=judge(fullest, estimator.device),
    )


def _share(sharing: Sharing, workload: Workload, estimator: Estimator, devices: int) -> DeviceShare:
    need = need_on_device(estimator.peak(workload).tensors, workload, estimator.device)
    return DeviceShare(
        sharing=sharing,
        meaning=_MEANINGS[sharing],
        devices=devices,
        expected_bytes=need.expected_bytes,
        needed_bytes=need.needed_bytes,
        verdict=judge(need, estimator.device),
    )
