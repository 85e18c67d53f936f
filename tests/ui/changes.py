"""What a handler changes on the page, by the names that its part gives to the components."""

from typing import Any

import gradio as gr
from gradio.blocks import Block


class Changes:
    """Gives the new value of `part.name` as `changes.name`; `gr.skip()` where it stays as it is."""

    def __init__(self, part: Any, updates: Any) -> None:
        self._part = part
        self._updates = {} if updates == gr.skip() else updates

    def __getattr__(self, name: str) -> Any:
        return self._updates.get(getattr(self._part, name), gr.skip())

    def names(self) -> list[str]:
        """Names of what changes."""
        return [name for name, value in vars(self._part).items() if isinstance(value, Block) and value in self._updates]
