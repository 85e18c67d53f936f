"""Steps of other trainers than Loratory's: transformers' losses, fused kernels, caches, and reentrant checkpointing."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from loratory.engine.memory.autograd.tape import Tape
from loratory.engine.memory.autograd.tensors import Gradients, Group, Parameter, Storage, Value, needs_gradient, share
from loratory.engine.memory.layers.decoder import decoder_layer, input_is_leaf
from loratory.engine.memory.layers.feedforward import gated_product, route
from loratory.engine.memory.layers.losses import cross_entropy, loss_of_trained_positions
from loratory.engine.memory.layers.modules import normalize
from loratory.engine.memory.layers.step_context import StepContext, in_scope
from loratory.engine.memory.methods.registry import project
from loratory.engine.memory.phases import BytesByGroup, StepPeaks, StepRules, simulate_step
from loratory.engine.memory.structure import AdapterTargets, LayerStructure, ModelStructure
from loratory.engine.memory.workload import Loss, Workload
from loratory.engine.models.shape import ModuleShape

LossPath = Literal[
    "full_logits",  # transformers' ForCausalLMLoss on all positions
    "fused",  # a kernel that overwrites the logits with their gradient (FOAK, Unsloth)
    "linear_fused",  # a kernel that never holds all logits (Liger, cut cross-entropy)
    "trained_positions",  # Loratory's own
]


_MOST_EXPERTS_SIMULATED = 8


@dataclass(frozen=True)
class PlainLoss(Loss):
    """How logits become a loss in other trainers."""

    path: LossPath = "full_logits"
    upcasts: bool = True  # logits are cast to 32 bits before the loss
    shifts: bool = False  # the positions are shifted by copying the logits, as transformers did before 4.49
    # The logits before the cast are still held by a variable while the loss is computed.
    holds_narrow_logits: bool = True
    converts_output: bool = False  # Accelerate answers a model under autocast with a 32-bit copy of its output
    holds_logits: bool = False  # the caller keeps the model's output through the backward pass


@dataclass(frozen=True)
class PlainWorkload(Workload):
    """A training step as other trainers run it."""

    loss: PlainLoss = PlainLoss()
    reentrant: bool = False  # the way of checkpointing
    keeps_cache: bool = False  # keys and values of all layers are kept in a cache although nothing reads it

    @property
    def has_quick_layers(self) -> bool:
        """Adapted layers are PEFT's."""
        return False


class PlainTape(Tape):
    """Autograd with reentrant checkpointing, and as a dispatch mode sees it.

    Args:
        reentrant: Checkpoint in that way.
        is_watched: A dispatch mode watches: autograd never adds in place, and what a kernel takes for itself is not seen.
    """

    def __init__(self, *, reentrant: bool = False, is_watched: bool = False) -> None:
        super().__init__()
        self.adds_in_place = not is_watched
        self._sees_scratch = not is_watched
        self.reentrant = reentrant

    def allocate_scratch(self, size: int) -> Storage:
        return super().allocate_scratch(size if self._sees_scratch else 0)

    def checkpoint(self, forward: Callable[[], Value], x: Value) -> Value:
        return self._checkpoint_reentrant(forward, x) if self.reentrant else super().checkpoint(forward, x)

    def _checkpoint_reentrant(self, forward: Callable[[], Value], x: Value) -> Value:
        """One node that keeps the input; in the backward pass the stretch runs forward whole, then backward."""
        # Source: `CheckpointFunction` in torch/utils/checkpoint.py.
        self.records_gradients = False
        result = forward()
        self.records_gradients = True

        def backward(output_gradient: Storage) -> Gradients:
            leaf = Parameter(x.elements, x.width, trainable=True)
            producer, x.producer = x.producer, leaf
            nodes, self._nodes = self._nodes, []
            variables = self.enter_scope()
            output = forward()
            self._accumulate(output.producer, share(output_gradient))
            self._visit(self._nodes)
            self.leave_scope(variables)
            x.producer, self._nodes = producer, nodes
            return (leaf.gradient,)

        node = self.node((x,), backward)
        self._save(node, x)
        result.producer = node
        return result


def simulate_plain_step(
    structure: ModelStructure, workload: PlainWorkload, targets: AdapterTargets, *, is_watched: bool = False
) -> StepPeaks:
    """Simulate one forward and backward pass of another trainer on sizes alone."""
    tape = partial(PlainTape, reentrant=workload.reentrant, is_watched=is_watched)
    rules = StepRules(tape, plain_layer, plain_loss)
    step = simulate_step(structure, workload, targets, rules)
    if workload.loss.holds_logits and input_is_leaf(workload):
        # The graph hangs on the logits, and on the graph its leaf: the first layer's input with its own gradient.
        hidden = workload.tokens * structure.shape.hidden_size * workload.precision.embeddings
        step.peaks["optimizer_step"] += BytesByGroup(activations=2 * hidden)
    return step


def plain_layer(r: StepContext, x: Value, layer: LayerStructure) -> Value:
    """Run a decoder layer, and put its keys and values into a cache."""
    if any(module.is_quantizable for module in layer.experts):
        result = _layer_with_module_experts(r, x, layer)
    else:
        result = decoder_layer(r, x, layer)
    if _workload(r).keeps_cache and not r.tape.in_backward:
        cache = r.tape.value(_cache_bytes(r), 1)
        r.hold_until_forward_ends(cache)
        r.tape.drop(cache)
    return result


@in_scope
def _layer_with_module_experts(r: StepContext, x: Value, layer: LayerStructure) -> Value:
    """Run a layer in which each expert is a module, as before transformers 5."""
    tape = r.tape
    middle = decoder_layer(r, x, replace(layer, router=None, experts=()))
    normed = normalize(r, middle, layer.norms[1])
    return tape.add(middle, tape.assign(normed, _module_experts(r, normed, layer)))


@in_scope
def _module_experts(r: StepContext, x: Value, layer: LayerStructure) -> Value:
    """Route every token to some experts: their inputs are copies of its state, their answers are weighted and summed.

    Tokens are taken to be spread evenly. More than some experts are simulated in groups, within which scratch is coarser.

    Source: `MixtralSparseMoeBlock.forward`, transformers/models/mixtral/modeling_mixtral.py of transformers 4.
    """
    tape, shape = r.tape, r.structure.shape
    scores = route(r, x, layer)
    groups = min(shape.num_experts, _MOST_EXPERTS_SIMULATED)
    rows = r.tokens * max(1, shape.num_experts_per_token) // groups
    expert = layer.experts[: len(layer.experts) // shape.num_experts]
    total = tape.value(x.elements, x.width)
    for _ in range(groups):
        answer = _run_expert(r, x, expert, rows, scores)
        _add_at_index(r, total, answer)
        tape.drop(answer)
    return total


@in_scope
def _run_expert(r: StepContext, x: Value, expert: tuple[ModuleShape, ...], rows: int, scores: Value) -> Value:
    tape, hidden = r.tape, r.structure.shape.hidden_size
    output = next(module for module in expert if module.out_features == hidden)
    expert_inputs = tape.operation((x,), rows * hidden, x.width)
    inner = gated_product(r, expert_inputs, tuple(module for module in expert if module is not output))
    answer = tape.assign(inner, project(r, inner, output))
    return tape.multiply(answer, tape.view(scores, rows))


def _add_at_index(r: StepContext, target: Value, answer: Value) -> None:
    """`target.index_add_(…)`, in place; the answer's gradient is gathered from the target's."""
    tape, size = r.tape, answer.size
    needs_target = needs_gradient(target)

    def backward(gradient: Storage) -> Gradients:
        answer_gradient = tape.allocate(size)
        return (share(gradient) if needs_target else None, answer_gradient)

    if needs_gradient(answer) and tape.records_gradients:
        target.producer = tape.node((target, answer), backward)


def _workload(r: StepContext) -> PlainWorkload:
    assert isinstance(r.workload, PlainWorkload)
    return r.workload


def _cache_bytes(r: StepContext) -> int:
    """Return the keys and values of one layer: a view of the fused projection keeps all of it."""
    precision = r.workload.precision
    if r.workload.base == "dense":
        width = precision.autocast or precision.weights
    elif r.structure.layers[0].norms[0].class_name == "LayerNorm":
        width = 4 if precision.autocast and r.on_cuda else precision.embeddings
    else:  # quantized layers answer as wide as the norm before them
        width = max(precision.embeddings, precision.norms)
    return r.tokens * sum(module.out_features for module in r.structure.layers[0].attention_inputs) * width


def plain_loss(r: StepContext, hidden: Value) -> Value:
    """Run the output head and the loss that the step names."""
    path = _workload(r).loss.path
    if path == "trained_positions":
        assert isinstance(r.tape, PlainTape)
        r.tape.reentrant = False  # whose chunks are never checkpointed so
        return loss_of_trained_positions(r, hidden)
    return _linear_fused(r, hidden) if path == "linear_fused" else _full_logits(r, hidden)


def _head_module(r: StepContext) -> ModuleShape:
    """Return the output head; where it is tied, a linear layer on the embedding's weight."""
    shape = r.structure.shape
    return r.structure.head or ModuleShape(
        name="lm_head",
        kind="linear",
        parameters=0,
        in_features=shape.hidden_size,
        out_features=shape.vocab_size,
        is_output_head=True,
    )


@in_scope
def _full_logits(r: StepContext, hidden: Value) -> Value:
    """Compute all logits, upcast to 32 bits, then cross-entropy.

    Source: `ForCausalLMLoss`, transformers/loss/loss_utils.py; before transformers 4.49 it shifted the logits, later
    the labels; before 4.46 each model had a loss of its own, which released the logits before the cast.
    """
    tape, loss = r.tape, _workload(r).loss
    module = _head_module(r)
    positions = hidden.elements // module.in_features
    logits = project(r, hidden, module)
    if r.structure.shape.final_logit_softcapping is not None:
        logits = tape.soft_cap(logits)
    if loss.upcasts and not loss.holds_narrow_logits:
        logits = tape.assign(logits, tape.cast(logits, 4))
    wide = tape.cast(logits, 4 if loss.upcasts else logits.width)
    padded = tape.value(positions + r.workload.batch_size, 8)
    labels = tape.value(positions, 8)
    shifted_logits = _shift_logits(r, wide) if loss.shifts else wide
    value = (
        _fused_cross_entropy(r, shifted_logits) if loss.path == "fused" else cross_entropy(r, shifted_logits, labels)
    )
    tape.drop(padded, labels, wide, shifted_logits)
    if loss.converts_output:
        logits = tape.assign(logits, tape.cast(logits, 4))
    if loss.holds_logits:
        share(logits.storage)
    return value


@in_scope
def _shift_logits(r: StepContext, logits: Value) -> Value:
    """`logits[..., :-1, :].contiguous()`: a copy forward, and a second one of its gradient backward."""
    rows = r.workload.batch_size * (r.workload.length - 1)
    return r.tape.clone(r.tape.view(logits, logits.elements // r.tokens * rows))


def _fused_cross_entropy(r: StepContext, logits: Value) -> Value:
    """Run a kernel that keeps the logits and one number a row, and writes the gradient over the logits."""
    # Source: `Fast_CrossEntropyLoss`, unsloth/kernels/cross_entropy_loss.py, also in fms-acceleration.
    statistics = r.tape.value(logits.elements // r.structure.shape.vocab_size * 2, 4)
    saved = (logits, statistics)
    loss = r.tape.operation((logits,), 1, 4, backward=lambda _: (share(logits.storage),), saved=saved)
    return r.tape.assign(statistics, loss)


@in_scope
def _linear_fused(r: StepContext, hidden: Value) -> Value:
    """Head and loss in one function that computes its gradients forward, chunk by chunk, and holds no more logits."""
    # Source: `fused_linear_cross_entropy_forward`, liger_kernel/ops/fused_linear_cross_entropy.py (arXiv:2410.10989).
    tape, shape, precision = r.tape, r.structure.shape, r.workload.precision
    width = precision.autocast or precision.head
    rows = hidden.elements // shape.hidden_size
    chunks = -(-shape.vocab_size // shape.hidden_size)
    chunk = 1 << max(0, (-(-rows // chunks) - 1).bit_length())
    weight = r.weight(shape.vocab_size * shape.hidden_size, precision.head)
    hidden = tape.cast(hidden, width)
    grad_hidden = tape.value(hidden.elements, width)
    grad_weight = tape.value(weight.elements if weight.trainable else 0, weight.width, group=Group.GRADIENTS)
    tape.use(min(chunk, rows) * shape.vocab_size * width, weight.size if weight.trainable else 0)

    def backward(_: Storage) -> Gradients:
        return (share(grad_hidden.storage), share(grad_weight.storage) if weight.trainable else None)

    return tape.operation((hidden, weight), 1, 4, backward=backward, saved=(grad_hidden, grad_weight))
