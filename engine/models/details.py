"""What a person wants to know about one model before choosing it."""

from pydantic import BaseModel, ConfigDict


class ModelDetails(BaseModel):
    """One model, described from its configuration, its tokenizer and its files; no weight is read for it."""

    model_config = ConfigDict(frozen=True)

    name: str
    hub_id: str | None
    architecture: str  # class name in transformers
    parameters: int
    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int | None  # context in tokens
    dtype: str  # in which its weights are stored, where the configuration says; "" where not
    vocab_size: int  # rows of the embedding, which may be more than the tokenizer has
    num_experts: int = 0
    linear_names: tuple[str, ...]  # last name parts that `target_modules` can name
    license: str | None = None
    size_bytes: int | None = None  # of the weights on this machine; None where they are not here yet
    tokenizer_missing: str | None = None  # why the three below are not known, in two sentences
    tokenizer_tokens: int | None = None
    special_tokens: dict[str, str] = {}  # bos, eos, pad, unk; those that it has
    chat_template: str | None = None  # as published; None where it has none
