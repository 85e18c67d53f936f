"""What is trained: an adapter on the frozen model, or all of it."""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from engine.config.methods.base import PeftMethod
from engine.config.methods.registry import DEFAULT_METHOD, METHODS, MethodSettings
from engine.config.section import setting

if TYPE_CHECKING:
    Method = str
else:
    Method = Literal[tuple(METHODS)]


class AdapterConfig(MethodSettings):
    """The trainable part; settings of other methods than the chosen one are ignored."""

    method: Method = setting(
        DEFAULT_METHOD.name,
        label="Method",
        help="What is trained, and how. lora suits most tasks; none trains the whole model.",
    )
    warm_start: str | None = setting(
        None,
        label="Start from an adapter",
        help="A run's id, or a folder with an adapter of the same make: training continues from its weights, with a fresh "
        "optimizer. Empty starts a new one.",
        max_length=1000,
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults_of_the_method(cls, values: Any) -> Any:
        """Give settings that are left out the chosen method's own defaults, where they differ from the fields'."""
        method = METHODS.get(str(values.get("method", DEFAULT_METHOD.name))) if isinstance(values, dict) else None
        return {**method.defaults, **values} if method is not None else values

    @property
    def traits(self) -> PeftMethod:
        """The chosen method."""
        return METHODS[self.method]

    def changes_for(self, method: str) -> dict[str, Any]:
        """Return the settings that change with the method: its name, and defaults that nothing has replaced."""
        old, new = self.traits.defaults, METHODS[method].defaults
        changes: dict[str, Any] = {"method": method}
        for name in {**old, **new}:
            default = type(self).model_fields[name].default
            if getattr(self, name) == old.get(name, default):
                changes[name] = new.get(name, default)
        return changes
