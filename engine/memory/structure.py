"""A decoder's layers and the role of each module in them, read off the module inventory."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from engine.errors import MemoryUnknownError
from engine.models.shape import ModelShape, ModuleShape

_LAYER = re.compile(r"^(.*?\.(\d+))\.(.+)$")
_ATTENTION = re.compile(r"(^|\.)[a-z_]*(attn|attention)[a-z_0-9]*(\.|$)", re.IGNORECASE)
_ATTENTION_OUTPUT = ("o_proj", "out_proj", "c_proj", "dense", "wo", "out", "proj")
_MLP_OUTPUT = ("down_proj", "c_proj", "fc2", "dense_4h_to_h", "fc_out", "w2", "wo", "out_proj", "output_linear")
_MAY_TRAIN = "Train it without an estimate: what a run takes is shown while it trains."
_PARALLEL_TYPES = frozenset({"gpt_neox", "gptj", "codegen", "falcon", "phi", "cohere", "cohere2", "gpt_neox_japanese"})


@dataclass(frozen=True)
class LayerStructure:
    """One kind of decoder layer and how many of them there are."""

    attention_inputs: tuple[ModuleShape, ...]
    attention_output: ModuleShape | None
    mlp_inputs: tuple[ModuleShape, ...]
    mlp_output: ModuleShape | None
    norms: tuple[ModuleShape, ...]  # over the hidden size
    head_norms: tuple[ModuleShape, ...]  # over queries and keys
    router: ModuleShape | None = None
    experts: tuple[ModuleShape, ...] = ()
    expert_linears: tuple[ModuleShape, ...] = ()  # where every expert is a module of its own
    others: tuple[ModuleShape, ...] = ()
    # Products of a mixer that is not attention as it is simulated: state spaces, convolutions, latent attention. In order.
    mixer: tuple[ModuleShape, ...] = ()
    count: int = 1

    @property
    def has_feed_forward(self) -> bool:
        return bool(self.experts or self.expert_linears or self.has_dense_feed_forward)

    @property
    def has_dense_feed_forward(self) -> bool:
        return self.mlp_output is not None and bool(self.mlp_inputs)

    @property
    def modules(self) -> tuple[ModuleShape, ...]:
        outputs = [m for m in (self.attention_output, self.mlp_output, self.router) if m is not None]
        return (
            *self.attention_inputs,
            *self.mlp_inputs,
            *outputs,
            *self.norms,
            *self.head_norms,
            *self.experts,
            *self.expert_linears,
            *self.others,
        )


@dataclass(frozen=True)
class ModelStructure:
    """The whole decoder: layer kinds, and what comes before and after the layers."""

    shape: ModelShape
    layers: tuple[LayerStructure, ...]
    embeddings: tuple[ModuleShape, ...]
    final_norms: tuple[ModuleShape, ...]
    head: ModuleShape | None
    parallel: bool  # attention and feed-forward read the same input
    outside: tuple[ModuleShape, ...] = field(default=())

    @property
    def has_layer_norm(self) -> bool:
        """Whether its norms are `torch.nn.LayerNorm`, not root-mean-square norms."""
        return any(norm.class_name == "LayerNorm" for norm in (*self.final_norms, *self.layers[0].norms))

    @property
    def num_layers(self) -> int:
        return sum(layer.count for layer in self.layers)

    @property
    def is_approximate(self) -> bool:
        """Whether some layers mix tokens in a way that is estimated by the size of its products alone."""
        return any(layer.mixer for layer in self.layers)


def read_structure(shape: ModelShape) -> ModelStructure:
    """Group the modules of a model into kinds of layers, and give each module its role.

    Raises:
        MemoryUnknownError: If it has no layers, or one with a product of unknown size.
    """
    by_layer, outside = _grouped(shape)
    _require_sizes(shape, by_layer)
    kinds: Counter[tuple[object, ...]] = Counter()
    first: dict[tuple[object, ...], list[tuple[str, ModuleShape]]] = {}
    for members in by_layer.values():
        signature = tuple((suffix, m.kind, m.in_features, m.out_features, m.parameters) for suffix, m in members)
        kinds[signature] += 1
        first.setdefault(signature, members)
    layers = tuple(_read_layer(shape, first[signature], count) for signature, count in kinds.items())
    norms = {len(layer.norms) for layer in layers}
    return ModelStructure(
        shape=shape,
        layers=layers,
        embeddings=tuple(m for m in outside if m.kind == "embedding" and not m.is_output_head),
        final_norms=tuple(
            m if m.out_features else m.model_copy(update={"out_features": shape.hidden_size})
            for m in outside
            if m.kind == "norm"
        ),
        head=next((m for m in outside if m.is_output_head), None),
        parallel=shape.model_type in _PARALLEL_TYPES or norms == {1},
        outside=tuple(outside),
    )


def decoder_layers(shape: ModelShape) -> dict[str, tuple[ModuleShape, ...]]:
    """The modules of each layer of the language model by the layer's name, in order.

    Raises:
        MemoryUnknownError: If it has no layers.
    """
    by_layer, _ = _grouped(shape)
    return {name: tuple(module for _, module in members) for name, members in by_layer.items()}


def _grouped(shape: ModelShape) -> tuple[dict[str, list[tuple[str, ModuleShape]]], list[ModuleShape]]:
    """Modules by layer, each with its name within the layer, and those outside."""
    by_layer: dict[str, list[tuple[str, ModuleShape]]] = {}
    outside: list[ModuleShape] = []
    for module in shape.modules:
        match = _LAYER.match(module.name)
        if match is None:
            outside.append(module)
        else:
            by_layer.setdefault(match[1], []).append((match[3], module))
    by_layer = _of_decoder(by_layer, shape)
    if not by_layer:
        raise MemoryUnknownError(f"No layers were found among the modules of {shape.architecture}.", _MAY_TRAIN)
    return by_layer, outside


def _require_sizes(shape: ModelShape, by_layer: dict[str, list[tuple[str, ModuleShape]]]) -> None:
    for members in by_layer.values():
        for _, module in members:
            if module.kind in ("linear", "conv1d") and min(module.in_features, module.out_features) < 1:
                size = f"{module.in_features} × {module.out_features}"
                raise MemoryUnknownError(f"{module.name} of {shape.architecture} has a size of {size}.", _MAY_TRAIN)


def _of_decoder(
    by_layer: dict[str, list[tuple[str, ModuleShape]]], shape: ModelShape
) -> dict[str, list[tuple[str, ModuleShape]]]:
    """The layers of the language model: those that are as many as it has, or else have the most parameters.

    Towers for pictures and sound are always there and never run on text.
    """
    stacks: dict[str, dict[str, list[tuple[str, ModuleShape]]]] = {}
    for prefix, members in by_layer.items():
        stacks.setdefault(prefix.rpartition(".")[0], {})[prefix] = members

    def worth(stack: dict[str, list[tuple[str, ModuleShape]]]) -> tuple[bool, int]:
        parameters = sum(module.parameters for members in stack.values() for _, module in members)
        return len(stack) == shape.num_hidden_layers, parameters

    return max(stacks.values(), key=worth, default={})


def _read_layer(shape: ModelShape, members: Iterable[tuple[str, ModuleShape]], count: int) -> LayerStructure:
    attention: list[tuple[str, ModuleShape]] = []
    feedforward: list[tuple[str, ModuleShape]] = []
    norms: list[ModuleShape] = []
    head_norms: list[ModuleShape] = []
    experts: list[ModuleShape] = []
    expert_linears: list[ModuleShape] = []
    others: list[ModuleShape] = []
    router: ModuleShape | None = None
    for suffix, module in members:
        in_attention = _ATTENTION.search(suffix.rpartition(".")[0]) is not None
        if module.kind == "norm":
            over = shape.head_dim if in_attention else shape.hidden_size
            # A norm without a weight has no size of its own.
            known = module if module.out_features else module.model_copy(update={"out_features": over})
            (head_norms if in_attention else norms).append(known)
        elif module.kind == "router":
            router = module
        elif module.kind == "experts":
            experts.append(module)
        elif module.kind in ("linear", "conv1d"):
            if re.search(r"experts\.\d+\.", suffix):
                expert_linears.append(module)
            elif in_attention:
                attention.append((suffix, module))
            elif shape.num_experts and module.out_features == shape.num_experts:
                router = module
            else:
                feedforward.append((suffix, module))
        else:
            others.append(module)
    attention_inputs, attention_output = _split(attention, _ATTENTION_OUTPUT, shape.hidden_size)
    mlp_inputs, mlp_output = _split(feedforward, _MLP_OUTPUT, shape.hidden_size)
    layer = LayerStructure(
        attention_inputs=attention_inputs,
        attention_output=attention_output,
        mlp_inputs=mlp_inputs,
        mlp_output=mlp_output,
        norms=tuple(norms),
        head_norms=tuple(head_norms),
        router=router,
        experts=tuple(experts),
        expert_linears=tuple(expert_linears),
        others=tuple(others),
        count=count,
    )
    if _attends_plainly(layer, shape.hidden_size):
        return layer
    products = [module for _, module in members if module.kind in ("linear", "conv1d")]
    elsewhere = (*mlp_inputs, mlp_output) if layer.has_dense_feed_forward else ()
    placed = {module.name for module in (*elsewhere, *expert_linears, router) if module is not None}
    mixer = tuple(module for module in products if module.name not in placed)
    return replace(layer, mixer=mixer, attention_inputs=(), attention_output=None)


def _attends_plainly(layer: LayerStructure, hidden_size: int) -> bool:
    """Whether queries, keys and values come straight from the hidden states, by three products or one."""
    inputs = layer.attention_inputs
    straight = len(inputs) in (1, 3) and all(module.in_features == hidden_size for module in inputs)
    return straight and layer.attention_output is not None and layer.has_feed_forward


def _split(
    members: list[tuple[str, ModuleShape]], output_names: tuple[str, ...], hidden_size: int
) -> tuple[tuple[ModuleShape, ...], ModuleShape | None]:
    """Tell the projection back to the hidden size from those away from it."""
    back = [m for suffix, m in members if suffix.rsplit(".", 1)[-1] in output_names and m.out_features == hidden_size]
    if not back:
        back = [module for _, module in members if module.out_features == hidden_size]
    output = back[-1] if back else None
    return tuple(module for _, module in members if module is not output), output
