"""Download a run's model and data to the shared home before its job is submitted, since nodes may have no internet.

`Fetch` is the server's side. `python -P -m loratory.engine.places.slurm.fetch RUN_DIR` does it, in a process that alone has the
person's login; where it fails, it prints the error as one line of JSON.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from loratory.engine.config.run import RunConfig
from loratory.engine.data.hub import hub_access
from loratory.engine.errors import ClusterError, EngineError
from loratory.engine.paths import LAB
from loratory.engine.processes.messages import error_from_json, error_to_json
from loratory.engine.processes.spawn import spawn, worker_argv
from loratory.engine.runs.provenance import home_of_run, read_provenance
from loratory.engine.runs.run import Run, RunFolder


class Fetch:
    """Downloads for one run, once; the executor's thread calls `poll`."""

    def __init__(self, run: Run, config: RunConfig) -> None:
        self._run = run
        self._access = hub_access(config.model, config.dataset)
        self._process: subprocess.Popen[bytes] | None = None
        self._is_done = not self._access  # nothing that it needs may be elsewhere

    def poll(self) -> str | None:
        """Return a progress message; None once everything is there.

        Raises:
            EngineError: If it cannot be fetched.
        """
        if self._is_done:
            return None
        if self._process is None:
            folder = self._run.folder
            access = self._access if not read_provenance(folder).person else ()
            argv = worker_argv("loratory.engine.places.slurm.fetch", (str(folder.path),))
            self._process = spawn(argv, log_file=folder.log, access=access, answers=True)
        if self._process.poll() is None:
            return "Downloading the model and the data; the job is submitted then."
        output, _ = self._process.communicate()
        code, self._process = self._process.returncode, None
        if code:
            raise _error_in(output, code)
        self._is_done = True
        return None

    def end(self) -> None:
        """Stop the download."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _error_in(output: bytes, code: int) -> EngineError:
    with contextlib.suppress(ValueError, KeyError):
        return error_from_json(json.loads(output))
    what = f"Downloading the model and the data failed (exit code {code})."
    return ClusterError(what, "See the run's log, then resume it.")


def main(arguments: Sequence[str]) -> int:
    """Fetch what the run in a folder needs."""
    results, sys.stdout = sys.stdout, sys.stderr  # libraries print what they like
    try:
        _fetch(RunFolder(Path(arguments[0]).resolve()))
    except EngineError as error:
        print(json.dumps(error_to_json(error)), file=results, flush=True)
        return 1
    return 0


def _fetch(folder: RunFolder) -> None:
    from loratory.engine.data.hub import is_on_hub
    from loratory.engine.data.source import SourceOptions, open_source
    from loratory.engine.models.source import resolve_model

    config, home = folder.read_config(), home_of_run(folder)
    if home.owner:
        os.environ[LAB] = "1"
    resolve_model(config.model, home, lambda progress: print(progress.message, file=sys.stderr))
    for source in filter(is_on_hub, (config.dataset.source, *config.dataset.mix)):
        open_source(config.dataset.model_copy(update={"source": source, "mix": {}}), SourceOptions(home=home))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
