"""The training of each PEFT method. A method that is not here trains as PEFT builds it."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import peft
import torch
from transformers import AutoTokenizer

from loratory.engine.config.methods.adalora import too_few_steps
from loratory.engine.config.methods.registry import method_of_peft_type
from loratory.engine.config.optimizations import LEFT_OUT, is_wanted
from loratory.engine.config.run import AdapterConfig
from loratory.engine.errors import ConfigError, Problem
from loratory.engine.models.source import ModelSource
from loratory.engine.training.distribution import is_sharded
from loratory.engine.training.methods.base import MethodTrainer, choose_ia3_targets
from loratory.engine.training.ops.lora_linear import fuse_lora, lora_linears
from loratory.engine.training.ops.loss import causal_lm_of

_ADAPTER = "default"


class AdaLoraTrainer(MethodTrainer):
    """AdaLoRA, with what PEFT's `AdaLoraModel` leaves to the trainer, or does only to outputs with a loss in them."""

    def prepare(self, model: Any) -> int:
        """Freeze `ranknum`, a divisor that PEFT leaves trainable on a base of 16 bits."""
        for name, parameter in model.named_parameters():
            if ".ranknum." in name:
                parameter.requires_grad = False
        return 0

    def begin(self, model: Any, total_steps: int) -> None:
        """Tell the allocator over how many steps the ranks fall."""
        config = _config(model)
        if config.tinit + config.tfinal >= total_steps:
            raise ConfigError([Problem("adapter.tinit", too_few_steps(config.tinit, config.tfinal, total_steps))])
        config.total_step = total_steps

    def penalty(self, model: Any) -> torch.Tensor | None:
        """Return the mean distance of the singular vectors from orthogonal ones.

        Source: Zhang et al. 2023, equation 4; `AdaLoraModel.forward` in peft/tuners/adalora/model.py.
        """
        weight = _config(model).orth_reg_weight
        distances = []
        for name, parameter in model.named_parameters():
            if weight and parameter.requires_grad and (".lora_A." in name or ".lora_B." in name):
                products = parameter @ parameter.T if ".lora_A." in name else parameter.T @ parameter
                identity = torch.eye(products.shape[0], device=products.device, dtype=products.dtype)
                distances.append(torch.linalg.matrix_norm(products - identity).to(model.device))
        return weight * torch.stack(distances).mean() if distances else None

    def after_optimizer_step(self, model: Any, step: int) -> None:
        """Update the importance of every weight, and clear singular values beyond the budget."""
        model.base_model.update_and_allocate(step)

    @contextmanager
    def saving(self, model: Any) -> Iterator[None]:
        """Save pruned ranks only while they are pruned: between two allocations, the optimizer moves them again."""
        config = _config(model)
        pattern = config.rank_pattern
        try:
            if pattern is not None and not _is_pruned(model, pattern):
                config.rank_pattern = None
            yield
        finally:
            config.rank_pattern = pattern

    def load_weights(self, model: Any, weights: dict[str, torch.Tensor], config: Mapping[str, Any]) -> Any:
        """Load an adapter whose ranks may be pruned into one of full rank, with singular values of 0."""
        pattern = config.get("rank_pattern")
        own = _config(model)
        own.rank_pattern = None  # PEFT would shrink the modules, whose parameters the optimizer has
        if pattern:
            weights = _restore_pruned_ranks(model, weights, pattern)
        result = peft.set_peft_model_state_dict(model, weights)
        own.rank_pattern = pattern
        return result

    def state(self, model: Any) -> dict[str, Any]:
        """Return importances, the pattern of ranks, and vectors that a pruned adapter does not hold."""
        allocator, pattern = model.base_model.rankallocator, _config(model).rank_pattern
        importance = {name: dict(getattr(allocator, name)) for name in ("ipt", "exp_avg_ipt", "exp_avg_unc")}
        vectors = {}
        if pattern is not None:
            vectors = {name: p.detach() for name, p in model.named_parameters() if ".lora_" in name and p.requires_grad}
        return {"importance": importance, "rank_pattern": pattern, "vectors": vectors}

    def load_state(self, model: Any, state: dict[str, Any]) -> None:
        """Restore the allocator, and every vector bit by bit."""
        allocator, device = model.base_model.rankallocator, model.device
        for name, tensors in state["importance"].items():
            setattr(allocator, name, {key: tensor.to(device) for key, tensor in tensors.items()})
        _config(model).rank_pattern = state["rank_pattern"]
        with torch.no_grad():
            for name, value in state["vectors"].items():
                model.get_parameter(name).copy_(value)


def _config(model: Any) -> Any:
    return model.peft_config[_ADAPTER]


def _modules(pattern: Mapping[str, list[bool]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Iterate over modules and masks of their remaining ranks; names in a pattern end in `.lora_E` or `.lora_E.default`."""
    for name, mask in pattern.items():
        yield f"base_model.model.{name.partition('.lora_E')[0]}", torch.tensor(mask)


def _is_pruned(model: Any, pattern: Mapping[str, list[bool]]) -> bool:
    return all(
        not model.get_parameter(f"{module}.lora_E.{_ADAPTER}")[~mask].any() for module, mask in _modules(pattern)
    )


def _restore_pruned_ranks(
    model: Any, weights: Mapping[str, torch.Tensor], pattern: Mapping[str, list[bool]]
) -> dict[str, torch.Tensor]:
    """Return saved ranks at their positions among the fresh vectors of a model."""
    full = dict(weights)
    for module, mask in _modules(pattern):
        for part, dimension in (("lora_E", 0), ("lora_A", 0), ("lora_B", 1)):
            key = f"{module}.{part}"
            fresh = model.get_parameter(f"{key}.{_ADAPTER}").detach().cpu().clone()
            if part == "lora_E":
                fresh.zero_()
            full[key] = fresh.index_copy_(dimension, mask.nonzero().flatten(), weights[key].to(fresh.dtype))
    return full


class LoraTrainer(MethodTrainer):
    """LoRA, whose plain layers run as `loratory.engine.training.ops.lora_linear` has them."""

    def prepare(self, model: Any) -> int:
        # Two matrices each, which need no autocast.
        return 2 * fuse_lora(model) if is_wanted("fused_lora") else 0

    def observing(self, model: Any) -> AbstractContextManager[None]:
        linears = lora_linears(model)
        return nullcontext() if linears is None else linears.observing()

    def optimizations(self, model: Any) -> dict[str, str]:
        linears = lora_linears(model)
        return {"fused_lora": LEFT_OUT} if linears is None else linears.optimizations

    def step(self, model: Any) -> AbstractContextManager[None]:
        linears = lora_linears(model)
        # Where activations are recomputed or weights are sharded, memory is short: copies then last as long as a layer's call.
        is_short = getattr(causal_lm_of(model), "is_activation_checkpointing", False) or is_sharded(model)
        return nullcontext() if linears is None or is_short else linears.step()


class Ia3Trainer(MethodTrainer):
    """IA3 with feed-forward modules by their names."""

    def model_arguments(self, model: Any, adapter: AdapterConfig, source: ModelSource) -> dict[str, Any]:
        return super().model_arguments(model, adapter, source) | choose_ia3_targets(model, adapter)


class PrefixTuningTrainer(MethodTrainer):
    """Prefix tuning, from the keys and values of a text: from random ones, hundreds of steps only repair the damage."""

    def initialize(self, model: Any, adapter: AdapterConfig, source: ModelSource) -> None:
        text, tokens = adapter.traits.initial_text(adapter), adapter.num_virtual_tokens
        if text is not None:
            peft.initialize_kv_prefix_from_text(
                model,
                AutoTokenizer.from_pretrained(source.location),
                text=" ".join([text] * tokens),
                use_chat_template=False,
                max_length=tokens,
            )


class PromptTuningTrainer(MethodTrainer):
    """Prompt tuning: a prompt that starts as a text needs the model's tokenizer."""

    def model_arguments(self, model: Any, adapter: AdapterConfig, source: ModelSource) -> dict[str, Any]:  # noqa: ARG002
        starts_as_text = "prompt_tuning_init_text" in adapter.traits.peft_arguments(adapter)
        return {"tokenizer_name_or_path": source.location} if starts_as_text else {}

    def publish(self, config: Any, source: ModelSource) -> None:
        super().publish(config, source)
        if config.tokenizer_name_or_path is not None:
            config.tokenizer_name_or_path = source.hub_id or source.location


def _cast_as_autocast(_module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Give an LSTM its input in autocast's dtype: without AVX-512, oneDNN has none from float32 with bfloat16 weights."""
    if inputs[0].device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return inputs
    return tuple(tensor.to(torch.get_autocast_dtype("cpu")) for tensor in inputs)


class PTuningTrainer(MethodTrainer):
    """P-tuning: an adapter holds what the prompt encoder computes, a checkpoint keeps the encoder too."""

    def prepare(self, model: Any) -> int:
        lstm = getattr(model.prompt_encoder[_ADAPTER], "lstm_head", None)  # other encoders have none
        if lstm is not None:
            lstm.register_forward_pre_hook(_cast_as_autocast)
        return 0

    @contextmanager
    def saving(self, model: Any) -> Iterator[None]:
        """Save what the encoder computes without dropout, and draw no random number for it."""
        encoder = model.prompt_encoder[_ADAPTER]
        was_training = encoder.training
        encoder.eval()
        try:
            yield
        finally:
            encoder.train(was_training)

    def state(self, model: Any) -> dict[str, Any]:
        return {"encoder": dict(model.prompt_encoder[_ADAPTER].state_dict())}

    def load_state(self, model: Any, state: dict[str, Any]) -> None:
        """Restore the prompt encoder, which replaces the embeddings in the adapter."""
        model.prompt_encoder[_ADAPTER].load_state_dict(state["encoder"])


METHOD_TRAINERS: dict[str, MethodTrainer] = {
    "lora": LoraTrainer(),
    "adalora": AdaLoraTrainer(),
    "ia3": Ia3Trainer(),
    "prefix_tuning": PrefixTuningTrainer(),
    "prompt_tuning": PromptTuningTrainer(),
    "p_tuning": PTuningTrainer(),
}
_PLAIN = MethodTrainer()


def method_trainer(method: str) -> MethodTrainer:
    """Return the trainer of a method."""
    return METHOD_TRAINERS.get(method, _PLAIN)


def trainer_of_model(model: Any) -> MethodTrainer:
    """Return the trainer of the method that a model has an adapter of."""
    for config in getattr(model, "peft_config", {}).values():
        method = method_of_peft_type(str(getattr(config.peft_type, "value", config.peft_type)))
        return method_trainer(method.name) if method is not None else _PLAIN
    return _PLAIN
