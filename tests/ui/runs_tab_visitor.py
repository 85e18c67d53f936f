"""A Runs tab on fakes, whose handlers are called as the browser would."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from loratory.ui.tabs.runs import RunsTab
from loratory.ui.views.run_table import (
    ANY_METHOD,
    ANY_MODEL,
)  # fmt: skip
from tests.ui.changes import Changes

QUERY = ("", "All", ANY_METHOD, ANY_MODEL, "Newest first")  # of an untouched search


def list_runs(tab: RunsTab, last=None, ticked_ids: Sequence[str] = (), **settings: str) -> Changes:
    query: dict[str, Any] = {
        "search": "",
        "state": "All",
        "method": ANY_METHOD,
        "model": ANY_MODEL,
        "order": "Newest first",
        **settings,
    }
    return Changes(tab, tab.list_runs(*query.values(), "", list(ticked_ids), 100, last))  # type: ignore[call-arg]


def table_of(tab: RunsTab, **settings: str) -> str:
    return list_runs(tab, **settings).table


def describe(tab: RunsTab, run_id: str) -> Changes:
    return Changes(tab.one, tab.one.describe(run_id))


def take(tab: RunsTab, identifier: str, ticked_ids: list[str], limit: int = 100) -> Changes:
    return Changes(tab, tab.take(pick(identifier), ticked_ids, False, limit))


def pick(identifier: str):
    return SimpleNamespace(_data={"pick": identifier})
