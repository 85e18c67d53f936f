"""`python -m tests.browser.screenshot --out DIR`: pictures of the page on fakes, to be looked at.

The Data tab is shown on real files, made for the pictures and read with a tiny model.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Browser, Page
from playwright.sync_api import Error as PlaywrightError

from tests.browser.chromium import chromium, open_page, open_tab
from tests.browser.data_scenes import DATA_SCENES, data_services, make_files
from tests.browser.show_fake import page_of
from tests.fake_services import fake_services, invent_runs
from tests.invented_runs import a_config

SETTLE_MILLISECONDS = 1200  # charts and fonts; a picture needs no more certainty than that


def _choose_data(page: Page) -> None:
    page.locator("#catalog [data-pick]").first.click()
    page.locator("#model-details .facts").wait_for()
    open_tab(page, "Data")
    page.locator("#samples [data-pick]").first.click()
    page.locator("#facts .facts").wait_for()


def _hub_dataset(page: Page) -> None:
    page.locator("#catalog [data-pick]").first.click()
    page.locator("#model-details .facts").wait_for()
    open_tab(page, "Data")
    page.locator("#dataset-own textarea, #dataset-own input").fill("somebody/some-data")
    page.locator("#dataset-own textarea, #dataset-own input").press("Enter")
    page.locator("#read-all").wait_for()


def _set_up(page: Page) -> None:
    _choose_data(page)
    open_tab(page, "Train")
    page.locator("#train-view label", has_text="Set up").click()
    page.locator("#sweep-fold button").first.click()


def _follow(page: Page) -> None:
    open_tab(page, "Train")
    page.locator("#train-view label", has_text="Follow").click()
    page.locator("#loss-chart .main-svg").first.wait_for()


def _show_failure(page: Page) -> None:
    _pick_run(page, "first try")
    page.locator("#run-to-train").click()
    page.locator("#train-view label", has_text="Follow").click()
    page.locator("#run-trouble .trouble").wait_for()


def _pick_run(page: Page, words: str) -> None:
    open_tab(page, "Runs")
    page.locator("#runs-table tr[data-pick]").first.wait_for()
    page.locator("#runs-table tr[data-pick]", has_text=words).locator("td.name").last.click()
    page.locator("#run-details h2").wait_for()


def _runs(page: Page) -> None:
    open_tab(page, "Runs")
    page.locator("#runs-table tr[data-pick], #runs-table .empty").first.wait_for()


def _show_comparison(page: Page) -> None:
    _runs(page)
    for number in (1, 3, 4):
        page.locator("#runs-table tbody .tick").nth(number).click()
        page.wait_for_timeout(400)
    page.locator("#overlay-chart .main-svg").first.wait_for()


def _details(page: Page) -> None:
    _pick_run(page, "faq, rank 16")
    page.locator("#one-loss-chart .main-svg").first.wait_for()
    page.locator("#run-record summary", has_text="Environment").click()
    page.locator("#run-notes button").first.click()


def _chat_empty(page: Page) -> None:
    open_tab(page, "Chat")


def _chat_loaded(page: Page) -> None:
    open_tab(page, "Chat")
    page.locator("#chat-load:not([disabled])").wait_for()
    page.locator("#chat-load").click()
    page.locator("#suggestions button").first.wait_for()


def _chat_answered(page: Page) -> None:
    _chat_loaded(page)
    page.locator("#suggestions [data-pick='0']").click()
    page.locator("#chat-question textarea").press("Enter")
    page.locator("#chat-stop").wait_for(state="visible")
    page.locator("#chat-stop").wait_for(state="hidden")
    for question in ("And r?",):
        page.locator("#chat-question textarea").fill(question)
        page.locator("#chat-send").click()
        page.locator("#chat-stop").wait_for(state="visible")
        page.locator("#chat-stop").wait_for(state="hidden")


def _blind(page: Page) -> None:
    _chat_loaded(page)
    page.locator("#chat-mode label", has_text="Blind test").click()
    page.locator("#blind-next").click()
    page.locator("#blind-left").wait_for()


def _blind_judged(page: Page) -> None:
    _blind(page)
    page.locator("#blind-left").click()
    page.locator("#blind-tally-show").click()
    page.locator("#blind-tally .facts").wait_for()


def _show_measurement(page: Page) -> None:
    open_tab(page, "Chat")
    page.locator("#chat-mode label", has_text="Measure").click()
    page.locator("#measure-start:not([disabled])").wait_for()
    page.locator("#measure-start").click()
    page.locator("#measure-answered-rows section").first.wait_for()


def _export(page: Page) -> None:
    open_tab(page, "Export")
    page.locator("#export-form label").first.wait_for()


def _export_form(form: str, *, start: bool = False) -> Callable[[Page], None]:
    def scene(page: Page) -> None:
        _export(page)
        page.locator("#export-form").get_by_text(form, exact=True).click()
        page.wait_for_timeout(600)
        if start:
            page.locator("#export-start").click()
            page.locator("#export-result .facts").wait_for()

    return scene


SCENES: dict[str, Callable[[Page], None]] = {
    "model": lambda page: None,
    "data": _choose_data,
    "data-hub": _hub_dataset,
    "method": lambda page: (_choose_data(page), open_tab(page, "Method"))[0],
    "train-incomplete": lambda page: open_tab(page, "Train"),
    "train-setup": _set_up,
    "train-follow": _follow,
    "train-failed": _show_failure,
    "chat-empty": _chat_empty,
    "chat-loaded": _chat_loaded,
    "chat-answered": _chat_answered,
    "blind-pair": _blind,
    "blind-judged": _blind_judged,
    "measured": _show_measurement,
    "export": _export,
    "export-merged": _export_form("Merged model", start=True),
    "export-hub": _export_form("Hub"),
    "export-script": _export_form("Script"),
    "runs": _runs,
    "runs-details": _details,
    "runs-compared": _show_comparison,
}
_NEED_NO_RUNS = ("train-incomplete", "chat-empty", "export", "runs")


def main() -> None:
    """Take the pictures that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", default=",".join([*SCENES, *DATA_SCENES]))
    parser.add_argument("--themes", default="light,dark")
    parser.add_argument("--widths", default="1280,1920,800")
    parser.add_argument("--empty", action="store_true", help="a home without runs")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    wanted = [scene for scene in arguments.scenes.split(",") if not arguments.empty or scene in _NEED_NO_RUNS]
    with tempfile.TemporaryDirectory(prefix="loratory-fake-") as folder, chromium() as browser:
        _on_fakes(browser, Path(folder), arguments, [scene for scene in wanted if scene in SCENES])
        _on_files(browser, Path(folder), arguments, [scene for scene in wanted if scene in DATA_SCENES])


def _on_fakes(browser: Browser, folder: Path, arguments: argparse.Namespace, scenes: list[str]) -> None:
    if not scenes:
        return
    services = fake_services(folder)
    if not arguments.empty:
        invent_runs(services.runs)
        services.launcher.start(a_config(run__name="a run under way", training__max_steps=4000))

    def act(scene: str, page: Page) -> None:
        services.chat.unload()
        SCENES[scene](page)

    with page_of(services) as address:
        _take(browser, address, arguments, scenes, act)


def _on_files(browser: Browser, folder: Path, arguments: argparse.Namespace, scenes: list[str]) -> None:
    if not scenes:
        return
    make_files(folder, million="data-million" in scenes)
    with data_services(folder) as services, page_of(services) as address:
        _take(browser, address, arguments, scenes, lambda scene, page: DATA_SCENES[scene](page, folder))


def _take(
    browser: Browser, address: str, arguments: argparse.Namespace, scenes: list[str], act: Callable[[str, Page], None]
) -> None:
    for theme in arguments.themes.split(","):
        for width in (int(text) for text in arguments.widths.split(",")):
            for scene in scenes:
                page = open_page(browser, address, width=width, dark=theme == "dark")
                try:
                    act(scene, page)
                except PlaywrightError as error:
                    print(f"{scene}: {str(error).splitlines()[0]}", flush=True)
                page.wait_for_timeout(SETTLE_MILLISECONDS)
                name = f"{scene}-{theme}-{width}{'-empty' if arguments.empty else ''}.png"
                page.screenshot(path=arguments.out / name, full_page=True)
                page.context.close()
                print(name, flush=True)


if __name__ == "__main__":
    main()
