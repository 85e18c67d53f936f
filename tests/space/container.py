"""Follows a Dockerfile without Docker, in namespaces of its own: its very paths, user 1000, no network, nothing else writable.

Run as root by `unshare --mount --net`. Python and what is installed for it come from this machine instead of from the base
image and the index; what belongs to the base image (a user, packages of Debian) is left out.
"""

import fcntl
import json
import os
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_USER = 1000
_LEFT_OUT = ("RUN useradd", "RUN apt-get", "FROM", "EXPOSE")
_STEP_SECONDS = 300
_PORT = 7860


@dataclass
class Container:
    """What the instructions have made so far.

    Attributes:
        context: Folder of the Dockerfile.
    """

    context: Path
    environment: dict[str, str] = field(default_factory=dict)
    folder: Path = Path("/")
    command: list[str] = field(default_factory=list)

    def follow(self) -> None:
        """Carry out each instruction in turn."""
        text = (self.context / "Dockerfile").read_text().replace("\\\n", " ")
        for line in text.splitlines():
            if not line or line.startswith(("#", *_LEFT_OUT)):
                continue
            name, _, rest = line.partition(" ")
            getattr(self, f"_{name.lower()}")(rest)

    def _user(self, name: str) -> None:
        assert name == "user"

    def _env(self, pairs: str) -> None:
        for pair in shlex.split(pairs):
            name, _, value = pair.partition("=")
            self.environment[name] = value.replace("$PATH", self.environment.get("PATH", ""))

    def _workdir(self, path: str) -> None:
        self.folder = Path(path)

    def _copy(self, arguments: str) -> None:
        owner, source, target = arguments.split()
        assert owner == "--chown=user"
        path = self.folder / target / source
        path.write_bytes((self.context / source).read_bytes())
        os.chown(path, _USER, _USER)

    def _run(self, step: str) -> None:
        process = subprocess.run(
            ["/bin/sh", "-c", step], cwd=self.folder, env=self.environment, user=_USER, group=_USER, extra_groups=(),
            capture_output=True, text=True, timeout=_STEP_SECONDS,
        )  # fmt: skip
        if process.returncode:
            raise SystemExit(f"RUN {step}\n{process.stdout[-2000:]}{process.stderr[-4000:]}")
        if step.endswith("-m venv venv"):
            (site,) = self.folder.glob("venv/lib/python3*/site-packages")
            (site / "of_this_machine.pth").write_text("/home/site\n")
            for own in (*site.glob("setuptools*"), *site.glob("pkg_resources*")):  # from Python 3.12 on there is none
                shutil.rmtree(own)

    def _cmd(self, command: str) -> None:
        self.command = json.loads(command)


def _mount(source: str | Path, target: str | Path) -> None:
    Path(target).mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", str(source), str(target)], check=True)


def _prepare(work: Path, python: Path, packages: list[Path]) -> None:
    """Let /home be an empty folder, and let user 1000 read this machine's Python and packages."""
    _mount(work, "/home")
    _mount(python, "/home/python")
    closed = [folder for folder in reversed(python.parents) if not folder.stat().st_mode & 0o001]
    Path("/home/site").mkdir()
    for number, folder in enumerate(packages):
        _mount(folder, f"/home/site-{number}")
        for entry in folder.iterdir():
            link = Path("/home/site") / entry.name
            # The wheel brings Loratory itself.
            if (
                not entry.name.startswith(("loratory", "__editable__"))
                and entry.suffix != ".pth"
                and not link.is_symlink()
            ):
                link.symlink_to(Path(f"/home/site-{number}") / entry.name)
    if closed:  # it looks for its library where it was built
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(closed[0])], check=True)
        python.mkdir(parents=True)
        _mount("/home/python", python)
    Path("/home/user").mkdir(mode=0o700)
    os.chown("/home/user", _USER, _USER)
    with socket.socket() as probe:  # the loopback interface, up
        fcntl.ioctl(probe, 0x8914, struct.pack("16sh", b"lo", 0x1 | 0x40))


def _first_answer(process: subprocess.Popen[bytes], headers: dict[str, str]) -> dict[str, Any]:
    deadline = time.monotonic() + _STEP_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            request = urllib.request.Request(f"http://127.0.0.1:{_PORT}/", headers=headers)
            with urllib.request.urlopen(request, timeout=300) as answer:
                return {"status": answer.status, "text": answer.read().decode(errors="replace")}
        except urllib.error.HTTPError as error:
            return {"status": error.status}
        except OSError:
            time.sleep(0.2)
    return {"status": None}


def main() -> None:
    """Build, then start the image's command once for each set of variables, and print what was found as JSON."""
    order = json.loads(sys.stdin.read())
    _prepare(Path(order["work"]), Path(order["python"]), [Path(folder) for folder in order["packages"]])
    container = Container(Path(order["context"]))
    path = f"{order['python']}/bin:/usr/bin:/bin"
    if shutil.which("python", path=path) is None:  # Debian's own is `python3` alone
        Path("/home/bin").mkdir()
        Path("/home/bin/python").symlink_to(f"{order['python']}/bin/python3")
        path = f"/home/bin:{path}"
    # Of the base image; and the index, which is not to be asked here.
    container.environment = {"PATH": path, "PIP_NO_INDEX": "1", "LANG": "C.UTF-8"}
    container.follow()
    result: dict[str, Any] = {"runs": []}
    for run in order["runs"]:
        log = Path("/home/log")
        process = subprocess.Popen(
            run.get("command") or container.command, cwd=run.get("folder", container.folder), env=container.environment | run["environment"],
            user=_USER, group=_USER, extra_groups=(), stdout=log.open("wb"), stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        answer = _first_answer(process, run.get("headers", {}))
        listening = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
        lines = [line for line in listening.splitlines() if f":{_PORT:04X} " in line and " 0A " in line]
        answer["listens_on"] = sorted({line.split()[1].split(":")[0] for line in lines})
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(300)
        answer["log"] = log.read_text(errors="replace")[-6000:]
        result["runs"].append(answer)
    # Nothing outside its home belongs to the user.
    listing = subprocess.run(
        ["find", "/home", "-maxdepth", "1", "-user", str(_USER)], capture_output=True, text=True, check=True
    )
    result["owned"] = listing.stdout.split()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
