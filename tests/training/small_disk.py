"""A run's voice and its files on a real disk of four megabytes that is full: run as a script, in a namespace of its own.

`unshare -rm python -m tests.training.small_disk FOLDER` mounts the disk on FOLDER, fills it, makes room after a while, and
prints what the log and the folder then hold, as JSON.
"""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

from engine.runs.checkpoints import Manifest
from engine.runs.history.events import CheckpointData, StepData, WarningData
from engine.runs.history.log import EventWriter, read_events
from engine.training import reporting
from engine.training.checkpoints.folder import replace_folder, write_checkpoint

DISK_BYTES = 4 << 20
WEIGHTS = b"\1" * (1 << 20)


class Nobody:
    """Wants nothing."""

    def check_cancel(self) -> None:
        """Go on."""

    def stop_wanted(self) -> bool:
        return False


def fill(path: Path) -> None:
    """Take every byte that is left."""
    with path.open("wb", buffering=0) as file:
        block = 1 << 16
        while block:
            try:
                file.write(b"\2" * block)
            except OSError:
                block //= 2


def main(disk: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)], check=True)
    reporting._LOOK_AGAIN_SECONDS = 0.05
    log, ballast, adapter = disk / "events.jsonl", disk / "ballast", disk / "adapter"
    writer = EventWriter(log, 1)
    events = reporting.RunEvents(writer, disk, Nobody())

    def weights(folder: Path) -> None:
        (folder / "weights").write_bytes(WEIGHTS)

    def while_full(act) -> bool:
        """Do it on a full disk; returns whether the disk was said to be full before there was room."""
        fill(ballast)
        recorded = []

        def make_room() -> None:
            deadline = time.monotonic() + 300
            while time.monotonic() < deadline and codes(log)[-1:] != ["disk_full"]:
                time.sleep(0.02)
            recorded.append(codes(log)[-1:] == ["disk_full"])
            ballast.unlink()

        helper = threading.Thread(target=make_room)
        helper.start()
        act()
        helper.join()
        return recorded[0]

    def many_steps() -> None:
        for step in range(1, 41):  # more than the file's last block has room for
            events.emit(StepData(step=step, epoch=0.1, loss=1.0, learning_rate=1.0, tokens=1, tokens_per_second=1.0))

    replace_folder(adapter, lambda folder: (folder / "weights").write_bytes(b"earlier"))
    manifest = Manifest(step=5, files={})
    recorded = [
        while_full(many_steps),
        while_full(lambda: events.when_there_is_room(lambda: replace_folder(adapter, weights))),
        while_full(
            lambda: events.when_there_is_room(
                lambda: events.checkpoint(write_checkpoint(disk / "c", manifest, weights))
            )
        ),
    ]
    events.close()
    said = read_events(log).events
    result = {
        "recorded": recorded,
        "codes": codes(log),
        "steps": [event.data.step for event in said if isinstance(event.data, StepData)],
        "seqs": [event.seq for event in said],
        "whole": read_events(log).next_offset == log.stat().st_size,
        "checkpoints": [event.data.name for event in said if isinstance(event.data, CheckpointData)],
        "adapter_bytes": (adapter / "weights").stat().st_size,
        "left": sorted(path.name for path in disk.iterdir()),
    }
    print(json.dumps(result))


def codes(log: Path) -> list[str]:
    """Codes of the warnings so far."""
    return [event.data.code for event in read_events(log).events if isinstance(event.data, WarningData)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
