"""Runs on a machine that is reached by SSH: `python -P -m loratory.engine.places.ssh.there VERB …`; answers with JSON.

A run is put into the queue of the home here, so it respects what else trains on this machine. It needs no connection: a
process in a session of its own supervises the queue until the run has ended, unless a Loratory here does.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loratory.engine.config.load import config_from_mapping, config_to_yaml, mapping_from_file
from loratory.engine.errors import EngineError, RunError
from loratory.engine.files import read_model, write_atomically
from loratory.engine.hardware.devices import list_devices
from loratory.engine.paths import LoratoryHome, local_owner
from loratory.engine.places.huggingface_jobs.layout import MEDIA, SENT_PREFIX, is_plain
from loratory.engine.processes.liveness import ProcessIdentity
from loratory.engine.runs.run import RUN_ID, RunFolder, RunState
from loratory.engine.runs.store import RunStore

_SUPERVISE = "import sys, loratory; loratory.run(sys.argv[1]).wait()"  # another one that supervises lets it stand by
_VERBS = ("devices", "have", "receive", "start", "report", "send", "request", "remove")
PIECE_BYTES = 4_000_000  # of the event log, in one answer
INPUTS = "ssh-inputs"  # below the home: what was sent, by run
_SENT_FILES = ("events.jsonl", "worker.log")


class Place:
    """The home of this machine, as a person elsewhere uses it."""

    def __init__(self, home: LoratoryHome) -> None:
        self.home = home
        self.store = RunStore(home, local_owner())

    def folder(self, run_id: str) -> RunFolder:
        """Return the folder of a run, which need not exist."""
        if not RUN_ID.fullmatch(run_id):
            raise RunError("That is not a run's id.", "Update Loratory on both sides.")
        return RunFolder(self.store.folder / run_id)

    def devices(self) -> list[dict[str, Any]]:
        """Return the devices with their free memory."""
        return [asdict(device) for device in list_devices()]

    def have(self, run_id: str) -> dict[str, int]:
        """Return the files that arrived whole, with their sizes."""
        inputs = self._inputs(run_id)
        return {
            path.relative_to(inputs).as_posix(): path.stat().st_size
            for path in inputs.rglob("*")
            if path.is_file() and path.suffix != ".part"
        }

    def receive(self, run_id: str) -> int:
        """Take the files of a tar archive; one that a cut link leaves incomplete is not kept."""
        inputs, count = self._inputs(run_id), 0
        with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isreg() and is_plain(member.name) else None
                if content is None:
                    raise RunError(f"{member.name[:80]!r} is not a file's name.", "Update Loratory on both sides.")
                path = inputs / member.name
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                partial = path.with_name(f"{path.name}.part")
                with partial.open("wb") as file:
                    shutil.copyfileobj(content, file)
                partial.replace(path)
                count += 1
        return count

    def start(self, run_id: str, attempt: str) -> str:
        """Put a run into the queue here, with what was sent; its attempt has the number that it has where it came from."""
        folder, inputs = self.folder(run_id), self._inputs(run_id)
        state, number = folder.read_saved_state(), int(attempt)
        if state is not None and (state.attempt >= number or (state.state == "queued" and state.attempt == number - 1)):
            self._let_supervise(run_id)
            return "started before"
        if state is not None and not state.is_final:
            raise RunError(
                "An earlier attempt at this run has not ended there.", "Cancel it there, or wait for its end."
            )
        # Complete before it has its place: a supervisor here takes a run as soon as it sees its folder.
        unborn = RunFolder(inputs / "unborn")
        shutil.rmtree(unborn.path, ignore_errors=True)
        shutil.copytree(inputs / "run", unborn.path)
        unborn.control.mkdir(mode=0o700)
        if (inputs / MEDIA).is_dir():
            shutil.copytree(inputs / MEDIA, self.home.media, dirs_exist_ok=True)
        config = config_from_mapping(mapping_from_file(unborn.config)).with_names(
            lambda _, text: self._local(text, inputs)
        )
        section = config.run.model_copy(update={"where": "local", "resume_after_restart": False})
        write_atomically(unborn.config, config_to_yaml(config.model_copy(update={"run": section})))
        unborn.write_state(RunState(state="queued", attempt=number - 1, changed=time.time()))
        shutil.rmtree(folder.path, ignore_errors=True)  # of an earlier attempt: what was sent replaces it
        folder.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        unborn.path.rename(folder.path)
        self._let_supervise(run_id)
        return "started"

    def report(self, run_id: str) -> dict[str, Any]:
        """Return the state of a run, and the files that it has written; one that has not ended is supervised from now on."""
        folder = self.folder(run_id)
        if not folder.path.is_dir():
            return {"state": None, "files": {}}
        state = folder.read_state()
        if not state.is_final:
            self._let_supervise(run_id)
        roots = [folder.path / name for name in ("adapter", "checkpoints")]
        paths = [*(path for root in roots for path in root.rglob("*")), *(folder.path / name for name in _SENT_FILES)]
        files = {
            path.relative_to(folder.path).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns)
            for path in paths
            if path.is_file() and not path.is_symlink()
        }
        return {"state": state.model_dump(mode="json"), "files": files}

    def send(self, run_id: str) -> None:
        """Write the files that were asked for to stdout, as a tar archive; `events.jsonl@N` is a piece of the log from byte N on."""
        folder = self.folder(run_id).path
        with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
            for name in json.loads(sys.stdin.read()):
                plain, _, offset = name.partition("@")
                path = folder / plain
                if not is_plain(plain) or not path.is_file() or path.is_symlink():
                    continue
                member = tarfile.TarInfo(name)
                with path.open("rb") as content:
                    content.seek(int(offset or 0))
                    rest = max(path.stat().st_size - int(offset or 0), 0)
                    member.size = min(rest, PIECE_BYTES) if offset else rest
                    archive.addfile(member, content)

    def request(self, run_id: str, what: str) -> str:
        """Ask a run to save and stop, or to end at once."""
        folder = self.folder(run_id)
        mark = {"stop": folder.stop_request, "cancel": folder.cancel_request}[what]
        if folder.path.is_dir() and not folder.read_state().is_final:
            folder.control.mkdir(mode=0o700, exist_ok=True)
            mark.touch()
        return what

    def remove(self, run_id: str) -> str:
        """Remove what was sent, and the run once it has ended."""
        shutil.rmtree(self._inputs(run_id), ignore_errors=True)
        folder = self.folder(run_id)
        if folder.path.is_dir() and folder.read_state().is_final:
            self.store.delete(run_id)
        return "removed"

    def _let_supervise(self, run_id: str) -> None:
        """Start a process that supervises the queue until a run has ended, and outlives the connection; unless there is one."""
        record = self._inputs(run_id) / "supervisor.json"
        known = read_model(record, ProcessIdentity)
        if known is not None and known.liveness() == "alive":
            return
        with (self.home.server / "ssh-supervise.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _SUPERVISE, run_id], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        if (identity := ProcessIdentity.from_pid(process.pid)) is not None:
            write_atomically(record, identity.model_dump_json())

    def _inputs(self, run_id: str) -> Path:
        self.folder(run_id)
        inputs = self.home.root / INPUTS / run_id
        inputs.mkdir(mode=0o700, parents=True, exist_ok=True)
        return inputs

    def _local(self, text: str, inputs: Path) -> str:
        return str(inputs / text.removeprefix(SENT_PREFIX)) if text.startswith(SENT_PREFIX) else text


def answer(place: Place, verb: str, *arguments: str) -> str:
    """Return what a call answers, as JSON; an error is an answer, too."""
    try:
        if verb not in _VERBS:
            raise RunError(f"Loratory here cannot {verb[:40]!r}.", "Update Loratory on both sides.")
        return json.dumps({"result": getattr(place, verb)(*arguments)})
    except EngineError as error:
        return json.dumps({"error": error.what, "fix": error.fix})
    except OSError as error:
        return json.dumps({"error": f"{os.strerror(error.errno or 0)}.", "fix": "Free some space there."})


def main(verb: str, *arguments: str) -> None:
    """Answer calls from stdin, each a line of JSON, until it ends; or do the one that the arguments say."""
    home = LoratoryHome.from_environment()
    home.server.mkdir(mode=0o700, parents=True, exist_ok=True)
    place = Place(home)
    if verb == "send":  # its answer is an archive
        place.send(*arguments)
    elif verb != "serve":
        print(answer(place, verb, *arguments))
    else:
        for line in sys.stdin:
            print(answer(place, *json.loads(line)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
