"""`python -m tests.benchmarks.page_tasks [--against CHECKOUT]`: what ten tasks on the page cost a person, in Chromium.

Each task has a page of its own on fakes with 40 invented runs, opened and prepared before the count. Counted are clicks, keys (pressed
keys, typed words, opened addresses) and the seconds until the page shows the result; the time to read and to type is not in them.
`--against` then measures another checkout, in a process of its own; a page without addresses of runs is used in its own way.
`--feedback` prints the milliseconds from each click and key to the frame of the next change in sight (elements, focus, the look of
a pressed button) as well. Without `--look-seconds` the first ones fall into the second in which the browser reads the library of the
charts. Watching slows the page down, and its transitions are switched off: its seconds are not the page's own.
"""

import argparse
import json
import math
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from playwright.sync_api import Browser, Error, Locator, Page, expect

from tests.benchmarks.first_load import other_python
from tests.browser.chromium import await_draft, choose_model_and_data, chromium, let_layout_settle, open_tab
from tests.browser.real_server import ROOT

_PATIENCE_MS, _SOON_MS, _VOTES = 60_000, 100, 10
_HELD_MS = 60  # that a hand holds a button
_WATCH = """(() => {
  const STYLES = ['backgroundColor', 'color', 'borderColor', 'boxShadow', 'outline', 'opacity', 'transform', 'filter'];
  const styleOf = (element) => STYLES.map((name) => getComputedStyle(element)[name]).join();
  const controlOf = ({target}) => target.closest?.('input, textarea, button, label, tr, a') ?? document.activeElement ?? document.body;
  const isSeen = ({target}) => (target.nodeType === 1 ? target : target.parentElement)?.checkVisibility();
  let [pending, hovered, hoveredStyle] = [[], null, ''];
  const change = () => { for (const each of pending) each.hasChanged = true; };
  new MutationObserver((records) => { if (pending.length && records.some(isSeen)) change(); }).observe(document, {
    subtree: true, childList: true, characterData: true,
    attributeFilter: ['class', 'style', 'hidden', 'open', 'disabled', 'aria-selected', 'aria-checked', 'aria-pressed'],
  });
  const begin = (event) => {
    if (['Control', 'Shift', 'Alt', 'Meta'].includes(event.key)) return;
    const element = event.key ? document.activeElement : controlOf(event);
    const text = (event.key ?? element.innerText ?? '').trim().slice(0, 30) || element.ariaLabel || element.tagName;
    pending.push({element, text, style: element === hovered ? hoveredStyle : styleOf(element), began: event.timeStamp});
  };
  for (const type of ['pointerdown', 'keydown']) addEventListener(type, begin, true);
  for (const type of ['input', 'change']) addEventListener(type, change, true);
  // A pressed button may look so by the time of its event.
  addEventListener('pointermove', (event) => { hovered = controlOf(event); hoveredStyle = styleOf(hovered); }, true);
  const check = () => requestAnimationFrame(() => {
    const answered = pending.filter((each) => each.hasChanged || styleOf(each.element) !== each.style);
    pending = pending.filter((each) => !answered.includes(each));
    setTimeout(() => answered.forEach(({began, text}) => window.noteFeedback(performance.now() - began, text)));  // drawn
    check();
  });
  document.adoptedStyleSheets = [new CSSStyleSheet()];
  document.adoptedStyleSheets[0].replaceSync('* { transition: none !important; }');
  window.isAnswered = () => pending.length === 0;
  check();
})();"""


class Person:
    """Acts on a page as a person does, and counts it; selectors mean their first match."""

    def __init__(self, page: Page, about: dict[str, Any]) -> None:
        self.page, self.address, self.is_before = page, about["address"], about["is_before"]
        self.best, self.second = about["runs"]
        self.clicks = self.keys = 0

    def find(self, selector: str, text: str | None = None) -> Locator:
        return self.page.locator(selector, has_text=text).first

    def sees(self, selector: str, text: str | None = None) -> None:
        expect(self.find(selector, text)).to_be_visible()

    def click(self, selector: str, text: str | None = None) -> None:
        self.clicks += 1
        self.find(selector, text).click(delay=_HELD_MS)

    def press(self, key: str) -> None:
        self.keys += 1
        self.page.keyboard.press(key)

    def type(self, text: str) -> None:
        """Type words where the focus is."""
        self.keys += len(text.split())
        self.page.keyboard.insert_text(text)

    def fill(self, elem_id: str, text: str) -> None:
        self.click(f"#{elem_id} input, #{elem_id} textarea")
        self.type(text)

    def open_run(self, *, is_there: bool = False) -> None:
        if not is_there:
            self.click("#runs-table tr[data-pick] td.name", self.best["name"])
        self.sees("#one-run-heading h2", self.best["name"])

    def sort(self) -> None:
        self.click('#runs-table [data-pick="sort:Held-out loss"]')
        self.sees(f'#runs-table tbody tr:first-child[data-pick="{self.best["id"]}"]')

    def find_best(self) -> None:
        self.click("#tabs [role=tab]", "Runs")
        self.sort()

    def compare(self) -> None:
        for run in (self.best, self.second):
            self.click(f'#runs-table [data-pick="compare:{run["id"]}"]')
            self.sees(f'#runs-table [data-pick="compare:{run["id"]}"][aria-checked=true]')
        self.sees("#overlay-chart .main-svg")
        self.sees("#differences table")

    def rename(self) -> None:
        self.open_run()
        if self.is_before:
            self.click("#run-notes > button")
            let_layout_settle(self.page)
            self.click("#note-name input, #note-name textarea")
            self.press("Control+a")
            self.type(f"{self.best['name']} favourite")
            self.click("#note-save")
        else:
            self.click("#one-run-heading button.rename")
            self.sees("input.rename:focus")
            self.type(f"{self.best['name']} favourite")
            self.press("Enter")
        self.sees("#runs-table td.name", "favourite")

    def open_result(self, step: str) -> None:
        self.open_run()
        if not self.is_before:
            self.press("Escape")  # the details cover the bar
        self.click("#one-open-chat" if self.is_before else f'#next-step [data-pick="{step}:{self.best["id"]}"]')

    def chat(self) -> None:
        self.open_result("chat")
        self.sees("#chat-question textarea:focus")
        self.type("What does lora_alpha do?")
        self.press("Enter")
        expect(self.page.locator("#transcript .answer:not(.reference)", has_text="stop token")).to_have_count(2)

    def vote(self) -> None:
        self.open_result("blind")
        if self.is_before:
            self.sees("#chat-question textarea:focus")  # it is loaded
            self.click("#chat-mode label", "Blind test")
        for number in range(1, _VOTES + 1):
            if self.is_before or number == 1:
                self.click("#blind-next")
            self.sees("#blind-verdict button")
            self.click("#blind-left") if self.is_before else self.press("1")
            self.sees("#blind-count" if self.is_before else "#blind-tally", f"{number} pair")

    def export_csv(self) -> None:
        self.click("#tabs [role=tab]", "Runs")
        with self.page.expect_download() as download:
            self.click("#runs-csv")
        assert self.best["name"] in download.value.path().read_text(encoding="utf-8")

    def sweep(self) -> None:
        self.click("#tabs [role=tab]", "Train")
        self.click("#train-view label", "Set up")
        self.click("#sweep-fold > button")
        let_layout_settle(self.page)
        if self.is_before:
            self.fill("sweep-rates", "1e-4, 2e-4, 3e-4")
            self.fill("sweep-ranks", "8, 16")
            self.click("#sweep-start")
            expect(self.page.locator("#runs-table tr[data-pick]", has_text="completed")).to_have_count(46)
            self.click('#runs-table [data-pick="sort:Held-out loss"]')
            expect(self.find("#runs-table tbody tr[data-pick]")).not_to_contain_text("trial")
            self.click("#runs-table tbody tr[data-pick] td.name")
            self.click("#run-duplicate")
        else:
            self.fill("sweep-settings", "learning_rate = 1e-4, 2e-4, 3e-4\nr = 8, 16")
            self.sees("#sweep-plan", "6 runs,")
            self.click("#sweep-start")
            self.sees("#sweep", "6 of 6 runs ended.")
            self.click("#sweep button", "Use these settings")
        self.sees("#applied", "Settings copied")

    def edit_yaml(self) -> None:
        if self.is_before:
            raise Error("not possible")
        self.click("#panel button", "YAML")
        self.sees("#draft-yaml textarea:focus")
        self.press("Control+End")
        self.type("training:\n  learning_rate: 7e-4\n")
        self.press("Control+Enter")
        self.sees("#applied", "0.0007")

    def follow_link(self) -> None:
        self.keys += 1
        self.page.goto(self.address + ("/#runs" if self.is_before else f"/runs/{self.best['id']}"))
        self.open_run(is_there=not self.is_before)  # whose address had the tab alone

    def come_back(self) -> None:
        self.keys += 1
        self.page.reload()
        self.open_run(is_there=not self.is_before)

    def prepare(self, begins: str) -> None:
        """Open the page and bring it to where a task begins, which is not counted."""
        if begins:
            self.page.goto(self.address)
            await_draft(self.page)
        if begins == "draft":
            choose_model_and_data(self.page)
            expect(self.find("#next-step-start")).to_be_enabled()
        if begins.startswith("run"):
            open_tab(self.page, "Runs")
            self.sort() if begins == "runs" else self.open_run()  # the runs of the sweep are better by then
            if begins == "run" and not self.is_before:
                self.page.wait_for_url(f"**/{self.best['id']}*")  # no hand is as quick as the address
        self.clicks = self.keys = 0


# Title, where it begins, and what is done there.
TASKS: dict[str, tuple[str, str, Callable[[Person], None]]] = {
    "best": ("find the best of 40 runs", "page", Person.find_best),
    "compare": ("compare it with the second", "runs", Person.compare),
    "rename": ("rename a run", "runs", Person.rename),
    "chat": ("ask a run one question", "runs", Person.chat),
    "vote": (f"vote {_VOTES} times in the blind test", "runs", Person.vote),
    "csv": ("export the runs as CSV", "page", Person.export_csv),
    "sweep": ("sweep 6 runs, use the best", "draft", Person.sweep),
    "yaml": ("edit a setting as YAML", "draft", Person.edit_yaml),
    "link": ("open a shared link of a run", "", Person.follow_link),
    "return": ("come back after a reload", "run", Person.come_back),
}


@contextmanager
def serving(checkout: Path) -> Iterator[dict[str, Any]]:
    """Serve the page of a checkout, with its own modules, in a process; give its address and best runs."""
    path = os.pathsep.join(map(str, (checkout / ".package", checkout)))
    variables = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    command, pipe = [other_python(checkout), str(Path(__file__).with_name("page_with_runs.py"))], subprocess.PIPE
    with subprocess.Popen(command, cwd=checkout, env=variables, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        about = json.loads(next(line for line in process.stdout if line.startswith("{")))
        yield about | {"is_before": not (checkout / "ui/addresses.py").exists()}  # its end is the end of its input


def measure(
    browser: Browser,
    name: str,
    about: dict[str, Any],
    feedback: list[tuple[float, str, str]] | None,
    look_seconds: float = 0,
) -> str:
    """Return clicks, keys and seconds of a task on a page of its own, which is looked at first, or why there are none."""
    with browser.new_context(viewport={"width": 1366, "height": 860}) as context:
        context.set_default_timeout(_PATIENCE_MS)
        person = Person(context.new_page(), about)
        try:
            person.prepare(TASKS[name][1])
            person.page.wait_for_timeout(1000 * look_seconds)
            if feedback is not None:
                person.page.expose_function("noteFeedback", lambda ms, text: feedback.append((ms, name, text)))
                person.page.add_init_script(_WATCH)  # of pages that are opened later
                person.page.evaluate(_WATCH)
            began = perf_counter()
            TASKS[name][2](person)
            seconds = perf_counter() - began
            person.page.wait_for_function("() => window.isAnswered?.() ?? true")
        except (AssertionError, Error) as error:
            return str(error).partition("\n")[0]
    return f"{person.clicks:>8}{person.keys:>8}{seconds:>9.1f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--only", choices=TASKS, nargs="+", default=list(TASKS), metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--feedback", action="store_true", help="when the page first changes after each click and key")
    parser.add_argument(
        "--look-seconds", type=float, default=0, help="from the prepared page to the first click or key"
    )
    options = parser.parse_args()
    expect.set_options(timeout=_PATIENCE_MS)
    with chromium() as browser:
        for checkout in [ROOT, *([options.against.resolve()] if options.against else [])]:
            print(f"{checkout.name}, load average {os.getloadavg()[0]:.1f}:\n  {'task':<36}  clicks    keys  seconds")
            feedback: list[tuple[float, str, str]] = []
            with serving(checkout) as about:
                for name in options.only:
                    cost = measure(browser, name, about, feedback if options.feedback else None, options.look_seconds)
                    print(f"  {TASKS[name][0]:<36}{cost}", flush=True)
            if feedback:
                feedback.sort()
                soon, p95 = sum(ms <= _SOON_MS for ms, *_ in feedback), feedback[math.ceil(0.95 * len(feedback)) - 1][0]
                print(f"  {soon} of {len(feedback)} within {_SOON_MS} ms, 95th percentile {p95:.0f} ms; the slowest:")
                print(*(f"    {ms:>6.0f} ms  {name}: {text}" for ms, name, text in feedback[-5:]), sep="\n")


if __name__ == "__main__":
    main()
