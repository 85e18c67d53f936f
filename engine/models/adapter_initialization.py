"""How an adapter began: some ways take from the base's weights what the adapter begins with."""

# PEFT's LoraConfig.init_lora_weights, without the numbers that may follow.
_FROM_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")

PLAIN_LORA_FIX = (
    "Convert it to a plain LoRA where it was trained: PEFT's save_pretrained does, with "
    "path_initial_model_for_weight_conversion."
)


def initialization_from_base(adapter_config: dict[str, object]) -> str:
    """Return the initialization that rewrote an adapter's base; empty where its base is as its makers published it.

    Such an adapter only fits the weights that were left over. PEFT recomputes them when it loads the adapter, after which
    the base in memory is the base of nothing else.

    Args:
        adapter_config: What `adapter_config.json` holds.
    """
    value = adapter_config.get("init_lora_weights")
    return value[:30] if isinstance(value, str) and value.lower().startswith(_FROM_BASE) else ""
