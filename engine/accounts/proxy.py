"""A proxy that names the person in a header; trusted only on a Unix socket, from the proxy's own user."""

import os
import pwd
import re
import socket
import struct
from dataclasses import dataclass
from typing import Any

from engine.accounts.lab import Listener
from engine.errors import DeviceError

_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]{1,60}")
_OTHER_USES = re.compile(
    r"(accept|content|sec|x-forwarded|x-gradio|access-control|if)-.*|host|origin|cookie|authorization|connection|upgrade"
)
_CREDENTIALS = struct.Struct("3i")  # process, user and group of who connected


@dataclass(frozen=True)
class TrustedProxy:
    """The proxy that names people."""

    header: str  # in which it does; lower case
    user_id: int  # the system user that it runs as

    @classmethod
    def chosen(cls, header: str | None, user: str | None, listener: Listener) -> "TrustedProxy | None":
        """Return what options on the command line say; None where they say nothing.

        Raises:
            DeviceError: If others than the proxy could name people.
        """
        if header is None and user is None:
            return None
        if header is None or user is None:
            raise DeviceError(
                "A header that names people needs the proxy that sets it.", "Give --identity-header and --proxy-user."
            )
        if listener.socket_path is None:
            raise DeviceError(
                "On a port, anyone could send the header that names people.",
                "Give --socket, or leave out --identity-header.",
            )
        if not hasattr(socket, "SO_PEERCRED"):
            raise DeviceError("This system does not report who connects to a socket.", "Leave out --identity-header.")
        require_identity_header(header)
        try:
            user_id = pwd.getpwnam(user).pw_uid
        except (KeyError, ValueError) as error:
            raise DeviceError(
                f"There is no system user {user[:40]!r}.", "Give the user of the proxy, such as caddy."
            ) from error
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


def require_identity_header(header: str) -> None:
    """Refuse what is not a header, or one that has another use.

    Raises:
        DeviceError: If it cannot name people.
    """
    if not _HEADER.fullmatch(header) or _OTHER_USES.fullmatch(header.lower()):
        raise DeviceError(f"{header[:60]!r} cannot name people.", "Choose a header such as X-Remote-User.")


class _GuardedSocket(socket.socket):
    user_id = -1

    def accept(self) -> tuple[socket.socket, Any]:
        connection, address = super().accept()
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if _CREDENTIALS.unpack(credentials)[1] != self.user_id:
            connection.close()
            raise ConnectionAbortedError("not the proxy")  # a server continues with the next one
        return connection, address
