"""What a question is asked with: the models that answer, system prompt, sampling, and sets of prompts."""

import secrets
from collections.abc import Sequence
from typing import Any

import gradio as gr

from loratory.engine.chat.contract import Branch, ChatTarget
from loratory.engine.config.load import section_from_mapping
from loratory.engine.config.results import SamplingConfig
from loratory.engine.errors import EngineError
from loratory.engine.evaluation.prompt_sets import PromptSets
from loratory.engine.paths import LoratoryHome
from loratory.ui.backend.conversation import RowPrompt, Turn
from loratory.ui.components import HIDDEN, QUICK, pick_list, picked_value, shown_as_message
from loratory.ui.form import component_of_field, number_of
from loratory.ui.tabs.chat_choice import ChatChoice
from loratory.ui.views.chat import render_prompt_sets
from loratory.ui.views.html import error_box, small

# Values of the choice of branches: the names of those that answer.
SIDE_BY_SIDE, TUNED, BASE, SECOND, RUNS = "base tuned second", "tuned", "base", "second", "tuned second"
BASE_AND_TUNED, BASE_AND_SECOND = "base tuned", "base second"
OF_TUNED = [("Side by side", SIDE_BY_SIDE), ("Tuned only", TUNED), ("Base only", BASE)]
_SAMPLING = ("temperature", "top_p", "max_new_tokens", "seed", "top_k", "repetition_penalty")


def branch_choices(choice: ChatChoice, branches: Sequence[Branch], target: ChatTarget | None) -> Any:
    """Return the choice of branches for the loaded target."""
    if len(branches) < 2:
        return HIDDEN
    if "second" not in branches:
        return gr.update(choices=OF_TUNED, value=SIDE_BY_SIDE, visible=True)
    names = choice.names(target)
    if choice.compares_with_start(target):
        second, tuned = (names[branch].partition(":")[0] for branch in ("second", "tuned"))
        choices = [("All three", SIDE_BY_SIDE), (f"{second} and {tuned.lower()}", RUNS)]
        choices += [(f"Base and {tuned.lower()}", BASE_AND_TUNED), (f"Base and {second.lower()}", BASE_AND_SECOND)]
        choices += [(f"{tuned} only", TUNED)]
        return gr.update(choices=choices, value=SIDE_BY_SIDE, visible=True)
    choices = [("Both runs", RUNS), ("All three", SIDE_BY_SIDE)]
    choices += [(f"{names['tuned']} only", TUNED), (f"{names['second']} only", SECOND), ("Base only", BASE)]
    return gr.update(choices=choices, value=RUNS, visible=True)


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


class PromptSetsPart:
    """Lays out and connects the prompt sets of a person; the conversation asks them."""

    def __init__(self, home: LoratoryHome, turns: gr.State) -> None:
        self._sets = PromptSets(home)
        with gr.Accordion("Prompt sets", open=False, visible=not home.is_guest, elem_id="prompt-sets") as fold:
            name = gr.Textbox(label="Name of a new set", max_lines=1, elem_id="prompt-set-name")
            text = gr.Textbox(
                label="Prompts, one per line", lines=2, max_lines=4, elem_id="prompt-set-prompts",
                placeholder="Empty: the questions of this conversation, with their references.",
            )  # fmt: skip
            self.list = pick_list(elem_id="prompt-set-list")
        gr.on([fold.expand, self.list.click], self.pick, [name, text, turns], self.list, **QUICK)

    def pick(self, event: gr.EventData, name: str, text: str, turns: Sequence[Turn]) -> str:
        """Save or delete a set, and return all; without typed prompts, it has the questions of the conversation."""
        (action, _, picked_name), message = picked_value(event).partition(":"), ""
        try:
            if action == "save":
                lines = [(line.strip(), "") for line in text.splitlines() if line.strip()]
                rows = dict.fromkeys(lines or [(turn.question, turn.reference) for turn in turns if not turn.images])
                self._sets.save(name.strip(), rows)
                message = small(f"{name.strip()} is saved with {len(rows)} prompts.", role="status")
            elif action == "delete":
                self._sets.delete(picked_name)
        except EngineError as error:
            message = error_box(error)
        return render_prompt_sets(self._sets.names(), message)

    @shown_as_message
    def prompts_to_ask(self, event: gr.EventData) -> list[RowPrompt]:
        """Return the prompts of the set that was picked to be asked; none for another pick."""
        action, _, name = picked_value(event).partition(":")
        prompts = self._sets.read(name).prompts if action == "ask" else ()
        return [RowPrompt(-1, prompt.prompt.strip(), prompt.reference, is_alone=True) for prompt in prompts]
