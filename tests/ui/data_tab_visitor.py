"""A Data tab on fakes, whose handlers are called as the browser would."""

import time
from types import SimpleNamespace

from engine.config.model import ModelConfig
from engine.data.contract import RowProblem
from tests.fake_inspector import a_report
from tests.invented_runs import a_config
from ui.backend.dataset_checks import CheckQuestion
from ui.tabs.data.tab import DataTab

PAGE = SimpleNamespace(session_hash="page-1")
MODEL = ModelConfig(id="some/model")
PATIENCE_SECONDS = 20  # generous: a timed test would only measure the machine


class Visitor:
    """A page of which the Data tab's handlers are called as the browser would, by name of what comes back."""

    def __init__(self, tab: DataTab) -> None:
        self.tab = tab

    def values(self, **settings):
        config = a_config(**settings)
        return self.tab._page.form.updates(config.model_dump(mode="json"))

    def open(self, *, row=0, shown_source="", listing="all", **settings):
        names = ["samples", "summary", "fetching", "fetch_again", "fetch_key", "reading", "mapping"]
        names += [f"role{number}" for number in range(5)]
        names += ["fold", "seen_columns", "opened", "row", "shown", "source"]
        names += ["facts", "lengths", "list", "listing", "stop", "read", "poll", "seen", "trouble"]
        told = self.tab._open(row, "tokens", shown_source, listing, 0, PAGE, *self.values(**settings))
        return dict(zip(names, told, strict=True))

    def tick(self, seen="", listing="all", **settings):
        names = ["facts", "lengths", "list", "listing", "stop", "read", "poll", "seen", "trouble"]
        return dict(zip(names, self.tab._tick(seen, listing, 0, *self.values(**settings)), strict=True))


def wait_for(condition) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


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
    made = a_report(question_on("rows.jsonl").dataset, MODEL, 1024)
    settings = {
        "problems": problems, "dropped": 1200, "problem_counts": {"empty": 1150, "not_json": 50}, "notices": notices,
        "notice_counts": {"order": 2, "unanswered": 1}, "longest_rows": (7, 3), "shortest_rows": (1,),
    }  # fmt: skip
    return made.model_copy(update=settings | changes)
