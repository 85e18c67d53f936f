"""Enter a sandbox and run a program there: `enter.py LIMITS PROGRAM…`. Runs on its own, with the standard library alone.

On Linux the program is the first process of namespaces of its own: a network without devices, processes that all end with
it, and a root folder in memory that has Python, its libraries and an empty /sandbox. It has no /proc.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

_NEW_NAMESPACES, _NEW_USER = 0x6C020000, 0x10000000  # of mounts, names, IPC, processes, network
_BIND, _RECURSIVE, _PRIVATE, _NO_SUID, _NO_DEVICES = 4096, 16384, 1 << 18, 2, 4
_SET_ATTRIBUTES, _WORKING_FOLDER, _READ_ONLY = 442, -100, 0x1 | 0x2  # mount_setattr, the same on all processors
_DEATH_SIGNAL, _NO_NEW_PRIVILEGES = 1, 38
_SYSTEM = "/usr /bin /sbin /lib /lib32 /lib64 /nix/store /etc/ld.so.cache /dev/null /dev/zero /dev/random /dev/urandom"
_INSIDE = 65534  # the account, where the kernel has one for each namespace
_FILE_BYTES = 64 << 20


def main(limits: dict[str, Any], program: list[str]) -> None:
    """Become the program."""
    is_root, uid = os.getuid() == 0, limits["uid"]
    if limits["namespaces"]:
        with contextlib.suppress(OSError):  # the first to go where memory is short
            Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")
        ids = {"setgroups": "deny", "uid_map": f"{_INSIDE} {os.getuid()} 1", "gid_map": f"{_INSIDE} {os.getgid()} 1"}
        is_root = is_root and ctypes.CDLL(None).unshare(_NEW_NAMESPACES) == 0  # root may lack the right
        if not is_root:
            _call("unshare", _NEW_NAMESPACES | _NEW_USER)
            for name, text in ids.items():
                Path("/proc/self", name).write_text(text, encoding="utf-8")
        _end_with_parent()
        if child := os.fork():
            os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
        _end_with_parent()
        _build_root(limits["folder"], limits["readable"])
    else:
        os.chdir(limits["folder"])
    bounds = {"AS": limits["memory"], "NPROC": limits["processes"], "FSIZE": _FILE_BYTES, "NOFILE": 256, "CORE": 0}
    for name, bound in ({**bounds, "CPU": limits["seconds"]} if limits["seconds"] else bounds).items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        if name != "AS" or sys.platform == "linux":  # macOS enforces none
            resource.setrlimit(kind, (bound, bound))
    if is_root:
        os.chown(".", uid, uid)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    if sys.platform == "linux":
        _end_with_parent()  # a change of account dropped it
        _call("prctl", _NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    os.execv(program[0], program)  # noqa: S606


def _build_root(folder: str, readable: list[str]) -> None:
    """Make a root folder of what may be read and an empty one, and move there."""
    _call("mount", None, b"/", None, _RECURSIVE | _PRIVATE, None)
    _call("mount", b"tmpfs", folder.encode(), b"tmpfs", _NO_SUID, b"mode=755,size=1m")
    for name in [*_SYSTEM.split(), *readable]:
        inside, outside = Path(folder + name), Path(name)
        if inside.exists() or not outside.exists():
            continue
        inside.parent.mkdir(parents=True, exist_ok=True)
        if outside.is_symlink() and name not in readable:
            inside.symlink_to(outside.readlink())
            continue
        inside.mkdir() if outside.is_dir() else inside.touch()
        _call("mount", name.encode(), bytes(inside), None, _BIND | _RECURSIVE, None)
    Path(folder, "sandbox").mkdir()
    attributes = (ctypes.c_uint64 * 4)(_READ_ONLY, 0, 0, 0)
    _call("syscall", _SET_ATTRIBUTES, _WORKING_FOLDER, folder.encode(), 0x8000, attributes, ctypes.c_size_t(32))
    options = f"mode=1777,size={_FILE_BYTES},nr_inodes=4096".encode()
    _call("mount", b"tmpfs", f"{folder}/sandbox".encode(), b"tmpfs", _NO_SUID | _NO_DEVICES, options)
    os.chroot(folder)
    os.chdir("/sandbox")


def _end_with_parent() -> None:
    _call("prctl", _DEATH_SIGNAL, int(signal.SIGKILL), 0, 0, 0)


def _call(name: str, *arguments: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2:])
