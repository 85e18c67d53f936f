"""A machine that is reached by SSH: a real sshd on this computer, with a home, a boot id and a known host of its own."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from loratory.engine.paths import LoratoryHome
from loratory.engine.places.ssh.machine import Connection, Machine, add_machine

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


class Link:
    """A TCP connection to a server, which can be cut."""

    def __init__(self, port: int) -> None:
        self._target, self.is_cut, self._sockets = port, False, set[socket.socket]()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break what is connected, and refuse what comes."""
        self.is_cut = True
        for end in list(self._sockets):
            end.close()

    def mend(self) -> None:
        self.is_cut = False

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if self.is_cut:
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self._target))
            self._sockets |= {client, server}
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self._copy, args=(source, target), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()
            target.close()


class Box:
    """The machine."""

    def __init__(self, root: Path) -> None:
        self.root, self.home = root, root / "home"
        (self.home / "fresh").parent.mkdir(mode=0o700, parents=True)
        self.loratory = LoratoryHome(self.home / ".local" / "share" / "loratory")
        for name in ("host", "other-host", "key", "other-key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", root / name], check=True)
        self.boot_id = root / "boot_id"
        self.boot_id.write_text("11111111-1111-1111-1111-111111111111\n")
        variables = f'environment="HOME={self.home}",environment="HF_HUB_OFFLINE=1",environment="LORATORY_HOME={self.loratory.root}"'
        (root / "authorized_keys").write_text(f"{variables} {(root / 'key.pub').read_text()}")
        self._server: subprocess.Popen[bytes] | None = None
        self.has_own_boot_id = not subprocess.run(
            ["unshare", "--mount", "mount", "--bind", self.boot_id, "/proc/sys/kernel/random/boot_id"],
            capture_output=True,
        ).returncode
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.own_port = free.getsockname()[1]
        self.start()
        self.link = Link(self.own_port)
        self.known_hosts = root / "known_hosts"
        self.know("host")

    def start(self, key: str = "host", disk_kib: int | None = None) -> None:
        """Start its SSH server, in a mount namespace with a boot id of its own and, for what is sent, a small disk."""
        (self.root / "sshd_config").write_text(
            f"Port {self.own_port}\nListenAddress 127.0.0.1\nHostKey {self.root / key}\nUsePAM no\nPasswordAuthentication no\n"
            f"AuthorizedKeysFile {self.root / 'authorized_keys'}\nPermitUserEnvironment yes\nStrictModes no\nPidFile none\n"
            "PermitRootLogin yes\nMaxStartups 100\n"
        )
        Path("/run/sshd").mkdir(exist_ok=True)
        serve = f"mount --bind {self.boot_id} /proc/sys/kernel/random/boot_id && exec {SSHD} -D -e -f {self.root / 'sshd_config'}"
        if disk_kib is not None:
            inputs = self.loratory.root / "ssh-inputs"
            inputs.mkdir(parents=True, exist_ok=True)
            serve = f"mount -t tmpfs -o size={disk_kib}k tmpfs {inputs} && {serve}"
        own_namespace = ["unshare", "--mount"] if self.has_own_boot_id else []
        serve = serve if self.has_own_boot_id else serve.partition(" && ")[2]
        self._server = subprocess.Popen(
            [*own_namespace, "sh", "-c", serve],
            stderr=(self.root / "sshd.log").open("ab"),
            start_new_session=True,
        )
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", self.own_port), 1).close()
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
        self.known_hosts.write_text(f"[127.0.0.1]:{self.link.port} {public[0]} {public[1]}\n")

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
    box = Box(tmp_path_factory.mktemp("there") / "box")
    yield box
    box.close()


@pytest.fixture
def box(running_box, home) -> Iterator[Box]:
    user = psutil.Process().username()
    machine = Machine(destination=f"{user}@127.0.0.1", port=running_box.link.port, python=sys.executable)
    add_machine(home, "box", machine)
    running_box.know("host")
    running_box.link.mend()
    yield running_box
    running_box.kill_everything()
    shutil.rmtree(running_box.loratory.runs, ignore_errors=True)
    shutil.rmtree(running_box.loratory.root / "ssh-inputs", ignore_errors=True)


@pytest.fixture
def own_namespace(running_box) -> None:
    """Need a machine with a boot id and a disk of its own, which takes a mount namespace."""
    if not running_box.has_own_boot_id:
        assert "CI" not in os.environ, "no mount namespace can be made here"
        pytest.skip("no mount namespace can be made here, so the machine has no boot id and no disk of its own")
