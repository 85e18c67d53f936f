"""`python -m tests.benchmarks.page_tasks [--against CHECKOUT]`: what ten tasks on the page cost a person, in Chromium.

Each task has a page of its own on fakes with 40 invented runs, opened and prepared before the count. Counted are clicks, keys (pressed
keys, typed words, opened addresses) and the seconds until the page shows the result; the time to read and to type is not in them.
`--against` measures another checkout as well, in a process of its own; a page without addresses of runs is used in its own way.
`--feedback` prints the milliseconds from each click and key to the frame of the next change in sight (elements, focus, the look of
a pressed button) instead. Watching slows the page down, and its transitions are switched off, so there are no seconds.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from playwright.sync_api import Browser, Locator, Page, expect
from playwright.sync_api import Error as PlaywrightError

from tests.benchmarks.first_load import other_python
from tests.browser.chromium import await_draft, choose_model_and_data, chromium, let_layout_settle, open_tab
from tests.browser.real_server import ROOT

_PATIENCE_MS, _SOON_MS, _VOTES = 60_000, 100, 10
_WATCH = """(() => {
  const STYLES = ['backgroundColor', 'color', 'borderColor', 'boxShadow', 'outline', 'opacity', 'transform', 'filter'];
  const styleOf = (element) => STYLES.map((name) => getComputedStyle(element)[name]).join();
  const controlOf = ({target}) => target.closest?.('button, label, tr, a') ?? document.activeElement ?? document.body;
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
  const check = () => {
    const answered = pending.filter((each) => each.hasChanged || styleOf(each.element) !== each.style);
    pending = pending.filter((each) => !answered.includes(each));
    // After the frame.
    setTimeout(() => { for (const {began, text} of answered) window.noteFeedback(performance.now() - began, text); });
    requestAnimationFrame(check);
  };
  check();
  const sheet = new CSSStyleSheet();
  sheet.replaceSync('* { transition: none !important; }');
  document.adoptedStyleSheets = [sheet];
  window.isAnswered = () => pending.length === 0;
})();"""


class Person:
    """Acts on a page as a person does, and counts it."""

    def __init__(self, page: Page, about: dict[str, Any], *, is_before: bool) -> None:
        self.page, self.address, self.is_before = page, about["address"], is_before
        self.best, self.second = about["runs"]
        self.clicks = self.keys = 0

    def find(self, selector: str, text: str | None = None) -> Locator:
        """Return the first match."""
        return self.page.locator(selector, has_text=text).first

    def sees(self, selector: str, text: str | None = None) -> None:
        """Wait until the first match with a text is in sight."""
        expect(self.find(selector, text)).to_be_visible()

    def click(self, selector: str, text: str | None = None) -> None:
        """Click the first match."""
        self.clicks += 1
        self.find(selector, text).click()

    def press(self, key: str) -> None:
        """Press one key, or several at once."""
        self.keys += 1
        self.page.keyboard.press(key)

    def type(self, text: str) -> None:
        """Type words where the focus is."""
        self.keys += len(text.split())
        self.page.keyboard.insert_text(text)

    def fill(self, elem_id: str, text: str) -> None:
        """Click into an empty box and type."""
        self.click(f"#{elem_id} input, #{elem_id} textarea")
        self.type(text)

    def open_run(self) -> None:
        """Open the details of the best run."""
        self.click("#runs-table tr[data-pick] td.name", self.best["name"])
        self.sees("#one-run-heading h2", self.best["name"])

    def sort(self) -> None:
        """Sort the table by held-out loss."""
        self.click('#runs-table [data-pick="sort:Held-out loss"]')
        self.sees(f'#runs-table tbody tr:first-child[data-pick="{self.best["id"]}"]')

    def find_best(self) -> None:
        self.click("#tabs [role=tab]", "Runs")
        self.sort()

    def compare(self) -> None:
        for run in (self.best, self.second):
            self.click(f'#runs-table [data-pick="compare:{run["id"]}"]')
        self.sees("#overlay-chart .main-svg")
        self.sees("#differences table")

    def rename(self) -> None:
        self.open_run()
        if self.is_before:
            self.click("#run-notes > button")
            let_layout_settle(self.page)
            self.click("#note-name input, #note-name textarea")
            self.press("Control+a")
            self.type("favourite")
            self.click("#note-save")
        else:
            self.click("#one-run-heading button.rename")
            self.sees("input.rename:focus")
            self.type("favourite")
            self.press("Enter")
        self.sees("#runs-table td.name", "favourite")

    def open_result(self, step: str) -> None:
        self.open_run()
        self.click("#one-open-chat" if self.is_before else f'#next-step [data-pick="{step}:{self.best["id"]}"]')

    def ask(self) -> None:
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
        self.click("#panel button", "YAML")
        self.sees("#draft-yaml textarea:focus")
        self.press("Control+End")
        self.type("training:\n  learning_rate: 7e-4\n")
        self.press("Control+Enter")
        self.sees("#applied", "0.0007")

    def follow_link(self) -> None:
        self.keys += 1
        self.page.goto(self.address + ("/#runs" if self.is_before else f"/runs/{self.best['id']}"))
        self.see_run()

    def come_back(self) -> None:
        self.keys += 1
        self.page.reload()
        self.see_run()

    def see_run(self) -> None:
        if self.is_before:  # its address has the tab alone
            self.open_run()
        self.sees("#one-run-heading h2", self.best["name"])

    def prepare(self, begins: str) -> None:
        """Open the page and bring it to where a task begins, which is not counted."""
        if not begins:
            return
        self.page.goto(self.address)
        await_draft(self.page)
        if begins == "draft":
            choose_model_and_data(self.page)
            expect(self.find("#next-step-start")).to_be_enabled()
        elif begins in ("runs", "run"):
            open_tab(self.page, "Runs")
            self.sort()
        if begins == "run":
            self.open_run()
        self.clicks = self.keys = 0


# Title, where it begins, and what is done there.
TASKS: dict[str, tuple[str, str, Callable[[Person], None]]] = {
    "best": ("find the best of 40 runs", "page", Person.find_best),
    "compare": ("compare it with the second", "runs", Person.compare),
    "rename": ("rename a run", "runs", Person.rename),
    "chat": ("ask a run one question", "runs", Person.ask),
    "vote": (f"vote {_VOTES} times in the blind test", "runs", Person.vote),
    "csv": ("export the runs as CSV", "page", Person.export_csv),
    "sweep": ("sweep 6 runs, use the best", "draft", Person.sweep),
    "yaml": ("edit a setting as YAML", "draft", Person.edit_yaml),
    "link": ("open a shared link of a run", "", Person.follow_link),
    "return": ("come back after a reload", "run", Person.come_back),
}
_NOT_BEFORE = ("yaml",)


@contextmanager
def serving(checkout: Path) -> Iterator[dict[str, Any]]:
    """Serve the page of a checkout, with its own modules, in a process; give its address and best runs."""
    path = os.pathsep.join(map(str, (checkout / ".package", checkout)))
    variables = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    command, pipe = [other_python(checkout), str(Path(__file__).with_name("page_with_runs.py"))], subprocess.PIPE
    with subprocess.Popen(command, cwd=checkout, env=variables, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        yield json.loads(next(line for line in process.stdout if line.startswith("{")))  # it ends with its input


class Result(NamedTuple):
    """What a task cost, or why that is unknown."""

    clicks: int = 0
    keys: int = 0
    seconds: float = 0.0
    feedback: tuple[tuple[float, str], ...] = ()
    trouble: str = ""


def measure(browser: Browser, checkout: Path, about: dict[str, Any], name: str, *, is_watched: bool) -> Result:
    """Do a task on a page of its own."""
    _, begins, act = TASKS[name]
    is_before = not (checkout / "ui/addresses.py").exists()
    if is_before and name in _NOT_BEFORE:
        return Result(trouble="not possible")
    context = browser.new_context(viewport={"width": 1366, "height": 860})
    context.set_default_timeout(_PATIENCE_MS)
    feedback: list[tuple[float, str]] = []
    try:
        person = Person(context.new_page(), about, is_before=is_before)
        if is_watched:
            person.page.expose_function("noteFeedback", lambda *each: feedback.append(each))
            person.page.add_init_script(_WATCH)
        person.prepare(begins)
        feedback.clear()
        began = perf_counter()
        act(person)
        seconds = perf_counter() - began
        if is_watched:
            person.page.wait_for_function("() => window.isAnswered()")
        return Result(person.clicks, person.keys, seconds, tuple(feedback))
    except (AssertionError, PlaywrightError) as error:
        return Result(trouble="failed: " + str(error).partition("\n")[0])
    finally:
        context.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", choices=TASKS, nargs="+", default=list(TASKS), metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--feedback", action="store_true", help="when the page first changes after each click and key")
    options = parser.parse_args()
    expect.set_options(timeout=_PATIENCE_MS)
    checkouts = [ROOT, *([options.against.resolve()] if options.against else [])]
    results: dict[tuple[Path, str], list[Result]] = defaultdict(list)
    with chromium() as browser:
        for _ in range(options.rounds):
            with ExitStack() as stack:
                servers = {checkout: stack.enter_context(serving(checkout)) for checkout in checkouts}
                for name in options.only:
                    for checkout, about in servers.items():
                        result = measure(browser, checkout, about, name, is_watched=options.feedback)
                        results[checkout, name].append(result)
    for checkout in checkouts:
        of_tasks = {name: results[checkout, name] for name in options.only}
        print(f"{checkout.name}, load average {os.getloadavg()[0]:.1f}:")
        print_feedback(of_tasks) if options.feedback else print_costs(of_tasks)


def print_costs(of_tasks: dict[str, list[Result]]) -> None:
    """Print clicks, keys and the median seconds of each task."""
    print(f"  {'task':<36}{'clicks':>8}{'keys':>8}{'seconds':>9}")
    for name, (first, *more) in of_tasks.items():
        seconds = statistics.median(result.seconds for result in (first, *more))
        print(f"  {TASKS[name][0]:<36}" + (first.trouble or f"{first.clicks:>8}{first.keys:>8}{seconds:>9.1f}"))


def print_feedback(of_tasks: dict[str, list[Result]]) -> None:
    """Print the share of soon answers, the 95th percentile and the slowest."""
    found = sorted(
        (*each, name) for name, results in of_tasks.items() for result in results for each in result.feedback
    )
    soon = sum(ms <= _SOON_MS for ms, *_ in found)
    print(f"  {soon} of {len(found)} within {_SOON_MS} ms ({soon / len(found):.0%})")
    print(f"  95th percentile {found[math.ceil(0.95 * len(found)) - 1][0]:.0f} ms; the slowest:")
    for ms, text, name in found[-5:]:
        print(f"    {ms:>6.0f} ms  {name}: {text}")


if __name__ == "__main__":
    main()
