"""How many parameters a fine-tune trains, equal to what PEFT's `print_trainable_parameters` says."""

from typing import NamedTuple

from engine.config.adapter import AdapterConfig
from engine.memory.targets import AdapterTargets, find_targets
from engine.models.shape import ModelShape, ModuleShape


class TrainableCount(NamedTuple):
    """Parameters, not bytes. `total` counts the base model and everything that the adapter adds, as PEFT does."""

    total: int
    trainable: int
    added: int  # parameters that exist beside the base model

    @property
    def percent(self) -> float:
        return 100.0 * self.trainable / self.total if self.total else 0.0


def count_trainable(shape: ModelShape, adapter: AdapterConfig) -> TrainableCount:
    """Count what this fine-tune trains.

    Raises:
        ConfigError: If `target_modules` match nothing.

    Source: PEFT `get_nb_trainable_parameters`: every named parameter once, tied ones at their first name.
    """
    if adapter.method == "none":
        return TrainableCount(shape.num_parameters, shape.num_parameters, 0)
    if adapter.method == "prefix_tuning":
        added = prefix_parameter_count(shape, adapter.num_virtual_tokens)
        return TrainableCount(shape.num_parameters + added, added, added)
    targets = find_targets(shape, adapter)
    added = sum(adapter_parameter_count(module, adapter, targets) for module in targets.modules)
    added += sum(module.parameters or _own_size(module) for module in targets.saved_in_full)
    trainable = added + trained_bias_count(shape, adapter, targets)
    return TrainableCount(shape.num_parameters + added, trainable, added)


def adapter_parameter_count(module: ModuleShape, adapter: AdapterConfig, targets: AdapterTargets) -> int:
    """Count the parameters that the adapter adds to one module."""
    if adapter.method == "ia3":
        return ia3_parameter_count(
            module.in_features, module.out_features, is_feedforward=module.name in targets.feedforward
        )
    count = lora_parameter_count(module.in_features, module.out_features, adapter.r)
    # DoRA's magnitude has one entry per row of W: https://arxiv.org/abs/2402.09353, equation 5.
    return count + module.out_features if adapter.use_dora else count


def lora_parameter_count(in_features: int, out_features: int, r: int) -> int:
    """Count the trainable parameters LoRA adds to one linear layer.

    Args:
        in_features: Columns of the frozen W, shape (out_features, in_features).
        out_features: Rows of W.
        r: Rank; A is (r, in_features), B is (out_features, r).

    Raises:
        ValueError: If r < 1.

    Source: Hu et al. 2021, section 4.1 (arXiv:2106.09685).
    """
    if r < 1:
        raise ValueError(f"r must be at least 1, got {r}.")
    return r * (in_features + out_features)


def ia3_parameter_count(in_features: int, out_features: int, *, is_feedforward: bool) -> int:
    """Count the entries of IA3's one vector: it rescales the input of feed-forward modules, the output of others.

    Source: Liu et al. 2022, section 3.3 (arXiv:2205.05638); PEFT `IA3Layer.update_layer`.
    """
    return in_features if is_feedforward else out_features


def prefix_parameter_count(shape: ModelShape, num_virtual_tokens: int) -> int:
    """Count the learned keys and values: two per layer, key-value head and virtual token.

    Source: Li and Liang 2021 (arXiv:2101.00190) without the reparametrization; PEFT `PrefixEncoder`, whose
    `token_dim` is head_dim × num_key_value_heads where the model has grouped-query heads.
    """
    return num_virtual_tokens * shape.num_hidden_layers * 2 * shape.num_key_value_heads * shape.head_dim


def trained_bias_count(shape: ModelShape, adapter: AdapterConfig, targets: AdapterTargets) -> int:
    """Count the base model's own biases that train along; they are part of the model already, so they add none.

    Source: PEFT `LoraModel._mark_only_adapters_as_trainable`.
    """
    if adapter.method != "lora" or adapter.bias == "none":
        return 0
    chosen = shape.modules if adapter.bias == "all" else targets.modules
    return sum(module.bias_parameters for module in chosen)


def _own_size(module: ModuleShape) -> int:
    return module.in_features * module.out_features
