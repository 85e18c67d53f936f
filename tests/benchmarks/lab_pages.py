"""`python -m tests.benchmarks.lab_pages`: what the open pages of a lab's people cost its server.

A lab as an admin starts it, behind TLS, and people who are signed in by their cookies. Each opens the page as a browser
does, follows a run that logs a step every second, and now and then does something else: moves the smoothing, opens a tab,
searches, picks a run. Prints the memory of the server, its processor time, and how long an action takes.

With `--run own` each person follows a run of theirs; with `--run shared` all follow the run of one of them.
"""

import argparse
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
from argon2 import PasswordHasher

from loratory.engine.accounts.accounts import Accounts, open_database
from loratory.engine.accounts.audit import AuditLog
from loratory.engine.accounts.lab import audit_log_path
from loratory.engine.accounts.passwords import Passwords
from loratory.engine.accounts.sessions import Sessions
from loratory.engine.lab.rules import set_shared
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.store import RunStore
from loratory.ui.polls import HEADER_SECONDS, RUN_SECONDS
from tests.benchmarks.first_load import share_of_a_core
from tests.benchmarks.work import Work, steps_each_second
from tests.browser.real_server import LabServer
from tests.page_client import PageClient, read_config

_TABS = ("Model", "Data", "Method", "Train", "Chat", "Export", "Runs")
_SETTLE_SECONDS = 5


class Visitor:
    """A person at an open page."""

    def __init__(self, page: PageClient, seed: int, *, shared: str = "") -> None:
        self._page = page
        self._chance = random.Random(seed)
        self._shared = shared
        self.seconds: list[float] = []

    def arrive(self) -> None:
        """Go to the run: one's own in Train, that of another below the table of shared runs."""
        self._select("Runs" if self._shared else "Train")
        if self._shared:
            self._page.press("shared-runs", "click", event_data={"pick": self._shared})

    def stay(self, until: threading.Event, every_seconds: float) -> None:
        """Ask what an open page asks, and do something every so often."""
        began = time.monotonic()
        due = {part: began + self._chance.random() * every for part, every in self._routine(every_seconds)}
        while not until.is_set():
            for part, every in self._routine(every_seconds):
                if time.monotonic() >= due[part]:
                    due[part] = time.monotonic() + every
                    self._page.poll(part) if part else self._act()
            until.wait(0.1)

    def _routine(self, every_seconds: float) -> tuple[tuple[str, float], ...]:
        return (
            ("header-live", HEADER_SECONDS),
            ("shared-live" if self._shared else "run-live", RUN_SECONDS),
            ("", every_seconds),
        )

    def _act(self) -> None:
        action = self._chance.choice(self._actions())
        began = time.perf_counter()
        action()
        self.seconds.append(time.perf_counter() - began)

    def _actions(self) -> tuple[Callable[[], None], ...]:
        page, number = self._page, self._chance.random()
        look = {"pick": self._shared}
        follows = (
            (lambda: page.press("shared-runs", "click", event_data=look)) if self._shared
            else (lambda: page.press("smoothing", "change", round(number, 2)))
        )  # fmt: skip
        return (
            follows,
            follows,
            lambda: page.press("rank", "input", 4 + int(number * 60)),
            lambda: page.press("runs-search", "change", f"follow{int(number * 100)}"),
            lambda: page.press("model-search", "change", f"qwen{int(number * 100)}"),
            lambda: self._select(self._chance.choice(_TABS)),
        )

    def _select(self, tab: str) -> None:
        data: dict[str, Any] = {"index": _TABS.index(tab), "value": tab, "selected": True}
        self._page.press(tab, "select", event_data=data)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--run", choices=("own", "shared"), default="own", help="whose run each person follows")
    parser.add_argument("--every", type=float, default=30.0, help="seconds between two actions of a person")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long is measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="loratory-benchmark-") as folder, ExitStack() as stack:
        home = LoratoryHome(Path(folder))
        home.make_writable()
        database = open_database(home)
        stack.callback(database.close)
        accounts = Accounts(database, Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)))
        names = [f"person{number:02d}" for number in range(options.people)]
        people = [accounts.accept(accounts.invite("member", by="").token, name, "correct horse") for name in names]
        owners = names if options.run == "own" else names[:1]
        works = [Work(RunStore(home, name)) for name in owners]
        shared = ""
        if options.run == "shared":
            set_shared(works[0].run, people[0], True, AuditLog(audit_log_path(home)))
            shared = f"{names[0]}/{works[0].run.id}"
        sessions = Sessions(database)
        server = LabServer(home, home.root)
        process = psutil.Process(stack.enter_context(server.running()).pid)
        say_memory("nobody is signed in", process)
        visitors = []
        for number, person in enumerate(people):
            http = stack.enter_context(server.browser(sessions.begin(person, "127.0.0.1", "benchmark")))
            began = time.perf_counter()
            page = stack.enter_context(PageClient.open(http, read_config(http)))
            visitors.append(Visitor(page, number, shared=shared if number else ""))
            if number in (0, len(people) - 1):
                say_memory(f"{number + 1} open (this one in {time.perf_counter() - began:.1f} s)", process)
        measure(process, visitors, works, options.every, options.seconds)


def measure(process: psutil.Process, visitors: list[Visitor], works: list[Work], every: float, seconds: float) -> None:
    """Let all follow their run, and print what it costs."""
    over = threading.Event()
    for work in works:
        work.step()
    for visitor in visitors:
        visitor.arrive()
    threads = [threading.Thread(target=visitor.stay, args=(over, every)) for visitor in visitors]
    for thread in threads:
        thread.start()
    with steps_each_second(works):
        time.sleep(_SETTLE_SECONDS)
        for visitor in visitors:
            visitor.seconds.clear()
        share = share_of_a_core(process, seconds)
    over.set()
    for thread in threads:
        thread.join()
    times = sorted(1000 * value for visitor in visitors for value in visitor.seconds)
    say_memory(f"{len(visitors)} follow a run (wanted: below 305 MiB)", process)
    print(f"the server's processor time: {share:.1%} of a core (wanted: below 15%)")
    percentile = statistics.quantiles(times, n=20)[-1]
    print(
        f"{len(times)} actions: median {statistics.median(times):.0f} ms, 95% within {percentile:.0f} ms (wanted: 300), "
        f"slowest {times[-1]:.0f} ms"
    )
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def say_memory(when: str, process: psutil.Process) -> None:
    memory = process.memory_full_info()
    print(f"{when}: {memory.rss / 2**20:.0f} MiB resident, {memory.pss / 2**20:.0f} MiB of its own", flush=True)


if __name__ == "__main__":
    main()
