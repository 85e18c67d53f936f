"""A lab as a whole: the one address at which browsers reach it, and its files below the home."""

import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from engine.accounts.limits import SETTINGS_FILE, LabLimits, Maintenance
from engine.errors import AccountError, DeviceError
from engine.files import write_atomically
from engine.paths import LAB, LoratoryHome, typed_path
from engine.processes.liveness import FileLock
from engine.processes.spawn import environment_for
from engine.serve.guard import bound_socket

if TYPE_CHECKING:
    from engine.accounts.accounts import Invitation  # brings argon2, which the page at home does without

_LONGEST_SOCKET_PATH = 100  # of the kernel's 108 bytes


@dataclass(frozen=True)
class PublicAddress:
    """The address at which browsers reach a lab; every other name or port is refused."""

    origin: str  # as browsers send it, such as `https://gpu.lab.example`
    host: str  # as browsers send it, with the port where it is not 443

    @classmethod
    def parse(cls, url: str) -> "PublicAddress":
        """Read an address as an admin types it.

        Raises:
            AccountError: If it is not https, or has more than a host and a port.
        """
        fix = "Give https and the host, such as https://gpu.lab.example."
        try:
            parts = urlsplit(url.strip())
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            raise AccountError(f"{url[:100]!r} is not an address.", fix) from error
        if parts.scheme != "https":
            raise AccountError(
                f"{url[:100]!r} does not begin with https://, so passwords could be read on the way.", fix
            )
        if not host or parts.path not in ("", "/") or parts.query or parts.fragment or parts.username is not None:
            raise AccountError(f"{url[:100]!r} is not an https address of a host alone.", fix)
        name = f"[{host}]" if ":" in host else host.encode("idna").decode()
        with_port = name if port in (None, 443) else f"{name}:{port}"
        return cls(f"https://{with_port}", with_port)


class LabSettings(BaseModel):
    """What an admin decides for a lab, kept in `lab.yaml` below the home."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    public_url: str = Field(default="", description="The https address at which browsers reach the lab.")
    announcement: Annotated[str, StringConstraints(max_length=300, pattern=r"^[^\x00-\x1f\x7f]*$")] = Field(
        default="", title="Announcement", description="Shown on every page and on the sign-in page. Empty: none."
    )
    limits: LabLimits = LabLimits()
    maintenance: Maintenance = Maintenance()


def read_settings(home: LoratoryHome) -> LabSettings:
    """Return the settings of a lab; the defaults where there are none yet.

    Raises:
        AccountError: If the file cannot be read, or holds something else.
    """
    try:
        values = yaml.safe_load(_settings_path(home).read_text(encoding="utf-8"))
        return LabSettings.model_validate(values or {})
    except FileNotFoundError:
        return LabSettings()
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
        raise AccountError(f"lab.yaml in the home cannot be used ({error}).", "Mend it, or remove it.") from error


def save_settings(home: LoratoryHome, settings: LabSettings) -> None:
    """Replace the settings of a lab.

    Raises:
        StorageError: If they cannot be written.
    """
    write_atomically(_settings_path(home), yaml.safe_dump(settings.model_dump(exclude_defaults=True), sort_keys=False))


def change_settings(home: LoratoryHome, **changes: object) -> LabSettings:
    """Change some settings and keep the rest, also where several admins do so at once.

    Raises:
        AccountError: If a value is not allowed, or the file cannot be used.
        StorageError: If they cannot be written.
    """
    with FileLock(home.server / "lab-settings.lock"):
        try:
            settings = LabSettings.model_validate({**read_settings(home).model_dump(), **changes})
        except ValidationError as error:
            first = error.errors()[0]
            name = " ".join(str(part) for part in first["loc"])
            raise AccountError(f"The {name} cannot be used: {first['msg'].lower()}.", "Change it.") from None
        save_settings(home, settings)
    return settings


def read_notice(home: LoratoryHome) -> str:
    """Return what all people of a lab should know; nothing where the settings cannot be read."""
    try:
        settings = read_settings(home)
    except AccountError:
        return ""
    maintenance = settings.maintenance
    drain = f"Maintenance: no runs start. {maintenance.text}".strip() if maintenance.is_on else ""
    return " ".join(filter(None, (settings.announcement, drain)))


def public_address(home: LoratoryHome, address: str | None = None) -> PublicAddress:
    """Return the address of a lab: the one that is given, or at which it was served last.

    Raises:
        AccountError: If it is not known, or not an https address.
    """
    url = address or read_settings(home).public_url
    if not url:
        raise AccountError("The address of the lab is not known yet.", "Add --public-url https://…")
    return PublicAddress.parse(url)


def join_link(address: PublicAddress, invitation: "Invitation") -> str:
    """Return the link of an invitation. Its token is behind the #, which browsers send to no server."""
    return f"{address.origin}/join#{invitation.token}"


def _settings_path(home: LoratoryHome) -> Path:
    return home.root / SETTINGS_FILE


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
                raise DeviceError(
                    f"{file} cannot be read.", "Give the PEM file of the certificate chain, and of its key."
                )
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
        try:
            _remove_stale(path)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            mask = os.umask(0o117)
            try:
                listener.bind(str(path))
            finally:
                os.umask(mask)
            return listener
        except OSError as error:
            what = f"{path} cannot be listened on ({error.strerror or error})."
            raise DeviceError(what, "Close the other program, or choose another --socket.") from error


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


def forget_secrets() -> bool:
    """Keep only the variables that every worker may have: what people of the lab start must not act in the server's name.

    Files with tokens are not read either. A person's own token for the Hub is given with each action.

    Returns:
        Whether there were others. Those that a process began with stay readable for processes of its user, workers among
        them, so it should then begin again.
    """
    environment = {**environment_for(()), LAB: "1"}
    others = os.environ.keys() - environment.keys()
    for name in others:
        del os.environ[name]
    os.environ.update(environment)
    return bool(others)


def audit_log_path(home: LoratoryHome) -> Path:
    """Return where the audit log of a home is."""
    return home.root / "audit.jsonl"
