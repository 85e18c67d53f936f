"""A setting's pydantic Field into a labelled, bounded, explained Gradio component."""

import contextlib
from typing import Any, Literal, get_args, get_origin

import annotated_types
import gradio as gr
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from engine.config.run import RunConfig
from ui.components import Dropdown, FieldChoices, FieldSlider, Radio

# A slider is for figures that people feel their way along; beyond this many steps a number box is kinder.
_LARGEST_SLIDER = 1024


def field_of(name: str) -> FieldInfo:
    """The pydantic Field behind a dotted setting name such as `adapter.r`.

    Raises:
        KeyError: If there is no such setting.
    """
    section_name, _, field_name = name.partition(".")
    section = RunConfig.model_fields[section_name].annotation
    assert isinstance(section, type)
    assert issubclass(section, BaseModel)
    return section.model_fields[field_name]


def label_of(name: str) -> str:
    """Plain words, with the field's own term beside them where the two differ."""
    term = name.rsplit(".", 1)[-1]
    title = field_of(name).title or term
    return title if title.lower().replace(" ", "_") == term else f"{title} ({term})"


def component_for(name: str, **presentation: Any) -> Any:
    """Build the component of one setting; label, help, bounds and default come from its Field.

    Args:
        name: Dotted name, such as `training.learning_rate`.
        presentation: What only the page decides: `scale`, `min_width`, `elem_id`, `choices`, `maximum` of a slider …
    """
    return component_of_field(field_of(name), **{"label": label_of(name), **presentation})


def component_of_field(field: FieldInfo, **presentation: Any) -> Any:
    """Build the component of any described field, such as one of `SamplingConfig`."""
    default = None if field.is_required() else field.default
    shared: dict[str, Any] = {"label": field.title, "info": field.description, **presentation}
    several = _several_of(field.annotation)
    if several:
        return FieldChoices(**{"choices": several, "value": list(default or ()), **shared})
    kind = _plain_type(field.annotation)
    lower, upper = _bounds(field)
    if get_origin(kind) is Literal:
        choices = [str(value) for value in get_args(kind)]
        shared = {"choices": choices, "value": default, **shared}
        return Radio(**shared) if len(choices) <= 4 else Dropdown(**shared)
    if kind is bool:
        return gr.Checkbox(**{"value": default, **shared})
    if _is_number_or_nothing(field):
        # Gradio's Number turns from empty to 0 whenever it comes into sight: `value ??= 0` in its Index.svelte.
        return gr.Textbox(**{"value": "", "lines": 1, "max_lines": 1, **shared})
    if kind in (int, float):
        if "maximum" in presentation or (kind is int and lower is not None and (upper or 10**9) <= _LARGEST_SLIDER):
            step = 1 if kind is int else 0.01
            return FieldSlider(**{"minimum": lower or 0, "maximum": upper, "step": step, "value": default, **shared})
        return gr.Number(**{"value": default, "precision": 0 if kind is int else None, **shared})
    if isinstance(default, tuple):
        default = ", ".join(default)
    return gr.Textbox(**{"value": default, "lines": 1, "max_lines": 1, **shared})


def choices_of(name: str) -> list[str]:
    """The names that one, or any number of which, may be chosen; empty where anything can be given."""
    annotation = field_of(name).annotation
    kind = _plain_type(annotation)
    return [str(value) for value in get_args(kind)] if get_origin(kind) is Literal else _several_of(annotation)


def _several_of(annotation: Any) -> list[str]:
    """The names to choose from, where any number of them may be chosen."""
    members = get_args(annotation)
    if get_origin(annotation) is not tuple or get_origin(members[0]) is not Literal:
        return []
    return [str(value) for value in get_args(members[0])]


def changed_by_hand(component: Any) -> Any:
    """The trigger of a component that fires whenever a person changes it.

    A text box's own `input` fires for keys that write a character alone, not for what is pasted, cut, deleted or put in
    by an input method; its `change` fires for all of it, and for what the page itself puts there.
    """
    return component.change if isinstance(component, gr.Textbox) else component.input


def may_be_no_number(name: str) -> bool:
    """Whether a setting is a number that may be left out, so that its box is one of text."""
    return _is_number_or_nothing(field_of(name))


def number_of(typed: Any) -> Any:
    """What a box says that may stay empty: nothing, a number, or the text that is none."""
    if not isinstance(typed, str):
        return typed
    text = typed.strip()
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text or None


def text_of(number: float | None) -> str:
    """What `number_of` reads as this number."""
    if number is None:
        return ""
    return str(int(number)) if float(number).is_integer() else str(number)


def _is_number_or_nothing(field: FieldInfo) -> bool:
    return not field.is_required() and field.default is None and _plain_type(field.annotation) in (int, float)


def _plain_type(annotation: Any) -> Any:
    """`int | None` is asked for like `int`: empty means None."""
    members = [member for member in get_args(annotation) if member is not type(None)]
    if get_origin(annotation) is Literal or not members:
        return annotation
    return members[0] if len(members) == 1 else str


def _bounds(field: FieldInfo) -> tuple[float | None, float | None]:
    lower: Any = None
    upper: Any = None
    for constraint in field.metadata:
        if isinstance(constraint, annotated_types.Ge):
            lower = constraint.ge
        elif isinstance(constraint, annotated_types.Gt):
            lower = constraint.gt
        elif isinstance(constraint, annotated_types.Le):
            upper = constraint.le
        elif isinstance(constraint, annotated_types.Lt):
            upper = constraint.lt
    return lower, upper
