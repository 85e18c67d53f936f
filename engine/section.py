"""What every part of a configuration shares: frozen, strict about keys, and self-describing."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

BY_DECADES = "by-decades"  # metadata of a field: people change it along 1, 2, 5, 10, not by adding
Magnitude = Annotated[float, BY_DECADES]


class Section(BaseModel):
    """A frozen part of a RunConfig; unknown keys and non-finite numbers are refused.

    The docstring of a setting is its help: one or two sentences, what it does and how to choose. The form, `--help`, messages
    and docs show it.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True, use_attribute_docstrings=True
    )


def setting(default: Any, label: str, **bounds: Any) -> Any:
    """Declare one setting: its default, bounds and plain-word label stand here and nowhere else.

    Args:
        default: The default value; `...` when the person must give one.
        label: Plain words shown on the form; the field's own name is shown next to it where the two differ.
        bounds: `ge`, `gt`, `le`, `lt`, `max_length`, `pattern` … as pydantic takes them.
    """
    return Field(default, title=label, **bounds)
