"""From documents on the Data tab, in a real browser on fakes: a file, an endpoint, a review by keyboard, and a set."""

import json

import pytest
from playwright.sync_api import Page, expect

from loratory.engine.data.workshop.generation import Job
from loratory.engine.data.workshop.sets import find_set
from tests.browser.chromium import barriers, fits_its_window, open_page, open_tab
from tests.browser.show_fake import page_of
from tests.fake_services import fake_services
from tests.local_endpoint import GOOD, serving

pytestmark = pytest.mark.browser
SECRET = "sk-this/is+the=secret-of-a-test"
PARTS = "".join(f"# Part {n}\n\n{f'Part {n} has many screws. ' * 60}\n\n" for n in range(1, 5))


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    return fake_services(tmp_path_factory.mktemp("documents") / "home")


@pytest.fixture(scope="module")
def address(services):
    with page_of(services) as running:
        yield running


def open_fold(page: Page) -> None:
    open_tab(page, "Data")
    page.get_by_text("From documents", exact=True).click()
    expect(page.get_by_label("Recipe")).to_have_value("question_answer")


def test_a_text_becomes_a_chosen_set_by_keyboard(browser, address, services, tmp_path):
    (tmp_path / "manual.md").write_text(PARTS)
    page = open_page(browser, address)
    open_fold(page)
    documents, count = page.locator("#sets .documents"), page.locator("#sets .review .counts")
    expect(documents.get_by_role("button", name="Review")).to_be_hidden()  # nothing was generated yet
    documents.get_by_role("button", name="Generate").click()
    expect(documents.locator("[role=alert]")).to_contain_text("No document is named.")

    (tmp_path / "page.html").write_text("<h1>Screws</h1><p>Screws are from Paris.</p>")
    documents.get_by_label("Documents").set_input_files([tmp_path / "manual.md", tmp_path / "page.html"])
    page.locator("#sets .documents form summary").click()
    page.get_by_label("Price of 1M answer tokens").fill("2")
    page.get_by_label("Limit of tokens").fill("0")
    page.locator("#sets .documents form summary").click()
    documents.get_by_role("button", name="Estimate").click()
    expect(page.get_by_label("Limit of tokens")).to_be_focused()  # it is wrong, so its fold opens
    page.get_by_label("Limit of tokens").fill("")
    documents.get_by_role("button", name="Estimate").click()
    expect(documents.locator(".work")).to_contain_text("5 passages: at most ")
    expect(documents.locator(".work")).to_contain_text("which cost 0.0102")
    documents.get_by_label("Documents").set_input_files(tmp_path / "manual.md")
    with serving() as server:
        page.get_by_label("Endpoint", exact=True).fill(server.url)
        documents.get_by_label("Model").fill("m")
        documents.get_by_label("Key").fill(SECRET)
        documents.get_by_role("button", name="Generate").click()
        expect(documents.locator(".work")).to_contain_text("4 candidates of 4 passages to review.")
    assert set(server.keys) == {f"Bearer {SECRET}"}

    documents.get_by_role("button", name="Review").click()
    expect(count).to_contain_text("Candidate 1 of 4 · not judged · 4 left · 0 accepted")
    expect(documents.locator(".passage")).to_contain_text("Part 1 has many screws.")
    expect(documents.locator(".claims")).to_have_text("Not in the passage: 7")
    fits_its_window(page)
    assert barriers(page) == []
    page.keyboard.press("a")
    expect(count).to_contain_text("Candidate 2 of 4 · not judged · 3 left · 1 accepted")
    page.keyboard.press("e")
    page.keyboard.press("Control+a")
    page.keyboard.type("It has many; a real answer.")
    page.keyboard.press("Control+Enter")
    expect(count).to_contain_text("Candidate 3 of 4 · not judged · 2 left · 2 accepted")
    page.keyboard.press("r")
    expect(count).to_contain_text("Candidate 4 of 4")
    page.keyboard.press("ArrowLeft")
    expect(count).to_contain_text("Candidate 3 of 4 · reject")
    page.keyboard.press("ArrowRight")
    expect(count).to_contain_text("Candidate 4 of 4")
    page.keyboard.press("s")
    expect(count).to_contain_text("Candidate 4 of 4 · skip · 0 left · 2 accepted")

    page.get_by_label("Name of the set").fill("manual")
    documents.get_by_role("button", name="Make a set").click()
    expect(page.locator("#dataset-summary")).to_contain_text("set:manual")
    expect(page.locator("#sets tr.chosen")).to_contain_text("manual")
    rows = [json.loads(line) for line in find_set(services.home, "manual").copy().read_bytes().splitlines()]
    assert [row["messages"][1]["content"] for row in rows] == [GOOD["answer"], "It has many; a real answer."]
    assert not any(SECRET.encode() in file.read_bytes() for file in services.home.root.rglob("*") if file.is_file())
    assert SECRET not in page.evaluate("JSON.stringify(localStorage) + JSON.stringify(sessionStorage)")
    page.context.close()


def test_a_phone_has_it_in_one_column_and_a_reload_finds_the_jobs(browser, address, services):
    assert len(Job.files(services.home)) == 1
    page = open_page(browser, address, width=390, height=844)
    open_fold(page)
    documents, counts = page.locator("#sets .documents"), page.locator("#sets .review .counts")
    expect(documents.get_by_label("Job")).to_contain_text(
        "manual.md, question_answer: 4 candidates of 4 passages, 0 to"
    )
    documents.get_by_role("button", name="Review").click()
    expect(counts).to_contain_text("Candidate 1 of 4 · accept · 0 left · 2 accepted")

    documents.get_by_label("Reviewer").fill("bob")
    documents.get_by_label("Reviewer").press("Tab")
    expect(counts).to_contain_text("Candidate 1 of 4 · not judged · 4 left · 2 accepted")
    for left, verb, accepted in ((3, "Reject", 1), (2, "Accept", 1), (1, "Accept", 1), (0, "Accept", 2)):
        documents.get_by_role("button", name=verb).click()
        expect(counts).to_contain_text(f"{left} left · {accepted} accepted")
    agreements = documents.locator(".agreements")
    expect(agreements).to_contain_text(" agree on 33.3% of 3, kappa -0.5; they differ on 1 3")
    agreements.get_by_role("button", name="Candidate 3").click()
    expect(counts).to_contain_text("Candidate 3 of 4 · accept")
    fits_its_window(page)
    assert barriers(page) == []

    documents.get_by_role("button", name="Delete").click()
    expect(documents.locator(".note")).to_contain_text("sets made of it stay.")
    fits_its_window(page)
    assert barriers(page) == []
    documents.get_by_role("button", name="Keep it").click()
    expect(documents.get_by_label("Job")).to_be_focused()
    documents.get_by_role("button", name="Delete").click()
    documents.locator(".note").get_by_role("button", name="Delete").click()
    expect(documents.locator(".note")).to_contain_text("Deleted question_answer-")
    expect(documents.get_by_role("button", name="Review")).to_be_hidden()
    assert Job.files(services.home) == []
    assert find_set(services.home, "manual").facts.rows == 2
    page.context.close()
