"""A machine that is reached by SSH: a real sshd on this computer, with a home, a boot id and a known host of its own."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from loratory.engine.paths import LoratoryHome
from loratory.engine.places.ssh.machine import Connection, Machine, add_machine

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


class Box:
    """The machine. As root it has a network, a user, a boot id and a disk of its own; otherwise it is a second home here."""

    def __init__(self, root: Path) -> None:
        self.root, self.home = root, root / "home"
        self.loratory = LoratoryHome(self.home / ".local" / "share" / "loratory")
        self.loratory.root.mkdir(parents=True)
        for name in ("host", "other-host", "key", "other-key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", root / name], check=True)
        self.boot_id = root / "boot_id"
        self.boot_id.write_text("11111111-1111-1111-1111-111111111111\n")
        variables = f'environment="HOME={self.home}",environment="HF_HUB_OFFLINE=1",environment="LORATORY_HOME={self.loratory.root}"'
        (root / "authorized_keys").write_text(f"{variables} {(root / 'key.pub').read_text()}")
        self._server: subprocess.Popen[bytes] | None = None
        self._network, self._port_here = f"loratory-{os.getpid()}", f"box{os.getpid()}"
        self.is_isolated = os.geteuid() == 0 and not self._ip("netns", "add", self._network, check=False)
        self.user, self.address = psutil.Process().username(), "127.0.0.1"
        if self.is_isolated:
            self.address = self._isolate()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.start()
        self.known_hosts = root / "known_hosts"
        self.know("host")

    def _isolate(self) -> str:
        """Give it a user and a network, which is joined to ours by one cable; returns its address."""
        self.user = self._network
        subprocess.run(
            ["useradd", "--home-dir", self.home, "--shell", "/bin/sh", "--password", "*", self.user], check=True
        )
        self.root.chmod(0o755)
        for folder in (self.home, *self.home.rglob("*")):
            shutil.chown(folder, self.user, self.user)
        subnet = f"10.231.{os.getpid() // 64 % 256}.{{}}"
        ours, address = (subnet.format(os.getpid() % 64 * 4 + host) for host in (1, 2))
        self._ip("link", "add", self._port_here, "type", "veth", "peer", "name", "cable", "netns", self._network)
        self._ip("addr", "add", f"{ours}/30", "dev", self._port_here)
        self._ip("-n", self._network, "addr", "add", f"{address}/30", "dev", "cable")
        for options in (
            ["link", "set", self._port_here],
            *(["-n", self._network, "link", "set", x] for x in ("lo", "cable")),
        ):
            self._ip(*options, "up")
        return address

    def _ip(self, *arguments: str, check: bool = True) -> int:
        return subprocess.run(["ip", *arguments], check=check, capture_output=not check).returncode

    def cut(self) -> None:
        """Unplug its cable: nothing that is sent arrives, and neither end is told so."""
        self._ip("link", "set", self._port_here, "down")

    def plug(self) -> None:
        if self.is_isolated:
            self._ip("link", "set", self._port_here, "up")

    def start(self, key: str = "host", disk_kib: int | None = None) -> None:
        """Start its SSH server, with a small disk for what is sent."""
        (self.root / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress {self.address}\nHostKey {self.root / key}\nUsePAM no\n"
            f"PasswordAuthentication no\nAuthorizedKeysFile {self.root / 'authorized_keys'}\nPermitUserEnvironment yes\n"
            f"StrictModes no\nPidFile none\nPermitRootLogin {'no' if self.is_isolated else 'yes'}\nMaxStartups 100\n"
        )
        Path("/run/sshd").mkdir(exist_ok=True)
        mounts = [
            f"mount --bind {self.boot_id} /proc/sys/kernel/random/boot_id",
            *_open_to_all({Path(sys.prefix), Path(sys.base_prefix)}, self.root),
        ]
        if disk_kib is not None:
            inputs = self.loratory.root / "ssh-inputs"
            inputs.mkdir(exist_ok=True)
            mounts.append(f"mount -t tmpfs -o size={disk_kib}k,uid={self.user} tmpfs {inputs}")
        serve = f"exec {SSHD} -D -e -f {self.root / 'sshd_config'}"
        command = ["sh", "-c", serve]
        if self.is_isolated:
            command = [
                "ip",
                "netns",
                "exec",
                self._network,
                "unshare",
                "--mount",
                "sh",
                "-c",
                " && ".join([*mounts, serve]),
            ]
        self._server = subprocess.Popen(command, stderr=(self.root / "sshd.log").open("ab"), start_new_session=True)
        for _ in range(200):
            try:
                socket.create_connection((self.address, self.port), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise AssertionError((self.root / "sshd.log").read_text())

    def stop(self) -> None:
        """Stop its SSH server; what runs there continues."""
        assert self._server is not None
        self._server.terminate()
        self._server.wait()

    def kill_everything(self) -> int:
        """End all processes of Loratory there, as a crash does; returns how many there were."""
        victims = [process for process in psutil.process_iter() if self._is_there(process)]
        for process in victims:
            process.send_signal(signal.SIGKILL)
        psutil.wait_procs(victims, 30)
        return len(victims)

    def reboot(self) -> None:
        """End all, and come up with another boot id."""
        self.stop()
        self.kill_everything()
        self.boot_id.write_text("22222222-2222-2222-2222-222222222222\n")
        self.start()

    def _is_there(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("LORATORY_HOME") == str(self.loratory.root)
        except (psutil.Error, OSError):
            return False

    def know(self, key: str) -> None:
        """Let the client know a host key of the machine."""
        public = (self.root / f"{key}.pub").read_text().split()
        self.known_hosts.write_text(f"[{self.address}]:{self.port} {public[0]} {public[1]}\n")

    def connect(self, name: str, machine: Machine, key: str = "key") -> Connection:
        """Return a connection with the client's own key and known hosts."""
        options = [
            "-F",
            "none",
            "-i",
            str(self.root / key),
            "-o",
            "IdentitiesOnly=yes",
            "-o",
            f"UserKnownHostsFile={self.known_hosts}",
        ]
        return Connection(name, machine, ("ssh", *options))

    def close(self) -> None:
        self.stop()
        self.kill_everything()
        if self.is_isolated:
            self._ip("netns", "del", self._network)  # its cable goes with it
            subprocess.run(["userdel", self.user], check=True)
        shutil.rmtree(self.root)


def _open_to_all(folders: set[Path], root: Path) -> Iterator[str]:
    """Yield commands that let every user into folders, also below one that is closed, such as root's home; it is empty else."""
    closed = {
        folder: next((p for p in reversed(folder.parents) if not p.stat().st_mode & 0o001), None) for folder in folders
    }
    places = {folder: root / f"open-{number}" for number, folder in enumerate(folders) if closed[folder]}
    for folder, place in places.items():
        yield f"mkdir -p {place} && mount --bind {folder} {place}"
    for top in {closed[folder] for folder in places}:
        yield f"mount -t tmpfs -o mode=755 tmpfs {top}"
    for folder, place in places.items():
        yield f"mkdir -p {folder} && mount --move {place} {folder}"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> LoratoryHome:
    """Return one home for all tests of a file: Loratory is installed on the machine once."""
    home = LoratoryHome(tmp_path_factory.mktemp("here") / "home")
    home.make_writable()
    return home


@pytest.fixture(scope="module")
def running_box(tmp_path_factory, home) -> Iterator[Box]:
    if shutil.which("ssh") is None or not Path(SSHD).exists():
        assert "CI" not in os.environ, "OpenSSH is not installed"
        pytest.skip("OpenSSH's client or server is not installed")
    box = Box(Path(tempfile.mkdtemp(prefix="loratory-box-")))  # pytest's own folders are closed to other users
    yield box
    box.close()


@pytest.fixture
def box(running_box, home) -> Iterator[Box]:
    machine = Machine(
        destination=f"{running_box.user}@{running_box.address}", port=running_box.port, python=sys.executable
    )
    add_machine(home, "box", machine)
    running_box.know("host")
    running_box.plug()
    yield running_box
    running_box.kill_everything()
    shutil.rmtree(running_box.loratory.runs, ignore_errors=True)
    shutil.rmtree(running_box.loratory.root / "ssh-inputs", ignore_errors=True)


@pytest.fixture
def own_namespace(running_box) -> None:
    """Need a machine with a network, a boot id and a disk of its own."""
    if not running_box.is_isolated:
        assert "CI" not in os.environ, "namespaces cannot be made here"
        pytest.skip("namespaces take root: the machine has no network, no boot id and no disk of its own")
