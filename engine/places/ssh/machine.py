"""Machines that a person reaches by SSH: their list, and commands on them by OpenSSH's own client."""

import contextlib
import functools
import io
import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from loratory.engine.config.run import RunConfig
from loratory.engine.errors import DeviceError, EngineError, RunError, StorageError, shorten
from loratory.engine.files import write_atomically
from loratory.engine.hardware.device import Device
from loratory.engine.hardware.devices import device_options
from loratory.engine.paths import LoratoryHome
from loratory.engine.places.run_place import Options, RunPlace
from loratory.engine.processes.spawn import environment_for
from loratory.engine.wheel import build_wheel

MACHINES_FILE = "machines.yaml"
THERE = "loratory.engine.places.ssh.there"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
# An alias of ~/.ssh/config, a host name or an address, with a user before it; nothing that ssh would take for an option.
_DESTINATION = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]{0,63}@)?[A-Za-z0-9][A-Za-z0-9.:-]{0,252}")
_OPTIONS = (
    # The person's keys, agent and known hosts; a question would wait for ever, and an unknown host is not trusted.
    *("-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "ClearAllForwardings=yes"),
    *("-o", "ForwardAgent=no", "-o", "PermitLocalCommand=no", "-o", "ConnectTimeout=10"),
    *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3", "-T"),
)
_SSH_FAILED = 255
_ANSWER_SECONDS = 60.0
_INSTALL_SECONDS = 3600.0
_FRESH_SECONDS = 20.0  # for which the devices of a machine are not asked for again
_CHUNK_BYTES = 1 << 20
_MOST_BYTES = 64 << 20  # of an answer; files come as a stream

# On the machine, before Loratory is there: unpack the wheel, and use the Python there if it has what Loratory needs.
_INSTALL = """
import io, os, pathlib, subprocess, sys, zipfile
number, name, wanted = sys.argv[1:]
root = pathlib.Path.home() / ".local/share/loratory-code"
code = root / number
if not (code / "python").is_file():
    content = sys.stdin.buffer.read()
    if not content:
        sys.exit(print("wanted"))
    code.mkdir(mode=0o700, parents=True, exist_ok=True)
    wheel = code / name
    wheel.write_bytes(content)
    zipfile.ZipFile(wheel).extractall(code / "lib")
    python = wanted or sys.executable
    probe = "import torch, transformers, peft, trl, accelerate, datasets, pydantic, psutil, typer"
    if subprocess.run([python, "-c", probe], capture_output=True).returncode:
        subprocess.run([python, "-m", "venv", str(code / "venv")], check=True, stdout=sys.stderr)
        python = str(code / "venv/bin/python")
        subprocess.run([python, "-m", "pip", "install", "-q", str(wheel)], check=True, stdout=sys.stderr)
    (code / "python.new").write_text(python)
    os.replace(code / "python.new", code / "python")
print(code / "lib"); print((code / "python").read_text())
"""


class MachineError(EngineError):
    """A machine cannot be used as it is set up."""


class MachineUnreachableError(MachineError):
    """A machine does not answer at present."""


class Machine(BaseModel, frozen=True):
    """A machine as a person added it."""

    destination: str  # [user@]host, or an alias of ~/.ssh/config
    python: str = ""  # a Python there that has what Loratory needs; empty for its own
    port: int | None = None


def read_machines(home: LoratoryHome) -> dict[str, Machine]:
    """Return the machines of a home by name.

    Raises:
        StorageError: If the list cannot be used.
    """
    try:
        values = yaml.safe_load((home.root / MACHINES_FILE).read_text(encoding="utf-8")) or {}
        machines = TypeAdapter(dict[str, Machine]).validate_python(values)
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
        raise StorageError(
            f"{MACHINES_FILE} in the home cannot be used.", "Correct it, or add the machines again."
        ) from error
    return {name: machine for name, machine in machines.items() if _DESTINATION.fullmatch(machine.destination)}


def add_machine(home: LoratoryHome, name: str, machine: Machine | None) -> None:
    """Add a machine, replace one of that name, or remove it.

    Raises:
        RunError: If the name or the destination cannot be one.
        StorageError: If the list cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise RunError(f"{shorten(name, 40)!r} cannot be the name of a machine.", "Use small letters, digits and -.")
    if machine is not None and not _DESTINATION.fullmatch(machine.destination):
        what = f"{shorten(machine.destination, 60)!r} is not a machine's address."
        raise RunError(what, "Give user@host, or an alias of ~/.ssh/config.")
    machines = {known: entry for known, entry in read_machines(home).items() if known != name}
    machines |= {name: machine} if machine is not None else {}
    values = {known: entry.model_dump(exclude_defaults=True) for known, entry in machines.items()}
    write_atomically(home.root / MACHINES_FILE, yaml.safe_dump(values))


class Connection:
    """Commands on a machine; a link that is cut ends them, and the next call begins again."""

    def __init__(self, name: str, machine: Machine, program: Sequence[str] = ("ssh",)) -> None:
        self.name, self._machine, self._program = name, machine, program
        self._installed: tuple[str, str] | None = None  # folder with the code there, and its Python
        self._stack, self._talk = contextlib.ExitStack(), cast("subprocess.Popen[bytes] | None", None)

    def call(self, *arguments: str) -> Any:
        """Call Loratory there, in a process that stays for the next call; returns its answer, read from JSON.

        Raises:
            MachineUnreachableError: If the machine does not answer.
            MachineError: If it refuses us, or Loratory cannot be installed there.
            EngineError: What Loratory there refuses.
        """
        if self._talk is None:
            self._talk = self._stack.enter_context(self._running(self._command(["serve"])))
        process = self._talk
        assert process.stdin is not None
        assert process.stdout is not None
        line = b""
        with contextlib.suppress(OSError):
            process.stdin.write(json.dumps(arguments).encode() + b"\n")
            process.stdin.flush()
            if select.select([process.stdout], [], [], _ANSWER_SECONDS)[0]:
                line = process.stdout.readline(_MOST_BYTES)
        if not line.endswith(b"\n"):
            self.close(BrokenPipeError("the connection ended"))
        return self._result(line)

    def _result(self, line: bytes) -> Any:
        try:
            answer = json.loads(line)
        except ValueError as error:
            self.close()
            what = f"{self.name} answered something else than Loratory."
            raise MachineError(what, "Let its shell print nothing at the start of a command.") from error
        if "error" in answer:
            raise MachineError(f"{self.name}: {str(answer['error'])[:500]}", str(answer.get("fix", ""))[:500])
        return answer["result"]

    def close(self, error: Exception | None = None) -> None:
        """End the process there; after an error, say what the machine or OpenSSH said of it.

        Raises:
            MachineError: After an error alone.
        """
        process, self._talk, stack, self._stack = self._talk, None, self._stack, contextlib.ExitStack()
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()  # it ends then
        try:
            stack.__exit__(type(error) if error else None, error, None)
        except MachineError:
            if error is not None:
                raise

    def send(
        self, files: Mapping[str, bytes | Path], *arguments: str, is_cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        """Send files by name to a call that takes a tar archive; raises as `call` does, and a RunError where it was cancelled."""
        with self._running(self._command(arguments)) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            stream = cast(Any, _Chunks(process.stdin, is_cancelled))
            with (
                contextlib.suppress(BrokenPipeError),  # its answer says why it takes no more
                process.stdin,
                tarfile.open(fileobj=stream, mode="w|") as archive,
            ):
                for name, source in files.items():
                    member = tarfile.TarInfo(name)
                    member.mode = 0o600
                    member.size = len(source) if isinstance(source, bytes) else source.stat().st_size
                    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as content:
                        archive.addfile(member, content)
            line = process.stdout.readline(_MOST_BYTES)
            if not line:
                raise ConnectionError("the connection ended")
        self._result(line)

    def fetch(self, files: Iterable[str], target: Path, *arguments: str, most_bytes: int) -> None:
        """Fetch files that were named into a folder; those that are not there any more are left out. Raises as `call` does."""
        names = set(files)
        with self._running(self._command(arguments)) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            with process.stdin:
                process.stdin.write(json.dumps(sorted(names)).encode())
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    most_bytes -= member.size
                    content = archive.extractfile(member) if member.name in names and member.isreg() else None
                    if content is None or most_bytes < 0:
                        raise MachineError(f"{self.name} sent what was not asked for.", "Do not use this machine.")
                    names.discard(member.name)
                    path = target / member.name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with path.open("wb") as file:
                        shutil.copyfileobj(content, file, _CHUNK_BYTES)

    def install(self) -> None:
        """Put this very Loratory there, unless it is; the first time takes minutes where its Python lacks torch."""
        wheel = _wheel()
        command = [
            self._machine.python or "python3",
            "-c",
            _INSTALL,
            wheel.number,
            wheel.file_name,
            self._machine.python,
        ]
        lines = self._run(command, b"", _ANSWER_SECONDS).decode(errors="replace").splitlines()
        if lines[-1:] == ["wanted"]:
            lines = self._run(command, wheel.content, _INSTALL_SECONDS).decode(errors="replace").splitlines()
        if len(lines) < 2:
            raise MachineError(f"Loratory cannot be installed on {self.name}.", "Look whether python3 is there.")
        self._installed = lines[-2], lines[-1]

    def _command(self, arguments: Sequence[str]) -> list[str]:
        if self._installed is None:
            self.install()
        assert self._installed is not None
        code, python = self._installed
        return ["env", f"PYTHONPATH={code}", python, "-P", "-m", THERE, *arguments]

    @contextlib.contextmanager
    def _running(self, command: Sequence[str], seconds: float = _ANSWER_SECONDS) -> "Iterator[subprocess.Popen[bytes]]":
        """Run a command while a block talks to it, and wait for its end; one that ended otherwise is an error."""
        agent = {name: os.environ[name] for name in ("SSH_AUTH_SOCK",) if name in os.environ}
        port = ["-p", str(self._machine.port)] if self._machine.port is not None else []
        argv = [*self._program, *_OPTIONS, *port, "--", self._machine.destination, shlex.join(command)]
        with tempfile.TemporaryFile() as errors:
            try:
                process = subprocess.Popen(
                    argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                    env=environment_for(()) | agent, start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise MachineError("OpenSSH's client, ssh, is not on this computer.", "Install it.") from error
            trouble = ""
            with process:  # closes its pipes
                try:
                    yield process
                    process.wait(seconds)
                except (ConnectionError, tarfile.TarError, subprocess.TimeoutExpired) as error:
                    trouble = shorten(str(error), 200)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(1)  # its own words come first
                finally:
                    process.kill()
            if trouble or process.returncode:
                errors.seek(0)
                raise self._failure(process.returncode, errors.read(_CHUNK_BYTES).decode(errors="replace") or trouble)

    def _run(self, command: Sequence[str], sends: bytes, seconds: float) -> bytes:
        with self._running(command) as process:
            output, _ = process.communicate(sends, seconds)
        if len(output) > _MOST_BYTES:
            raise MachineError(f"{self.name} sent what was not asked for.", "Do not use this machine.")
        return output

    def _failure(self, code: int, output: str) -> MachineError:
        """Return what kept a command from being done; OpenSSH says it in words, with one exit code for all."""
        name, last = self.name, shorten((output.strip().splitlines() or [""])[-1], 200)
        if code not in (_SSH_FAILED, -signal.SIGKILL):  # what ran there failed, and may use words of OpenSSH
            return MachineError(f"Loratory on {name} failed: {last}", f"See `ssh {self._machine.destination}`.")
        if "REMOTE HOST IDENTIFICATION HAS CHANGED" in output or "Host key verification failed" in output:
            fix = f"Connect once with `ssh {self._machine.destination}` in a terminal, and compare its key with the machine's."
            return MachineError(f"The host key of {name} is not known, or has changed; nothing was sent.", fix)
        if "Permission denied" in output:
            return MachineError(f"{name} does not accept your keys.", "Load the key into ssh-agent, or ask its admin.")
        what = f"{name} does not answer at present ({last or 'no reason given'})."
        return MachineUnreachableError(what, "Wait, or see its network.")


class _Chunks:
    """A stream that ends with an error once it is not wanted any more."""

    def __init__(self, stream: IO[bytes], is_cancelled: Callable[[], bool]) -> None:
        self._stream, self._is_cancelled = stream, is_cancelled

    def write(self, data: bytes) -> int:
        if self._is_cancelled():
            raise RunError("Cancelled while it was sent.", "Start it again.")
        return self._stream.write(data)


class SshMachines(RunPlace):
    """The machines that a person added; each has a queue of its own."""

    name = "ssh"
    label = "A machine by SSH"
    starts = "on a machine that you reach by SSH"
    how_to_choose = "Name it in ssh.machine."

    def __init__(self, home: LoratoryHome) -> None:
        self._home = home

    def options(self, config: RunConfig) -> Options:
        """Return the devices of the machine that is named, or of all that answer, those with most free memory first."""
        sets = [
            option for _, devices in self._devices(config.ssh.machine) for option in device_options(devices, config.run)
        ]
        return tuple(sorted(sets, key=lambda option: -option[0].free_bytes))

    def is_chosen(self, config: RunConfig) -> bool:
        return bool(config.ssh.machine)

    def complete(self, config: RunConfig, device: Device, *_: object) -> RunConfig:
        """Name the machine that has the device; of several, the one with the most free memory."""
        equals = [
            (other.free_bytes, name)
            for name, devices in self._devices(config.ssh.machine)
            for other in devices
            if other.name == device.name
        ]
        machine = max(equals)[1] if equals else config.ssh.machine
        return config.model_copy(update={"ssh": config.ssh.model_copy(update={"machine": machine})})

    def _devices(self, choice: str) -> Iterator[tuple[str, tuple[Device, ...]]]:
        if self._home.owner:
            raise DeviceError(
                "Machines by SSH are reached with your own keys, which a lab does not have.", "Train here."
            )
        machines = read_machines(self._home)
        if choice and choice not in machines:
            raise DeviceError(
                f"{shorten(choice, 40)!r} is not one of your machines.", f"Known: {', '.join(machines) or 'none'}."
            )
        troubles: list[EngineError] = []
        answers = 0
        for name, machine in machines.items():
            if choice in ("", name):
                try:
                    devices = machine_devices(name, machine)
                except MachineError as error:
                    troubles.append(error)
                    continue
                answers += 1
                yield name, devices
        if not answers:
            raise (
                troubles[0]
                if troubles
                else DeviceError("No machine was added.", "Add one with `loratory machine add`.")
            )


_wheel = functools.cache(build_wheel)


def machine_devices(name: str, machine: Machine) -> tuple[Device, ...]:
    """Return the devices of a machine as they are now, asked for at most every 20 seconds. Raises as `Connection.call` does."""
    return _devices_at(name, machine, int(time.monotonic() // _FRESH_SECONDS))


@functools.lru_cache(maxsize=64)
def _devices_at(name: str, machine: Machine, _moment: int) -> tuple[Device, ...]:
    with contextlib.closing(Connection(name, machine)) as connection:
        return TypeAdapter(tuple[Device, ...]).validate_python(connection.call("devices"))
