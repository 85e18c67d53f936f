"""`python -m tests.benchmarks.cluster_poll`: what runs that wait at Slurm cost the server, and what a Slurm that hangs costs.

Starts `app.py` on a home without runs, then gives it 200 for Slurm, whose commands are programs that keep the queue in a
file. Prints the processor time of the server, without its commands, before and once all are submitted; then every command
hangs, and actions of a person at the page are timed.
"""

import argparse
import json
import os
import stat
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from engine.paths import LoratoryHome
from engine.runs.store import RunStore
from tests.benchmarks.ten_pages import share_of_a_core
from tests.browser.real_server import real_server
from tests.invented_runs import a_config
from tests.page_client import PageClient, read_config

_COMMANDS = {
    "sbatch": """
for word in "$@"; do
  case "$word" in --test-only) exit 0 ;; --comment=*) comment=${word#--comment=} ;; esac
done
cat >/dev/null
number=$(($(wc -l <"$0.queue") + 1))
printf '%s\\037PENDING\\037Resources\\037%s\\037\\037\\037\\0371440\\0370:0\\037\\n' "$number" "$comment" >>"$0.queue"
echo "$number"
""",
    "squeue": 'cat "${0%squeue}sbatch.queue"',
    "scontrol": "exit 0",
    "scancel": "exit 0",
    "sinfo": "exit 0",
}
_ACTIONS = 300
_SETTLE_SECONDS = 10


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=40.0, help="how long the processor time is measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="loratory-benchmark-") as folder:
        home, programs = LoratoryHome(Path(folder) / "home"), Path(folder) / "programs"
        home.make_writable()
        programs.mkdir()
        _write_commands(programs, hang=False)
        (programs / "sbatch.queue").touch()
        (home.root / "cluster.yaml").write_text("offline: false\n")
        store = RunStore(home, "local")
        with _page(home, programs) as (page, server):
            time.sleep(_SETTLE_SECONDS)
            without = share_of_a_core(server, options.seconds)
            for _ in range(options.runs):
                store.create(a_config(run__where="slurm"))
            _wait_for(lambda: _count_submitted(store) == options.runs, "all runs to be submitted")
            time.sleep(_SETTLE_SECONDS)
            share = share_of_a_core(server, options.seconds)
            print(
                f"{options.runs} runs wait at Slurm: {share - without:.2%} of a core (wanted: below 1%), "
                f"besides {without:.2%} of a server without runs"
            )
            _print_times("Slurm answers", _times(page))
            _write_commands(programs, hang=True)
            _wait_for(lambda: bool(server.children(recursive=True)), "a command that hangs")
            _print_times("Slurm hangs (wanted: 99% within 200 ms)", _times(page))
        print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


@contextmanager
def _page(home: LoratoryHome, programs: Path) -> Iterator[tuple[PageClient, psutil.Process]]:
    path = f"{programs}:{os.environ['PATH']}"
    with (
        real_server(home.root, PATH=path) as server,
        httpx.Client(base_url=server.url, timeout=120) as http,
        PageClient.open(http, read_config(http)) as page,
    ):
        yield page, psutil.Process(server.process.pid)


def _write_commands(programs: Path, *, hang: bool) -> None:
    for name, script in _COMMANDS.items():
        path = programs / f".{name}"
        path.write_text(f"#!/bin/bash\n{'sleep 3600' if hang else script}\n")
        path.chmod(stat.S_IRWXU)
        path.replace(programs / name)


def _count_submitted(store: RunStore) -> int:
    records = [run.folder.job for run in store.list() if run.folder.job.exists()]
    return sum(bool(json.loads(record.read_text())["is_released"]) for record in records)


def _times(page: PageClient) -> list[float]:
    """Milliseconds of actions that a person takes where runs are started and watched."""
    times = []
    for number in range(_ACTIONS):
        began = time.perf_counter()
        if number % 3 == 0:
            page.press("Runs", "select", event_data={"index": 6, "value": "Runs", "selected": True})
        elif number % 3 == 1:
            page.press("runs-search", "change", f"run {number}")
        else:
            page.press("model-search", "change", f"qwen{number}")
        times.append(1000 * (time.perf_counter() - began))
    return times


def _print_times(what: str, times: list[float]) -> None:
    quantiles = statistics.quantiles(times, n=100)
    print(f"{what}: {len(times)} actions, median {quantiles[49]:.0f} ms, 99% within {quantiles[98]:.0f} ms")


def _wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline, f"waited for {what} without success"
        time.sleep(0.5)


if __name__ == "__main__":
    main()
