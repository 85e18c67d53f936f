"""A decoder's layers and the role of each module in them, read off the module inventory."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from engine.models.shape import ModelShape, ModuleShape

_LAYER = re.compile(r"^(.*?\.(\d+))\.(.+)$")
_ATTENTION = re.compile(r"(^|\.)[a-z_]*(attn|attention)[a-z_0-9]*(\.|$)", re.IGNORECASE)
_ATTENTION_OUTPUT = ("o_proj", "out_proj", "c_proj", "dense", "wo", "out", "proj")
_MLP_OUTPUT = ("down_proj", "c_proj", "fc2", "dense_4h_to_h", "fc_out", "w2", "wo", "out_proj", "output_linear")
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
    count: int = 1

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
    """The whole decoder: layer kinds, and what stands before and after the layers."""

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


def read_structure(shape: ModelShape) -> ModelStructure:
    """Group the modules of a model into kinds of layers, and give each module its role."""
    by_layer: dict[str, list[tuple[str, ModuleShape]]] = {}
    outside: list[ModuleShape] = []
    for module in shape.modules:
        match = _LAYER.match(module.name)
        if match is None:
            outside.append(module)
        else:
            by_layer.setdefault(match[1], []).append((match[3], module))
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
        final_norms=tuple(m for m in outside if m.kind == "norm"),
        head=next((m for m in outside if m.is_output_head), None),
        parallel=shape.model_type in _PARALLEL_TYPES or norms == {1},
        outside=tuple(outside),
    )


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
            (head_norms if in_attention else norms).append(module)
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
    return LayerStructure(
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


def _split(
    members: list[tuple[str, ModuleShape]], output_names: tuple[str, ...], hidden_size: int
) -> tuple[tuple[ModuleShape, ...], ModuleShape | None]:
    """Tell the projection back to the hidden size from those away from it."""
    back = [m for suffix, m in members if suffix.rsplit(".", 1)[-1] in output_names and m.out_features == hidden_size]
    if not back:
        back = [module for _, module in members if module.out_features == hidden_size]
    output = back[-1] if back else None
    return tuple(module for _, module in members if module is not output), output
