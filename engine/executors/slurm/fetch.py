"""Download a run's model and data to the shared home before its job is submitted, since nodes may have no internet.

`Fetch` is the server's side. `python -P -m engine.executors.slurm.fetch RUN_DIR` does it, in a process that alone has the
person's login; it prints one line of JSON.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ValidationError

from engine.config.run import RunConfig
from engine.data.hub import hub_access, reads_from_hub
from engine.errors import ClusterError, EngineError
from engine.models.source import may_need_hub
from engine.paths import LAB
from engine.processes.spawn import Access, spawn, worker_argv
from engine.runs.provenance import home_of_run, read_provenance
from engine.runs.run import Run, RunFolder


class _Result(BaseModel):
    what: str = ""  # empty where all is there
    fix: str = ""


class Fetch:
    """Downloads for one run, once; the executor's thread calls `look`."""

    def __init__(self, run: Run, config: RunConfig) -> None:
        self._run = run
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._is_done = False

    def look(self) -> str | None:
        """Return a progress message; None once everything is there.

        Raises:
            EngineError: If it cannot be fetched.
        """
        if self._is_done or not needs_fetching(self._config):
            return None
        if self._process is None:
            is_persons = bool(read_provenance(self._run.folder).person)
            access = frozenset[Access]() if is_persons else hub_access(self._config.model, self._config.dataset)
            argv = worker_argv("engine.executors.slurm.fetch", (str(self._run.folder.path),))
            self._process = spawn(argv, log_file=self._run.folder.log, access=access, asked=True)
        if self._process.poll() is None:
            return "Downloading the model and the data; the job is submitted then."
        output, _ = self._process.communicate()
        try:
            result = _Result.model_validate_json(output)
        except ValidationError:
            result = _Result(
                what=f"Downloading the model and the data failed (exit code {self._process.returncode}).",
                fix="See the run's log, then resume it.",
            )
        self._process = None
        if result.what:
            raise ClusterError(result.what, result.fix)
        self._is_done = True
        return None

    def end(self) -> None:
        """Stop the download."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def needs_fetching(config: RunConfig) -> bool:
    """Whether a run needs something that may not be on this machine."""
    return may_need_hub(config.model) or reads_from_hub(config.dataset)


def main(arguments: Sequence[str]) -> int:
    """Fetch what the run in a folder needs."""
    folder = RunFolder(Path(arguments[0]).resolve())
    results, sys.stdout = sys.stdout, sys.stderr  # libraries print what they like
    result = _Result()
    try:
        _fetch(folder)
    except EngineError as error:
        result = _Result(what=error.what, fix=error.fix)
    print(json.dumps(result.model_dump()), file=results, flush=True)
    return 0


def _fetch(folder: RunFolder) -> None:
    from engine.data.hub import is_on_hub
    from engine.data.source import SourceOptions, open_source
    from engine.models.source import resolve_model

    config, home = folder.read_config(), home_of_run(folder)
    if home.owner:
        os.environ[LAB] = "1"
    resolve_model(config.model, home, lambda progress: print(progress.message, file=sys.stderr))
    for source in filter(is_on_hub, (config.dataset.source, *config.dataset.mix)):
        open_source(config.dataset.model_copy(update={"source": source, "mix": {}}), SourceOptions(home=home))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
