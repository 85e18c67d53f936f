"""What a model remembers of a conversation while it answers: keys and values, and states of constant size."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

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


class AnswerCache(NamedTuple):
    """As the fields of a ModelShape of the same names."""

    kept_tokens: tuple[int | None, ...]
    state_elements: int


def read_answer_cache(model: PreTrainedModel) -> AnswerCache:
    """Return what the cache of one answer holds, by the layers of the cache that transformers makes for this model.

    A model that does not take such a cache reads everything again for each token, and keeps nothing.

    Source: `BranchWeights.new_cache`, engine/chat/weights.py; `DynamicCache`, transformers/cache_utils.py.
    """
    if not model._supports_default_dynamic_cache():
        return AnswerCache((), 0)
    text = model.config.get_text_config(decoder=True)
    layers = DynamicCache(config=text).layers
    kept = tuple(getattr(layer, "sliding_window", None) for layer in layers if isinstance(layer, DynamicLayer))
    with_state = sum(hasattr(layer, "recurrent_states") for layer in layers)
    return AnswerCache(kept, with_state * _state_elements(text))


def _state_elements(text: PreTrainedConfig) -> int:
    """Elements of one layer's state: of its convolution, and of its recurrence; 0 for a kind that is not known.

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
    found = (getattr(text, name, None) for name in names)
    return next((value for value in found if isinstance(value, int | float)), 0)
