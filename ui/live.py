"""What a page asks for by itself every few seconds, and puts into place without an event of Gradio's.

An event costs the server milliseconds however little it sends, ten pages that follow a run many of them; a question to
a component costs a fraction. A page asks only while the part that shows the answers is in sight.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

_ASK = (Path(__file__).parent / "assets" / "live.js").read_text(encoding="utf-8")
# Registers a component under its elem_id, so that an answer can be put into it.
PLACE = """
(window.loratoryPlaces ??= {})[element.parentElement.closest('[id]').id] = (value) => { props.value = value; };
"""
# Keeps the newest lines in sight while they come, until somebody scrolls up to read; Gradio's `autoscroll` does nothing
# for HTML. A fold that opens makes room without a change of what is in it.
_FOLLOW_THE_END = """
element.classList.add('follows-end');
let atEnd = true;
element.addEventListener('scroll', () => {
  if (element.clientHeight) atEnd = element.scrollTop + element.clientHeight > element.scrollHeight - 8;
});
const settle = () => { if (atEnd) element.scrollTop = element.scrollHeight; };
new MutationObserver(settle).observe(element, {childList: true, subtree: true, characterData: true});
new ResizeObserver(settle).observe(element);
"""


def place(value: str = "", *, elem_id: str, follows_end: bool = False, **presentation: Any) -> gr.HTML:
    """HTML that is an output of events like any other, and that answers can be put into by its `elem_id`.

    Args:
        value: What it holds at first.
        elem_id: Its id on the page.
        follows_end: Scroll what is higher than its place, and keep the end in sight.
        presentation: As `gr.HTML` takes it.
    """
    script = PLACE + (_FOLLOW_THE_END if follows_end else "")
    return gr.HTML(value, elem_id=elem_id, js_on_load=script, **presentation)


def asking(answer: Callable[[str, str], str | None], seconds: float, *, question: str = "", elem_id: str) -> gr.HTML:
    """A part of the page that cannot be seen and asks `answer` again and again, while what lies around it is in sight.

    Its value is the question; while it is empty nothing is asked. Its `submit` event fires where an answer says so.

    Args:
        answer: Called in a thread with the question and the stamp of the newest answer, "" at first, both of which a
            client can forge; returns what `news` makes, or None while nothing is new.
        seconds: Between two questions.
        question: What it asks from the start.
        elem_id: Its id on the page.
    """

    def ask(asked: list[Any]) -> str | None:
        question, stamp = asked
        return answer(str(question), str(stamp))

    script = f"const seconds = {seconds};\n{_ASK}"
    return gr.HTML(
        question,
        elem_id=elem_id,
        elem_classes="live",
        html_template="<i></i>",
        js_on_load=script,
        server_functions=[ask],
    )


def news(stamp: str, places: Mapping[str, str], *, submit: bool = False) -> str:
    """An answer.

    Args:
        stamp: Comes back with the next question, to tell what the page has seen.
        places: New values by `elem_id`, of components made by `place` or `ui.chart.chart`.
        submit: Also fire the `submit` event, for what only an event can change.
    """
    return json.dumps({"stamp": stamp, "places": places, "submit": submit}, separators=(",", ":"))
