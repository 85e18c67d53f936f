"""All settings on the page as one value: pydantic Fields into components, components into nested plain values, and back."""

import contextlib
import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import gradio as gr
from gradio.components.base import Component
from pydantic.fields import FieldInfo

from loratory.engine.config import derived_defaults
from loratory.engine.config.load import SectionType, parse_partial_config, section_from_mapping, setting_names
from loratory.engine.config.run import RunConfig
from loratory.engine.config.run import field_of as field_of
from loratory.engine.errors import ConfigError, Problem
from loratory.engine.hardware.device import KnownDevice, find_known_device
from loratory.engine.models.shape import ModelShape
from loratory.engine.section import BY_DECADES
from loratory.ui.gradio_internals import CheckboxGroup, Dropdown, Radio, Slider

# Every linear layer, under any name that the model gives it: ticked before a model's own layers are known.
ALL_LINEAR = "all-linear"
EVERY_LAYER = [("every linear layer", ALL_LINEAR)]  # the choice of targets while no modules are known
# What the browser remembers with the form and no run has: the name of the device that memory is judged for, or "".
JUDGE_FOR = "page.judge_for"
# Also remembered: the page's derived defaults, as JSON; a setting with another value was set by the user.
DERIVED_DEFAULTS = "page.derived_defaults"
# Settings whose text box holds several names or numbers.
_LISTS = ("adapter.modules_to_save", "adapter.feedforward_modules", "training.loss_weights")
_LIMITS = ("ge", "gt", "le", "lt")  # of pydantic's constraints
# More steps than this are hard to hit with a slider: a number box is used.
_LARGEST_SLIDER = 100
_LARGEST = 2**53  # no setting is larger; Gradio cannot send integers of more than 64 bits
_LONGEST_DEVICE = 9  # digits


class Form:
    """The registry of setting components; a setting that a tab does not place is added hidden by `complete`."""

    def __init__(self) -> None:
        self._components: dict[str, Component] = {}

    def setting(self, name: str, **presentation: Any) -> Component:
        """Place the component of one setting here in the layout."""
        return self.register(name, component_for(name, **presentation))

    def register(self, name: str, component: Component) -> Component:
        """Let a component that the caller built carry a setting."""
        assert name in (*setting_names(), JUDGE_FOR, DERIVED_DEFAULTS), name
        assert name not in self._components, f"{name} is on the page twice"
        self._components[name] = component
        return self.show_problems_of(name, component) if component.visible else component

    def show_problems_of(self, name: str, component: Component) -> Component:
        """Let a component be the field of a setting: what is wrong with it is shown there, and links lead to it."""
        component.elem_classes = [*component.elem_classes, name]
        return component

    def complete(self) -> None:
        """Add hidden components for settings that no tab shows, so presets and copied runs keep them."""
        for name in setting_names():
            if name not in self._components:
                self._components[name] = gr.State(_default_of(name))

    @property
    def names(self) -> list[str]:
        return list(self._components)

    @property
    def components(self) -> list[Component]:
        return list(self._components.values())

    def __getitem__(self, name: str) -> Any:
        return self._components[name]

    def mapping(self, values: Sequence[Any]) -> dict[str, dict[str, Any]]:
        """Return nested plain values as `config_from_mapping` takes them; empty ones are left out."""
        nested: dict[str, dict[str, Any]] = {section: {} for section in RunConfig.model_fields}
        for name, value in zip(self._components, values, strict=True):
            if name in (JUDGE_FOR, DERIVED_DEFAULTS):
                continue
            section, field = name.split(".")
            plain = _from_component(name, value)
            if isinstance(plain, int) and abs(plain) > _LARGEST:
                plain = float(plain)
            if plain is not None:
                nested[section][field] = plain
        return nested

    def judged_device(self, values: Sequence[Any]) -> KnownDevice | None:
        """Return the device that memory is estimated for; None for this machine and for unknown names."""
        name = dict(zip(self._components, values, strict=True)).get(JUDGE_FOR)
        return find_known_device(name) if isinstance(name, str) else None

    def values_by_default(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return the settings that still have the value of a derived default, with that value."""
        by_name = dict(zip(self._components, values, strict=True))
        try:
            saved_values = json.loads(by_name.get(DERIVED_DEFAULTS) or "{}")
        except (TypeError, ValueError, RecursionError):  # of a client
            return {}
        if not isinstance(saved_values, dict):
            return {}
        return {
            name: saved_values[name]
            for name in derived_defaults.SETTINGS
            if name in saved_values and saved_values[name] == _from_component(name, by_name.get(name))
        }

    def updates(self, mapping: Mapping[str, Mapping[str, Any]]) -> list[Any]:
        """Return component values for a configuration; a setting that the mapping does not name gets its default."""
        values: list[Any] = []
        for name in self._components:
            section, field = name.split(".")
            if name in (JUDGE_FOR, DERIVED_DEFAULTS):
                values.append(mapping.get(section, {}).get(field, ""))
                continue
            value = _to_component(name, _choice_in_form(name, mapping.get(section, {}).get(field, _default_of(name))))
            # For a browser, None in a box that was empty is a change, which every text box sends an event for.
            values.append("" if value is None and isinstance(self._components[name], gr.Textbox | Radio) else value)
        return values


def group_settings(settings_of: Mapping[str, Iterable[str]]) -> dict[tuple[str, ...], list[str]]:
    """Group settings by what uses them: methods or objectives, each with the names of its settings."""
    readers: dict[str, list[str]] = {}
    for reader, names in settings_of.items():
        for name in names:
            readers.setdefault(name, []).append(reader)
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, of_name in readers.items():
        groups.setdefault(tuple(of_name), []).append(name)
    return groups


def setting_in(mapping: Mapping[str, Mapping[str, Any]], name: str) -> Any:
    """Return the value of a setting in nested plain values; None if it is absent."""
    section, _, field = name.partition(".")
    return mapping.get(section, {}).get(field)


def label_of(name: str) -> str:
    """Return the title of a setting, with its own name after it where the two differ."""
    term = name.rsplit(".", 1)[-1]
    title = field_of(name).title or term
    return title if title.lower().replace(" ", "_") == term else f"{title} ({term})"


def component_for(name: str, **presentation: Any) -> Any:
    """Build the component of one setting; label, help, bounds and default come from its Field.

    Only the page decides on `presentation`: `scale`, `min_width`, `elem_id`, `choices`, `maximum` of a slider …
    """
    laid_out: dict[str, Any] = {"label": label_of(name)}
    if name in derived_defaults.SETTINGS:  # that of an empty form, so a page without a draft sends no change
        laid_out["value"] = _to_component(name, _basic_defaults()[name].value)
    return component_of_field(field_of(name), **{**laid_out, **presentation})


@functools.cache
def _basic_defaults() -> dict[str, derived_defaults.DerivedDefault]:
    return derived_defaults.derive_defaults(parse_partial_config({}))


def component_of_field(field: FieldInfo, **presentation: Any) -> Any:
    """Build the component of any described field, such as one of `SamplingConfig`."""
    default = None if field.is_required() else field.default
    shared: dict[str, Any] = {"label": field.title, "info": field.description, **presentation}
    kind = _plain_type(field.annotation)
    if several := _several_of(field.annotation):
        return CheckboxGroup(**{"choices": several, "value": list(default or ()), **shared})
    if choices := _choices_of(kind):
        one_choice = Radio if len(choices) <= 4 else Dropdown
        return one_choice(**{"choices": choices, "value": default, **shared})
    if kind is bool and field.default is None:
        own = [("the model's own", ""), ("yes", True), ("no", False)]
        return Radio(**{"choices": own, "value": "", **shared})
    if kind is bool:
        return gr.Checkbox(**{"value": default, **shared})
    # Gradio's Number turns from empty to 0 whenever it comes into sight: `value ??= 0` in its Index.svelte.
    if kind in (int, float) and not _is_optional_number(field):
        return _number_component(field, kind, default, shared)
    text = ", ".join(default) if isinstance(default, tuple) else default or ""
    return gr.Textbox(**{"value": text, "lines": 1, "max_lines": 1, **shared})


def _number_component(field: FieldInfo, kind: type, default: Any, shared: Mapping[str, Any]) -> Any:
    """Build a slider where the range is short or the caller gives its maximum, else a number box."""
    limits = {name: getattr(limit, name) for limit in field.metadata for name in _LIMITS if hasattr(limit, name)}
    lower, upper = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))
    step: Any = 1 if kind is int else 0.01
    if "maximum" in shared or (kind is int and lower is not None and (upper or 10**9) <= _LARGEST_SLIDER):
        return Slider(**{"minimum": lower or 0, "maximum": upper, "step": step, "value": default, **shared})
    number = {"value": default, "step": step, "precision": 0 if kind is int else None, "placeholder": text_of(default)}
    if BY_DECADES in field.metadata:
        number |= {"step": "any", "elem_classes": [BY_DECADES]}
    elif kind is float and (upper is None or upper > 1):
        number["step"] = "any"  # which steps by 1 as well
    return gr.Number(**{**number, **shared})


def section_by_titles(section: type[SectionType], values: Mapping[str, Any]) -> SectionType:
    """Return `section_from_mapping`, whose problems name settings as their boxes do.

    Raises:
        ConfigError: Lists everything that is wrong with it.
    """
    try:
        return section_from_mapping(section, values)
    except ConfigError as error:
        fields = section.model_fields
        raise ConfigError(
            [Problem((fields[name].title or name) if name in fields else name, text) for name, text in error.problems]
        ) from error


def number_of(value: Any) -> Any:
    """Return the value of a number box: None if empty, a number, or the text if it is not a number."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text or None


def text_of(number: float | None) -> str:
    """Return what `number_of` reads as this number."""
    if number is None:
        return ""
    return str(int(number)) if float(number).is_integer() else str(number)


def _several_of(annotation: Any) -> list[str]:
    return _choices_of(get_args(annotation)[0]) if get_origin(annotation) is tuple else []


def _choices_of(annotation: Any) -> list[str]:
    return [str(value) for value in get_args(annotation)] if get_origin(annotation) is Literal else []


def _is_optional_number(field: FieldInfo) -> bool:
    return not field.is_required() and field.default is None and _plain_type(field.annotation) in (int, float)


@functools.cache
def _takes_optional_number(name: str) -> bool:
    return _is_optional_number(field_of(name))


def _plain_type(annotation: Any) -> Any:
    """Return the type without None: `int` for `int | None`, for which an empty box means None."""
    members = [member for member in get_args(annotation) if member is not type(None)]
    if get_origin(annotation) is Literal or not members:
        return annotation
    return members[0] if len(members) == 1 else str


@functools.cache
def _default_of(name: str) -> Any:
    field = field_of(name)
    return None if field.is_required() else field.default


def _choice_in_form(name: str, value: Any) -> Any:
    """Return the value if it is a valid choice; a stored draft may come from another version of Loratory."""
    annotation = field_of(name).annotation
    choices = _choices_of(_plain_type(annotation)) or _several_of(annotation)
    if not choices:
        return value
    if isinstance(value, list | tuple):
        return [choice for choice in value if choice in choices]
    return value if value in choices else _default_of(name)


def _from_component(name: str, value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, str):
        value = value.strip()
    if read := _READERS.get(name):
        return read(value)
    if _takes_optional_number(name):
        return number_of(value)
    return None if value == "" else value


def _read_list(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _read_devices(value: Any) -> Any:
    """Return the numbers of devices, or the text if it is not a list of numbers."""
    numbers = [part.strip() for part in value.split(",")] if isinstance(value, str) else []
    if numbers and all(number.isdecimal() and len(number) <= _LONGEST_DEVICE for number in numbers):
        return [int(number) for number in numbers]
    return value


# Of settings whose component does not hold their plain value.
_READERS: Mapping[str, Callable[[Any], Any]] = {
    "adapter.target_modules": lambda value: ALL_LINEAR if ALL_LINEAR in value else value,
    "run.devices": _read_devices,
    "run.name": lambda value: value,  # empty for a name made from the settings
    **dict.fromkeys(_LISTS, _read_list),
}


def _to_component(name: str, value: Any) -> Any:
    if name in _LISTS:
        return ", ".join(f"{part:g}" if isinstance(part, float) else str(part) for part in value or ())
    if name == "adapter.target_modules":
        return [value] if isinstance(value, str) else list(value)
    if _takes_optional_number(name):
        return text_of(value) if isinstance(value, int | float) else value
    if name == "run.devices":
        return value if isinstance(value, str) else ", ".join(str(number) for number in value)
    # Gradio's CheckboxGroup takes anything but a list for one single choice.
    return list(value) if isinstance(value, tuple) else value


def targets_update(shape: ModelShape | None, targets: object) -> Any:
    """Return choices and ticks of the target modules of a model; all-linear ticks all."""
    names = list(shape.linear_names()) if shape is not None else []
    if not targets or targets == ALL_LINEAR:
        return gr.update(choices=names or EVERY_LAYER, value=names or [ALL_LINEAR])
    chosen = [targets] if isinstance(targets, str) else [str(target) for target in targets]  # type: ignore[attr-defined]
    present = [name for name in chosen if name in names]
    if not present:
        # None of them is in this model, or its modules are not known yet: show them unchanged.
        return gr.update(choices=[*names, *chosen], value=chosen)
    return gr.update(choices=names, value=present)
