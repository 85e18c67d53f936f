"""From a PDF to a tuned model on the page, with `loratory serve` as the endpoint and a server that is killed on the way."""

import json
import os
import re
import signal
import subprocess
import sys

import psutil
import pytest
from playwright.sync_api import Page, expect

from tests.browser.chromium import open_page, open_tab
from tests.browser.real_server import real_server
from tests.data.workshop.made_documents import write_pdf
from tests.data.workshop.reciting_model import ANSWERS, QUESTION, make_reciting_model
from tests.waiting import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.e2e]
PLACES = "The lighthouse,The old bakery,The railway station,The harbour office,The library".split(",")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_reciting_model(tmp_path_factory.mktemp("models") / "tiny-reciter")


@pytest.fixture
def handbook(tmp_path):
    """Write a PDF of 20 pages, each about a place of its own."""
    pages = [
        "\n".join(
            f"{PLACES[(page + line) % 5]} of district {page} has {page + line} rooms and {line} doors to the street."
            for line in range(1, 9)
        )
        for page in range(1, 21)
    ]
    return write_pdf(tmp_path / "handbook.pdf", pages)


@pytest.fixture
def endpoint(model, tmp_path):
    """Serve the model as a person does, in the home of the page; yields its process and address."""
    command = [sys.executable, "-m", "loratory.engine.cli", "serve", str(model), "--port", "0", "--json"]
    environment = {**os.environ, "LORATORY_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    with (tmp_path / "serve.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (tmp_path / "serve.log").read_text()
        yield process, json.loads(line)["url"]
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.communicate(timeout=300)


def open_fold(page: Page) -> None:
    open_tab(page, "Data")
    page.locator("#sets .documents > summary").click()
    expect(page.get_by_label("Recipe")).to_have_value("question_answer")


def is_asking(process: psutil.Process, port: int) -> bool:
    """Whether a process is connected to a port of this machine."""
    return any(
        other.status == "ESTABLISHED" and other.raddr.port == port for other in process.net_connections() if other.raddr
    )


def test_a_pdf_becomes_a_tuned_model_though_its_server_is_killed(browser, model, handbook, endpoint, tmp_path):
    home, (serving, url) = tmp_path / "home", endpoint

    def answers() -> list[bytes]:
        return [line for file in home.glob("datasets/_generated/*/candidates.jsonl") for line in file.open("rb")]

    with real_server(home, forks=True) as server:
        page = open_page(browser, server.url)
        open_fold(page)
        documents, work = page.locator("#sets .documents"), page.locator("#sets .documents .work")
        documents.get_by_label("Documents").set_input_files(handbook)
        page.get_by_label("Endpoint", exact=True).fill(url)
        documents.get_by_label("Model").fill(model.name)
        documents.locator("summary", has_text="Limits and prices").click()
        page.get_by_label("Limit of answer tokens").fill("32")
        page.get_by_label("Limit of tokens").fill("6000")
        documents.get_by_role("button", name="Generate").click()
        expect(work).to_contain_text("tokens are used")
        before = answers()
        assert len(before) >= 2

        serving.send_signal(signal.SIGSTOP)  # an answer is under way until the end of the server
        page.get_by_label("Limit of tokens").fill("")
        documents.get_by_role("button", name="Continue").click()
        wait_until(lambda: is_asking(psutil.Process(server.process.pid), int(url.rsplit(":")[-1].split("/")[0])))
        server.process.kill()
        server.process.wait()
        page.context.close()
    serving.send_signal(signal.SIGCONT)

    with real_server(home, forks=True) as server:
        page = open_page(browser, server.url)
        open_fold(page)
        documents, count = page.locator("#sets .documents"), page.locator("#sets .review .counts")
        expect(documents.get_by_label("Job")).to_contain_text(f"{len(before)} candidates of ")
        documents.get_by_role("button", name="Continue").click()
        done = re.compile(r"(\d+) candidates of \1 passages to review\.")
        expect(documents.locator(".work")).to_contain_text(done)
        numbers = [json.loads(line)["passage"] for line in answers()]
        assert answers()[: len(before)] == before
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) > len(before) + 2

        documents.get_by_role("button", name="Review").click()
        expect(count).to_contain_text(f"Candidate 1 of {len(numbers)} · not judged")
        expect(documents.locator(".place")).to_contain_text("handbook.pdf, page 1, characters 1 to ")
        expect(documents.locator(".passage")).to_contain_text("The railway station of district 1 has 2 rooms")
        page.keyboard.press("a")
        expect(count).to_contain_text("1 accepted")
        page.keyboard.press("e")
        page.keyboard.press("Control+a")
        page.keyboard.type("It has 2 rooms and 1 door.")
        page.keyboard.press("Control+Enter")
        expect(count).to_contain_text("2 accepted")
        page.keyboard.press("r")
        expect(count).to_contain_text(f"{len(numbers) - 3} left · 2 accepted")
        for number in range(4, len(numbers) + 1):
            page.keyboard.press("a")
            expect(count).to_contain_text(f"{number - 1} accepted")
        page.get_by_label("Name of the set").fill("handbook")
        documents.get_by_role("button", name="Make a set").click()
        expect(page.locator("#dataset-summary")).to_contain_text("set:handbook")
        (file,) = home.glob("datasets/handbook/source/*")
        turns = [[turn["content"] for turn in json.loads(line)["messages"]] for line in file.open()]
        assert len(turns) == len(numbers) - 1
        assert turns.pop(1) == [QUESTION, "It has 2 rooms and 1 door."]
        assert all(question == QUESTION and answer in ANSWERS for question, answer in turns)

        open_tab(page, "Model")
        own = page.locator("#model-own input, #model-own textarea")
        own.fill(str(model))
        own.press("Enter")
        expect(page.locator("#model-details .facts")).to_be_visible()
        open_tab(page, "Train")
        page.locator("#next-step-start").click()
        expect(page.locator("#next-step-run .go:visible")).to_have_text("Chat")
        (run,) = home.glob("runs/*/*/provenance.json")
        assert re.fullmatch(r"set:handbook@\w{12}", json.loads(run.read_text())["dataset"])
        assert (run.parent / "adapter" / "adapter_model.safetensors").is_file()
        page.context.close()
