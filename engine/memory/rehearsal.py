"""What the rehearsal of a step knows while it plays one layer after the other."""

from dataclasses import dataclass

from engine.memory.structure import ModelStructure
from engine.memory.tape import Group, Parameter, Tape, Value
from engine.memory.targets import AdapterTargets
from engine.memory.workload import Workload


@dataclass(frozen=True)
class Rehearsal:
    """The tape, the step, the model, and where its adapter sits."""

    tape: Tape
    workload: Workload
    structure: ModelStructure
    targets: AdapterTargets
    target_names: frozenset[str]

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
    def norm_width(self) -> int:
        """Bytes per element of what a norm answers, fed with the residual stream."""
        precision = self.workload.precision
        if self.structure.has_layer_norm:
            return 4 if precision.autocast and self.on_cuda else precision.embeddings
        return max(precision.embeddings, precision.norms)

    @property
    def cache_bytes_per_layer(self) -> int:
        """Keys and values of one layer in a cache that nobody reads: a view of the fused projection keeps all of it."""
        if not self.workload.keeps_cache:
            return 0
        precision = self.workload.precision
        width = self.norm_width if self.workload.base != "dense" else precision.autocast or precision.weights
        inputs = self.structure.layers[0].attention_inputs
        return self.tokens * sum(module.out_features for module in inputs) * width

    @property
    def head_is_trained(self) -> bool:
        """Whether the output head learns: with the whole model, or because it is saved in full."""
        return not self.workload.trains_adapter or any(module.is_output_head for module in self.targets.saved_in_full)

    @property
    def position_count(self) -> int:
        """Positions that are numbered: those of one row, or of all rows where they stand behind one another."""
        return self.tokens if self.workload.joined else self.workload.length

    def weight(self, elements: int, width: int) -> Parameter:
        """A weight of the base model: trained where the whole model is."""
        return Parameter(elements, width, trainable=not self.workload.trains_adapter)

    def adapter_weight(self, elements: int) -> Parameter:
        return Parameter(elements, self.workload.precision.adapter, trainable=True)

    def cast_weight(self, weight: Parameter, width: int) -> Value:
        """A weight as autocast casts it for a product; its gradient is cast back."""
        tape, back = self.tape, weight.elements * weight.width
        producer = None
        if weight.trainable and tape.records_gradients:
            producer = tape.node((weight,), lambda _: (tape.allocate(back),))
        return tape.value(weight.elements, width, producer, Group.WEIGHT_COPIES)

    def small(self, elements: int, width: int) -> Value:
        """A tensor without gradient whose bytes are counted elsewhere, such as cosines shared by all layers."""
        value = self.tape.value(elements, width)
        self.tape.release(value.storage)
        value.held = False
        value.storage.references = 1 << 30
        return value
