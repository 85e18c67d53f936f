"""A page on fakes, laid out and wired, without a server."""

import math

import gradio as gr
import pytest

from loratory.ui.backend.models import FitTable
from loratory.ui.form import Form
from loratory.ui.gradio_internals import Blocks
from loratory.ui.page import Page
from loratory.ui.services import Services
from loratory.ui.tabs.data import DataTab
from loratory.ui.tabs.method import MethodTab
from loratory.ui.tabs.model import ModelTab
from loratory.ui.tabs.train import TrainTab
from tests.fake_services import fake_services, invent_runs
from tests.ui.data_tab_visitor import Visitor
from tests.waiting import PATIENCE_SECONDS


@pytest.fixture
def services(home) -> Services:
    """Return services that need no model, without runs."""
    services = fake_services(home.root, seconds_per_step=0.001)
    services.transfers.prepare()
    return services


@pytest.fixture(autouse=True)
def reads_all_runs_at_once(monkeypatch):
    """On a busy machine too, where reading a run takes longer than a page waits."""
    monkeypatch.setattr("loratory.ui.backend.run_reader._AT_ONCE_SECONDS", math.inf)


@pytest.fixture(autouse=True)
def waits_for_tokenizers(monkeypatch):
    """Those of the fakes are there at once, on a busy machine after more time than a page waits."""
    monkeypatch.setattr("loratory.ui.tabs.model._BLINK_SECONDS", PATIENCE_SECONDS)


@pytest.fixture
def history(services):
    """Return the ids of invented runs in every state."""
    invent_runs(services.runs)
    return services.runs.ids()


@pytest.fixture
def laid_out(services):
    """Lay out one tab alone: `laid_out(TrainTab)` gives the tab, whose handlers can be called."""

    def lay_out(kind):
        with Blocks():
            page = Page(services)
            with gr.Tabs() as page.tabs:
                with gr.Tab("First", id="first"):
                    gr.HTML("")
                with gr.Tab("Under test", id="under-test"):
                    tab = kind(page)
            if isinstance(tab, TrainTab):
                tab.follow.lay_out_side()
            page.form.complete()
            tab.wire()
            page.wire()
        return tab

    return lay_out


@pytest.fixture
def page_form(services) -> Form:
    """Lay out all tabs and return the form with their components."""
    with Blocks():
        page = Page(services)
        with gr.Tabs() as page.tabs:
            for kind in (lambda page: ModelTab(page, FitTable(services.shapes.learn)), DataTab, MethodTab, TrainTab):
                with gr.Tab():
                    kind(page)
        page.form.complete()
    return page.form


@pytest.fixture
def visitor(laid_out) -> Visitor:
    """Return a Data tab whose handlers can be called by name."""
    return Visitor(laid_out(DataTab))
