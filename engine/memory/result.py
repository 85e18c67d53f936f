"""What the estimate answers."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Phase = Literal["forward", "loss_backward", "layer_backward", "optimizer_step"]
Verdict = Literal["fits", "tight", "does_not_fit"]
ComponentKey = Literal["weights", "unquantized", "trained", "activations", "loss", "runtime", "margin"]

PHASE_WORDS: dict[Phase, str] = {
    "forward": "forward pass",
    "loss_backward": "backward pass of the loss",
    "layer_backward": "backward pass of a layer",
    "optimizer_step": "optimizer step",
}
GIB = 2**30


class ParameterCount(BaseModel):
    """Counts as PEFT's `print_trainable_parameters` gives them."""

    model_config = ConfigDict(frozen=True)

    total: int
    trainable: int
    trainable_percent: float


class MemoryComponent(BaseModel):
    """One part of the stacked bar."""

    model_config = ConfigDict(frozen=True)

    key: ComponentKey
    label: str  # plain words
    bytes: int
    depends_on: str  # one sentence: what it is and what moves it


class MemoryEstimate(BaseModel):
    """What one device holds at the peak of a training step.

    The components without the margin add up to `expected_bytes`, with it to `needed_bytes`.
    """

    model_config = ConfigDict(frozen=True)

    parameters: ParameterCount
    components: tuple[MemoryComponent, ...]
    allocated_bytes: int  # tensors alive at the peak; on CUDA torch.cuda.max_memory_allocated
    reserved_bytes: int  # what the allocator holds for them; on CUDA max_memory_reserved
    expected_bytes: int  # what the device's own tools show for the process
    needed_bytes: int  # nine runs in ten stay below
    phase: Phase
    phases_bytes: dict[Phase, int]  # allocated at the peak of each phase
    verdict: Verdict
    device_name: str
    device_kind: Literal["cuda", "mps", "cpu"]
    free_bytes: int
    total_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def phase_words(self) -> str:
        """The phase of the peak, for people."""
        return PHASE_WORDS[self.phase]

    @property
    def components_bytes(self) -> dict[str, int]:
        """Bytes by label, in the order of the bar."""
        return {component.label: component.bytes for component in self.components}
