"""What the simulation of a step knows while it goes from layer to layer."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Concatenate, ParamSpec

from loratory.engine.memory.autograd.tape import Tape
from loratory.engine.memory.autograd.tensors import Group, Parameter, Storage, Value, share
from loratory.engine.memory.structure import AdapterTargets, ModelStructure
from loratory.engine.memory.workload import Workload

_Arguments = ParamSpec("_Arguments")


def in_scope(
    function: Callable[Concatenate["StepContext", _Arguments], Value],
) -> Callable[Concatenate["StepContext", _Arguments], Value]:
    """Let the local variables of a function go out of scope when it ends, except what it returns."""

    @functools.wraps(function)
    def wrapper(r: "StepContext", /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Value:
        return r.tape.in_scope(lambda: function(r, *args, **kwargs))

    return wrapper


@dataclass(frozen=True)
class StepContext:
    """The tape, the step, the model, and where its adapter sits."""

    tape: Tape
    workload: Workload
    structure: ModelStructure
    targets: AdapterTargets
    prefixes: list[Value] = field(default_factory=list)  # learned keys and values for the next layers
    cast_copies: dict[Parameter, Value] = field(default_factory=dict)
    until_forward_ends: list[Storage] = field(default_factory=list)  # such as autocast's copies of weights

    @property
    def on_cuda(self) -> bool:
        return self.workload.device == "cuda"

    @property
    def tokens(self) -> int:
        return self.workload.tokens

    @property
    def kernel_answers_by_heads(self) -> bool:
        """Whether gradients of queries, keys and values come laid out by heads, not by tokens."""
        return self.workload.attention in ("eager", "math", "tiled") or self.workload.expands_key_values

    @property
    def peft_sees_autocast(self) -> bool:
        """Whether PEFT's layers on quantized bases leave casts to autocast; they ask about CUDA's, on any device.

        Source: `torch.is_autocast_enabled()` without a device, in peft/tuners/lora/bnb.py and peft/tuners/ia3/bnb.py.
        """
        return self.workload.precision.autocast is not None and self.on_cuda

    @property
    def head_is_trained(self) -> bool:
        """Whether the output head is trained: with the whole model, or because it is saved in full."""
        return not self.workload.trains_adapter or any(module.is_output_head for module in self.targets.saved_in_full)

    @property
    def position_count(self) -> int:
        """Positions that are numbered: those of one row, or of all rows where they are joined."""
        return self.tokens if self.workload.joined else self.workload.length

    @property
    def prefix_elements(self) -> int:
        """Learned keys, or values, of one layer for all rows."""
        if self.workload.adapter.traits.virtual_tokens != "keys_and_values":
            return 0
        shape = self.structure.shape
        tokens = self.workload.batch_size * self.workload.adapter.num_virtual_tokens
        return tokens * shape.num_key_value_heads * shape.head_dim

    def put_prefixes(self, layers: int) -> None:
        """Fill the cache of so many layers with learned keys and values.

        Source: `PeftModel.get_prompt`, peft/peft_model.py.
        """
        if not self.prefix_elements:
            return
        width = self.workload.precision.compute
        trained = Parameter(self.prefix_elements, width, trainable=False)
        for _ in range(2 * layers):
            self.prefixes.append(self.tape.value(self.prefix_elements, width, trained))

    def weight(self, elements: int, width: int) -> Parameter:
        """Return a weight of the base model: trained where the whole model is."""
        workload = self.workload
        return Parameter(elements, width, trainable=not workload.trains_adapter, adds_up=workload.accumulates)

    def adapter_weight(self, elements: int) -> Parameter:
        width = self.workload.precision.adapter
        return Parameter(elements, width, trainable=True, adds_up=self.workload.accumulates)

    def cast_weight(self, weight: Parameter, width: int) -> Value:
        """Cast a weight as autocast does for a product. Trained weights are cast once a forward pass.

        Source: `cached_cast` in aten/src/ATen/autocast_mode.cpp.
        """
        tape = self.tape
        known = self.cast_copies.get(weight)
        if known is not None and not tape.in_backward:
            return tape.alias(known)
        producer = tape.node((weight,)) if weight.trainable and tape.records_gradients else None
        copy = tape.value(weight.elements, width, producer, Group.WEIGHT_COPIES)
        if weight.trainable and not tape.in_backward:
            self.hold_until_forward_ends(copy)
            self.cast_copies[weight] = copy
        return copy

    def drop_out(self, x: Value, share: float) -> Value:
        """Apply a dropout that is active; no variable holds x afterwards."""
        return self.tape.assign(x, self.tape.dropout(x, on_cuda=self.on_cuda)) if share > 0 else x

    def hold_until_forward_ends(self, value: Value) -> None:
        """Hold this outside the layers while the forward pass lasts."""
        self.until_forward_ends.append(share(value.storage))

    def end_forward(self) -> None:
        """End the forward pass: release what was held for it."""
        for storage in self.until_forward_ends:
            self.tape.release(storage)
        self.until_forward_ends.clear()
        self.cast_copies.clear()

    def small(self, elements: int, width: int) -> Value:
        """Return a tensor without gradient whose bytes are counted elsewhere, such as cosines shared by all layers."""
        value = self.tape.value(elements, width)
        self.tape.release(value.storage)
        value.is_held = False
        value.storage.references = 1 << 30
        return value
