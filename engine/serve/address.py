"""Where a server of ours may listen: on this computer only, on a port that is free."""

import socket

from engine.errors import DeviceError

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


def refuse_unless_usable(host: str, port: int) -> None:
    """Check an address before anything is started on it.

    Raises:
        DeviceError: If others could reach it, it is no port, or somebody else has it.
    """
    if host not in LOOPBACK_HOSTS:
        raise DeviceError(
            f"Loratory has no accounts yet, so it does not listen on {host}, where anyone could use it.",
            "Keep 127.0.0.1, and reach it from elsewhere through an SSH tunnel.",
        )
    if not 0 < port < 65536:
        raise DeviceError(f"{port} is no port.", "Choose one between 1 and 65535, such as 7860.")
    bound_socket(host, port).close()


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket with an address, so that nobody takes it between the check and the start.

    Args:
        host: One of `LOOPBACK_HOSTS`.
        port: 0 takes any that is free.

    Raises:
        DeviceError: If the port is in use or not allowed.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise DeviceError(
            f"Port {port} is in use or not allowed ({error.strerror}).",
            "Close the other program, or choose another one with --port.",
        ) from error
    return bound
