"""Methods that learn virtual tokens: prefix tuning keys and values of every layer, prompt tuning one embedding for each
virtual token, p-tuning one for each and the encoder that all go through.
"""

from loratory.engine.config.run import AdapterConfig
from loratory.engine.memory.autograd.tensors import Value
from loratory.engine.memory.layers.modules import autocast_linear
from loratory.engine.memory.layers.step_context import StepContext, in_scope
from loratory.engine.memory.methods.base import MemoryRule
from loratory.engine.memory.persistent import TensorShape
from loratory.engine.models.shape import ModelShape


class PrefixTuningMemory(MemoryRule):
    """One row for each virtual token. What the step does with them is in `StepContext.put_prefixes`."""

    def virtual_token_tensors(self, shape: ModelShape, adapter: AdapterConfig) -> tuple[TensorShape, ...]:
        """Two vectors per layer and key-value head.

        Source: Li and Liang 2021 (arXiv:2101.00190) without the reparametrization; PEFT `PrefixEncoder`, whose
        `token_dim` is head_dim × num_key_value_heads where the model has grouped-query heads.
        """
        width = shape.num_hidden_layers * 2 * shape.num_key_value_heads * shape.head_dim
        return ((adapter.num_virtual_tokens, width),)


class PromptTuningMemory(MemoryRule):
    """What the step does with them is in `loratory.engine.memory.layers.decoder`."""

    def virtual_token_tensors(self, shape: ModelShape, adapter: AdapterConfig) -> tuple[TensorShape, ...]:
        """Return the weight of `PromptEmbedding`."""
        return ((adapter.num_virtual_tokens, shape.hidden_size),)


class PTuningMemory(MemoryRule):
    """The encoder runs on the virtual tokens of one row; an LSTM is taken for its two products in each direction."""

    def virtual_token_tensors(self, shape: ModelShape, adapter: AdapterConfig) -> tuple[TensorShape, ...]:
        """Return the weights of `PromptEncoder`."""
        width = shape.hidden_size
        inner = adapter.encoder_hidden_size or width
        embedding = (adapter.num_virtual_tokens, width)
        if adapter.encoder_reparameterization_type == "MLP":
            return (embedding, (inner, width), (inner,), (inner, inner), (inner,), (width, inner), (width,))
        both = 2 * inner  # directions
        lstm: list[TensorShape] = []
        for layer in range(adapter.encoder_num_layers):
            read = both if layer else width
            lstm += 2 * [(4 * inner, read), (4 * inner, inner), (4 * inner,), (4 * inner,)]
        return (embedding, *lstm, (both, both), (both,), (width, both), (width,))

    def virtual_inputs(self, r: StepContext) -> Value:
        """Send the table through the encoder, whose weights are cast for each product: `PromptEncoder.forward`."""
        tape, width, adapter = r.tape, r.structure.shape.hidden_size, r.workload.adapter
        inner = adapter.encoder_hidden_size or width
        sizes = [(width, inner), (inner, inner), (inner, width)]
        x = super().virtual_inputs(r)
        if adapter.encoder_reparameterization_type == "LSTM":
            sizes = [(2 * inner, 2 * inner), (2 * inner, width)]
            for _ in range(adapter.encoder_num_layers):
                x = tape.assign(x, tape.concatenate(_direction(r, x, inner), _direction(r, x, inner)))
        for number, (read, out) in enumerate(sizes, start=1):
            x = tape.assign(x, autocast_linear(r, x, r.adapter_weight(read * out), out))
            if number < len(sizes):
                x = tape.assign(x, tape.pointwise(x, saves_result=True))
        return x


@in_scope
def _direction(r: StepContext, x: Value, inner: int) -> Value:
    """Send all tokens through one direction of one layer of an LSTM, with four gates each."""
    tape, tokens = r.tape, r.workload.virtual_inputs
    read = autocast_linear(r, x, r.adapter_weight(4 * inner * x.elements // tokens), 4 * inner)
    states = tape.view(read, tokens * inner)  # represents those of the steps before
    hidden = autocast_linear(r, states, r.adapter_weight(4 * inner * inner), 4 * inner)
    gates = tape.pointwise(tape.add(read, hidden), saves_result=True)
    # At 16 bits the kernel keeps the weights in an order of its own.
    weights = 4 * inner * (x.elements // tokens + inner) if r.workload.precision.autocast is not None else 0
    packed = tape.value(weights, read.width)
    return tape.operation((gates,), tokens * inner, gates.width, saved=(packed,))
