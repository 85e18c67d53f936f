"""A run's voice and its files on a real disk of four megabytes that is full, in a process and a namespace of their own."""

import ctypes
import os
import subprocess
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

from engine.runs.checkpoints import Manifest
from engine.runs.history.events import CheckpointData, StepData, WarningData
from engine.runs.history.log import EventWriter, read_events
from engine.training import reporting
from engine.training.checkpoints.folder import replace_folder, write_checkpoint

DISK_BYTES = 4 << 20
_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000  # of sched.h
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


def enter_namespace() -> None:
    """Let this process, which has one thread, mount as `unshare --map-root-user --mount` lets a command."""
    user, group = os.getuid(), os.getgid()
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWUSER | _CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    for name, content in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path("/proc/self", name).write_text(content)


def main(disk: Path, answer: Connection) -> None:
    """Mount the disk, fill it, make room after a while, and answer with what the log and the folder then hold."""
    enter_namespace()
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
        records = []

        def make_room() -> None:
            deadline = time.monotonic() + 300
            while time.monotonic() < deadline and codes(log)[-1:] != ["disk_full"]:
                time.sleep(0.02)
            records.append(codes(log)[-1:] == ["disk_full"])
            ballast.unlink()

        helper = threading.Thread(target=make_room)
        helper.start()
        act()
        helper.join()
        return records[0]

    def many_steps() -> None:
        for step in range(1, 41):  # more than the file's last block has room for
            events.emit(StepData(step=step, epoch=0.1, loss=1.0, learning_rate=1.0, tokens=1, tokens_per_second=1.0))

    replace_folder(adapter, lambda folder: (folder / "weights").write_bytes(b"earlier"))
    manifest = Manifest(step=5, files={})
    records = [
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
        "recorded": records,
        "codes": codes(log),
        "steps": [event.data.step for event in said if isinstance(event.data, StepData)],
        "seqs": [event.seq for event in said],
        "whole": read_events(log).next_offset == log.stat().st_size,
        "checkpoints": [event.data.name for event in said if isinstance(event.data, CheckpointData)],
        "adapter_bytes": (adapter / "weights").stat().st_size,
        "left": sorted(path.name for path in disk.iterdir()),
    }
    answer.send(result)


def codes(log: Path) -> list[str]:
    """Codes of the warnings so far."""
    return [event.data.code for event in read_events(log).events if isinstance(event.data, WarningData)]
