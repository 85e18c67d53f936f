"""Settings that several PEFT methods read."""

from engine.config.section import Section, setting


class SharedSettings(Section):
    """Settings of more than one method; each keeps the name that PEFT gives it."""

    method: str = setting("lora", label="Method", help="")  # `AdapterConfig` has the choices
    r: int = setting(
        16,
        label="Rank",
        help="Capacity of the adapter. 8 to 64 serves most tasks; memory and size grow in proportion.",
        ge=1,
        le=1024,
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
        help="Modules trained and saved whole with the adapter, for example embed_tokens and lm_head after adding tokens.",
        max_length=50,
    )
    num_virtual_tokens: int = setting(
        20,
        label="Virtual tokens",
        help="How many learned positions come before every sequence. They take room from the context.",
        ge=1,
        le=4096,
    )
