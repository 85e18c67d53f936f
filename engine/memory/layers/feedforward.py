"""Feed-forward blocks: gated and plain, dense and with experts."""

from dataclasses import dataclass

from engine.memory.autograd.operations import (
    add,
    add_number,
    assign,
    cast,
    dropout,
    linear,
    multiply,
    narrow,
    pointwise,
    scale,
    share,
)
from engine.memory.autograd.tensors import Gradients, Parameter, Storage, Value, needs_gradient
from engine.memory.layers.step_context import StepContext
from engine.memory.methods.registry import project
from engine.memory.structure import LayerStructure
from engine.models.shape import ModuleShape

# Routers that answer at 32 bits, so answers are weighted and summed at 32 bits: `MixtralTopKRouter`.
_SCORES_AT_32_BITS = frozenset({"mixtral"})
_MOST_EXPERTS_SIMULATED = 8  # more are simulated in groups; only scratch within one expert is coarser then


def feed_forward(r: StepContext, x: Value, layer: LayerStructure) -> Value:
    """Widen, activate, narrow; with experts, each token by some of them."""
    tape = r.tape
    with tape.scope() as scope:
        result = _experts(r, x, layer) if layer.experts or layer.expert_linears else None
        if layer.mlp_output is not None:
            shared = _dense(r, x, layer, layer.mlp_output)
            if any(module.name.endswith("shared_expert_gate") for module in layer.modules):
                shared = assign(tape, shared, _opened(r, x, shared))
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


def _opened(r: StepContext, x: Value, shared: Value) -> Value:
    """`sigmoid(gate(x)) * shared(x)`: how much each token takes of the expert that all tokens ask.

    Source: `Qwen2MoeSparseMoeBlock.forward`, transformers/models/qwen2_moe/modeling_qwen2_moe.py.
    """
    tape = r.tape
    with tape.scope() as scope:
        weight = r.weight(r.structure.shape.hidden_size, r.workload.precision.weights)
        share_of_it = pointwise(tape, linear(tape, x, weight, 1), saves_result=True)
        return scope.returns(multiply(tape, shared, share_of_it))


def _dense(r: StepContext, x: Value, layer: LayerStructure, output: ModuleShape) -> Value:
    tape = r.tape
    with tape.scope() as scope:
        inner = _gated(r, x, layer.mlp_inputs) if r.structure.shape.gated_mlp else _plain(r, x, layer.mlp_inputs)
        result = project(r, inner, output)
        tape.drop(inner)
        return scope.returns(result)


def _gated(r: StepContext, x: Value, inputs: tuple[ModuleShape, ...]) -> Value:
    """`act(gate(x)) * up(x)`: keeps the gate, its activation and up.

    Source: `LlamaMLP.forward`; `Phi3MLP.forward` computes gate and up in one product and cuts it.
    """
    tape = r.tape
    with tape.scope() as scope:
        if len(inputs) == 1:
            return scope.returns(_gate_of_one(r, project(r, x, inputs[0])))
        gate = project(r, x, inputs[0])
        active = _activated(r, gate)
        tape.drop(gate)
        up = project(r, x, inputs[1])
        return scope.returns(multiply(tape, active, up))


def _gate_of_one(r: StepContext, together: Value) -> Value:
    tape = r.tape
    with tape.scope() as scope:
        half = together.elements // 2
        gate, up = narrow(tape, together, half), narrow(tape, together, half)
        tape.drop(together)
        active = _activated(r, gate)
        tape.drop(gate)
        return scope.returns(multiply(tape, up, active))


def _activated(r: StepContext, x: Value) -> Value:
    """One kernel, which keeps x; GPT-2's gelu is written out, one operation after the other.

    Source: `NewGELUActivation` in transformers/activations.py.
    """
    tape = r.tape
    if r.structure.shape.hidden_act != "gelu_new":
        return pointwise(tape, x)
    with tape.scope() as scope:
        half = scale(tape, x)
        cube = pointwise(tape, x, scratch=2)
        small = scale(tape, cube)
        tape.drop(cube)
        inner = add(tape, x, small)
        tape.drop(small)
        scaled = scale(tape, inner)
        tape.drop(inner)
        bounded = pointwise(tape, scaled, saves_result=True)
        tape.drop(scaled)
        raised = add_number(tape, bounded)
        tape.drop(bounded)
        return scope.returns(multiply(tape, half, raised))


def _plain(r: StepContext, x: Value, inputs: tuple[ModuleShape, ...]) -> Value:
    tape = r.tape
    with tape.scope() as scope:
        wide = project(r, x, inputs[0])
        active = _activated(r, wide)
        tape.drop(wide)
        return scope.returns(active)


@dataclass(frozen=True)
class _Expert:
    """The linear layers of one expert: modules of their own, or slices of stacked weights."""

    inputs: tuple[ModuleShape, ...]
    output: ModuleShape | None
    inner: int


def _experts(r: StepContext, x: Value, layer: LayerStructure) -> Value:
    """Route every token to some experts: their inputs are copies of its state, their answers are weighted and summed.

    Tokens are taken to be spread evenly, as the routers' balancing loss aims at.

    Source: `MixtralSparseMoeBlock.forward` and `MixtralExperts.forward`, transformers/models/mixtral/modeling_mixtral.py.
    """
    tape, shape = r.tape, r.structure.shape
    with tape.scope() as scope:
        scores = _route(r, x, layer)
        if not layer.expert_linears:
            return scope.returns(_stacked_experts(r, x, scores, shape.moe_intermediate_size or shape.intermediate_size))
        groups = min(shape.num_experts, _MOST_EXPERTS_SIMULATED)
        rows = _asked_rows(r) // groups
        expert = _one_expert(shape.hidden_size, layer, shape.moe_intermediate_size or shape.intermediate_size)
        summed = tape.value(x.elements, x.width)
        for _ in range(groups):
            answer = _ask_expert(r, x, expert, rows, scores)
            summed = _added_at_index(r, summed, answer)
            tape.drop(answer)
        return scope.returns(summed)


def _asked_rows(r: StepContext) -> int:
    """Tokens, each as often as experts are asked about it; one, where a model gives no number."""
    return r.tokens * max(1, r.structure.shape.num_experts_per_token)


def _stacked_experts(r: StepContext, x: Value, scores: Value, inner: int) -> Value:
    """All experts at once, on copies of the tokens that are sorted by expert; their answers are weighted and summed.

    Source: `grouped_mm_experts_forward`, transformers/integrations/moe.py.
    """
    tape, shape = r.tape, r.structure.shape
    hidden, width = shape.hidden_size, r.workload.precision.weights
    rows = _asked_rows(r)
    with tape.scope() as scope:
        order = tape.value(rows, 8)
        taken = _taken_at_index(r, x, rows * hidden, order)
        sorted_scores = _taken_at_index(r, scores, rows, tape.value(rows, 8))
        ends = tape.value(shape.num_experts, 4)  # where each expert's rows end, which both products keep
        together = _grouped_linear(r, taken, r.weight(shape.num_experts * 2 * inner * hidden, width), ends)
        gated = _gate_of_one(r, together)
        tape.drop(together)
        answer = _grouped_linear(r, gated, r.weight(shape.num_experts * inner * hidden, width), ends)
        tape.drop(gated)
        weighted = multiply(tape, answer, sorted_scores)
        tape.drop(answer)
        ordered = assign(tape, weighted, _taken_at_index(r, weighted, rows * hidden, tape.value(rows, 8)))
        # The gradient of a sum is a view of the one that arrives.
        summed = tape.operation(
            (ordered,), elements=x.elements, width=ordered.width, backward=lambda gradient: (share(gradient),)
        )
        tape.drop(ordered)
        return scope.returns(cast(tape, summed, x.width))


def _grouped_linear(r: StepContext, x: Value, weight: Parameter, ends: Value) -> Value:
    """One product for all experts, of rows that are sorted by expert."""
    tape, rows = r.tape, _asked_rows(r)
    x_size, x_needs = x.elements * x.width, needs_gradient(x)
    out_features = weight.elements // r.structure.shape.num_experts // (x.elements // rows)

    def backward(_: Storage) -> Gradients:
        of_x = tape.allocate(x_size) if x_needs else None
        of_weight = tape.allocate(weight.elements * weight.width) if weight.trainable else None
        return (of_x, of_weight)

    saved: list[Value | Parameter] = [ends, *([x] if weight.trainable else [])]
    return tape.operation((x, weight), elements=rows * out_features, width=x.width, backward=backward, saved=saved)


def _route(r: StepContext, x: Value, layer: LayerStructure) -> Value:
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
        chosen = _shares_of_chosen(r, probabilities)
        stays_wide = shape.model_type in _SCORES_AT_32_BITS
        return scope.returns(chosen if stays_wide else cast(tape, chosen, x.width))


def _shares_of_chosen(r: StepContext, probabilities: Value) -> Value:
    """`topk`, which keeps their positions, divided in place by their sum: both factors are kept."""
    tape = r.tape
    rows = _asked_rows(r)
    with tape.scope() as scope:
        back = probabilities.elements * 4
        chosen = tape.operation(
            (probabilities,),
            elements=rows,
            width=4,
            backward=lambda _: (tape.allocate(back),),
            saved=(tape.value(rows, 8),),
        )
        before, total = tape.value(rows, 4), tape.value(r.tokens, 4)
        divided = tape.alias(chosen)
        if needs_gradient(chosen) and tape.records_gradients:
            divided = tape.operation(
                (chosen,), elements=rows, width=4, backward=lambda _: (tape.allocate(rows * 4),), saved=(before, total)
            )
        tape.drop(before, total)
        return scope.returns(divided)


def _one_expert(hidden: int, layer: LayerStructure, inner: int) -> _Expert:
    if not layer.expert_linears:
        return _Expert((), None, inner)
    first = layer.expert_linears[: len(layer.expert_linears) // max(1, _count_experts(layer))]
    output = next(module for module in first if module.out_features == hidden)
    return _Expert(tuple(module for module in first if module is not output), output, inner)


def _count_experts(layer: LayerStructure) -> int:
    names = {module.name.rsplit(".", 1)[0] for module in layer.expert_linears}
    return len(names)


def _ask_expert(r: StepContext, x: Value, expert: _Expert, rows: int, scores: Value) -> Value:
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


def _taken_at_index(r: StepContext, x: Value, elements: int, index: Value | None = None) -> Value:
    """`x[tokens]`: a copy, which keeps the index; its gradient is a tensor of x's size."""
    tape, size = r.tape, x.elements * x.width
    return tape.operation(
        (x,),
        elements=elements,
        width=x.width,
        backward=lambda _: (tape.allocate(size),),
        saved=(index,) if index is not None else (),
    )


def _added_at_index(r: StepContext, target: Value, answer: Value) -> Value:
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
