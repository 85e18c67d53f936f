"""What is there through the whole step: weights, adapter, optimizer state, and gradients that wait; and what optimizers take."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from loratory.engine.memory.structure import ModelStructure
from loratory.engine.memory.workload import Optimizer, Workload
from loratory.engine.models.shape import ModuleShape

TensorShape = tuple[int, ...]

_EIGHT_BIT_BLOCK = 256  # elements of 8-bit optimizer state that share a scale
_SMALLEST_EIGHT_BIT = 4096  # elements; smaller tensors keep 32-bit state
_SMALLEST_PAGED = 100_000  # elements; smaller tensors keep their state on the device
_BLOCK = 64  # weights that share one scale in bitsandbytes' 4-bit formats
_NESTED_BLOCK = 256  # scales that share one scale under double quantization
_LINEAR_KINDS = ("linear", "conv1d", "experts", "router")


class TrainableCount(NamedTuple):
    """Parameters, not bytes."""

    total: int  # the base model and everything that the adapter adds, as PEFT counts
    trainable: int  # of these, what is trained
    adapter: int  # what is trained and not part of the base model
    # Shapes of every trained tensor: what may decay, then norms and biases, which transformers' trainer keeps from it.
    # An optimizer takes one group after the other.
    groups: tuple[tuple[TensorShape, ...], tuple[TensorShape, ...]]
    resident: int = 0  # what the adapter keeps at 32 bits and does not train

    @property
    def shapes(self) -> tuple[TensorShape, ...]:
        """Of every trained tensor; optimizers treat small ones and vectors apart."""
        return (*self.groups[0], *self.groups[1])

    @property
    def percent(self) -> float:
        return 100.0 * self.trainable / self.total if self.total else 0.0


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
    reference: int  # weights of the adapter that a preference run starts from, and trained biases as they were
    dense_experts: int  # of `unquantized`: experts held as bare parameters, which no quantization reaches

    @property
    def total(self) -> int:
        """Without what is paged, or there before the first step only."""
        trained = self.adapter + self.reference + self.optimizer + self.buckets
        return self.weights + self.unquantized + trained


def weight_bytes(modules: Iterable[ModuleShape], workload: Workload) -> tuple[int, int]:
    """Return the bytes of modules of the base model: linear layers in the base's format, and the rest.

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
    """Return the bytes per element of a module that is not quantized."""
    precision = workload.precision
    if module.is_output_head:
        return precision.head
    if module.kind in _LINEAR_KINDS:
        return precision.weights
    return precision.norms if module.kind == "norm" else precision.embeddings


def quantized_bytes(module: ModuleShape, workload: Workload) -> int:
    """Return the bytes of one quantized module, with its scales.

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


def persistent_bytes(structure: ModelStructure, workload: Workload, counts: TrainableCount) -> Persistent:
    """Return the bytes of everything that does not move during a step."""
    weights, unquantized = weight_bytes(structure.shape.modules, workload)
    on_device, paged = optimizer_state_bytes(counts.shapes, workload.optimizer)
    return Persistent(
        weights=weights,
        unquantized=unquantized,
        adapter=counts.adapter * workload.precision.adapter + counts.resident * 4,
        optimizer=on_device,
        paged=paged,
        loading=_loading_bytes(structure, workload, weights + unquantized),
        # Source: `gradient_as_bucket_view=False` of torch/nn/parallel/distributed.py: copies as large as all gradients.
        buckets=gradient_bytes(structure, workload, counts) if workload.data_parallel > 1 else 0,
        reference=_reference_bytes(workload, counts),
        dense_experts=_dense_expert_bytes(structure, workload),
    )


def _reference_bytes(workload: Workload, counts: TrainableCount) -> int:
    """Source: `ReferenceModel.from_model`, engine/training/objectives/reference.py."""
    if not workload.has_reference or not workload.trains_adapter:
        return 0
    biases = counts.trainable - counts.adapter
    parameters = biases if workload.adapter.warm_start is None else counts.trainable
    return parameters * workload.precision.adapter


def _dense_expert_bytes(structure: ModelStructure, workload: Workload) -> int:
    """Source: `replace_with_bnb_linear` in transformers/integrations/bitsandbytes.py, which looks for linear layers alone."""
    if workload.base == "dense":
        return 0
    experts = (module for module in structure.shape.modules if module.kind == "experts" and not module.is_quantizable)
    return sum(module.parameters * unquantized_width(module, workload) for module in experts)


def _loading_bytes(structure: ModelStructure, workload: Workload, loaded: int) -> int:
    """Files of 16-bit weights are mapped, and what was read of them stays until the last weight is made."""
    # Source: `safe_open` in safetensors, which maps the file; `unmap_weights`, engine/training/build.py.
    if workload.device != "cpu" or workload.base == "dense" or workload.precision.embeddings != 2:
        return 0
    quantized = (module for module in structure.shape.modules if workload.quantizes(module))
    return loaded + sum(module.in_features * module.out_features * 2 for module in quantized)


def gradient_bytes(structure: ModelStructure, workload: Workload, counts: TrainableCount) -> int:
    """Return the bytes of all gradients: each as wide as its weight."""
    if not workload.trains_adapter:
        modules = structure.shape.modules
        trained = (module for module in modules if workload.vision.training_of(module.part) in (None, "full"))
        return sum(weight_bytes(trained, workload))
    biases = counts.trainable - counts.adapter
    return counts.adapter * workload.precision.adapter + biases * workload.precision.norms


def _four_bit_bytes(elements: int, *, double_quant: bool) -> int:
    """Return the bytes of one 4-bit weight with its scales.

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
    """Return the bytes of a double-quantized weight's scales, written out at 32 bits while it is in use."""
    return -(-elements // _BLOCK) * 4


class OptimizerState(NamedTuple):
    """Bytes of optimizer state that stay on the device, and that may leave it."""

    on_device: int
    paged: int


def optimizer_state_bytes(shapes: Iterable[TensorShape], optimizer: Optimizer) -> OptimizerState:
    """Return the bytes of the optimizer's state, tensor by tensor, without the numbers that count steps.

    AdamW keeps two tensors of each weight's size, SGD nothing. Adafactor keeps one number a row and one a column
    of a matrix, of each matrix where several are stacked, and all of a vector. The 8-bit one keeps a byte an element and a
    32-bit scale for each 256, except for tensors below 4,096 elements; the paged ones hold their state in memory that the
    driver moves, except for tensors below 100,000 elements.

    Args:
        shapes: Of every trained tensor.

    Source: Loshchilov and Hutter 2019 (arXiv:1711.05101), Dettmers et al. 2022 (arXiv:2110.02861), Shazeer and Stern
    2018 (arXiv:1804.04235), algorithm 4 and `Adafactor` in transformers/optimization.py; `Optimizer8bit.get_state_buffer`
    and `Optimizer2State.init_state` in bitsandbytes/optim/optimizer.py.
    """
    on_device = paged = 0
    for shape in shapes:
        state = _state_of_tensor(shape, optimizer)
        if optimizer.paged and math.prod(shape) >= _SMALLEST_PAGED:
            paged += state
        else:
            on_device += state
    return OptimizerState(on_device, paged)


def _state_of_tensor(shape: TensorShape, optimizer: Optimizer) -> int:
    kind, elements = optimizer.kind, math.prod(shape)
    if kind == "adamw":
        return 2 * elements * optimizer.state_width
    if kind == "adamw_8bit":
        if elements < _SMALLEST_EIGHT_BIT:
            return 2 * elements * 4
        return 2 * (elements + -(-elements // _EIGHT_BIT_BLOCK) * 4)
    if kind == "adafactor":
        return sum(_rows_and_columns(shape)) * 4 if len(shape) > 1 else elements * 4
    return 0


def _rows_and_columns(shape: TensorShape) -> tuple[int, int]:
    """Return the numbers that Adafactor keeps of a matrix, or of a stack of matrices; none of a vector."""
    return (math.prod(shape[:-1]), math.prod(shape[:-2]) * shape[-1]) if len(shape) > 1 else (0, 0)


def optimizer_scratch_bytes(groups: Iterable[Sequence[TensorShape]], optimizer: Optimizer) -> int:
    """Return the bytes of temporaries while the optimizer steps.

    The foreach kernels take the roots of all second moments of a group at once, or with SGD its decayed gradients; loops
    that take tensor by tensor hold the last one's result until the next one's is there. Fused and 8-bit kernels need none.

    Args:
        groups: Shapes of what is trained, in the groups that the optimizer takes one after the other.

    Source: `_multi_tensor_adamw` and `_single_tensor_adamw` in torch/optim/adam.py; torch/optim/sgd.py;
    transformers/optimization.py.
    """
    nonempty = [group for group in groups if group]
    if not nonempty or optimizer.fused or optimizer.kind == "adamw_8bit":
        return 0
    if optimizer.kind == "adafactor":
        return 4 * _adafactor_scratch([shape for group in nonempty for shape in group])
    sizes = [[math.prod(shape) for shape in group] for group in nonempty]
    if optimizer.kind == "adamw":
        # The root of the second moment, divided: both at once, with what the tensor before has left.
        one_by_one = (2 * now + before for group in sizes for before, now in pairwise((0, *group)))
        return optimizer.state_width * (max(map(sum, sizes)) if optimizer.foreach else max(one_by_one))
    if not optimizer.decays:
        return 0
    # What does not decay is the second group.
    return 4 * (sum(sizes[0]) if optimizer.foreach else max(sizes[0]))


def _adafactor_scratch(shapes: Sequence[TensorShape]) -> int:
    """Return the elements at the highest point of Adafactor's loop.

    A tensor begins with its squares and their sum with a small number, while the update of the one before is alive. Later
    its update is alive with its squares, with one number a row and one a column.
    """
    sizes = [math.prod(shape) for shape in shapes]
    begins = (2 * now + before for before, now in pairwise((0, *sizes)))
    return max(*begins, *(2 * math.prod(shape) + sum(_rows_and_columns(shape)) for shape in shapes))
