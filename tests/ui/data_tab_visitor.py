"""A Data tab on fakes, whose handlers are called as the browser would."""

from types import SimpleNamespace

import gradio as gr

from loratory.engine.config.run import ModelConfig
from loratory.engine.data.contract import RowProblem
from loratory.ui.backend.dataset_checks import CheckQuestion
from loratory.ui.tabs.data import DataTab
from tests.fake_inspector import a_report
from tests.invented_runs import a_config

PAGE = SimpleNamespace(session_hash="page-1")
MODEL = ModelConfig(id="some/model")
PATIENCE_SECONDS = 300  # generous: a timed test would only measure the machine


class Shown:
    """What the Data tab changes, by the names of its parts; `gr.skip()` for what stays."""

    def __init__(self, tab: DataTab, updates: dict) -> None:
        self._updates = updates
        self._parts = {
            "samples": tab.samples, "summary": tab.summary, "rows_column": tab.rows_column, "facts": tab.facts,
            "lengths": tab.lengths, "stop": tab.stop, "read": tab.read, "poll": tab.timer, "last_stamp": tab.last_stamp,
            "source": tab.shown_source, "trouble": tab.page.data_trouble, "kind": tab.page.data_kind,
            "row": tab.rows.number, "row_html": tab.rows.row_html, "list": tab.rows.list, "listing": tab.rows.listing,
            "fetching": tab.tokenizer.status, "fetch_again": tab.tokenizer.again, "fetch_key": tab.tokenizer.poll,
            "reading": tab.format.column, "mapping": tab.format.mapping, "fold": tab.format.fold,
            "box_format": tab.format.box_format, "role_map": tab.format.role_map,
            **{f"role{number}": role for number, role in enumerate(tab.format.roles)},
        }  # fmt: skip

    def __getitem__(self, name: str):
        return self._updates.get(self._parts[name], gr.skip())


class Visitor:
    """A page of which the Data tab's handlers are called as the browser would, by name of what comes back."""

    def __init__(self, tab: DataTab) -> None:
        self.tab = tab

    def values(self, **settings):
        config = a_config(**settings)
        return self.tab.page.form.updates(config.model_dump(mode="json"))

    def open(self, *, row=0, shown_source="", listing="all", **settings):
        updates = self.tab.open(row, "tokens", shown_source, listing, 0, PAGE, *self.values(**settings))
        return Shown(self.tab, updates)

    def tick(self, last_stamp="", listing="all", **settings):
        return Shown(self.tab, self.tab.tick(last_stamp, listing, 0, *self.values(**settings)))


def question_on(source: str, **changes) -> CheckQuestion:
    config = a_config(dataset__source=source, **changes)
    return CheckQuestion(config.dataset, config.model, config.training.max_length, config.training.seed)


def some_report(**changes):
    problems = tuple(
        RowProblem(row=row, line=row + 1, problem=f"reason {row}", kind="empty", sample="{…}")
        for row in range(0, 900, 2)
    )
    notices = (
        RowProblem(row=5, line=6, problem="turn 2 is odd", kind="order", dropped=False),
        RowProblem(row=5, line=6, problem="nothing answers it", kind="unanswered", dropped=False),
        RowProblem(row=9, line=10, problem="turn 3 is odd", kind="order", dropped=False),
    )
    report = a_report(question_on("rows.jsonl").dataset, MODEL, 1024)
    settings = {
        "problems": problems, "dropped": 1200, "problem_counts": {"empty": 1150, "not_json": 50}, "notices": notices,
        "notice_counts": {"order": 2, "unanswered": 1}, "longest_rows": (7, 3), "shortest_rows": (1,),
    }  # fmt: skip
    return report.model_copy(update=settings | changes)
