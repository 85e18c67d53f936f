"""The inspector's process for models: reads their modules off the real architecture, without weights and without a GPU.

They are built on the meta device from the configuration alone.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from pydantic import JsonValue
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import DynamicLayer
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from loratory.engine.config.run import ModelConfig
from loratory.engine.errors import ModelError, ModelLimitError
from loratory.engine.hardware.libraries import note_architectures
from loratory.engine.inspector.worker.architecture import build_config, read_attention, read_shape
from loratory.engine.models.catalog import find_in_catalog
from loratory.engine.models.families.base import ImageFamily
from loratory.engine.models.families.registry import family_of
from loratory.engine.models.inventory_cache import architecture_values, cached_inventory, remember_inventory
from loratory.engine.models.shape import ModelShape, ModuleKind, ModuleShape
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.limits import TimeLimitError, limited, time_limit
from loratory.engine.processes.messages import JsonObject, Request, serve

# The largest models in use take half a second and some megabytes.
_SECONDS = 4.0
_MEMORY_BYTES = 1 << 30

_GATE_NAMES = frozenset(
    "gate_proj gate_up_proj w3 wi_1 linear_v v1 c_fc_1 gate_linear up_gate_proj input_linear".split()
)


def module_inventory(model: ModelConfig, home: LoratoryHome, request: Request | None = None) -> ModelShape:
    """Return module inventory of a catalogue entry, a folder (config.json is enough), a Hub id or a GGUF file.

    A request that overruns is not asked again while the configuration is the same.

    Raises:
        ModelError: If the model cannot be found, or its configuration describes none.
    """
    values, is_public = architecture_values(model, home), find_in_catalog(model.id) is not None
    if request is not None:
        request.work_with(hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest())
    shape = cached_inventory(values, home, is_public=is_public)
    if shape is None:
        shape = inventory_of(values)
        remember_inventory(values, shape, home, is_public=is_public)
    return shape


def inventory_of(values: Mapping[str, JsonValue]) -> ModelShape:
    """Return module inventory of what a config.json describes.

    Raises:
        ModelError: If it describes no causal language model that transformers knows, or one of absurd size.
        ModelLimitError: If building it takes far longer, or far more memory, than any model in use.
    """
    try:
        with limited(2 * _SECONDS, _MEMORY_BYTES), time_limit(_SECONDS):
            return _inventory_of(values)
    except (TimeLimitError, MemoryError) as error:
        raise ModelLimitError(
            f"The configuration of this {str(values.get('model_type'))[:80]} model describes more modules than can be "
            "listed in the time and memory of any model in use.",
            "Use the config.json of the original model.",
        ) from error


def _inventory_of(values: Mapping[str, JsonValue]) -> ModelShape:
    config = build_config(values)
    shape = read_shape(config)
    model = _build(config)
    family = family_of(values)
    modules = tuple(_list_modules(model, shape, family))
    gated = _has_gate(modules, shape)
    facts: dict[str, Any] = {
        "architecture": type(model).__name__,
        "num_parameters": sum(module.parameters for module in modules),
        "gated_mlp": gated,
        "tie_word_embeddings": any(module.is_output_head and module.tied_to for module in modules),
        "rotary": _is_rotary(model),
        "attention_support": read_attention(model).support,
        "modules": modules,
        **_answer_cache(model),
    }
    if "hidden_act" not in shape.model_fields_set:
        # Architectures without the field have it built in: plain ones use GELU, gated ones SiLU.
        facts["hidden_act"] = "silu" if gated else "gelu"
    return shape.model_copy(update=facts)


def _build(config: PreTrainedConfig) -> PreTrainedModel:
    try:
        # Nothing is drawn for weights that hold no numbers, which would take two fifths of the time.
        with torch.device("meta"), no_init_weights():
            kind = AutoModelForCausalLM if family_of(config.to_dict()) is None else AutoModelForImageTextToText
            model: PreTrainedModel = kind.from_config(config, trust_remote_code=False)
        model.tie_weights(recompute_mapping=False)
    except (TimeLimitError, MemoryError):
        raise
    except Exception as error:
        # Constructors divide, index and assert on any value of the configuration.
        raise ModelError(
            f"The configuration describes no {config.model_type} model that transformers can build "
            f"({type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no reason given')[:200]}).",
            "Use the config.json of the original model.",
        ) from error
    return model


def _list_modules(model: PreTrainedModel, shape: ModelShape, family: ImageFamily | None) -> Iterator[ModuleShape]:
    """Yield every module that owns parameters, and every norm, in order of registration: as `named_modules` goes."""
    head, unquantized = model.get_output_embeddings(), get_keys_to_not_convert(model)
    owners: dict[int, str] = {}  # id of a parameter → the module that had it first
    for name, module in model.named_modules():
        own = {key: parameter for key, parameter in module._parameters.items() if parameter is not None}
        if not own and not _is_norm(module):
            continue
        new = [parameter for parameter in own.values() if owners.setdefault(id(parameter), name) == name]
        kind, in_features, out_features = _kind_and_features(module, own, shape)
        part = None if family is None else family.part_of(name)
        is_bare = kind in ("experts", "router", "other")
        yield ModuleShape(
            name=name,
            kind=kind,
            class_name=type(module).__name__,
            parameters=sum(parameter.numel() for parameter in new),
            in_features=in_features,
            out_features=out_features,
            has_bias="bias" in own,
            bare_parameters={key: tuple(parameter.shape) for key, parameter in own.items()} if is_bare else {},
            tied_to=next((owners[id(parameter)] for parameter in own.values() if owners[id(parameter)] != name), None),
            is_output_head=module is head,
            part=part,
            # As transformers/integrations/bitsandbytes.py, replace_with_bnb_linear.
            is_quantizable=part is None
            and (isinstance(module, Conv1D) or type(module) is nn.Linear)
            and bool(should_convert_module(name, unquantized)),
        )


def _kind_and_features(
    module: nn.Module, own: Mapping[str, torch.Tensor], shape: ModelShape
) -> tuple[ModuleKind, int, int]:
    # A router may be a Linear that returns several tensors, and takes no adapter.
    if isinstance(module, nn.Linear) and "Router" not in type(module).__name__:
        return "linear", module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return "conv1d", module.nx, module.nf
    if isinstance(module, nn.Embedding):
        return "embedding", module.num_embeddings, module.embedding_dim
    if _is_norm(module):
        width = max((parameter.shape[-1] for parameter in own.values() if parameter.dim()), default=0)
        return "norm", width, width
    # Experts are one parameter of shape (experts, …, …): transformers/integrations/moe.py.
    if shape.num_experts and any(tensor.dim() == 3 and "Expert" in type(module).__name__ for tensor in own.values()):
        return "experts", shape.hidden_size, shape.moe_intermediate_size
    weight = own.get("weight")
    if weight is None or weight.dim() != 2:
        return "other", 0, 0
    rows, columns = weight.shape
    return "router" if shape.num_experts and rows == shape.num_experts else "other", columns, rows


def _is_norm(module: nn.Module) -> bool:
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return True
    own = [parameter for parameter in module._parameters.values() if parameter is not None]
    return (
        "Norm" in type(module).__name__
        and all(parameter.dim() <= 1 for parameter in own)
        and not list(module.children())
    )


def _has_gate(modules: Sequence[ModuleShape], shape: ModelShape) -> bool:
    """Return whether the feed-forward part multiplies two projections: by name, or by one projection of twice the width."""
    for module in modules:
        if module.name.rsplit(".", 1)[-1] in _GATE_NAMES or not _GATE_NAMES.isdisjoint(module.bare_parameters):
            return True
        if module.kind == "linear" and not module.is_output_head and module.out_features == 2 * shape.intermediate_size:
            return True
    return False


def _is_rotary(model: PreTrainedModel) -> bool:
    if any("Rotary" in type(module).__name__ for module in model.modules()):
        return True
    return bool(getattr(model.config, "rotary_dim", None))  # GPT-J and CodeGen rotate without a module of that name


# Under which names configurations keep the sizes of a state space.
_STATE_NAMES: Mapping[str, tuple[str, ...]] = {
    "inner": ("mamba_d_ssm", "mamba_intermediate_size"),
    "expansion": ("mamba_expand", "expand"),
    "heads": ("mamba_num_heads", "mamba_n_heads", "n_mamba_heads"),
    "head_size": ("mamba_head_dim", "mamba_d_head", "mamba_headdim"),
    "state": ("mamba_d_state", "ssm_state_size", "state_size"),
    "kernel": ("mamba_d_conv", "conv_kernel", "mamba_conv_kernel"),
    "groups": ("mamba_n_groups", "mamba_ngroups", "n_groups"),
}


def _answer_cache(model: PreTrainedModel) -> dict[str, Any]:
    """Return what the cache of one answer holds, by the layers of the cache that transformers makes for this model.

    A model that does not take such a cache reads everything again for each token, and keeps nothing.

    Source: `BranchWeights.new_cache`, engine/chat/worker/weights.py; `DynamicCache`, transformers/cache_utils.py.
    """
    if not model._supports_default_dynamic_cache():
        return {"kept_tokens": (), "state_elements": 0}
    text = model.config.get_text_config(decoder=True)
    layers = DynamicCache(config=text).layers
    with_state = sum(hasattr(layer, "recurrent_states") for layer in layers)
    return {
        "kept_tokens": tuple(
            getattr(layer, "sliding_window", None) for layer in layers if isinstance(layer, DynamicLayer)
        ),
        "state_elements": with_state * _state_elements(text),
    }


def _state_elements(text: PreTrainedConfig) -> int:
    """Return elements of one layer's state: of its convolution, and of its recurrence; 0 for a kind that is not known.

    Source: `torch_chunk_gated_delta_rule` in modeling_qwen3_next.py; `FalconH1Mixer` and `MambaMixer`; `Lfm2ShortConv`.
    """
    if getattr(text, "linear_num_value_heads", None):  # a delta rule
        keys = text.linear_num_key_heads * text.linear_key_head_dim
        values = text.linear_num_value_heads * text.linear_value_head_dim
        return int((2 * keys + values) * text.linear_conv_kernel_dim + values * text.linear_key_head_dim)
    if getattr(text, "conv_L_cache", None):  # a convolution alone
        return int(text.hidden_size * text.conv_L_cache)
    sizes = {size: _first(text, names) for size, names in _STATE_NAMES.items()}
    inner = sizes["inner"] or sizes["heads"] * sizes["head_size"] or int(sizes["expansion"] * text.hidden_size)
    channels = inner + 2 * sizes["groups"] * sizes["state"]
    return int(channels * sizes["kernel"] + inner * sizes["state"])


def _first(text: PreTrainedConfig, names: tuple[str, ...]) -> Any:
    values = (getattr(text, name, None) for name in names)
    return next((value for value in values if isinstance(value, int | float)), 0)


def main() -> None:
    """Answer until stdin closes."""
    home = LoratoryHome.from_environment()
    note_architectures(home, str(torch.__version__), torch.cuda.get_arch_list())

    def answer(params: JsonObject, request: Request) -> JsonObject:
        return module_inventory(ModelConfig.model_validate(params["model"]), home, request).model_dump(mode="json")

    serve({"module_inventory": answer})


if __name__ == "__main__":
    main()
