"""The parts of the stacked bar, each with a sentence on what moves it."""

from engine.memory.allocator import DeviceNeed
from engine.memory.persistent import Persistent
from engine.memory.phases import Held
from engine.memory.result import MemoryComponent
from engine.memory.workload import Workload


def describe_components(
    persistent: Persistent, held: Held, need: DeviceNeed, workload: Workload, workspace_bytes: int
) -> tuple[MemoryComponent, ...]:
    """Divide what is needed at the peak; the parts add up to `need.needed_bytes`."""
    runtime = need.expected_bytes - persistent.total - held.total - workspace_bytes
    on_cuda = workload.device == "cuda"
    return (
        MemoryComponent(
            key="weights",
            label=f"Weights ({_format_words(workload)})",
            bytes=persistent.weights,
            depends_on="The linear layers of the base model; their number and their precision decide.",
        ),
        MemoryComponent(
            key="unquantized",
            label="Experts, embeddings, norms, head" if persistent.dense_experts else "Embeddings, norms, head",
            bytes=persistent.unquantized,
            depends_on="What quantization leaves alone, experts held as bare parameters most of all."
            if persistent.dense_experts
            else "What quantization leaves alone; it grows with the vocabulary and the hidden size.",
        ),
        MemoryComponent(
            key="trained",
            label="Adapter, gradients, optimizer" if workload.trains_adapter else "Gradients, optimizer",
            bytes=persistent.adapter + persistent.optimizer + persistent.buckets + held.gradients,
            depends_on="Everything that is trained, what is learned about it, and what the optimizer remembers; it grows "
            "with rank and targets, and the optimizer decides.",
        ),
        MemoryComponent(
            key="activations",
            label="Activations",
            bytes=held.activations + held.weight_copies,
            depends_on="What the layers keep for the backward pass, and weights written out while they are in use; it "
            "grows with batch × length and shrinks with gradient checkpointing.",
        ),
        MemoryComponent(
            key="loss",
            label="Logits and loss",
            bytes=held.loss,
            depends_on="One number for every entry of the vocabulary at each position that is scored at once.",
        ),
        MemoryComponent(
            key="runtime",
            label="CUDA and allocator" if on_cuda else "Python and libraries",
            bytes=runtime + workspace_bytes,
            depends_on="The CUDA context, workspaces of matrix products, and what the allocator holds beyond the tensors."
            if on_cuda
            else "The process itself with PyTorch and transformers, and what its allocator holds beyond the tensors.",
        ),
        MemoryComponent(
            key="margin",
            label="Margin of error",
            bytes=need.needed_bytes - need.expected_bytes,
            depends_on="How far a run may go beyond what is expected: nine in ten stay within it.",
        ),
    )


def _format_words(workload: Workload) -> str:
    if workload.base != "dense":
        return workload.base
    return f"{workload.precision.weights * 8} bit"
