"""All settings on the page as one value: components in, nested plain values out, and back."""

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
from gradio.components.base import Component

from engine.config.load import setting_names
from engine.config.model import ModelConfig
from engine.config.run import RunConfig
from ui.fields import choices_of, component_for, field_of, may_be_no_number, number_of, text_of

# Every linear layer, whatever the model calls them: what is ticked before a model's own layers are known.
ALL_LINEAR = "all-linear"
# What a form sends for a setting whose text box holds several names.
_LISTS = ("adapter.modules_to_save", "adapter.feedforward_modules")


class Form:
    """The registry of setting components; a setting that a tab does not place is added hidden by `complete`."""

    def __init__(self) -> None:
        self._components: dict[str, Component] = {}

    def setting(self, name: str, **presentation: Any) -> Component:
        """Place one setting's component where the caller stands in the layout."""
        return self.register(name, component_for(name, **presentation))

    def register(self, name: str, component: Component) -> Component:
        """Let a component that the caller built carry a setting."""
        assert name in setting_names(), name
        assert name not in self._components, f"{name} stands on the page twice"
        self._components[name] = component
        return component

    def complete(self) -> None:
        """Carry settings that no tab shows, so that a preset or a run that sets them survives the form."""
        for name in setting_names():
            if name not in self._components:
                self._components[name] = gr.State(_default_of(name))

    @property
    def names(self) -> list[str]:
        return list(self._components)

    @property
    def components(self) -> list[Component]:
        return list(self._components.values())

    def __getitem__(self, name: str) -> Component:
        return self._components[name]

    def mapping(self, values: Sequence[Any]) -> dict[str, dict[str, Any]]:
        """Nested plain values as `config_from_mapping` takes them; what is left empty is left out."""
        nested: dict[str, dict[str, Any]] = {section: {} for section in RunConfig.model_fields}
        for name, value in zip(self._components, values, strict=True):
            section, field = name.split(".")
            plain = _from_component(name, value)
            if plain is not None:
                nested[section][field] = plain
        return nested

    def updates(self, mapping: Mapping[str, Mapping[str, Any]]) -> list[Any]:
        """Component values for a configuration; a setting that the mapping does not name gets its default."""
        values = []
        for name in self._components:
            section, field = name.split(".")
            value = mapping.get(section, {}).get(field, _default_of(name))
            values.append(_to_component(name, _offered(name, value)))
        return values


def model_of(mapping: Mapping[str, Mapping[str, Any]]) -> ModelConfig | None:
    """The model section alone, where it is complete and right."""
    try:
        return ModelConfig.model_validate(dict(mapping["model"]))
    except ValueError:
        return None


def _default_of(name: str) -> Any:
    field = field_of(name)
    return None if field.is_required() else field.default


def _offered(name: str, value: Any) -> Any:
    """The value, where it can be chosen; a browser may remember a draft of another version of Loratory."""
    choices = choices_of(name)
    if not choices:
        return value
    if isinstance(value, list | tuple):
        return [one for one in value if one in choices]
    return value if value in choices else _default_of(name)


def _from_component(name: str, value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, str):
        value = value.strip()
    if name == "adapter.target_modules":
        return ALL_LINEAR if ALL_LINEAR in value else value
    if name in _LISTS:
        return (
            [part for part in (piece.strip() for piece in value.split(",")) if part]
            if isinstance(value, str)
            else value
        )
    if may_be_no_number(name):
        return number_of(value)
    if name == "run.devices":
        return value if value in ("auto", "cpu") or not isinstance(value, str) else _device_numbers(value)
    if value == "" and name != "run.name":
        return None
    return value


def _device_numbers(text: str) -> Any:
    numbers = [part.strip() for part in text.split(",")]
    return [int(number) for number in numbers] if all(number.isdigit() for number in numbers) else text


def _to_component(name: str, value: Any) -> Any:
    if name in _LISTS:
        return ", ".join(value or ())
    if name == "adapter.target_modules":
        return [value] if isinstance(value, str) else list(value)
    if may_be_no_number(name):
        return text_of(value) if isinstance(value, int | float) else value
    if name == "run.devices":
        return value if isinstance(value, str) else ", ".join(str(number) for number in value)
    # Gradio's CheckboxGroup takes anything but a list for one single choice.
    return list(value) if isinstance(value, tuple) else value
