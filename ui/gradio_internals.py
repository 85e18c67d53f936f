"""Every workaround of Gradio's internals, each with the version that it was written for."""

import datetime
import functools
import inspect
import warnings
from collections import ChainMap
from collections.abc import Iterator
from types import FunctionType, SimpleNamespace
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import fastapi.utils
import gradio as gr
import gradio.blocks
import gradio.component_meta
import gradio.components.base
import safehttpx
from gradio import processing_utils
from gradio.blocks import Block
from gradio.context import Context, LocalContext
from gradio.state_holder import SessionState, StateHolder

from loratory.ui.gradio_queue import PageQueue

# pydantic warns of a parameter of Gradio 6.31's routes, in the terminal and at the first page.
warnings.filterwarnings("ignore", "The 'alias' attribute with value 'body'")

_KEPT_CLOSED = datetime.timedelta(hours=1)  # a laptop that wakes up sends its old session


gradio.component_meta.create_or_modify_pyi = lambda *_: None  # it would write a stub next to our source


class Slider(gr.Slider):  # type: ignore[misc]
    """A slider whose box may hold anything while a person types; the panel shows what is wrong with it.

    That of Gradio 6.31 raises for an emptied box and for a number beyond its ends, in every event that reads the form.
    """

    def preprocess(self, payload: float | None) -> float | None:
        return payload


class CheckboxGroup(gr.CheckboxGroup):  # type: ignore[misc]
    """Boxes whose choices may have changed while an answer was under way; the panel shows what no longer fits.

    That of Gradio 6.31 raises for a choice that it no longer has, in every event that reads the form.
    """

    def preprocess(self, payload: list[str]) -> list[str]:
        return payload


class _OneChoice:
    """Does not list all choices in its error for an unknown value, as components of Gradio 6.31 do."""

    def preprocess(self, payload: Any) -> Any:
        try:
            return super().preprocess(payload)  # type: ignore[misc]
        except gr.Error:
            label: str | None = self.label  # type: ignore[attr-defined]
            under = f" under “{label}”" if label else ""
            raise gr.Error(
                f"The choice{under} is not offered. Open the tab again, and choose from the list.",
                title="That did not work", duration=12, print_exception=False,
            ) from None  # fmt: skip


class Dropdown(_OneChoice, gr.Dropdown):  # type: ignore[misc]
    """A dropdown with a short error for an unknown choice."""


class Radio(_OneChoice, gr.Radio):  # type: ignore[misc]
    """A radio with a short error for an unknown choice."""


class _NoAppYet:
    """Makes no app for blocks that are not served yet.

    Gradio 6.31 makes one with 80 routes when blocks begin, another when they are complete, and uses the one of the launch.
    """

    @staticmethod
    def create_app(*_: Any, **__: Any) -> None:
        """Return None, as blocks that were never served have no app."""


gradio.blocks.App = _NoAppYet  # its own name for the class; launching and mounting use that of gradio.routes
# FastAPI 0.165 imports all of pydantic.v1 at the first route, to refuse models of it; there are none.
fastapi.utils.annotation_is_pydantic_v1 = lambda _: False  # type: ignore[attr-defined, assignment]


async def _refuse_address(*_: Any, **__: Any) -> NoReturn:
    """Fetch nothing: Gradio 6.31 gets any public address that a client names as the path of a file."""
    raise gr.Error(
        "That file is an address. Addresses are not fetched here; upload the file.",
        title="That did not work", duration=12, print_exception=False,
    )  # fmt: skip


# The first makes a folder before it asks; all that Gradio gets for clients passes the others.
processing_utils.async_ssrf_protected_download = _refuse_address
safehttpx.get = safehttpx.async_validate_url = _refuse_address

_folder_of_environment = gradio.utils.get_upload_folder


def _upload_folder() -> str:
    """Return the folder for files of the page whose event this is; while one is laid out, that of the environment.

    Gradio 6.31 reads the environment at each event too, and a lab's pages have one environment and a folder each.
    """
    page = LocalContext.blocks.get(None)
    return _folder_of_environment() if page is None else str(page.GRADIO_CACHE)


gradio.utils.get_upload_folder = gradio.blocks.get_upload_folder = _upload_folder


@functools.cache
def _server_functions(kind: type) -> tuple[str, ...]:
    """Return the names of a component's functions for browsers.

    Gradio 6.31 looks for them among all 200 attributes of each component that it makes, three times.
    """
    return tuple(name for name in dir(kind) if getattr(getattr(kind, name, None), "_is_server_fn", False))


gradio.components.base.dir = _server_functions  # where a component looks for them, and nowhere else


class _Hints:
    """The types of the parameters of each handler, which Gradio 6.31 works out five times for each event."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[FunctionType, dict[str, Any]] = WeakKeyDictionary()
        self._work_out = gradio.utils.get_type_hints

    def __call__(self, handler: Any) -> dict[str, Any]:
        function = getattr(handler, "__func__", handler)
        if not isinstance(function, FunctionType):
            return self._work_out(handler)  # type: ignore[no-any-return]
        known = self._known.get(function)
        if known is None:
            known = self._known[function] = self._work_out(function)
        return known


gradio.utils.get_type_hints = _Hints()


# What Gradio 6.31 tells screen readers at the end of an event has no text: they read its key aloud.
SPOKEN = gr.I18n(en={"common.complete": "Done"})


class Blocks(gr.Blocks):  # type: ignore[misc]
    """Blocks that are laid out once and then served, by a launch or as a mounted app."""

    _is_running_in_reload_thread = False  # Gradio 6.31 imports its commands to find out

    def __init__(self, **options: Any) -> None:
        _remember_signatures()
        super().__init__(**options)
        self.i18n_instance = SPOKEN
        _leave_no_event_out(self.default_config)

    def get_config_file(self) -> Any:
        """Return the description for browsers: none before all is laid out, where Gradio 6.31 makes one that it replaces.

        It makes another when the launch or the mounting begins, and one with the app: both have the parts of the former.
        """
        if not getattr(self, "exited", True):
            return {}
        layout = self.default_config
        is_second = "get_config" in vars(layout)
        if not is_second:
            parts = layout.get_config()
            layout.get_config = lambda: parts
        description = super().get_config_file()
        if is_second:
            del layout.get_config
        return description

    def launch(self, **options: Any) -> Any:
        """Serve the blocks without opening the page once to see whether it can be reached, as Gradio 6.31 does."""
        return super().launch(_frontend=False, i18n=SPOKEN, **options)


gradio.blocks.queueing.Queue = PageQueue


def _leave_no_event_out(layout: Any) -> None:
    """Run an event that follows a value or another event again if it was triggered while it ran.

    Gradio 6.31 leaves it out (`trigger_mode` "once"), and the page would show an old state. Not for clicks and
    selections: the second run would get the event data of the first.

    Nor does an event that shows no progress tell each of its outputs, twice, how far it is: that takes a browser longer than
    drawing the answer.
    """
    add = layout.set_event_trigger

    def add_event(targets: Any, fn: Any, *arguments: Any, **options: Any) -> Any:
        _remember_signature(getattr(fn, "__func__", fn))
        if options.get("show_progress") == "hidden":
            options["show_progress_on"] = []
        follows = options.get("trigger_after") is not None or (targets and targets[0].event_name == "input")
        if follows and options.get("trigger_mode") is None:
            options["trigger_mode"] = "always_last"
        return add(targets, fn, *arguments, **options)

    layout.set_event_trigger = add_event


def _remember_signatures() -> None:
    """Let the signature of each component be worked out once; Gradio 6.31 asks for it 7,000 times while a page starts."""
    for kind in _kinds(Block):
        _remember_signature(inspect.unwrap(kind.__init__))  # type: ignore[misc]  # that of the class itself


def _remember_signature(function: Any) -> None:
    """Let the signature of a function be worked out once; Gradio 6.31 asks for that of a handler five times."""
    if isinstance(function, FunctionType) and not hasattr(function, "__signature__"):
        function.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]


def _kinds(kind: type) -> Iterator[type]:
    yield kind
    subclass: type
    for subclass in kind.__subclasses__():
        yield from _kinds(subclass)


class PageSession(SessionState):  # type: ignore[misc]  # Gradio's types are not read
    """The states of one page, and its components that differ from the layout.

    Gradio 6.31 copies the whole layout for each page, to restore it from a link (0.75 MB and 40 ms, also at the end of a
    page), and a component for each answer that leaves one as it is (0.25 MB at the opening). Such links are not offered here.
    """

    def __init__(self, blocks: gr.Blocks) -> None:
        super().__init__(SimpleNamespace(default_config=blocks.default_config, blocks=()))
        self._layout = blocks.default_config.blocks
        self.blocks_config.fns = blocks.default_config.fns
        self.blocks_config.blocks = ChainMap({}, self._layout)

    def __setitem__(self, key: int, value: Any) -> None:
        """Keep the value of a state, or a component; one that equals the layout's is not kept twice."""
        laid_out = self._layout.get(key)
        if isinstance(value, Block) and laid_out is not None and _arguments(value) == _arguments(laid_out):
            self.blocks_config.blocks.maps[0].pop(key, None)
            return
        super().__setitem__(key, value)
        self.config_values.clear()

    def _update_config(self, key: int) -> None:
        """Keep nothing for links."""

    def _update_value_in_config(self, key: int, value: Any) -> None:
        """Keep nothing for links."""


class PageSessions(StateHolder):  # type: ignore[misc]
    """The sessions of all pages. Gradio calls this on its event loop alone.

    Beyond the capacity, the session used least recently is dropped, closed pages first.
    """

    def __init__(self, capacity: int = 1000) -> None:
        super().__init__()
        self._capacity = capacity

    def __getitem__(self, session_id: str) -> PageSession:
        """Return the session of a page, made at its first event."""
        if session_id not in self.session_data:
            while len(self.session_data) >= self._capacity:
                closed_pages = (name for name, session in self.session_data.items() if session.is_closed)
                self._forget(next(closed_pages, None) or next(iter(self.session_data)))
            self.session_data[session_id] = PageSession(self.blocks)
        session: PageSession = super().__getitem__(session_id)
        return session

    def delete_all_expired_state(self) -> None:
        """Forget pages that were closed and unused for an hour; Gradio calls this every second."""
        oldest = datetime.datetime.now() - _KEPT_CLOSED  # local, as Gradio's own
        for session_id, session in list(self.session_data.items()):
            if session.is_closed and self.time_last_used[session_id] < oldest:
                self._forget(session_id)

    def _forget(self, session_id: str) -> None:
        del self.session_data[session_id]
        del self.time_last_used[session_id]


def keep_little(app: gr.routes.App) -> None:
    """Let a server keep its sessions in `PageSessions`, before it has any."""
    app.state_holder = PageSessions()
    app.state_holder.set_blocks(app.get_blocks())


def use_mounted(blocks: gr.Blocks, app: gr.routes.App) -> None:
    """Let the events of mounted blocks use the app that they are mounted as.

    Gradio 6.31 does not set that app in the blocks, and checks the paths of files in launched apps alone.
    """
    blocks.app = blocks.server_app = app
    blocks._queue.set_server_app(app)
    blocks.has_launched = True
    keep_little(app)


def _arguments(block: Block) -> dict[str, Any]:
    """Return the arguments that a component was made with, without its value and its position, which no update depends on."""
    return {name: value for name, value in block.constructor_args.items() if name not in ("value", "render")}


def enclosing_tab() -> gr.Tab:
    """Return the tab that is being laid out. Its `select` fires however it is opened, that of `gr.Tabs` on clicks only.

    Gradio 6.31 has no public way to it.
    """
    block = Context.block
    while block is not None and not isinstance(block, gr.Tab):
        block = block.parent
    assert block is not None, "called outside of a tab"
    return block


def enclosing_page() -> gr.Blocks:
    """Return the page that is being laid out."""
    assert Context.root_block is not None
    return Context.root_block


def changed_by_hand(component: Any) -> Any:
    """Return the trigger of a component that fires whenever a person changes it.

    The `input` of a text box of Gradio 6.31 fires for keys that write a character alone, not for what is pasted, cut, deleted
    or put in by an input method; its `change` fires for all of it, and for what the page itself puts there.
    """
    return component.change if isinstance(component, gr.Textbox) else component.input
