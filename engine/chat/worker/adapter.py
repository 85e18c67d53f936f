"""Attach adapters to a base model: check that they fit, load, switch and detach them."""

import inspect
import warnings
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import Cache, PreTrainedModel

from loratory.engine.chat.target import PlannedWeights
from loratory.engine.chat.worker.adapter_patterns import base_module_names, resolve_patterns
from loratory.engine.chat.worker.lora_branches import use_plain_branches
from loratory.engine.chat.worker.static_cache import FixedCaches, LentCache
from loratory.engine.config.methods.registry import METHODS, tensor_marks
from loratory.engine.data.conversation import ImageRef
from loratory.engine.errors import ModelError
from loratory.engine.models.folder import TensorRecord, read_safetensors_header
from loratory.engine.runs.provenance import ADAPTER_WEIGHTS
from loratory.engine.training.failure import is_out_of_memory

if TYPE_CHECKING:
    from loratory.engine.training.batching.images import ImageInputs

_KEY_PREFIX = "base_model.model."
_WRONG_BASE_FIX = "Load it with the model that it was trained on."


class Bias(NamedTuple):
    """A bias of the base that an adapter overwrites, because it was trained with `bias` other than none."""

    parameter: nn.Parameter
    of_base: torch.Tensor
    of_adapter: torch.Tensor


@dataclass(frozen=True)
class Adapter:
    """One adapter in memory: layers injected into the base, or virtual tokens before every sequence."""

    name: str
    peft: PeftModel
    size_bytes: int
    is_prefix: bool
    biases: tuple[Bias, ...]

    @property
    def virtual_tokens(self) -> int:
        """Positions of the context that the adapter takes."""
        return int(self.peft.peft_config[self.name].num_virtual_tokens) if self.is_prefix else 0


@dataclass
class AdaptedBase:
    """A base model with any number of adapters; at most one of them is active at a time.

    Switching sets two flags of each adapted layer. PEFT's `disable_adapter` and `set_adapter` also visit the gradients
    of every tensor, which takes longer than a token of a small model.
    """

    model: PreTrainedModel
    name: str
    images: "ImageInputs | None" = None  # where it takes some
    _peft_model: PeftModel | None = None
    _layers: tuple[nn.Module, ...] = ()
    _active: Adapter | None = None

    def __post_init__(self) -> None:
        self._can_slice_logits = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        self.fixed_caches = FixedCaches.for_model(self.model)

    def forward(
        self, ids: torch.Tensor, cache: Cache | None, positions: torch.Tensor | None = None, **inputs: torch.Tensor
    ) -> torch.Tensor:
        """Run the model with the active adapter.

        Args:
            ids: Shape (rows, tokens).
            cache: The tokens before `ids`, to which these are added; None where `ids` is the whole sequence.
            positions: Positions to compute logits for, shape (n,); None for the last one.
            inputs: Attention mask and position ids, for rows that differ in length; what `image_inputs` returns.

        Returns:
            Logits of the next tokens, shape (rows, n or 1, vocabulary).
        """
        several = ids.shape[1] > 1
        if several and positions is None:
            positions = torch.tensor([ids.shape[1] - 1], device=ids.device)
        cache_argument = {"cache": cache} if cache is not None else {}
        # A tensor even for the last position: with a number, transformers takes a view of the hidden states, for which
        # torch copies the frozen output layer before it multiplies. That takes as long as the whole prompt.
        logits_argument = {"logits_to_keep": positions if several else 1} if self._can_slice_logits else {}
        logits = self.model(
            input_ids=ids, use_cache=cache is not None, **cache_argument, **logits_argument, **inputs
        ).logits
        return logits if self._can_slice_logits or not several else logits[:, positions]

    def image_inputs(
        self, images: Sequence[Sequence[ImageRef]], ids: torch.Tensor, mask: torch.Tensor | None = None
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """Return what the pass over prompts takes of their images, and how far later positions move, (rows, 1), or None.

        `ids` are all tokens of the rows, (rows, longest); `mask` has 0 where they are padding. Positions are computed here:
        Qwen-VL's model would remember those of its last prompt, which may be that of another conversation.
        """
        tensors = self.images.tensors(images, ids) if self.images is not None else {}
        inputs = {name: tensor.to(ids.device) for name, tensor in tensors.items()}
        find_positions = getattr(self.model.base_model, "get_rope_index", None)
        if not inputs or find_positions is None:
            return inputs, None
        layout = {name: inputs[name] for name in ("image_grid_thw", "mm_token_type_ids")}
        inputs["position_ids"], moved = find_positions(ids, attention_mask=mask, **layout)
        return inputs, moved

    def lend_cache(self, positions: int) -> LentCache | None:
        """Lend a static cache for the active adapter, if one is available."""
        adapter, caches = self._active, self.fixed_caches
        if adapter is not None and adapter.is_prefix:
            if not caches.why_not:
                caches.report(f"{adapter.name} has virtual tokens before the prompt")
            return None
        cache: LentCache | None = caches.lend(adapter.name if adapter is not None else "", positions, self.forward)
        return cache

    def attach(self, weights: PlannedWeights, adapter_name: str) -> Adapter:
        """Load an adapter next to those already loaded; none is active afterwards.

        Raises:
            ModelError: If it was made for another model, is damaged, or cannot be combined with the loaded ones.
        """
        self.switch_to(None)
        self.fixed_caches.clear()
        records = read_safetensors_header(weights.folder / ADAPTER_WEIGHTS, weights.name)
        config = _read_peft_config(weights)
        resolve_patterns(config, base_module_names(self.model), weights.name)
        _check_fit(records, config, self.model, weights, self.name)
        before = {name: parameter.detach().clone() for name, parameter in self._biases(config)}
        # PEFT's default. The base's 16 bits would round it, and are not faster on a CPU.
        in_float32 = self.model.device.type == "cpu"
        with _peft_errors(weights.name, self.name):
            if config.is_prompt_learning:
                peft = PeftModel.from_pretrained(
                    self.model, str(weights.folder), adapter_name=adapter_name, config=config
                )
            else:
                if self._peft_model is None:
                    # Set before its weights are read, so it can be removed again if that fails.
                    self._peft_model = get_peft_model(
                        self.model, config, adapter_name, autocast_adapter_dtype=in_float32
                    )
                else:  # otherwise load_adapter would read the unresolved patterns again
                    self._peft_model.add_adapter(adapter_name, config, autocast_adapter_dtype=in_float32)
                peft = self._peft_model
                peft.load_adapter(str(weights.folder), adapter_name, autocast_adapter_dtype=in_float32)
        peft.eval()
        self._layers = tuple(
            module for module in self.model.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
        )
        use_plain_branches(self._layers)
        tensors = get_peft_model_state_dict(peft, adapter_name=adapter_name, save_embedding_layers=False)
        _require_all_keys(tensors.keys(), records, weights.name)
        biases = tuple(
            Bias(parameter, before[name], parameter.detach().clone())
            for name, parameter in self._biases(config)
            if not torch.equal(parameter, before[name])
        )
        size_bytes = sum(tensor.nbytes for tensor in tensors.values())
        adapter = Adapter(adapter_name, peft, size_bytes, config.is_prompt_learning, biases)
        self._set_active(None)
        for bias in biases:
            bias.parameter.data = bias.of_base
        return adapter

    def detach_all(self) -> None:
        """Remove all adapters from the base."""
        self.switch_to(None)
        self.fixed_caches.clear()
        if self._peft_model is not None:
            self.model = self._peft_model.unload()
            self._peft_model = None
        self._layers = ()

    def switch_to(self, adapter: Adapter | None) -> None:
        """Activate one adapter, or none; takes microseconds."""
        if adapter is self._active:
            return
        if self._active is not None:
            for bias in self._active.biases:
                bias.parameter.data = bias.of_base
        if adapter is not None:
            for bias in adapter.biases:
                bias.parameter.data = bias.of_adapter
        self._set_active(adapter)

    def _set_active(self, adapter: Adapter | None) -> None:
        is_disabled = adapter is None or adapter.is_prefix
        for layer in self._layers:
            layer._disable_adapters = is_disabled
            if adapter is not None and not is_disabled:
                layer._active_adapter = [adapter.name]
        self._active = adapter

    def _biases(self, config: PeftConfig) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the biases that an adapter may overwrite, with their names in the plain base."""
        if getattr(config, "bias", "none") != "none":
            for name, parameter in self.model.named_parameters():
                if name.endswith(".bias"):
                    yield name.replace(".base_layer.", "."), parameter


def _read_peft_config(weights: PlannedWeights) -> PeftConfig:
    try:
        config = PeftConfig.from_pretrained(str(weights.folder))
    except Exception as error:  # PEFT raises any error of its dataclasses
        what = f"The configuration of the adapter {weights.name} cannot be read ({type(error).__name__})."
        raise ModelError(what, "Copy the adapter folder again, or update PEFT if a newer one wrote it.") from error
    if config.is_prompt_learning and weights.traits is None:
        methods = ", ".join(method.label for method in METHODS.values() if not method.trains_all)
        fix = f"Choose an adapter of one of these methods: {methods}."
        raise ModelError(f"{weights.name} is a {weights.peft_type} adapter, which the chat cannot load.", fix)
    config.inference_mode = True
    return config


# The size of the adapted module that a matrix has to match, its axis, and the axis of the rank.
_LORA_AXES = {"lora_A": ("in_features", -1, 0), "lora_B": ("out_features", 0, 1)}


def _check_fit(
    records: tuple[TensorRecord, ...],
    config: PeftConfig,
    model: PreTrainedModel,
    weights: PlannedWeights,
    base_name: str,
) -> None:
    """Compare shapes before injection, so a mismatch gets a clear error and the base stays unchanged."""
    name, traits = weights.name, weights.traits
    if config.is_prompt_learning:
        _check_virtual_tokens(records, config, model, weights, base_name)
    has_one_rank = traits is not None and "r" in traits.fields and not getattr(config, "rank_pattern", None)
    rank = getattr(config, "r", None) if has_one_rank else None
    for record in records:
        path, marker = _module_path(record.name)
        if not marker:
            continue
        try:
            module = model.get_submodule(path)
        except AttributeError as error:
            what = f"The adapter {name} has weights for {path}, which {base_name} does not have."
            raise ModelError(what, _WRONG_BASE_FIX) from error
        if marker not in _LORA_AXES:
            continue
        attribute, axis, rank_axis = _LORA_AXES[marker]
        if rank not in (None, record.shape[rank_axis]):
            adapter_rank = record.shape[rank_axis]
            what = f"The configuration of the adapter {name} has rank {rank}, its weights have rank {adapter_rank}."
            raise ModelError(what, "Copy adapter_config.json and the weights from the same training.")
        layer = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        size = getattr(layer, attribute, record.shape[axis])
        if size != record.shape[axis]:
            sizes = f"{path} has {size:,} {attribute} in {base_name}, {record.shape[axis]:,} in the adapter"
            what = f"The adapter {name} was trained on a model of another size: {sizes}."
            raise ModelError(what, _WRONG_BASE_FIX)


def _check_virtual_tokens(
    records: tuple[TensorRecord, ...],
    config: PeftConfig,
    model: PreTrainedModel,
    weights: PlannedWeights,
    base_name: str,
) -> None:
    name = weights.name
    layers = model.config.get_text_config(decoder=True).num_hidden_layers
    if config.num_layers != layers:
        what = f"The prefix {name} was trained on a model of {config.num_layers} layers; {base_name} has {layers}."
        raise ModelError(what, _WRONG_BASE_FIX)
    width = model.get_input_embeddings().weight.shape[1]
    adapter_width = next((record.shape[-1] for record in records if record.name == "prompt_embeddings"), width)
    if weights.traits is not None and weights.traits.virtual_tokens == "inputs" and adapter_width != width:
        raise ModelError(
            f"The virtual tokens {name} have {adapter_width:,} numbers each; embeddings of {base_name} have {width:,}.",
            _WRONG_BASE_FIX,
        )


def _module_path(key: str) -> tuple[str, str]:
    """Return the adapted module that an adapter's tensor belongs to, and the tensor's own name; empty for other keys."""
    path = key.removeprefix(_KEY_PREFIX) if key.startswith(_KEY_PREFIX) else ""
    for mark in tensor_marks():
        head, dot, rest = path.partition(f".{mark}")
        if dot:
            return head, mark + rest.partition(".")[0]
    return "", ""


def _require_all_keys(expected: Set[str], records: tuple[TensorRecord, ...], name: str) -> None:
    # A tensor that the file lacks would stay random, and PEFT only warns of it.
    missing = sorted(expected - {record.name for record in records})
    if missing:
        what = f"The adapter {name} lacks {len(missing)} of its {len(expected)} tensors, first {missing[0]}."
        raise ModelError(what, "Copy adapter_config.json and the weights from the same training.")


@contextmanager
def _peft_errors(name: str, base_name: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's warnings are about what `_check_fit` checks
            yield
    except (RuntimeError, ValueError, KeyError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        what = f"The adapter {name} does not fit {base_name} ({type(error).__name__})."
        raise ModelError(what, _WRONG_BASE_FIX) from error
