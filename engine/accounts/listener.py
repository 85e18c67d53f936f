"""Where a lab listens, and a proxy that names people: trusted only on a Unix socket, from the proxy's own user."""

import os
import pwd
import re
import socket
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratory.engine.errors import DeviceError, explain_os_errors
from loratory.engine.paths import typed_path

_LONGEST_SOCKET_PATH = 100  # of the kernel's 108 bytes
_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]{1,60}")
_OTHER_USES = re.compile(
    r"(accept|content|sec|x-forwarded|x-gradio|access-control|if)-.*|host|origin|cookie|authorization|connection|upgrade"
)
_CREDENTIALS = struct.Struct("3i")  # process, user and group of who connected


def bound_socket(host: str, port: int) -> socket.socket:
    """Return a socket with an address, so it cannot be taken between the check and the start; port 0 is any free one.

    Raises:
        DeviceError: If the port is in use or not allowed.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol named, asyncio sends at once (TCP_NODELAY); else the end of each answer may wait for 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        fix = "Close the other program, or choose another one with --port."
        raise DeviceError(f"Port {port} is in use or not allowed ({error.strerror}).", fix) from error
    return listener


@dataclass(frozen=True)
class Listener:
    """Where a lab listens: a socket file for a proxy on this machine, or a port with TLS; in a Space, a port without."""

    socket_path: Path | None = None  # of the file; None with TLS
    host: str = ""  # address of the port
    port: int = 0  # number of the port
    certificate: Path | None = None  # PEM file with the chain; None on a socket
    key: Path | None = None  # PEM file with its key
    # Whether the port is that of a Space, which only the proxy of Hugging Face reaches; it ends TLS.
    is_in_a_space: bool = False

    @classmethod
    def in_a_space(cls, port: int) -> "Listener":
        """Return where a Space listens: https://huggingface.co/docs/hub/spaces-sdks-docker."""
        return cls(None, "0.0.0.0", port, is_in_a_space=True)  # noqa: S104 - a container's own network

    @classmethod
    def chosen(
        cls, socket_path: str | None, host: str, port: int, certificate: str | None, key: str | None
    ) -> "Listener":
        """Return where to listen, as options on the command line say.

        Raises:
            DeviceError: If they would let anyone read what is sent, or contradict each other.
        """
        if socket_path is not None:
            if certificate is not None or key is not None:
                raise DeviceError("A socket and a certificate were both given.", "With --socket, the proxy ends TLS.")
            return cls(typed_path(socket_path).absolute())
        if certificate is None or key is None:
            raise DeviceError(
                f"Without TLS, passwords could be read on the way to {host}:{port}.",
                "Give --socket for a proxy that ends TLS, or --tls-cert and --tls-key.",
            )
        files = typed_path(certificate), typed_path(key)
        for file in files:
            if not os.access(file, os.R_OK):
                what = f"{file} cannot be read."
                raise DeviceError(what, "Give the PEM file of the certificate chain, and of its key.")
        return cls(None, host, port, *files)

    @property
    def behind_proxy(self) -> bool:
        """Whether every request comes through a proxy, which may say where from."""
        return self.socket_path is not None or self.is_in_a_space

    def open(self) -> socket.socket:
        """Return the bound socket. A socket file is for this user and its group alone, which the proxy is in.

        Raises:
            DeviceError: If it cannot be bound, or a running server has it.
        """
        path = self.socket_path
        if path is None:
            return bound_socket(self.host, self.port)
        fix = "Close the other program, or choose another --socket."
        with explain_os_errors(f"{path} cannot be listened on", fix, DeviceError):
            _remove_stale(path)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            mask = os.umask(0o117)
            try:
                listener.bind(str(path))
            finally:
                os.umask(mask)
            return listener


def _remove_stale(path: Path) -> None:
    """Remove the socket file of a server that has ended."""
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        raise DeviceError(f"The path {path} is too long for a socket.", "Choose one of at most 100 bytes.")
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise DeviceError(f"{path} exists and is not a socket.", "Choose another path with --socket.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2)
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise DeviceError(f"Another program listens on {path}.", "Stop it, or choose another path with --socket.")


@dataclass(frozen=True)
class TrustedProxy:
    """The proxy that names people."""

    header: str  # in which it does; lower case
    user_id: int  # the system user that it runs as

    @classmethod
    def chosen(cls, header: str | None, user: str | None, listener: Listener) -> "TrustedProxy | None":
        """Return what options on the command line say; None where they say nothing.

        Raises:
            DeviceError: If a client other than the proxy could name people.
        """
        if header is None and user is None:
            return None
        header, user = require_identity_header(header, user)
        if listener.socket_path is None:
            raise DeviceError(
                "On a port, anyone could send the header that names people.",
                "Give --socket, or leave out --identity-header.",
            )
        if not hasattr(socket, "SO_PEERCRED"):
            raise DeviceError("This system does not report who connects to a socket.", "Leave out --identity-header.")
        try:
            user_id = pwd.getpwnam(user).pw_uid
        except (KeyError, ValueError) as error:
            what = f"There is no system user {user[:40]!r}."
            raise DeviceError(what, "Give the user of the proxy, such as caddy.") from error
        if user_id == os.geteuid():
            raise DeviceError(
                f"The lab itself runs as {user}, so each of its runs could name anyone.",
                "Run the proxy as another user.",
            )
        return cls(header.lower(), user_id)

    def guard(self, listener: socket.socket) -> socket.socket:
        """Return a bound Unix socket that hangs up on everyone but the proxy, also on its own user."""
        guard = _GuardedSocket(fileno=listener.detach())
        guard.user_id = self.user_id
        return guard


def require_identity_header(header: str | None, user: str | None) -> tuple[str, str]:
    """Return a header that names people and the user of the proxy that sets it.

    Raises:
        DeviceError: If one of them is missing, or the header cannot name people.
    """
    if header is None or user is None:
        what = "A header that names people needs the proxy that sets it."
        raise DeviceError(what, "Give --identity-header and --proxy-user.")
    if not _HEADER.fullmatch(header) or _OTHER_USES.fullmatch(header.lower()):
        raise DeviceError(f"{header[:60]!r} cannot name people.", "Choose a header such as X-Remote-User.")
    return header, user


class _GuardedSocket(socket.socket):
    user_id = -1

    def accept(self) -> tuple[socket.socket, Any]:
        connection, address = super().accept()
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if _CREDENTIALS.unpack(credentials)[1] != self.user_id:
            connection.close()
            raise ConnectionAbortedError("not the proxy")  # a server continues with the next one
        return connection, address
