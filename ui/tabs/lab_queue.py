"""The devices and the queue of a lab, and the user's disk space; visible to everyone in the lab."""

import time
import zlib

import gradio as gr

from engine.accounts.lab import read_settings
from engine.errors import EngineError
from engine.runs.disk import disk_use, free_bytes
from engine.runs.lab_queue import QueueBoard
from ui.backend.background import Cache
from ui.components import live_html
from ui.polls import poll, poll_answer
from ui.services import Services
from ui.views.html import error_box
from ui.views.lab import render_devices, render_own_disk, render_queue

_SECONDS = 4
_DISK_SECONDS = 60  # measured file by file
_DEVICES, _TURNS, _DISK = "queue-devices", "queue-turns", "queue-disk"


class LabQueuePart:
    """Shows who has which device, who is next and why the rest waits; polls while it is visible.

    `engine.runs.lab_queue` leaves out what a user may not see.
    """

    def __init__(self, services: Services, board: QueueBoard) -> None:
        assert services.person is not None, "only a lab has this queue"
        self._services = services
        self._board = board
        self._person = services.person
        self._disk: Cache[str] = Cache(capacity=1)
        gr.HTML("<h2>Lab</h2>")
        first = self._render()
        live_html(first[_DEVICES], elem_id=_DEVICES)
        live_html(first[_TURNS], elem_id=_TURNS)
        live_html(first[_DISK], elem_id=_DISK)
        poll(self.news, _SECONDS, question="queue", elem_id="queue-live")

    def news(self, _question: str, last_stamp: str) -> str | None:
        """Answer a poll: the queue as this person may see it now."""
        places = self._render()
        stamp = f"{zlib.crc32(repr(places).encode()):x}"
        return None if stamp == last_stamp else poll_answer(stamp, places)

    def _render(self) -> dict[str, str]:
        try:
            entries = self._board.entries(self._person)
            return {
                _DEVICES: render_devices(self._board.devices(), entries),
                _TURNS: render_queue(entries, self._person.name),
                _DISK: self._disk.get(time.monotonic() // _DISK_SECONDS, self._own_disk),
            }
        except EngineError as error:
            return {_DEVICES: error_box(error), _TURNS: "", _DISK: ""}

    def _own_disk(self) -> str:
        home, limits = self._services.home, read_settings(self._services.home).limits
        return render_own_disk(disk_use(home, self._person.name), limits, free_bytes(home))
