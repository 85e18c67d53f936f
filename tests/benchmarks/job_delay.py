"""How late the events of a job arrive here: `python -m tests.benchmarks.job_delay [--seconds 60]`.

A real training through the stand-in for Hugging Face, looked at as often as by default; every step is logged.
"""

import argparse
import json
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from engine.config.load import config_from_mapping
from engine.executors import make_executors
from engine.executors.huggingface_jobs.account import HubLogin, read_flavors
from engine.executors.huggingface_jobs.job import JobsExecutor
from engine.inspector.session import Inspector
from engine.paths import LoratoryHome
from engine.runs.control import request_stop
from engine.runs.launch import Launcher, Preflight
from engine.runs.run import Run
from engine.runs.store import RunStore
from engine.runs.supervision.scheduler import SupervisorSettings
from engine.runs.supervision.supervisor import Supervisor
from tests.jobs.conftest import as_hugging_face
from tests.jobs.stand_in import TOKEN
from tests.runs.supervision import cpu, wait_until
from tests.tiny_model import make_tiny_model

_ROW = '{"instruction": "Count", "output": "One, two, three."}\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        work = Path(folder)
        with as_hugging_face(work / "jobs", patch) as hugging_face:
            measure(work, HfApi(endpoint=hugging_face.address, token=TOKEN), seconds)


def measure(work: Path, api: HfApi, seconds: float) -> None:
    """Train for so long and print how much later than they happened events were in the log here."""
    home = LoratoryHome(work / "home")
    home.make_writable()
    (work / "rows.jsonl").write_text(_ROW * 40)
    config = config_from_mapping({
        "model": {"id": str(make_tiny_model(work / "tiny"))}, "dataset": {"source": str(work / "rows.jsonl")},
        "training": {"max_steps": 1_000_000, "max_length": 64, "save_steps": 50},
        "run": {"where": "jobs", "devices": "cpu"}, "jobs": {"flavor": "cpu-basic", "limit_hours": 0.5},
    })  # fmt: skip
    settings = SupervisorSettings(
        executors=lambda context: {**make_executors(context), "jobs": JobsExecutor(home, lambda _: HubLogin(api))},
        devices=lambda: (cpu(),),
    )
    supervisor = Supervisor(home, settings)
    supervisor.start()
    try:
        with closing(Inspector(home)) as inspector:
            ask = Preflight(
                home, inspector, devices=lambda: (cpu(),), flavors=lambda: read_flavors(api.list_jobs_hardware())
            )
            run = Launcher(RunStore(home, "local"), ask).start(config)
            delays = watch(run, seconds)
            request_stop(run)
            wait_until(lambda: run.folder.read_state().is_final, 120)
    finally:
        supervisor.stop()
    for name in ("step", "other"):
        late = sorted(delays[name])
        middle, most = statistics.median(late), late[int(len(late) * 0.95)]
        print(f"{name:>5}: {len(late):5} events, median {middle:.1f} s, p95 {most:.1f} s, worst {late[-1]:.1f} s")


def watch(run: Run, seconds: float) -> dict[str, list[float]]:
    """Return how late events came, until so long after the first step."""
    delays: dict[str, list[float]] = {"step": [], "other": []}
    seen, end = 0, float("inf")
    while time.time() < end:
        time.sleep(0.05)
        content = run.folder.events.read_bytes() if run.folder.events.exists() else b""
        whole, now = content.rfind(b"\n") + 1, time.time()
        for line in content[seen:whole].splitlines():
            event = json.loads(line)
            delays["step" if event["kind"] == "step" else "other"].append(now - event["time"])
        seen = whole
        if delays["step"]:
            end = min(end, now + seconds)
    return delays


if __name__ == "__main__":
    main()
