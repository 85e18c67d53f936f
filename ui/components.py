"""Gradio's components where their own Python refuses what a page may well send, or says more than it should."""

from abc import ABCMeta
from typing import Any

import gradio as gr
from gradio.component_meta import ComponentMeta


class _WithoutStub(ComponentMeta):  # type: ignore[misc]  # Gradio's types are not read
    """Of a component that is Gradio's but for its Python: Gradio would write a stub for editors beside our source."""

    def __new__(cls, name: str, bases: tuple[type, ...], attributes: dict[str, Any]) -> Any:
        return ABCMeta.__new__(cls, name, bases, attributes)


class FieldSlider(gr.Slider, metaclass=_WithoutStub):  # type: ignore[misc]
    """A slider whose box may hold anything while a person types; the panel says what is wrong with it.

    Gradio's own raises for an emptied box and for a number beyond its ends, in every event that reads the form.
    """

    def get_block_name(self) -> str:
        return "slider"

    def preprocess(self, payload: float | None) -> float | None:
        return payload


class FieldChoices(gr.CheckboxGroup, metaclass=_WithoutStub):  # type: ignore[misc]
    """Boxes whose choices may have changed while an answer was under way; what no longer fits the panel says.

    Gradio's own raises for what is no choice any more, in every event that reads the form.
    """

    def get_block_name(self) -> str:
        return "checkboxgroup"

    def preprocess(self, payload: list[str]) -> list[str]:
        return payload


class Dropdown(gr.Dropdown, metaclass=_WithoutStub):  # type: ignore[misc]
    """A dropdown that does not answer an unknown value with the list of all choices."""

    def get_block_name(self) -> str:
        return "dropdown"

    def preprocess(self, payload: Any) -> Any:
        try:
            return super().preprocess(payload)
        except gr.Error:
            raise _unknown_choice(self.label) from None


class Radio(gr.Radio, metaclass=_WithoutStub):  # type: ignore[misc]
    """A radio that does not answer an unknown value with the list of all choices."""

    def get_block_name(self) -> str:
        return "radio"

    def preprocess(self, payload: Any) -> Any:
        try:
            return super().preprocess(payload)
        except gr.Error:
            raise _unknown_choice(self.label) from None


def _unknown_choice(label: str | None) -> gr.Error:
    named = f" under “{label}”" if label else ""
    return gr.Error(
        f"What was chosen{named} is not offered. Open the tab again, and choose from the list.",
        title="That did not work", duration=12, print_exception=False,
    )  # fmt: skip
