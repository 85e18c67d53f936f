"""A lab as a whole: the one address at which browsers reach it, and its files below the home."""

import contextlib
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, Field, StringConstraints, ValidationError

from loratory.engine.accounts.database import DATABASE_FILE, Database
from loratory.engine.accounts.limits import SETTINGS_FILE, LabLimits, LabRules, Maintenance, is_lab
from loratory.engine.errors import AccountError, StorageError
from loratory.engine.files import size_and_time, write_atomically
from loratory.engine.paths import LAB, LoratoryHome
from loratory.engine.processes.liveness import FileLock
from loratory.engine.processes.spawn import environment_for

if TYPE_CHECKING:
    from loratory.engine.accounts.accounts import Invitation  # brings argon2, which the page at home does without

_ROLES_SECONDS = 10.0  # between two reads of who is a guest

_log = logging.getLogger(__name__)


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


class LabSettings(BaseModel, frozen=True, extra="forbid"):
    """What an admin decides for a lab, kept in `lab.yaml` below the home."""

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
        values = yaml.safe_load((home.root / SETTINGS_FILE).read_text(encoding="utf-8"))
        return LabSettings.model_validate(values or {})
    except FileNotFoundError:
        return LabSettings()
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
        raise AccountError(f"lab.yaml in the home cannot be used ({error}).", "Correct it, or remove it.") from error


def read_rules(home: LoratoryHome) -> LabRules | None:
    """Return the rules of a lab; None where there are no accounts.

    Raises:
        AccountError: If `lab.yaml` cannot be used.
        StorageError: If the accounts cannot be opened.
    """
    if not is_lab(home):
        return None
    settings = read_settings(home)
    with contextlib.closing(Database(home.root / DATABASE_FILE)) as database:
        guests = database.rows(
            "SELECT name FROM people WHERE role = 'guest'"
        )  # also removed: limits of their runs stay
    names = frozenset(row["name"] for row in guests)
    return LabRules(limits=settings.limits, maintenance=settings.maintenance, guests=names)


class RulesReader:
    """Follows the rules of a lab; a damaged file leaves the last ones in force."""

    def __init__(self, home: LoratoryHome) -> None:
        self._home = home
        self._stamp: tuple[int, int] | None = None
        self._last_look = 0.0
        self._rules: LabRules | None = None

    def read(self) -> LabRules | None:
        """Return the rules as they are now; None where there are no accounts."""
        if not is_lab(self._home):
            self._rules = self._stamp = None
            return None
        stamp, now = size_and_time(self._home.root / SETTINGS_FILE), time.monotonic()
        if self._rules is None or stamp != self._stamp or now - self._last_look > _ROLES_SECONDS:
            self._stamp, self._last_look = stamp, now
            try:
                self._rules = read_rules(self._home)
            except (AccountError, StorageError) as error:
                self._rules = self._rules or LabRules()
                _log.error("The limits of the lab could not be read: %s", error)
        return self._rules

    def idle_seconds(self) -> float | None:
        """Return how long a model may be idle; None where there are no accounts."""
        rules = self.read()
        return None if rules is None else rules.limits.idle_minutes * 60


def save_settings(home: LoratoryHome, settings: LabSettings) -> None:
    """Replace the settings of a lab.

    Raises:
        StorageError: If they cannot be written.
    """
    write_atomically(
        home.root / SETTINGS_FILE, yaml.safe_dump(settings.model_dump(exclude_defaults=True), sort_keys=False)
    )


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
