"""How answers are drawn: the settings that Talk and the blind test share."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from engine.config.load import section_from_mapping
from engine.config.sampling import SamplingConfig
from ui.fields import component_of_field, number_of

_SAMPLING = ("temperature", "top_p", "max_new_tokens", "seed", "top_k", "repetition_penalty")


class SamplingPart:
    """Lays out a fold with the system prompt and every setting of an answer."""

    def __init__(self) -> None:
        with gr.Accordion("System prompt and sampling", open=False, elem_id="chat-settings"):
            self.system = gr.Textbox(
                label="System prompt",
                lines=2,
                info="Stands before the conversation. Empty sends none.",
                elem_id="chat-system",
            )
            fields = SamplingConfig.model_fields
            self.greedy = gr.Checkbox(
                label="Greedy", info="Always the most likely token: nothing is random.", elem_id="chat-greedy"
            )
            with gr.Row():
                self.temperature = component_of_field(fields["temperature"], maximum=2.0, min_width=220)
                top_p = component_of_field(fields["top_p"], maximum=1.0, min_width=220)
            with gr.Row():
                longest = component_of_field(fields["max_new_tokens"], min_width=150)
                seed = component_of_field(fields["seed"], min_width=150)
                top_k = component_of_field(fields["top_k"], min_width=150)
                penalty = component_of_field(fields["repetition_penalty"], min_width=150)
        self.inputs = [self.temperature, top_p, longest, seed, top_k, penalty, self.greedy]

    def wire(self) -> None:
        """Greedy leaves the temperature without a meaning."""
        self.greedy.input(
            lambda greedy: gr.update(interactive=not greedy),
            self.greedy,
            self.temperature,
            show_progress="hidden",
            queue=False,
            api_visibility="private",
        )


def read_sampling(values: Sequence[Any]) -> SamplingConfig:
    """What the settings say, in the order of `SamplingPart.inputs`; what is left empty has its default.

    Raises:
        ConfigError: Lists every setting that is out of bounds.
    """
    *numbers, greedy = values
    named = zip(_SAMPLING, map(number_of, numbers), strict=True)
    given = {name: value for name, value in named if value is not None}
    if greedy:
        given["temperature"] = 0.0
    return section_from_mapping(SamplingConfig, given)
