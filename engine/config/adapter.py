"""What is trained: an adapter beside the frozen model, or all of it."""

from typing import Literal

from engine.config.section import Section, setting

Method = Literal["lora", "ia3", "prefix_tuning", "none"]
AdapterBias = Literal["none", "all", "lora_only"]


class AdapterConfig(Section):
    """The trainable part; fields of other methods than the chosen one are ignored."""

    method: Method = setting(
        "lora",
        label="Method",
        help="lora trains two thin matrices beside each chosen layer; ia3 learns to rescale activations; prefix_tuning "
        "learns key and value vectors before every sequence; none trains the whole model.",
    )
    r: int = setting(
        16,
        label="Rank",
        help="Capacity of the adapter. 8 to 64 serves most tasks; memory and size grow in proportion.",
        ge=1,
        le=1024,
    )
    lora_alpha: int = setting(
        32,
        label="Alpha",
        help="Strength of the adapter: its update is multiplied by lora_alpha / r. Twice the rank is the usual choice.",
        ge=1,
        le=4096,
    )
    lora_dropout: float = setting(
        0.0,
        label="Dropout",
        help="Share of adapter inputs dropped while training, against memorising small datasets. Costs speed.",
        ge=0.0,
        lt=1.0,
    )
    target_modules: tuple[str, ...] | str = setting(
        "all-linear",
        label="Layers that get an adapter",
        help="all-linear takes every linear layer except the output head. A list takes modules by the end of their name; "
        "a single string is matched against full names as a regular expression.",
        max_length=200,
    )
    modules_to_save: tuple[str, ...] = setting(
        (),
        label="Modules trained in full",
        help="Modules trained and saved whole beside the adapter, for example embed_tokens and lm_head after adding tokens.",
        max_length=50,
    )
    bias: AdapterBias = setting(
        "none",
        label="Biases",
        help="Which biases are trained as well. With anything but none, switching the adapter off no longer gives the base.",
    )
    use_rslora: bool = setting(
        False,
        label="Rank-stabilized scaling",
        help="Scales by lora_alpha / √r instead of lora_alpha / r, which keeps high ranks effective.",
    )
    use_dora: bool = setting(
        False,
        label="DoRA",
        help="Learns the magnitude of each weight apart from its direction. Often better at low rank, slower by a third.",
    )
    feedforward_modules: tuple[str, ...] = setting(
        (),
        label="IA3 feed-forward modules",
        help="Which of IA3's target modules are feed-forward: their input is rescaled instead of their output. "
        "Empty lets the model's family decide.",
        max_length=50,
    )
    num_virtual_tokens: int = setting(
        20,
        label="Virtual tokens",
        help="Prefix tuning: how many learned positions stand before every sequence. They take room from the context.",
        ge=1,
        le=4096,
    )
    warm_start: str | None = setting(
        None,
        label="Start from an adapter",
        help="A run's id, or a folder with an adapter of the same make: training goes on from its weights, with a fresh "
        "optimizer. Empty starts a new one.",
        max_length=1000,
    )
