"""The one immutable value that describes a fine-tune; form, command line, preset and run directory are views of it."""

from typing import Literal

from engine.config.adapter import AdapterConfig
from engine.config.dataset import DatasetConfig
from engine.config.model import ModelConfig
from engine.config.section import Section, setting
from engine.config.training import TrainingConfig

Launcher = Literal["local", "accelerate"]
DeviceMap = Literal["none", "balanced"]


class RunSection(Section):
    """What a run is called and where it executes."""

    name: str = setting(
        "",
        label="Name",
        help="What you will look for in a month. Empty makes one from model, data and method.",
        max_length=120,
        pattern=r"^[^\x00-\x1f\x7f]*$",
    )
    devices: Literal["auto", "cpu"] | tuple[int, ...] = setting(
        "auto",
        label="Device",
        help="auto takes the first free GPU, else the CPU; cpu never takes a GPU; a list names CUDA devices by number, and MIG "
        "instance j of GPU i as 100 * (i + 1) + j.",
    )
    resume_after_restart: bool = setting(
        False,
        label="Resume by itself",
        help="Resume from the newest checkpoint after a restart of the machine. Otherwise one click resumes it.",
    )
    launcher: Launcher = setting(
        "local", label="Launcher", help="local starts one process; accelerate starts one per device."
    )
    device_map: DeviceMap = setting(
        "none",
        label="Spread over GPUs",
        help="balanced divides the layers of one model among the GPUs that run.devices names, for a model that one GPU "
        "cannot hold. They work in turn, so it is not faster than one; none keeps the whole model on each device.",
    )

    @property
    def spread_over(self) -> int:
        """GPUs that one model's layers are divided among; 1 where each device holds the whole model."""
        named = len(self.devices) if not isinstance(self.devices, str) else 1
        return named if self.device_map != "none" else 1


class RunConfig(Section):
    """A complete fine-tune."""

    model: ModelConfig
    adapter: AdapterConfig = AdapterConfig()
    dataset: DatasetConfig
    training: TrainingConfig = TrainingConfig()
    run: RunSection = RunSection()

    @property
    def method_name(self) -> str:
        """Name of the method on this base, such as QLoRA for LoRA on four bits."""
        return self.adapter.traits.display_name(self.model.quantization)
