"""The Data tab on real files, a real inspector and a tiny model: what `tests.browser.screenshot` takes pictures of."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from playwright.sync_api import Page

from engine.inspector.session import Inspector
from tests.browser.chromium import open_tab
from tests.conftest import SHARED
from tests.fake_inspector import QUESTIONS
from tests.fake_services import fake_services
from tests.tiny_model import make_tiny_model
from ui.backend.dataset_checks import DatasetChecks
from ui.backend.models import KnownShapes, Tokenizers
from ui.services import Services

MILLION = 1_000_000
_WEATHER = {"name": "get_weather", "description": "Weather of a place.", "parameters": {"type": "object", "properties": {"place": {"type": "string"}}}}  # fmt: skip


def make_files(folder: Path, *, million: bool = False) -> None:
    """Write one file for each picture; reference data where it lies next to the checkout, else invented rows."""
    alpaca, sharegpt = SHARED / "data" / "alpaca_en_999.json", SHARED / "data" / "sharegpt_glaive_toolcall_300.json"
    if alpaca.is_file() and sharegpt.is_file():
        shutil.copy(alpaca, folder / "alpaca.json")
        shutil.copy(sharegpt, folder / "sharegpt-tools.json")
    else:
        (folder / "alpaca.json").write_text(json.dumps([_alpaca(number) for number in range(999)]))
        (folder / "sharegpt-tools.json").write_text(json.dumps([_with_tools(number) for number in range(300)]))
    (folder / "problems.jsonl").write_text("\n".join(_lines_with_problems()) + "\n")
    (folder / "odd-columns.csv").write_text("q,a,source\n" + "".join(f'"{q}","{a}",book\n' for q, a in QUESTIONS))
    if million:
        with (folder / "million.jsonl").open("w") as file:
            for number in range(MILLION):
                file.write(json.dumps(_alpaca(number)) + "\n")


@contextmanager
def data_services(folder: Path) -> Iterator[Services]:
    """Services that read real files with a tiny model's tokenizer, both below `folder`."""
    make_tiny_model(folder / "tiny-llama")
    services = fake_services(folder / "home")
    inspector = Inspector(services.home)
    try:
        yield replace(
            services,
            inspector=inspector,
            shapes=KnownShapes(inspector),
            checks=DatasetChecks(inspector),
            tokenizers=Tokenizers.on_this_machine(services.home),
        )
    finally:
        inspector.close()


def choose_model(page: Page, folder: Path) -> None:
    page.locator("#model-own textarea, #model-own input").fill(str(folder / "tiny-llama"))
    page.locator("#model-own textarea, #model-own input").press("Enter")
    page.locator("#model-details .facts").wait_for()


def open_file(page: Page, folder: Path, name: str) -> None:
    """Type a path on the Data tab."""
    open_tab(page, "Data")
    page.locator("#dataset-own textarea, #dataset-own input").fill(str(folder / name))
    page.locator("#dataset-own textarea, #dataset-own input").press("Enter")


def _rows_of(name: str, *, listing: str = "", view: str = "") -> Callable[[Page, Path], None]:
    def scene(page: Page, folder: Path) -> None:
        choose_model(page, folder)
        open_file(page, folder, name)
        page.locator("#facts .facts").wait_for()
        if listing:
            page.locator("#show input").click()
            page.get_by_role("option", name=listing).click()
            page.wait_for_timeout(600)
        if view:
            page.locator("#row-view label", has_text=view).click()
            page.locator("#row-shown .turn").first.wait_for()

    return scene


def _under_way(page: Page, folder: Path) -> None:
    choose_model(page, folder)
    open_file(page, folder, "million.jsonl")
    page.locator("#facts .meter").wait_for()
    page.wait_for_timeout(4000)


def _failure_scene(name: str) -> Callable[[Page, Path], None]:
    def scene(page: Page, folder: Path) -> None:
        open_file(page, folder, name)
        page.locator("#dataset-summary .trouble").wait_for()

    return scene


DATA_SCENES: dict[str, Callable[[Page, Path], None]] = {
    "data-empty": lambda page, _: open_tab(page, "Data"),
    "data-alpaca": _rows_of("alpaca.json", listing="longest"),
    "data-sharegpt-tools": _rows_of("sharegpt-tools.json"),
    "data-conversation": _rows_of("sharegpt-tools.json", view="conversation"),
    "data-problems": _rows_of("problems.jsonl"),
    "data-odd": _rows_of("problems.jsonl", listing="odd"),
    "data-million": _under_way,
    "data-no-format": _failure_scene("odd-columns.csv"),
    "data-missing": _failure_scene("nothing-here.jsonl"),
}


def _alpaca(number: int) -> dict[str, str]:
    question, answer = QUESTIONS[number % len(QUESTIONS)]
    return {"instruction": question, "input": "", "output": f"{answer} " * (1 + number % 7)}


def _with_tools(number: int) -> dict[str, object]:
    place = ("Oslo", "Lima", "Pune", "Bern")[number % 4]
    turns = [
        ("human", f"What is the weather in {place}?"),
        ("function_call", json.dumps({"name": "get_weather", "arguments": {"place": place}})),
        ("observation", json.dumps({"degrees": number % 30})),
        ("gpt", f"It is {number % 30} degrees in {place}."),
    ]
    return {
        "conversations": [{"from": who, "value": words} for who, words in turns],
        "tools": json.dumps([_WEATHER]),
    }


def _lines_with_problems() -> list[str]:
    """Four hundred lines, of which every third has something wrong or odd."""
    chance = random.Random(7)  # the same picture every time
    lines = []
    for number in range(400):
        question, answer = QUESTIONS[number % len(QUESTIONS)]
        turns = [{"role": "user", "content": f"{question} ({number})"}, {"role": "assistant", "content": answer}]
        whole = json.dumps({"messages": turns})
        wrong = (
            whole[: len(whole) // 2],
            json.dumps({"messages": turns[:1]}),
            json.dumps({"messages": [turns[0], {"role": "assistant", "content": ""}]}),
            json.dumps({"messages": [turns[0], {"role": "narrator", "content": "…"}]}),
            json.dumps([1, 2]),
            json.dumps({"messages": [turns[0], turns[0], turns[1]]}),
            json.dumps({"messages": [*turns, turns[0]]}),
            json.dumps({"messages": [turns[0], {"role": "assistant", "content": "It ends with <|im_end|> always."}]}),
        )
        lines.append(chance.choice(wrong) if number % 3 == 2 else whole)
    return lines
