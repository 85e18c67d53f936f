"""A decoder's layers and the role of each module in them, and the modules that an adapter changes, as PEFT picks them."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from loratory.engine.config.run import AdapterConfig
from loratory.engine.config.vision import MODELS_OWN, VisionConfig
from loratory.engine.errors import ConfigError, MemoryUnknownError, Problem, shorten
from loratory.engine.memory.tower import Tower, read_tower
from loratory.engine.models.shape import EXPERT_PROJECTIONS, ModelShape, ModuleShape, PatternError, PatternMatcher

ALL_LINEAR = "all-linear"
_ADAPTABLE = ("linear", "conv1d", "embedding")
_LAYER = re.compile(r"^(.*?\.(\d+))\.(.+)$")
_ATTENTION = re.compile(r"(^|\.)[a-z_]*(attn|attention)[a-z_0-9]*(\.|$)", re.IGNORECASE)
_ATTENTION_OUTPUT = ("o_proj", "out_proj", "c_proj", "dense", "wo", "out", "proj")
_MLP_OUTPUT = ("down_proj", "c_proj", "fc2", "dense_4h_to_h", "fc_out", "w2", "wo", "out_proj", "output_linear")
_PRODUCTS = ("linear", "conv1d")
_MAY_TRAIN = "Train it without an estimate: what a run takes is shown while it trains."
_PARALLEL_TYPES = frozenset({"gpt_neox", "gptj", "codegen", "falcon", "phi", "cohere", "cohere2", "gpt_neox_japanese"})

_Members = list[tuple[str, ModuleShape]]  # of one layer, each with its name within the layer


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
    others: tuple[ModuleShape, ...] = ()
    # Products of a mixer that is not attention as it is simulated: state spaces, convolutions, latent attention. In order.
    mixer: tuple[ModuleShape, ...] = ()
    count: int = 1

    @property
    def has_feed_forward(self) -> bool:
        return bool(self.experts or self.has_dense_feed_forward)

    @property
    def has_dense_feed_forward(self) -> bool:
        return self.mlp_output is not None and bool(self.mlp_inputs)

    @property
    def modules(self) -> tuple[ModuleShape, ...]:
        outputs = [m for m in (self.attention_output, self.mlp_output, self.router) if m is not None]
        products = (*self.attention_inputs, *self.mlp_inputs, *outputs)
        return (*products, *self.norms, *self.head_norms, *self.experts, *self.others)


@dataclass(frozen=True)
class ModelStructure:
    """The whole decoder: layer kinds, and what comes before and after the layers."""

    shape: ModelShape
    layers: tuple[LayerStructure, ...]
    embeddings: tuple[ModuleShape, ...]
    final_norms: tuple[ModuleShape, ...]
    head: ModuleShape | None
    parallel: bool  # attention and feed-forward read the same input
    tower: Tower | None = None  # of a model that takes images

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
    by_layer, outside = _group_by_layer(shape)
    kinds: dict[tuple[object, ...], list[_Members]] = {}
    for members in by_layer.values():
        _require_sizes(shape, members)
        signature = tuple((suffix, m.kind, m.in_features, m.out_features, m.parameters) for suffix, m in members)
        kinds.setdefault(signature, []).append(members)
    layers = tuple(_read_layer(shape, equal[0], len(equal)) for equal in kinds.values())
    norms = {len(layer.norms) for layer in layers}
    return ModelStructure(
        shape=shape,
        layers=layers,
        embeddings=tuple(m for m in outside if m.kind == "embedding" and not m.is_output_head),
        final_norms=tuple(_with_size(m, shape.hidden_size) for m in outside if m.kind == "norm"),
        head=next((m for m in outside if m.is_output_head), None),
        parallel=shape.model_type in _PARALLEL_TYPES or norms == {1},
        tower=read_tower(shape),
    )


def decoder_layers(shape: ModelShape) -> dict[str, tuple[ModuleShape, ...]]:
    """Return the modules of each layer of the language model by the layer's name, in order.

    Raises:
        MemoryUnknownError: If it has no layers.
    """
    by_layer, _ = _group_by_layer(shape)
    return {name: tuple(module for _, module in members) for name, members in by_layer.items()}


def _group_by_layer(shape: ModelShape) -> tuple[dict[str, _Members], list[ModuleShape]]:
    """Return the modules by layer, each with its name within the layer, and those outside."""
    by_layer: dict[str, _Members] = {}
    outside: list[ModuleShape] = []
    for module in shape.modules:
        if module.part is not None:
            continue
        match = _LAYER.match(module.name)
        if match is None:
            outside.append(module)
        else:
            by_layer.setdefault(match[1], []).append((match[3], module))
    by_layer = _of_decoder(by_layer, shape)
    if not by_layer:
        raise MemoryUnknownError(f"No layers were found among the modules of {shape.architecture}.", _MAY_TRAIN)
    return by_layer, outside


def _require_sizes(shape: ModelShape, members: _Members) -> None:
    for _, module in members:
        if module.kind in _PRODUCTS and min(module.in_features, module.out_features) < 1:
            size = f"{module.in_features} × {module.out_features}"
            raise MemoryUnknownError(f"{module.name} of {shape.architecture} has a size of {size}.", _MAY_TRAIN)


def _of_decoder(by_layer: dict[str, _Members], shape: ModelShape) -> dict[str, _Members]:
    """Select the layers of the language model: those that are as many as it has, or else have the most parameters.

    Towers for sound are always there and never run on text.
    """
    stacks: dict[str, dict[str, _Members]] = {}
    for prefix, members in by_layer.items():
        stacks.setdefault(prefix.rpartition(".")[0], {})[prefix] = members

    def worth(stack: dict[str, _Members]) -> tuple[bool, int]:
        parameters = sum(module.parameters for members in stack.values() for _, module in members)
        return len(stack) == shape.num_hidden_layers, parameters

    return max(stacks.values(), key=worth, default={})


def _read_layer(shape: ModelShape, members: _Members, count: int) -> LayerStructure:
    roles: defaultdict[str, list[ModuleShape]] = defaultdict(list)
    for suffix, module in members:
        roles[_role(shape, suffix, module)].append(module)
    attention_inputs, attention_output = _split(roles["attention"], _ATTENTION_OUTPUT, shape.hidden_size)
    mlp_inputs, mlp_output = _split(roles["feedforward"], _MLP_OUTPUT, shape.hidden_size)
    router = roles["router"][-1] if roles["router"] else None
    layer = LayerStructure(
        attention_inputs=attention_inputs,
        attention_output=attention_output,
        mlp_inputs=mlp_inputs,
        mlp_output=mlp_output,
        norms=tuple(_with_size(norm, shape.hidden_size) for norm in roles["norms"]),
        head_norms=tuple(_with_size(norm, shape.head_dim) for norm in roles["head_norms"]),
        router=router,
        experts=tuple(roles["experts"]),
        others=tuple(roles["others"]),
        count=count,
    )
    if _attends_plainly(layer, shape.hidden_size):
        return layer
    elsewhere = (*mlp_inputs, mlp_output) if layer.has_dense_feed_forward else ()
    other_names = {module.name for module in (*elsewhere, router) if module is not None}
    mixer = tuple(module for _, module in members if module.kind in _PRODUCTS and module.name not in other_names)
    return replace(layer, mixer=mixer, attention_inputs=(), attention_output=None)


def _role(shape: ModelShape, suffix: str, module: ModuleShape) -> str:
    in_attention = _ATTENTION.search(suffix.rpartition(".")[0]) is not None
    if module.kind == "norm":
        return "head_norms" if in_attention else "norms"
    if module.kind in ("router", "experts"):
        return module.kind
    if module.kind not in _PRODUCTS:
        return "others"
    if in_attention:
        return "attention"
    return "router" if shape.num_experts and module.out_features == shape.num_experts else "feedforward"


def _with_size(norm: ModuleShape, size: int) -> ModuleShape:
    """Return a norm with this size where it has no weight, and so no size of its own."""
    return norm if norm.out_features else replace(norm, out_features=size)


def _attends_plainly(layer: LayerStructure, hidden_size: int) -> bool:
    """Return whether queries, keys and values come straight from the hidden states, by three products or one."""
    inputs = layer.attention_inputs
    straight = len(inputs) in (1, 3) and all(module.in_features == hidden_size for module in inputs)
    return straight and layer.attention_output is not None and layer.has_feed_forward


def _split(
    modules: list[ModuleShape], output_names: tuple[str, ...], hidden_size: int
) -> tuple[tuple[ModuleShape, ...], ModuleShape | None]:
    """Tell the projection back to the hidden size from those away from it."""
    back = [module for module in modules if module.out_features == hidden_size]
    by_name = [module for module in back if module.name.rsplit(".", 1)[-1] in output_names]
    output = next(reversed(by_name or back), None)
    return tuple(module for module in modules if module is not output), output


@dataclass(frozen=True)
class AdapterTargets:
    """Modules that get adapter weights, and modules that are trained in full."""

    modules: tuple[ModuleShape, ...]
    saved_in_full: tuple[ModuleShape, ...] = ()

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(module.name for module in self.modules)


def find_targets(shape: ModelShape, adapter: AdapterConfig, vision: VisionConfig = MODELS_OWN) -> AdapterTargets:
    """List the modules that `adapter` changes in a model of this shape, and those that are trained in full with it.

    Raises:
        ConfigError: If no module matches, or the regular expression is broken or takes too long.

    Source: PEFT `check_target_module_exists` and `_maybe_include_all_linear_layers` (peft/tuners/tuners_utils.py).
    """
    if not adapter.traits.adapts_layers:
        return AdapterTargets(modules=())
    _refuse_unknown_saved(shape, adapter.modules_to_save)
    saved = tuple(
        module
        for module in shape.modules
        if vision.training_of(module.part) == "full"
        or (module.part is None and _is_saved_in_full(module.name, adapter.modules_to_save))
    )
    saved_names = {module.name for module in saved}
    adaptable = [
        module
        for module in shape.modules
        if module.name not in saved_names
        and module.kind in _ADAPTABLE
        and module.in_features > 0
        and vision.training_of(module.part) in (None, "adapter")
    ]
    patterns = adapter.target_modules
    if patterns == ALL_LINEAR:
        in_parts = (module for module in adaptable if module.part is not None and module.kind in _PRODUCTS)
        modules = tuple(module for module in (*in_parts, *shape.all_linear()) if module.name not in saved_names)
    elif isinstance(patterns, str):
        matched = set(match_pattern(patterns, [module.name for module in adaptable]))
        modules = tuple(module for module in adaptable if module.name in matched)
    else:
        modules = tuple(m for m in adaptable if ends_with_one_of(m.name, patterns))
    _refuse_experts(shape, modules)
    modules = tuple(module for module in modules if module.kind in adapter.traits.layer_kinds)
    if not modules:
        names = ", ".join(shape.linear_names()) or "none at all"
        patterns_text = patterns if isinstance(patterns, str) else ", ".join(patterns)
        message = f"{patterns_text or 'an empty list'!r} matches no module of {shape.architecture}; its linear modules are {names}."
        raise ConfigError([Problem("adapter.target_modules", message)])
    for module in modules:
        problem = adapter.traits.layer_problem(adapter, module.in_features, module.out_features)
        if problem is not None:
            raise ConfigError([Problem(*problem)])
    return AdapterTargets(modules, saved)


def _refuse_experts(shape: ModelShape, modules: Iterable[ModuleShape]) -> None:
    stacked_experts = stacked_experts_among(module.name for module in modules) if shape.has_stacked_experts else []
    if stacked_experts:
        problem = (
            f"{', '.join(stacked_experts)} would mean the stacked experts of {shape.architecture}, which take no adapter here; "
            f"its linear modules are {', '.join(shape.linear_names())}."
        )
        raise ConfigError([Problem("adapter.target_modules", problem)])


def ends_with_one_of(name: str, endings: Iterable[str]) -> bool:
    """Return whether a module's full name is one of `endings`, or ends with a dot and one: PEFT's rule."""
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)


def _is_saved_in_full(name: str, modules_to_save: Iterable[str]) -> bool:
    """Return whether it is such a module, or inside one."""
    parts = name.split(".")
    wholes = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    return any(ends_with_one_of(whole, modules_to_save) for whole in wholes)


def _refuse_unknown_saved(shape: ModelShape, modules_to_save: Iterable[str]) -> None:
    names = [module.name for module in shape.modules]
    unknown = [ending for ending in modules_to_save if not any(_is_saved_in_full(name, (ending,)) for name in names)]
    if unknown:
        last_parts = ", ".join(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names))
        problem = (
            f"{', '.join(unknown)} match{'es' if len(unknown) == 1 else ''} no module; this model's are {last_parts}."
        )
        raise ConfigError([Problem("adapter.modules_to_save", problem)])


def match_pattern(pattern: str, names: Sequence[str]) -> list[str]:
    """Return the names that a regular expression matches whole, with a limit on its time.

    Raises:
        ConfigError: If it is broken or takes too long.
    """
    try:
        return PatternMatcher().matching(pattern, names)
    except PatternError as error:
        message = f"the regular expression {shorten(pattern, 100)!r} {error}; list module names instead."
        raise ConfigError([Problem("adapter.target_modules", message)]) from error


def stacked_experts_among(names: Iterable[str]) -> list[str]:
    """Return the last parts of names that PEFT takes to mean stacked experts, in models that have these."""
    return sorted({name.rsplit(".", 1)[-1] for name in names} & EXPERT_PROJECTIONS)
