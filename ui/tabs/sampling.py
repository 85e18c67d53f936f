"""Sampling settings and system prompt, shared by chat and blind test."""

import secrets
from collections.abc import Sequence
from typing import Any

import gradio as gr

from engine.config.load import section_from_mapping
from engine.config.results import SamplingConfig
from ui.components import QUICK
from ui.form import component_of_field, number_of

_SAMPLING = ("temperature", "top_p", "max_new_tokens", "seed", "top_k", "repetition_penalty")


class SamplingPart:
    """Lays out a fold with the system prompt and every setting of an answer."""

    def __init__(self) -> None:
        fields = SamplingConfig.model_fields
        with gr.Accordion("System prompt and sampling", open=False, elem_id="chat-settings"):
            self.system = gr.Textbox(
                label="System prompt",
                lines=2,
                info="If empty, the chat template may still add its own; see Exact prompt.",
                elem_id="chat-system",
            )
            self.greedy = gr.Checkbox(label="Greedy", info="Always pick the most likely token.", elem_id="chat-greedy")
            with gr.Row():
                self.temperature = component_of_field(fields["temperature"], maximum=2.0, min_width=220)
                top_p = component_of_field(fields["top_p"], maximum=1.0, min_width=220)
            with gr.Row():
                rest = [component_of_field(fields[name], min_width=150) for name in _SAMPLING[2:]]
        self.inputs = [self.temperature, top_p, *rest, self.greedy]

    def wire(self) -> None:
        """Disable the temperature of a greedy answer."""
        self.greedy.input(lambda greedy: gr.update(interactive=not greedy), self.greedy, self.temperature, **QUICK)


def with_seed(sampling: SamplingConfig) -> SamplingConfig:
    """Draw a seed if none is set, so answers can be reproduced."""
    if sampling.seed is not None or sampling.greedy:
        return sampling
    return sampling.model_copy(update={"seed": secrets.randbits(32)})


def read_sampling(values: Sequence[Any]) -> SamplingConfig:
    """Return the settings, in the order of `SamplingPart.inputs`; an empty one gets its default.

    Raises:
        ConfigError: Lists every setting that is out of bounds.
    """
    *numbers, greedy = values
    pairs = zip(_SAMPLING, map(number_of, numbers), strict=True)
    settings = {name: value for name, value in pairs if value is not None}
    if greedy:
        settings["temperature"] = 0.0
    return section_from_mapping(SamplingConfig, settings)
