"""Prompt sets at the composer: prompts are saved under a name, asked one after the other, and deleted."""

from collections.abc import Sequence

import gradio as gr

from loratory.engine.errors import EngineError
from loratory.engine.evaluation.prompt_sets import PromptSets
from loratory.engine.paths import LoratoryHome
from loratory.ui.backend.conversation import RowPrompt, Turn
from loratory.ui.components import QUICK, pick_list, picked_value, shown_as_message
from loratory.ui.views.chat import render_prompt_sets
from loratory.ui.views.html import error_box, small


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
                rows = dict.fromkeys(lines or [(turn.question, turn.reference) for turn in turns])
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
