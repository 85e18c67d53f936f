"""Feed-forward blocks: gated and plain, dense and with experts."""

from loratory.engine.memory.autograd.tensors import Parameter, Value, needs_gradient, share
from loratory.engine.memory.layers.step_context import StepContext, in_scope
from loratory.engine.memory.methods.registry import project, project_each
from loratory.engine.memory.structure import LayerStructure
from loratory.engine.models.shape import ModuleShape

# Routers that answer at 32 bits, so answers are weighted and summed at 32 bits: `MixtralTopKRouter`.
_SCORES_AT_32_BITS = frozenset({"mixtral"})


@in_scope
def feed_forward(r: StepContext, x: Value, layer: LayerStructure) -> Value:
    """Widen, activate, narrow; with experts, each token by some of them."""
    tape = r.tape
    result = _experts(r, x, layer) if layer.experts else None
    if layer.mlp_output is not None:
        shared = _dense(r, x, layer, layer.mlp_output)
        if any(module.name.endswith("shared_expert_gate") for module in layer.modules):
            shared = tape.assign(shared, _apply_shared_gate(r, x, shared))
        both = shared if result is None else tape.add(result, shared)
        if result is not None:
            tape.drop(result, shared)
        result = both
    assert result is not None
    return r.drop_out(result, r.structure.shape.hidden_dropout)


@in_scope
def _apply_shared_gate(r: StepContext, x: Value, shared: Value) -> Value:
    """`sigmoid(gate(x)) * shared(x)`: how much each token takes of the expert that all tokens ask."""
    # Source: `Qwen2MoeSparseMoeBlock.forward`, transformers/models/qwen2_moe/modeling_qwen2_moe.py.
    weight = r.weight(r.structure.shape.hidden_size, r.workload.precision.weights)
    return r.tape.multiply(shared, r.tape.pointwise(r.tape.linear(x, weight, 1), saves_result=True))


@in_scope
def _dense(r: StepContext, x: Value, layer: LayerStructure, output: ModuleShape) -> Value:
    if r.structure.shape.gated_mlp:
        return project(r, gated_product(r, x, layer.mlp_inputs), output)
    wide = project(r, x, layer.mlp_inputs[0])
    return project(r, r.tape.assign(wide, _activate(r, wide)), output)


@in_scope
def gated_product(r: StepContext, x: Value, inputs: tuple[ModuleShape, ...]) -> Value:
    """`act(gate(x)) * up(x)`: keeps the gate, its activation and up."""
    # Source: `LlamaMLP.forward`; `Phi3MLP.forward` computes gate and up in one product and cuts it.
    if len(inputs) == 1:
        return _gate_of_one(r, project(r, x, inputs[0]))
    projected = project_each(r, x, inputs)
    gate = next(projected)
    active = r.tape.assign(gate, _activate(r, gate))
    return r.tape.multiply(active, next(projected))


@in_scope
def _gate_of_one(r: StepContext, together: Value) -> Value:
    tape, half = r.tape, together.elements // 2
    gate, up = tape.view(together, half), tape.view(together, half)
    tape.drop(together)
    active = tape.assign(gate, _activate(r, gate))
    return tape.multiply(up, active)


@in_scope
def _activate(r: StepContext, x: Value) -> Value:
    """One kernel, which keeps x; GPT-2's gelu is written out, one operation after the other."""
    # Source: `NewGELUActivation` in transformers/activations.py.
    tape = r.tape
    if r.structure.shape.hidden_act != "gelu_new":
        return tape.pointwise(x)
    half = tape.scale(x)
    inner = tape.pointwise(x, scratch=2)  # the cube
    inner = tape.assign(inner, tape.scale(inner))
    inner = tape.assign(inner, tape.add(x, inner))
    inner = tape.assign(inner, tape.scale(inner))
    inner = tape.assign(inner, tape.pointwise(inner, saves_result=True))
    inner = tape.assign(inner, tape.clone(inner))  # and one more
    return tape.multiply(half, inner)


@in_scope
def _experts(r: StepContext, x: Value, layer: LayerStructure) -> Value:
    """All experts at once, on copies of the tokens that are sorted by expert; their answers are weighted and summed.

    Tokens are taken to be spread evenly, as the routers' balancing loss aims at.

    Source: `grouped_mm_experts_forward`, transformers/integrations/moe.py.
    """
    tape, shape = r.tape, r.structure.shape
    scores = route(r, x, layer)
    hidden, inner = shape.hidden_size, shape.moe_intermediate_size or shape.intermediate_size
    rows, width = _routed_rows(r), r.workload.precision.weights
    order = tape.value(rows, 8)
    expert_inputs = _index_rows(r, x, rows * hidden, order)
    sorted_scores = _index_rows(r, scores, rows, tape.value(rows, 8))
    ends = tape.value(shape.num_experts, 4)  # where each expert's rows end, which both products keep
    together = _grouped_linear(r, expert_inputs, r.weight(shape.num_experts * 2 * inner * hidden, width), ends)
    gated = tape.assign(together, _gate_of_one(r, together))
    answer = _grouped_linear(r, gated, r.weight(shape.num_experts * inner * hidden, width), ends)
    tape.drop(gated)
    weighted = tape.assign(answer, tape.multiply(answer, sorted_scores))
    answers = tape.assign(weighted, _index_rows(r, weighted, rows * hidden, tape.value(rows, 8)))
    # The gradient of a sum is a view of the one that arrives.
    total = tape.operation((answers,), x.elements, answers.width, backward=lambda gradient: (share(gradient),))
    tape.drop(answers)
    return tape.cast(total, x.width)


def _routed_rows(r: StepContext) -> int:
    """Tokens, each as often as experts are asked about it; one, where a model gives no number."""
    return r.tokens * max(1, r.structure.shape.num_experts_per_token)


def _grouped_linear(r: StepContext, x: Value, weight: Parameter, ends: Value) -> Value:
    """One product for all experts, of rows that are sorted by expert."""
    rows = _routed_rows(r)
    out_features = weight.elements // r.structure.shape.num_experts // (x.elements // rows)
    saved: list[Value | Parameter] = [ends, *([x] if weight.trainable else [])]
    return r.tape.operation((x, weight), rows * out_features, x.width, saved=saved)


@in_scope
def route(r: StepContext, x: Value, layer: LayerStructure) -> Value:
    """Router logits, their softmax at 32 bits, and the weights of the chosen experts."""
    tape, shape = r.tape, r.structure.shape
    if layer.router is not None and layer.router.kind == "linear":
        logits = project(r, x, layer.router)
    else:
        weight = r.weight(shape.num_experts * shape.hidden_size, r.workload.precision.weights)
        logits = tape.linear(x, weight, shape.num_experts)
    probabilities = tape.pointwise(tape.cast(logits, 4), saves_result=True)
    chosen = _shares_of_chosen(r, probabilities)
    return chosen if shape.model_type in _SCORES_AT_32_BITS else tape.cast(chosen, x.width)


@in_scope
def _shares_of_chosen(r: StepContext, probabilities: Value) -> Value:
    """`topk`, which keeps their positions, divided in place by their sum: both factors are kept."""
    tape, rows = r.tape, _routed_rows(r)
    chosen = tape.operation((probabilities,), rows, 4, saved=(tape.value(rows, 8),))
    factors = (tape.value(rows, 4), tape.value(r.tokens, 4))
    if needs_gradient(chosen) and tape.records_gradients:
        return tape.operation((chosen,), rows, 4, saved=factors)
    return tape.alias(chosen)


def _index_rows(r: StepContext, x: Value, elements: int, index: Value) -> Value:
    """`x[tokens]`: a copy, which keeps the index."""
    return r.tape.operation((x,), elements, x.width, saved=(index,))
