"""Searching the Hugging Face Hub for language models."""

from datetime import datetime

from huggingface_hub import constants
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]
from pydantic import AliasPath, BaseModel, ConfigDict, Field, TypeAdapter, field_validator

from engine.models.architectures import is_causal_lm
from engine.models.hub_request import hub_errors_explained, within_seconds

_FIELDS = ("downloads", "likes", "gated", "lastModified", "safetensors", "tags", "config")


class HubModel(BaseModel):
    """One model that a search found; None where the Hub does not say."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    parameters: int | None = Field(None, validation_alias=AliasPath("safetensors", "total"))
    gated: bool | None = None
    downloads: int | None = None  # of the last 30 days
    likes: int | None = None
    last_modified: datetime | None = Field(None, validation_alias="lastModified")
    model_type: str | None = Field(None, validation_alias=AliasPath("config", "model_type"))
    tags: tuple[str, ...] = ()

    @field_validator("gated", mode="before")
    @classmethod
    def _any_kind_of_gate(cls, value: object) -> bool | None:
        return None if value is None else bool(value)  # "auto", "manual", or false

    @property
    def license(self) -> str | None:
        """Identifier of its licence, as its owner tagged it."""
        return next((tag.removeprefix("license:") for tag in self.tags if tag.startswith("license:")), None)

    @property
    def is_supported(self) -> bool | None:
        """Whether the installed transformers can build it without code of its own."""
        return None if self.model_type is None else is_causal_lm(self.model_type)


def search_hub(query: str, *, limit: int = 20, timeout_seconds: float = 6.0) -> tuple[HubModel, ...]:
    """Text-generation models whose name matches, most downloaded first.

    Raises:
        HubUnreachableError: If the Hub cannot be reached, or does not answer in time.
        ModelError: If it refuses the question.
    """
    parameters: dict[str, str | int | list[str]] = {
        "search": query.strip(),
        "pipeline_tag": "text-generation",
        "sort": "downloads",
        "limit": limit,
        "expand": list(_FIELDS),
    }

    def ask() -> tuple[HubModel, ...]:
        # One plain request: HfApi.list_models repeats a failed one for half a minute.
        response = get_session().get(
            f"{constants.ENDPOINT}/api/models", params=parameters, headers=build_hf_headers(), timeout=timeout_seconds
        )
        hf_raise_for_status(response)
        return TypeAdapter(tuple[HubModel, ...]).validate_json(response.content)

    with hub_errors_explained(f"The search for {query.strip()!r}"):
        return within_seconds(timeout_seconds, ask)
