"""A run is sent to a real Slurm from the page; its worker is a fake."""

import re

import pytest
import yaml
from playwright.sync_api import expect

from tests.browser.chromium import fits_its_window, open_page, open_tab
from tests.browser.real_server import real_server
from tests.slurm.conftest import place, slurm, slurm_cluster  # noqa: F401 - fixtures

pytestmark = [pytest.mark.browser, pytest.mark.e2e]


def test_a_run_is_submitted_from_the_page_and_followed_to_its_end(slurm, place, home, demo_home, browser):  # noqa: F811
    home.make_writable()
    (home.root / "models").symlink_to(demo_home.models)
    (home.root / "cluster.yaml").write_text(yaml.safe_dump(place.model_dump(mode="json", exclude_defaults=True)))
    with real_server(home.root, forks=True) as server:
        page = open_page(browser, server.url)
        page.locator("#start-here button").click()
        expect(page.locator("#next-step-start")).to_be_visible()
        open_tab(page, "Train")
        page.locator("#run-name textarea, #run-name input").fill("steps=6 hold=3")
        page.locator("#where").get_by_text("Slurm cluster", exact=True).click()
        expect(page.locator("#cluster-forecast")).to_contain_text("Free now: 4 × toy.")
        expect(page.locator("#cluster-forecast")).to_contain_text("Expected start: now.")
        expect(page.locator("#cluster-offer")).to_contain_text("1×toy")
        fits_its_window(page)

        page.locator("#next-step-start").click()

        expect(page.locator("#run-heading")).to_contain_text(re.compile(r"slurm \d+ · node[12] · 1×toy"))
        expect(page.locator("#run-heading")).to_contain_text("Step 3")
        (run,) = (path.parent for path in (home.root / "runs").glob("*/*/config.yaml"))
        assert f"loratory {run.name}" in slurm.run_command("squeue", "--noheader", "--me", "-o", "%k")
        (run / "go").touch()
        expect(page.locator("#run-heading")).to_contain_text("completed")
        page.context.close()
