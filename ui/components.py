"""Our components, the kinds of events, and errors of handlers."""

import functools
import importlib.util
import json
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import gradio as gr
from gradio.components.base import Component

from loratory.engine.config.load import change_of
from loratory.engine.errors import EngineError
from loratory.ui.backend.background import as_engine_error
from loratory.ui.gradio_internals import changed_by_hand
from loratory.ui.views.html import error_box, with_code

_ASSETS = Path(__file__).parent / "assets"
# plotly.js-basic-dist-min 4.1.1 of the npm registry, as published.
_PLOTLY_BASIC = (_ASSETS / "plotly-basic.min.js").resolve()
# Browser storage holds no secrets; a fixed key keeps it readable after a restart of the server.
_STORAGE_KEY = "loratory"
_SHARED = ("pick", "chart", "live")
P = ParamSpec("P")
R = TypeVar("R")

Updates = dict[Component, Any]  # what a handler changes; components that it does not name stay as they are

# An event whose handler takes at most milliseconds, and one that may have to wait for its turn. What gr.Info and gr.Warning
# say in the first is printed by the server instead of shown, as it has no queue.
QUICK: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
SLOW: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
# One that is handled again after the last of several, and one that is ignored while it is handled.
LATEST: dict[str, Any] = {"trigger_mode": "always_last", **QUICK}
ONCE: dict[str, Any] = {"trigger_mode": "once", **SLOW}

# Of an event without a handler: in the browser, for answers of the server may arrive in another order than tabs were opened.
NOT_SHOWN = "() => ({__type__: 'update', visible: false})"
TIMER_ON = "() => ({__type__: 'update', active: true})"
TIMER_OFF = "() => ({__type__: 'update', active: false})"

HIDDEN: Any = gr.update(visible=False)
UNCHANGED: dict[Any, Any] = gr.skip()  # of one component, or of all that a handler may change


def visible_if(condition: bool) -> Any:
    """Return the update that shows a component, or hides it."""
    return gr.update(visible=condition)


def nothing() -> None:
    """Do nothing: the handler of an event that only triggers other events."""


def shown_in_place(handler: Callable[P, R]) -> Callable[P, R | str]:
    """Let a handler whose one output is HTML return the box of an error instead of raising it."""

    @functools.wraps(handler)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R | str:
        try:
            return handler(*args, **kwargs)
        except Exception as error:
            return error_box(as_engine_error(error))

    return wrapper


def shown_as_message(handler: Callable[P, R]) -> Callable[P, R]:
    """Let a handler's EngineError appear as a message over the page; the outputs stay as they are."""

    @functools.wraps(handler)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return handler(*args, **kwargs)
        except EngineError as error:
            raise gr.Error(
                with_code(str(error)), title="That did not work", duration=12, print_exception=False
            ) from error

    return wrapper


def clear_error_after(output: Component, components: Iterable[Component], typed_box: gr.Textbox | None = None) -> None:
    """Clear the error in `output` when one of `components` is edited, as the edit may fix it.

    An event restores the text of `typed_box` with the error, so only typing in it clears the error.
    """
    events: list[Any] = [changed_by_hand(component) for component in components if hasattr(component, "input")]
    events += [typed_box.input] if typed_box is not None else []
    gr.on(
        events, None, output, output, js="(html) => String(html ?? '').includes('role=\"alert\"') ? '' : html", **QUICK
    )


@functools.cache
def script(name: str, kind: str = "js") -> str:
    """Return one of our scripts, the `js_on_load` of a component, without its lines of comments; or a template of HTML."""
    return re.sub(r"^ *//.*\n", "", (_ASSETS / f"{name}.{kind}").read_text(encoding="utf-8"), flags=re.MULTILINE)


@functools.cache
def late_script(*names: str) -> str:
    """Return a `js_on_load` that asks for our scripts, and for the HTML of the same names, once the component is laid out."""
    path = f"assets/loratory/{'-'.join(names)}.js"
    stamp = zlib.crc32(module_text(path).encode())
    return f"""import(new URL('{path}?{stamp:x}', document.baseURI)).then(
  ({{default: run}}) => run(element, props, trigger, watch, server, upload),
  () => {{ element.textContent = 'This part of the page did not load. Reload the page.'; }},
);"""


def module_text(path: str) -> str:
    """Return the module that a path of `late_script` names; empty if it names none."""
    names = path.partition("assets/loratory/")[2].removesuffix(".js").split("-")
    if not all(name.isidentifier() and (_ASSETS / f"{name}.js").is_file() for name in names):
        return ""
    html = json.dumps("".join(script(name, "html") for name in names if (_ASSETS / f"{name}.html").is_file()))
    scripts = "".join(map(script, names))
    return f"export default (element, props, trigger, watch, server, upload) => {{\nelement.innerHTML = {html};\n{scripts}}};\n"


def shared_scripts() -> str:
    """Return the scripts that many components run; the first component of the page defines them once."""
    take = "(element, props, trigger, watch, server) =>"
    return "\n".join(f"window.loratory_{name} = {take} {{{script(name)}}};" for name in _SHARED)


@functools.cache
def shared_script(name: str, *more: str) -> str:
    """Return what runs a shared script for a component, as soon as it is defined, and then others, which see what it returns."""
    return f"""const run = () => {{
  if (!window.loratory_{name}) return setTimeout(run, 20);
  const {name} = window.loratory_{name}(element, props, trigger, watch, server);
{"".join(map(script, more))}}};
run();"""


def pick_list(value: str = "", *, more: Sequence[str] = (), **presentation: Any) -> gr.HTML:
    """Return HTML whose elements with `data-pick` send their id on `.click`, see `picked_value`; `more` names other scripts."""
    return gr.HTML(value, js_on_load=shared_script("pick", *more), **presentation)


def picked_value(event: gr.EventData) -> str:
    """Return the id of the row that was picked; a client's value, so look it up before you trust it."""
    return str(event._data.get("pick", "")) if isinstance(event._data, dict) else ""


def picked_change(event: gr.EventData) -> dict[str, dict[str, Any]]:
    """Return the change to the picked settings, such as training.max_length=300; a client's, read as if typed."""
    return change_of(picked_value(event).split())


def picked_page(event: gr.EventData, number: int) -> int:
    """Return the page that a button of `ListPage.pager` sent; `number` where something else was picked."""
    kind, _, page = picked_value(event).partition(":")
    return int(page) if kind == "page" and page.isdecimal() and len(page) < 10 else number


def live_html(value: str = "", *, elem_id: str, more: Sequence[str] = (), **presentation: Any) -> gr.HTML:
    """Return HTML that is an output of events like any other, and that a poll can fill by its `elem_id`; `more` names scripts."""
    return gr.HTML(value, elem_id=elem_id, js_on_load="".join(map(script, ("place", *more))), **presentation)


def browser_state(value: Any, name: str) -> gr.BrowserState:
    """Return a value in browser storage, which survives a reload."""
    return gr.BrowserState(value, storage_key=f"loratory-{name}", secret=_STORAGE_KEY)


def chart(waiting: str = "", *, every_trace: bool = False, **presentation: Any) -> gr.HTML:
    """Return a Plotly chart that is updated in place: zoom survives, light and dark need no round trip.

    Its value is what `loratory.ui.views.loss_chart` returns; while it is "", the sentence `waiting` is there. Below it, a
    person chooses the x axis, where there are several, and saves the chart, in the browser.

    Lines and bars are drawn by a part of Plotly that a browser reads in a sixth of the time, before there is something to
    draw; with `every_trace` all of it is read, once there is.
    """
    # Both libraries are on this machine: nothing is fetched from outside.
    library = _all_of_plotly() if every_trace else _PLOTLY_BASIC
    gr.set_static_paths([_PLOTLY_BASIC, library])
    sources = (
        f'data-{name}="gradio_api/file={escape(path.as_posix(), quote=True)}"'
        for name, path in (("library", library), ("early", _PLOTLY_BASIC))
    )
    button = '<button type="button" class="link" data-save="{}">{}</button>'
    saves = "".join(button.format(kind, kind.upper()) for kind in ("png", "svg", "csv"))
    template = (
        f'<div class="chart" data-waiting="{escape(waiting, quote=True)}" {" ".join(sources)}></div>'
        '<div class="chart-tools" hidden><label>x axis <select></select></label>'
        f'<span role="group" aria-label="Save chart">Save as {saves}</span></div>'
    )
    return gr.HTML(
        "", html_template=template, js_on_load=shared_script("chart"), apply_default_css=False, **presentation
    )


def _all_of_plotly() -> Path:
    spec = importlib.util.find_spec("plotly")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "package_data" / "plotly.min.js"


class Confirmation:
    """A confirmation before something is lost: it names the shown run, and closes when another one is shown.

    The button `yes` confirms, `no` cancels; `ids` are those of the panel and of both buttons.
    """

    def __init__(self, yes: str, no: str, ids: tuple[str, str, str], *, variant: str = "stop") -> None:
        with gr.Column(visible=False, elem_id=ids[0]) as self.panel:
            self.question = gr.HTML()
            with gr.Row():
                self.really = gr.Button(yes, variant=variant, scale=0, min_width=150, elem_id=ids[1])
                self.cancel = gr.Button(no, scale=0, min_width=150, elem_id=ids[2])

    def wire(self, open_event: Any, ask: Callable[[Any], tuple[str, str]], run_shown: Component) -> None:
        """Connect what opens and what closes it; `ask` returns the title of the shown run, and as HTML what is lost."""

        def question(run_id: Any) -> str:
            title, html = ask(run_id)
            return _question(f"<b>{escape(title)}</b> {html}")

        def open_for(run_id: Any) -> Updates:
            return {self.panel: gr.update(visible=True), self.question: shown_in_place(question)(run_id)}

        open_event(open_for, run_shown, [self.panel, self.question], **QUICK)
        self.close_by(self.cancel.click)

    def open(self, html: str, yes: str) -> Updates:
        """Return the updates that ask a question, for handlers that may have one."""
        return {self.panel: gr.update(visible=True), self.question: _question(html), self.really: yes}

    def close_by(self, event: Any) -> None:
        """Close it by an event, in the browser alone."""
        event(None, None, self.panel, js=NOT_SHOWN, **QUICK)


def _question(html: str) -> str:
    return f'<div class="notice" role="alert">{html}</div>'
