"""What the server keeps of each page: its states, until an hour after it was closed, and of a limited number of pages."""

import datetime
from collections import ChainMap
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.state_holder import SessionState, StateHolder

_MOST_SESSIONS = 1000
_KEPT_CLOSED = datetime.timedelta(hours=1)  # a laptop that wakes up sends the session that it had


class PageSession(SessionState):  # type: ignore[misc]  # Gradio's types are not read
    """States of one page, and its components that differ from the layout.

    Gradio 6.31 copies the whole layout for each page, to restore it from a link (0.75 MB), and a component for each
    answer that leaves one as it is (0.25 MB at the opening). Such links are not offered here.
    """

    def __init__(self, blocks: gr.Blocks) -> None:
        super().__init__(blocks)
        self.config_values.clear()
        self._layout = blocks.default_config.blocks
        self.blocks_config.fns = blocks.default_config.fns
        self.blocks_config.blocks = ChainMap({}, self._layout)

    def __setitem__(self, key: int, value: Any) -> None:
        """Keep the value of a state, or a component; one that is like the layout's is not kept twice."""
        laid_out = self._layout.get(key)
        if isinstance(value, Block) and laid_out is not None and _arguments(value) == _arguments(laid_out):
            self.blocks_config.blocks.maps[0].pop(key, None)
            return
        super().__setitem__(key, value)
        self.config_values.clear()

    def _update_config(self, key: int) -> None:
        """Nothing is kept for links."""

    def _update_value_in_config(self, key: int, value: Any) -> None:
        """Nothing is kept for links."""


class PageSessions(StateHolder):  # type: ignore[misc]
    """The sessions of all pages. Gradio calls this on its event loop alone.

    Args:
        capacity: Beyond it, what was used least recently goes, closed pages first.
    """

    def __init__(self, capacity: int = _MOST_SESSIONS) -> None:
        super().__init__()
        self._capacity = capacity

    def __getitem__(self, session_id: str) -> PageSession:
        """The session of a page, made at its first event."""
        if session_id not in self.session_data:
            self._make_room()
            self.session_data[session_id] = PageSession(self.blocks)
        session: PageSession = super().__getitem__(session_id)
        return session

    def delete_all_expired_state(self) -> None:
        """Forget pages that were closed and unused for an hour; Gradio calls this every second."""
        oldest = datetime.datetime.now() - _KEPT_CLOSED  # local, as Gradio's own
        for session_id, session in list(self.session_data.items()):
            if session.is_closed and self.time_last_used[session_id] < oldest:
                self._forget(session_id)

    def _make_room(self) -> None:
        while len(self.session_data) >= self._capacity:
            closed = (name for name, session in self.session_data.items() if session.is_closed)
            self._forget(next(closed, None) or next(iter(self.session_data)))

    def _forget(self, session_id: str) -> None:
        del self.session_data[session_id]
        del self.time_last_used[session_id]


def keep_little(app: gr.routes.App) -> None:
    """Let an app keep its sessions here, before it has any."""
    app.state_holder = PageSessions()
    app.state_holder.set_blocks(app.get_blocks())


def _arguments(block: Block) -> dict[str, Any]:
    """What a component was made with; its value and its place follow neither from an update nor matter to one."""
    return {name: value for name, value in block.constructor_args.items() if name not in ("value", "render")}
