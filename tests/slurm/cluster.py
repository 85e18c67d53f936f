"""A real Slurm of two nodes on this machine, for one session of tests.

The second node has a host name, process ids and a boot id of its own, as another machine has. GPUs are device files that stand
for some. Everything is below one folder and ends with the context.
"""

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "squeue", "unshare")

_CONFIGURATION = """
ClusterName=one
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
MpiDefault=none
ReturnToService=2
SlurmdTimeout=300
MessageTimeout=60
TCPTimeout=30
KillWait=60
MinJobAge=600
InactiveLimit=0
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName=node1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=8000 Gres=gpu:toy:2
NodeName=node2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=8000 Gres=gpu:toy:2
PartitionName=long Nodes=node[1-2] Default=YES PriorityTier=1 MaxTime=INFINITE DefaultTime=30 GraceTime=60 State=UP
PartitionName=urgent Nodes=node[1-2] PriorityTier=10 MaxTime=60 State=UP PreemptMode=OFF
"""
_OWN_NAMESPACES = ("--mount", "--pid", "--uts", "--fork", "--mount-proc")
_GPUS = """
AutoDetect=off
NodeName=node1 Name=gpu Type=toy File={folder}/dev/gpu[0-1]
NodeName=node2 Name=gpu Type=toy File={folder}/dev/gpu[2-3]
"""
# Slurm resolves the names of its nodes now and then; nothing of this machine is changed for that.
_DAEMON = """
folder=$1
shift
mount --bind "$folder/hosts" /etc/hosts
exec "$@"
"""
_OTHER_MACHINE = """
folder=$1
shift
hostname node2
mount --bind "$folder/hosts" /etc/hosts
mount --bind "$folder/boot_id" /proc/sys/kernel/random/boot_id
exec "$@"
"""


def missing_programs() -> str:
    """Return what of Slurm is not installed here, in words; empty where all is."""
    # Debian has the daemons where only root looks.
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


def why_not() -> str:
    """Return why this machine cannot be two; empty where it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a real Slurm needs root on Linux"
    trial = ["unshare", *_OWN_NAMESPACES, "sh", "-c", "hostname trial && mount --bind / /mnt"]
    tried = subprocess.run(trial, capture_output=True, text=True, check=False)
    return f"no namespaces: {tried.stderr.strip()}" if tried.returncode else ""


class Cluster:
    """The Slurm of a session."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        folder = self.folder
        for name in ("run", "state", "log", "dev", "spool-node1", "spool-node2"):
            (folder / name).mkdir(parents=True)
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o400)
        (folder / "boot_id").write_text(f"{uuid.uuid4()}\n")
        (folder / "slurm.conf").write_text(_CONFIGURATION.format(folder=folder, ports=_free_ports(3)))
        (folder / "gres.conf").write_text(_GPUS.format(folder=folder))
        (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
        (folder / "daemon.sh").write_text(_DAEMON)
        (folder / "node2.sh").write_text(_OTHER_MACHINE)
        (folder / "hosts").write_text(f"{Path('/etc/hosts').read_text()}\n127.0.0.1 node1 node2\n")
        for number in range(4):
            os.mknod(folder / f"dev/gpu{number}", 0o666 | 0o020000, os.makedev(1, 3))
        self._start_munge()
        self.start_controller()
        self.start_node("node1")
        self.start_node("node2")
        self.wait_for_nodes()

    def stop(self) -> None:
        self.end_jobs()
        for name in (*(name for name in self._daemons if name != "munge"), "munge"):
            self.kill(name)

    def end_jobs(self) -> None:
        """End every job, and wait until none is left on a node."""
        for job_id in self.run_command(
            "squeue", "--noheader", "--me", "-t", "running", "-o", "%A", check=False
        ).split():
            self.run_command("scancel", "--signal=KILL", f"{job_id}.0", check=False)
        self.run_command("scancel", "--me", check=False)
        deadline = time.monotonic() + 60
        while self.run_command("squeue", "--noheader", "--me", check=False).strip() and time.monotonic() < deadline:
            time.sleep(0.1)

    def start_controller(self) -> None:
        self._start_apart("controller", "daemon.sh", ("slurmctld", "-D", "-f", f"{self.folder}/slurm.conf"))

    def stop_controller(self) -> None:
        """End it as for an update: it saves what it knows of jobs."""
        controller = self._daemons.pop("controller")
        controller.terminate()
        controller.wait()

    def start_node(self, name: str) -> None:
        apart = (*_OWN_NAMESPACES, "--kill-child") if name == "node2" else ("--mount",)
        script = "node2.sh" if name == "node2" else "daemon.sh"
        self._start_apart(name, script, ("slurmd", "-D", "-f", f"{self.folder}/slurm.conf", "-N", name), apart)

    def _start_apart(self, name: str, script: str, command: Sequence[str], apart: Sequence[str] = ("--mount",)) -> None:
        shell = ("sh", "-e", f"{self.folder}/{script}", str(self.folder))
        self._start(name, ["unshare", *apart, *shell, *command])

    def kill(self, name: str) -> None:
        """End a daemon as a crash does, node2 with everything on it."""
        daemon = self._daemons.pop(name, None)
        if daemon is not None:
            daemon.kill()
            daemon.wait()

    def wait_for_controller(self) -> None:
        while "UP" not in self.run_command("scontrol", "ping", check=False):
            time.sleep(0.1)

    def wait_for_nodes(self, *nodes: str) -> None:
        names = set(nodes or ("node1", "node2"))
        while not names <= set(self.run_command("sinfo", "-h", "-N", "-t", "idle", "-o", "%N", check=False).split()):
            time.sleep(0.1)

    def run_command(self, *command: str, check: bool = True) -> str:
        """Return what a command of Slurm prints."""
        process = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=check, timeout=300
        )
        return process.stdout

    def _start_munge(self) -> None:
        run = self.folder / "run"
        names = {"key-file": self.folder / "munge.key", "socket": run / "munge.sock", "pid-file": run / "munge.pid"}
        names |= {"log-file": self.folder / "log" / "munge.log", "seed-file": run / "munge.seed"}
        self._start(
            "munge", ["munged", "--force", "--foreground", *(f"--{name}={path}" for name, path in names.items())]
        )
        while not (run / "munge.sock").exists():
            assert self._daemons["munge"].poll() is None, "munged did not start"
            time.sleep(0.02)

    def _start(self, name: str, command: Sequence[str]) -> None:
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def _free_ports(count: int) -> list[int]:
    """Choose ports that nothing has, below those that the system gives to whoever asks for any."""
    matches: list[int] = []
    candidates = list(range(24_000, 32_000))
    random.shuffle(candidates)
    while len(matches) < count:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", candidates[-1]))
            matches.append(candidates[-1])
        candidates.pop()
    return matches
