"""The documentation: its references are those of the sources, and its links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
REFERENCES = {"settings.md", "cli.md", "events.md", "scorers.md"}
ABOUT_THE_WHOLE = {"map.md", "decisions.md", "log.md"}  # of the design: no subject that could go wrong
NOT_OURS = {"train.py"}  # of an exported script


def anchors(page: Path) -> set[str]:
    """Return the headings of a page, as links name them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


def test_the_references_are_those_of_the_sources():
    command = [sys.executable, str(DOCS / "generate.py"), "--check"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert process.returncode == 0, process.stdout + process.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_to_a_page_and_a_heading(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.is_file(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}"


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    nav_pages = re.findall(r"[\w/-]+\.md", str(yaml.safe_load(text)["nav"]))

    assert sorted(nav_pages) == sorted(str(page.relative_to(DOCS)) for page in PAGES)


@pytest.mark.parametrize("page", sorted((DOCS / "design").glob("*.md")), ids=lambda page: page.name)
def test_the_design_names_files_that_exist(page):
    files = set(re.findall(r"`([a-z0-9_/]+\.(?:py|js|css|zip))`", page.read_text(encoding="utf-8")))

    assert files
    missing = [name for name in files if not any((ROOT / folder / name).is_file() for folder in ("", "engine", "ui"))]
    assert sorted(set(missing) - NOT_OURS) == []


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name not in REFERENCES | ABOUT_THE_WHOLE], ids=lambda page: page.name
)
def test_a_page_ends_with_what_can_go_wrong(page):
    *_, last = re.findall(r"^## (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)

    assert last == "What can go wrong"
