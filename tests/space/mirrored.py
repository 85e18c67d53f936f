"""What tests of the mirror share: Spaces that start on one bucket, and runs with contents of their own."""

import os
import time
from pathlib import Path

from loratory.engine.hub import RunBucket
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.checkpoints import Manifest, describe_files
from loratory.engine.runs.run import Run
from loratory.engine.runs.store import RunStore
from loratory.engine.space.mirror import Mirror
from loratory.engine.space.mirror_restore import RestoreResult
from tests.invented_runs import InventedRun, a_config, write_checkpoint, write_run
from tests.space.fake_bucket import FakeBucket

SPACE = "ann/lab"


class Spaces:
    """Starts Spaces on one bucket, each with a disk of its own.

    Attributes:
        restored: What came back at the last start.
    """

    def __init__(self, bucket: FakeBucket | RunBucket, root: Path) -> None:
        self.bucket = bucket
        self._root = root
        self._disks = 0
        self.restored = RestoreResult()

    def disk(self) -> LoratoryHome:
        """Return the home of a Space whose disk is new."""
        self._disks += 1
        home = LoratoryHome(self._root / f"disk-{self._disks}")
        home.make_writable()
        return home

    def begin(self, home: LoratoryHome, space: str = SPACE, poll_seconds: float = 0.02) -> Mirror:
        """Restore a home, as a Space that starts does."""
        mirror = Mirror(home, self.bucket, space, poll_seconds)
        self.restored = mirror.restore(timeout_seconds=0)
        return mirror

    def again(self) -> LoratoryHome:
        """Return what a Space finds that starts on an empty disk."""
        home = self.disk()
        self.begin(home)
        return home


def a_run(home: LoratoryHome, owner: str = "ann", **changes: object) -> Run:
    """Return a run that never ran, as it would lie on the disk."""
    return write_run(RunStore(home, owner), a_config(), InventedRun(**changes))


def a_checkpoint(run: Run, step: int) -> Path:
    """Add a checkpoint with weights of its own."""
    write_checkpoint(run, step)
    folder = run.folder.checkpoint(step)
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(os.urandom(19_000))
    (folder / "MANIFEST.json").unlink()
    (folder / "MANIFEST.json").write_text(Manifest(step=step, files=describe_files(folder)).model_dump_json())
    return folder


def files_of(run: Run) -> dict[str, bytes]:
    """Return what a mirror may know of a run."""
    return {
        path.relative_to(run.folder.path).as_posix(): path.read_bytes()
        for path in run.folder.path.rglob("*")
        if path.is_file() and path.name not in ("lock", "process.json")
    }


def stored_in(bucket: FakeBucket) -> set[str]:
    """Return the paths of the files of the home in a bucket."""
    return {name.removeprefix("home/") for name in bucket.files if name.startswith("home/")}


def paths_of(run: Run) -> set[str]:
    """Return the paths of all that a mirror may know of a run."""
    return {f"runs/{run.owner}/{run.id}/{name}" for name in files_of(run)}


def age(home: LoratoryHome) -> None:
    """Let everything have happened a while ago, so nothing is looked at twice for being new."""
    then = time.time() - 60
    for parent, folders, names in os.walk(home.root):
        for name in [*folders, *names]:
            os.utime(Path(parent) / name, (then, then))
