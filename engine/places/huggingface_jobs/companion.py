"""The companion of a worker in a job: `python -P -m loratory.engine.places.huggingface_jobs.companion`.

It downloads the run, starts the worker as on any machine, uploads what the worker writes, and forwards requests. The worker
continues when the Hub fails; uploads are tried again.
"""

import contextlib
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from loratory.engine.config.load import config_from_mapping, config_to_yaml, mapping_from_file
from loratory.engine.errors import EngineError
from loratory.engine.files import size_and_time, write_atomically
from loratory.engine.hub import RunBucket
from loratory.engine.paths import LoratoryHome
from loratory.engine.places.huggingface_jobs import layout
from loratory.engine.places.huggingface_jobs.layout import JobOrder, JobResult, whole_lines
from loratory.engine.processes.spawn import Access, allocator_environment, environment_for
from loratory.engine.runs.checkpoints import MANIFEST, list_checkpoints
from loratory.engine.runs.control import request_stop_for_time
from loratory.engine.runs.job import training_command
from loratory.engine.runs.run import ATTEMPT_VARIABLE, RUN_VARIABLE, RunFolder, RunState

_LARGEST_SEGMENT_BYTES = 4_000_000
_LOG_TAIL_BYTES = 2_000_000
_LONGEST_WAIT_SECONDS = 60.0  # between two tries while the Hub does not serve
_FAREWELL_SECONDS = 900.0  # for the last uploads, where the Hub does not serve
_SHARE_TO_SAVE = 0.05  # of the time limit, kept to save and upload; within these bounds in seconds
_TIME_TO_SAVE = (60.0, 600.0)
_EXIT_LOST = 75  # the run could not be fetched

Upload = Mapping[str, bytes | Path]


class Companion:
    """Supervises one worker in a job, in a home of the job's own."""

    def __init__(self, bucket: RunBucket, order: JobOrder, home: LoratoryHome) -> None:
        self._bucket = bucket
        self._order = order
        self._home = home
        self.folder = RunFolder(home.runs / "local" / order.run_id)
        self._began = time.monotonic()
        self._sending_events = threading.Lock()  # guards what is sent of the event log, and the order of its segments
        self._sent_events = 0
        self._sent_log = 0, 0  # size and time
        self._sent_checkpoints: set[str] = set()
        self._reached_limit = False

    def fetch(self) -> None:
        """Download the run and its inputs to where its worker expects them.

        Raises:
            EngineError: If they cannot be downloaded, or the configuration cannot be read.
        """
        inputs = self._bucket.list(f"{self._order.folder}/{layout.INPUTS}")
        self.folder.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._bucket.get([(file, self._path_for(name)) for name, file in inputs.items() if layout.is_plain(name)])
        config = config_from_mapping(mapping_from_file(self.folder.config))
        config = config.with_names(lambda _, text: self._local(text))
        write_atomically(self.folder.config, config_to_yaml(config))
        self.folder.write_state(RunState(state="starting", attempt=self._order.attempt))
        self._sent_events = self.folder.events.stat().st_size if self.folder.events.exists() else 0
        self._sent_checkpoints = {checkpoint.folder.name for checkpoint in list_checkpoints(self.folder.checkpoints)}

    def _path_for(self, name: str) -> Path:
        if name.startswith(f"{layout.MEDIA}/"):
            return self._home.media / name.removeprefix(f"{layout.MEDIA}/")
        inside = name.removeprefix("run/")
        return self.folder.path / inside if inside != name else self._home.root / layout.INPUTS / name

    def _local(self, text: str) -> str:
        """Return the path here of an input, as the configuration that was sent names it."""
        if not text.startswith(layout.SENT_PREFIX):
            return text
        return str(self._home.root / layout.INPUTS / text.removeprefix(layout.SENT_PREFIX))

    def run(self) -> int:
        """Start the worker, follow it to its end, and upload everything; returns its exit code."""
        environment = {
            **environment_for((Access.HUB,)), **allocator_environment(), **self._home.environment,
            ATTEMPT_VARIABLE: str(self._order.attempt), RUN_VARIABLE: self._order.run_id, "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        with self.folder.log.open("ab") as log:
            worker = subprocess.Popen(
                training_command(self.folder.path), env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        end = threading.Event()
        files = threading.Thread(target=self._upload_until_done, args=(self._next_checkpoint, end), daemon=True)
        events = threading.Thread(target=self._upload_until_done, args=(self._next_events, end), daemon=True)
        for thread in (files, events):
            thread.start()
        while worker.poll() is None:
            with contextlib.suppress(EngineError):  # tried again at the next poll
                self._obey()
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(self._order.poll_seconds)
        end.set()
        for thread in (events, files):
            thread.join()
        code = worker.returncode
        result = JobResult(exit_code=code, reached_limit=self._reached_limit)
        self._upload_until_done(lambda: self._put(self._results()), end)
        self._upload_until_done(lambda: self._put({layout.END: result.model_dump_json().encode()}), end)
        return code

    def _put(self, files: Upload) -> bool:
        self._bucket.put({f"{self._order.folder}/{name}": source for name, source in files.items()})
        return False

    def _obey(self) -> None:
        """Forward a request to stop, and stop in time before the job's time limit."""
        limit = self._order.limit_seconds
        margin = min(max(limit * _SHARE_TO_SAVE, _TIME_TO_SAVE[0]), _TIME_TO_SAVE[1], limit / 2)
        if time.monotonic() - self._began > limit - margin and not self._reached_limit:
            request_stop_for_time(self.folder, limit / 3600)
            self._reached_limit = True
        if not self.folder.stop_request.exists() and self._bucket.list(f"{self._order.folder}/control"):
            self.folder.control.mkdir(mode=0o700, exist_ok=True)
            self.folder.stop_request.touch()

    def _upload_until_done(self, upload_next: Callable[[], bool], end: threading.Event) -> None:
        """Upload until the worker has ended and nothing is left; then what the Hub refuses is given up after a while."""
        wait = self._order.poll_seconds
        give_up = math.inf
        while time.monotonic() < give_up:
            is_last_look = end.is_set()
            if is_last_look and give_up == math.inf:
                give_up = time.monotonic() + _FAREWELL_SECONDS
            try:
                did_something = upload_next()
                wait = self._order.poll_seconds
            except (EngineError, OSError) as error:
                print(f"Not uploaded yet: {error}", flush=True)
                did_something, wait = False, min(wait * 2, _LONGEST_WAIT_SECONDS)
                if is_last_look:
                    time.sleep(self._order.poll_seconds)
                    continue
            if is_last_look and not did_something:
                return
            if not did_something:
                end.wait(wait)

    def _next_events(self) -> bool:
        """Upload what was added to the event log and the worker's output; returns whether more may follow."""
        with self._sending_events:
            lines = whole_lines(self.folder.events, self._sent_events, _LARGEST_SEGMENT_BYTES)
            log_now = size_and_time(self.folder.log)
            files: dict[str, bytes | Path] = {}
            if lines:
                files[layout.segment_name(self._sent_events)] = lines
            if log_now != self._sent_log:
                files[layout.LOG] = _tail(self.folder.log)
            if not files:
                return False
            self._put(files)
            self._sent_events += len(lines)
            self._sent_log = log_now
        return len(lines) * 2 > _LARGEST_SEGMENT_BYTES  # more may follow; else it is not worth a request at once

    def _next_checkpoint(self) -> bool:
        """Upload the newest complete checkpoint that is not there yet, and remove those that the worker has removed."""
        here = {checkpoint.folder.name: checkpoint for checkpoint in list_checkpoints(self.folder.checkpoints)}
        removals = self._sent_checkpoints - here.keys()
        if removals:
            there = f"{self._order.folder}/{layout.CHECKPOINTS}"
            names = [name for name in self._bucket.list(there) if name.split("/")[0] in removals]
            self._bucket.remove([f"{there}/{name}" for name in names])
            self._sent_checkpoints -= removals
        missing = [name for name in here if name not in self._sent_checkpoints]
        if not missing:
            return False
        newest = here[missing[-1]]
        prefix = f"{layout.CHECKPOINTS}/{newest.folder.name}"
        with tempfile.TemporaryDirectory(prefix=".sending-", dir=self.folder.path) as folder:
            snapshot = Path(folder)  # the worker keeps a few only, and may save faster than these are sent
            for name in (*newest.manifest.files, MANIFEST):
                (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
                (snapshot / name).hardlink_to(newest.folder / name)
            self._put({f"{prefix}/{name}": snapshot / name for name in newest.manifest.files})
            # A run that resumes from this checkpoint writes only what comes after it: its events are there first.
            while self._next_events():
                pass
            # Uploaded last, as the worker writes it: a checkpoint with a manifest is complete.
            self._put({f"{prefix}/{MANIFEST}": snapshot / MANIFEST})
        self._sent_checkpoints.add(newest.folder.name)
        return True

    def _results(self) -> dict[str, bytes | Path]:
        """Return the adapter, or the whole model, and the end of the log."""
        files: dict[str, bytes | Path] = {
            f"{layout.RESULTS}/{path.relative_to(self.folder.path).as_posix()}": path
            for path in sorted(self.folder.adapter.rglob("*"))
            if path.is_file() and not path.is_symlink()
        }
        return {**files, layout.LOG: _tail(self.folder.log)}


def _tail(log: Path) -> bytes:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
            return file.read()
    except FileNotFoundError:
        return b""


def main() -> int:
    """Run the job that the environment names; returns the exit code."""
    from huggingface_hub import HfApi

    order = JobOrder.model_validate_json(os.environ[layout.ORDER_VARIABLE])
    home = LoratoryHome.from_environment()
    companion = Companion(RunBucket(HfApi(), order.bucket), order, home)
    try:
        companion.fetch()
    except EngineError as error:
        print(error, flush=True)
        return _EXIT_LOST
    return companion.run()


if __name__ == "__main__":
    sys.exit(main())
