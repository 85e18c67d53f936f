"""Feed-forward blocks: gated and plain, dense and with experts."""

from dataclasses import dataclass

from engine.memory.adapters import project
from engine.memory.operations import add, cast, dropout, linear, multiply, narrow, pointwise
from engine.memory.rehearsal import Rehearsal
from engine.memory.structure import LayerStructure
from engine.memory.tensors import Gradients, Storage, Value, needs_gradient
from engine.models.shape import ModuleShape

_MOST_EXPERTS_PLAYED = 8  # more are played in groups; only scratch within one expert is coarser then


def feed_forward(r: Rehearsal, x: Value, layer: LayerStructure) -> Value:
    """Widen, activate, narrow; with experts, each token by some of them."""
    tape = r.tape
    with tape.scope() as scope:
        result = _experts(r, x, layer) if layer.experts or layer.expert_linears else None
        if layer.mlp_output is not None:
            shared = _dense(r, x, layer, layer.mlp_output)
            if result is None:
                result = shared
            else:
                both = add(tape, result, shared)
                tape.drop(result, shared)
                result = both
        assert result is not None
        if r.structure.shape.hidden_dropout > 0:
            dropped = dropout(tape, result, on_cuda=r.on_cuda)
            tape.drop(result)
            result = dropped
        return scope.returns(result)


def _dense(r: Rehearsal, x: Value, layer: LayerStructure, output: ModuleShape) -> Value:
    tape = r.tape
    with tape.scope() as scope:
        inner = _gated(r, x, layer.mlp_inputs) if r.structure.shape.gated_mlp else _plain(r, x, layer.mlp_inputs)
        result = project(r, inner, output)
        tape.drop(inner)
        return scope.returns(result)


def _gated(r: Rehearsal, x: Value, inputs: tuple[ModuleShape, ...]) -> Value:
    """`act(gate(x)) * up(x)`: keeps the gate, its activation and up.

    Source: `LlamaMLP.forward`; `Phi3MLP.forward` computes gate and up in one product and cuts it.
    """
    tape = r.tape
    with tape.scope() as scope:
        if len(inputs) == 1:
            return scope.returns(_gate_of_one(r, project(r, x, inputs[0])))
        gate = project(r, x, inputs[0])
        active = pointwise(tape, gate)
        tape.drop(gate)
        up = project(r, x, inputs[1])
        return scope.returns(multiply(tape, active, up))


def _gate_of_one(r: Rehearsal, together: Value) -> Value:
    tape = r.tape
    with tape.scope() as scope:
        half = together.elements // 2
        gate, up = narrow(tape, together, half), narrow(tape, together, half)
        tape.drop(together)
        active = pointwise(tape, gate)
        tape.drop(gate)
        return scope.returns(multiply(tape, up, active))


def _plain(r: Rehearsal, x: Value, inputs: tuple[ModuleShape, ...]) -> Value:
    tape = r.tape
    with tape.scope() as scope:
        wide = project(r, x, inputs[0])
        active = pointwise(tape, wide)
        tape.drop(wide)
        return scope.returns(active)


@dataclass(frozen=True)
class _Expert:
    """The linear layers of one expert: modules of their own, or slices of stacked weights."""

    inputs: tuple[ModuleShape, ...]
    output: ModuleShape | None
    inner: int


def _experts(r: Rehearsal, x: Value, layer: LayerStructure) -> Value:
    """Route every token to some experts: their inputs are copies of its state, their answers are weighted and summed.

    Tokens are taken to be spread evenly, as the routers' balancing loss aims at.

    Source: `MixtralSparseMoeBlock.forward` and `MixtralExperts.forward`, transformers/models/mixtral/modeling_mixtral.py.
    """
    tape, shape = r.tape, r.structure.shape
    with tape.scope() as scope:
        scores = _route(r, x, layer)
        groups = min(shape.num_experts, _MOST_EXPERTS_PLAYED)
        rows = r.tokens * shape.num_experts_per_token // groups
        expert = _one_expert(shape.hidden_size, layer, shape.moe_intermediate_size or shape.intermediate_size)
        summed = tape.value(x.elements, x.width)
        for _ in range(groups):
            answer = _ask_expert(r, x, expert, rows, scores)
            summed = _added_at_index(r, summed, answer)
            tape.drop(answer)
        return scope.returns(summed)


def _route(r: Rehearsal, x: Value, layer: LayerStructure) -> Value:
    """Router logits, their softmax at 32 bits, and the weights of the chosen experts."""
    tape, shape = r.tape, r.structure.shape
    with tape.scope() as scope:
        if layer.router is not None and layer.router.kind == "linear":
            logits = project(r, x, layer.router)
        else:
            weight = r.weight(shape.num_experts * shape.hidden_size, r.workload.precision.weights)
            logits = linear(tape, x, weight, shape.num_experts)
        wide = cast(tape, logits, 4)
        probabilities = pointwise(tape, wide, saves_result=True)
        chosen = narrow(tape, probabilities, r.tokens * shape.num_experts_per_token)
        return scope.returns(cast(tape, chosen, x.width))


def _one_expert(hidden: int, layer: LayerStructure, inner: int) -> _Expert:
    if not layer.expert_linears:
        return _Expert((), None, inner)
    first = layer.expert_linears[: len(layer.expert_linears) // max(1, _count_experts(layer))]
    output = next(module for module in first if module.out_features == hidden)
    return _Expert(tuple(module for module in first if module is not output), output, inner)


def _count_experts(layer: LayerStructure) -> int:
    names = {module.name.rsplit(".", 1)[0] for module in layer.expert_linears}
    return len(names)


def _ask_expert(r: Rehearsal, x: Value, expert: _Expert, rows: int, scores: Value) -> Value:
    tape, hidden = r.tape, r.structure.shape.hidden_size
    with tape.scope() as scope:
        taken = _taken_at_index(r, x, rows * hidden)
        if expert.output is not None:
            inner = _gated(r, taken, expert.inputs)
            answer = project(r, inner, expert.output)
        else:
            width = r.workload.precision.weights
            together = linear(tape, taken, r.weight(2 * expert.inner * hidden, width), 2 * expert.inner)
            inner = _gate_of_one(r, together)
            answer = linear(tape, inner, r.weight(expert.inner * hidden, width), hidden)
        tape.drop(inner)
        weights = narrow(tape, scores, rows)
        return scope.returns(multiply(tape, answer, weights))


def _taken_at_index(r: Rehearsal, x: Value, elements: int) -> Value:
    """`x[tokens]`: a copy; its gradient is a tensor of x's size."""
    tape, size = r.tape, x.elements * x.width
    return tape.operation((x,), elements=elements, width=x.width, backward=lambda _: (tape.allocate(size),))


def _added_at_index(r: Rehearsal, target: Value, answer: Value) -> Value:
    """`target.index_add_(…)`, in place; the answer's gradient is gathered from the target's."""
    tape, size = r.tape, answer.elements * answer.width
    needs_target = needs_gradient(target)

    def backward(gradient: Storage) -> Gradients:
        gathered = tape.allocate(size)
        if needs_target:
            gradient.references += 1
        return (gradient if needs_target else None, gathered)

    if needs_gradient(answer) and tape.records_gradients:
        target.producer = tape.node((target, answer), backward)
    return target
