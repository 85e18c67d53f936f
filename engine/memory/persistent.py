"""What is there through the whole step: weights, adapter, optimizer state, and gradients that wait."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.memory.optimizers import optimizer_state_bytes
from engine.memory.structure import ModelStructure
from engine.memory.workload import Workload
from engine.models.shape import ModuleShape

if TYPE_CHECKING:  # whose rules for methods read this module
    from engine.memory.trainable import TrainableCount

_BLOCK = 64  # weights that share one scale in bitsandbytes' 4-bit formats
_NESTED_BLOCK = 256  # scales that share one scale under double quantization
_LINEAR_KINDS = ("linear", "conv1d", "experts", "router")


@dataclass(frozen=True)
class Persistent:
    """Bytes by what they are."""

    weights: int  # linear layers, in the base's format
    unquantized: int  # embeddings, norms, head, biases; with quantized weights also linear layers that stay dense
    adapter: int
    optimizer: int
    paged: int  # optimizer state that may leave the device, outside of PyTorch's allocator
    loading: int  # before the first step, on a CPU: pages of weight files that are quantized, and what is made of them
    buckets: int  # in which devices that train together exchange gradients
    copies: int  # of LoRA's matrices at the precision of products; on CUDA also the buffer that 4-bit weights are written into
    reference: int  # weights of the adapter that a preference run starts from, and trained biases as they were
    dense_experts: int  # of `unquantized`: experts held as bare parameters, which no quantization reaches

    @property
    def total(self) -> int:
        """Without what is paged, or there before the first step only."""
        trained = self.adapter + self.reference + self.optimizer + self.buckets + self.copies
        return self.weights + self.unquantized + trained


def weight_bytes(modules: Iterable[ModuleShape], workload: Workload) -> tuple[int, int]:
    """Bytes of modules of the base model: linear layers in the base's format, and the rest.

    Tied weights are counted at their first owner. Layers that hold an adapter on top keep their base.
    """
    linear = rest = 0
    for module in modules:
        if workload.quantizes(module):
            linear += quantized_bytes(module, workload)
            rest += module.bias_parameters * workload.precision.norms
        elif workload.base == "dense" and module.kind in _LINEAR_KINDS and not module.is_output_head:
            linear += module.parameters * unquantized_width(module, workload)
        else:
            rest += module.parameters * unquantized_width(module, workload)
    return linear, rest


def unquantized_width(module: ModuleShape, workload: Workload) -> int:
    """Bytes per element of a module that is not quantized."""
    precision = workload.precision
    if module.is_output_head:
        return precision.head
    if module.kind in _LINEAR_KINDS:
        return precision.weights
    return precision.norms if module.kind == "norm" else precision.embeddings


def quantized_bytes(module: ModuleShape, workload: Workload) -> int:
    """Weight of one quantized module, with its scales.

    int8 takes one byte an element and a 32-bit scale for each output row. GPTQ takes packed 4-bit weights; for each group of
    inputs (all of them, where the size is -1) 16-bit scales and packed zero points; and the index of each input's group.

    Source: Dettmers et al. 2022, section 3.1 (arXiv:2208.07339); `Int8Params` in bitsandbytes/nn/modules.py; Frantar et al.
    2022 (arXiv:2210.17323); `QuantLinear` of AutoGPTQ: qweight, qzeros, scales, g_idx.
    """
    inputs, outputs = module.in_features, module.out_features
    if workload.base == "int8":
        return inputs * outputs + outputs * 4
    if workload.base == "gptq":
        groups = -(-inputs // workload.gptq_group_size) if workload.gptq_group_size > 0 else 1
        return inputs * outputs // 2 + groups * outputs // 2 + groups * outputs * 2 + inputs * 4
    return _four_bit_bytes(inputs * outputs, double_quant=workload.double_quant)


def persistent_bytes(structure: ModelStructure, workload: Workload, counts: "TrainableCount") -> Persistent:
    """Everything that does not move during a step."""
    weights, unquantized = weight_bytes(structure.shape.modules, workload)
    on_device, paged = optimizer_state_bytes(counts.shapes, workload.optimizer)
    return Persistent(
        weights=weights,
        unquantized=unquantized,
        adapter=counts.added * workload.precision.adapter + counts.resident * 4,
        optimizer=on_device,
        paged=paged,
        loading=_loading_bytes(structure, workload, weights + unquantized),
        # Source: `gradient_as_bucket_view=False` of torch/nn/parallel/distributed.py: copies as large as all gradients.
        buckets=gradient_bytes(structure, workload, counts) if workload.data_parallel > 1 else 0,
        copies=_copied_bytes(structure, workload, counts),
        reference=_reference_bytes(workload, counts),
        dense_experts=_dense_expert_bytes(structure, workload),
    )


def _reference_bytes(workload: Workload, counts: "TrainableCount") -> int:
    """Source: `Reference.of`, engine/training/objectives/reference.py."""
    if not workload.has_reference or not workload.trains_adapter:
        return 0
    biases = counts.trainable - counts.added
    kept = biases if workload.adapter.warm_start is None else counts.trainable
    return kept * workload.precision.adapter


def _copied_bytes(structure: ModelStructure, workload: Workload, counts: "TrainableCount") -> int:
    """Source: `LoraLinears.step` and `FrozenWeights`, engine/training/ops/lora_linear.py and products.py."""
    compute = workload.precision.compute
    # With checkpointing, copies and written-out weights last as long as a layer's call.
    if not workload.has_quick_layers or workload.sharded > 1 or workload.checkpointing:
        return 0
    # At 32 bits, matrices A with one input are put together, which is half of all at most.
    copies = counts.added * (compute if compute < workload.precision.adapter else compute // 2)
    if workload.device == "cpu" or workload.base not in ("nf4", "fp4"):
        return copies
    sizes = (
        module.in_features * module.out_features for module in structure.shape.modules if workload.quantizes(module)
    )
    return copies + max(sizes, default=0) * compute


def _dense_expert_bytes(structure: ModelStructure, workload: Workload) -> int:
    """Source: `replace_with_bnb_linear` in transformers/integrations/bitsandbytes.py, which looks for linear layers alone."""
    if workload.base == "dense":
        return 0
    experts = (module for module in structure.shape.modules if module.kind == "experts" and not module.is_quantizable)
    return sum(module.parameters * unquantized_width(module, workload) for module in experts)


def _loading_bytes(structure: ModelStructure, workload: Workload, loaded: int) -> int:
    """Files of 16-bit weights are mapped, and what was read of them stays until the last weight is made."""
    # Source: `safe_open` in safetensors, which maps the file; `leave_weight_files`, engine/training/build.py.
    if workload.device != "cpu" or workload.base == "dense" or workload.precision.embeddings != 2:
        return 0
    quantized = (module for module in structure.shape.modules if workload.quantizes(module))
    return loaded + sum(module.in_features * module.out_features * 2 for module in quantized)


def gradient_bytes(structure: ModelStructure, workload: Workload, counts: "TrainableCount") -> int:
    """All gradients: each as wide as its weight."""
    if not workload.trains_adapter:
        return sum(weight_bytes(structure.shape.modules, workload))
    biases = counts.trainable - counts.added
    return counts.added * workload.precision.adapter + biases * workload.precision.norms


def _four_bit_bytes(elements: int, *, double_quant: bool) -> int:
    """Bytes of one 4-bit weight with its scales.

    Half a byte an element and a scale for each block of 64: 4 bytes each, or under double quantization 1 byte each, a
    second-level scale of 4 bytes for each 256 of them and their mean. Asymptotically 0.5625 and 0.51587 bytes.

    Source: Dettmers et al. 2023, section 3 (arXiv:2305.14314); `quantize_4bit` in bitsandbytes/functional.py.
    """
    blocks = -(-elements // _BLOCK)
    packed = -(-elements // 2)
    codebook = 16 * 4
    if not double_quant:
        return packed + blocks * 4 + codebook
    nested_codebook = 256 * 4
    return packed + blocks + -(-blocks // _NESTED_BLOCK) * 4 + codebook + nested_codebook + 4


def dequantized_scale_bytes(elements: int) -> int:
    """Scales of one double-quantized weight, written out at 32 bits while the weight is in use."""
    return -(-elements // _BLOCK) * 4
