"""What runs a lab as a service of its machine: a systemd unit, and a Caddyfile for the proxy in front of it."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from loratory.engine.accounts.lab import PublicAddress
from loratory.engine.accounts.listener import require_identity_header
from loratory.engine.errors import AccountError

_PATH = re.compile(r"(/[A-Za-z0-9._@+-]+)+")  # needs no quoting in a unit, in a Caddyfile or in a shell
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,30}")
_SOCKET = "/run/loratory/page.sock"
# The folder is the group's to enter; the lab makes the socket with mode 0660.
_RUNTIME_FOLDER = "RuntimeDirectory=loratory\nRuntimeDirectoryMode=0750"


@dataclass(frozen=True)
class Deployment:
    """How a lab is to run.

    Raises:
        AccountError: If a value cannot be written into a unit as it is, or two of them exclude each other.
        DeviceError: If the header cannot name people, or misses its proxy.
    """

    address: PublicAddress
    user: str = "loratory"  # account of the machine that runs it and owns its files; no person signs in as it
    home: Path = Path("/var/lib/loratory")  # folder of the lab, which is also the user's home folder
    certificate: Path | None = None  # PEM file of the chain, for a lab without a proxy; None behind Caddy
    key: Path | None = None  # PEM file of its key
    oidc: Path | None = None  # YAML file of an OpenID Connect provider; None without one
    identity_header: str | None = None  # header in which the proxy names people; None where they sign in to the lab
    proxy_user: str | None = None  # system user of that proxy; only with `identity_header`

    def __post_init__(self) -> None:
        for user in (self.user, *([] if self.proxy_user is None else [self.proxy_user])):
            if not _USER.fullmatch(user):
                raise AccountError(f"{user[:40]!r} cannot be the name of a system user.", "Use letters, digits and -.")
        self._require_proxy()
        for path in (self.home, *filter(None, (self.certificate, self.key, self.oidc))):
            if not _PATH.fullmatch(str(path)) or ".." in path.parts:
                raise AccountError(
                    f"The path {str(path)!r} cannot be used in a systemd unit.",
                    "Give an absolute path of letters, digits and . _ @ + -.",
                )
        if (self.certificate is None) != (self.key is None):
            what = "A certificate and its key belong together."
            raise AccountError(what, "Give --tls-cert and --tls-key, or neither.")

    def _require_proxy(self) -> None:
        if self.identity_header is None and self.proxy_user is None:
            return
        require_identity_header(self.identity_header, self.proxy_user)
        if self.certificate is not None or self.oidc is not None:
            what = "Where a proxy names people, they reach the lab through it alone and have no other provider."
            raise AccountError(what, "Leave out --tls-cert and --oidc, or --identity-header.")
        if self.proxy_user == self.user:
            what = f"The lab itself runs as {self.user}, so each of its runs could name anyone."
            raise AccountError(what, "Run the proxy as another user.")

    def unit(self) -> str:
        """Return the systemd unit."""
        return _template("loratory.service").format(
            user=self.user,
            home=self.home,
            program=_program(),
            origin=self.address.origin,
            options=(self._tls() if self.certificate is not None else f"--socket {_SOCKET}")
            + (" --oidc %d/oidc" if self.oidc is not None else "")
            + (f" --identity-header {self.identity_header} --proxy-user {self.proxy_user}" if self.proxy_user else ""),
            own="\n".join([*([] if self.certificate is not None else [_RUNTIME_FOLDER]), *self._credentials()]),
            capabilities="CAP_NET_BIND_SERVICE" if self.certificate is not None and self._port < 1024 else "",
        )

    def caddyfile(self) -> str:
        """Return the site of a Caddyfile."""
        site = "Caddyfile" if self.identity_header is None else "Caddyfile.with_names"
        return _template(site).format(host=self.address.host, socket=_SOCKET, header=self.identity_header)

    def steps(self) -> str:
        """Return the commands that put the files in place, as comments."""
        group = (
            f"\n#   usermod --append --groups {self.user} {self.proxy_user or 'caddy'}"
            "   # the proxy may open the socket, and no file of the lab"
        )
        return _template("steps.txt").format(
            user=self.user, home=self.home, program=_program(), group="" if self.certificate is not None else group
        )

    @property
    def _port(self) -> int:
        return int(self.address.host.rpartition(":")[2]) if re.search(r":\d+$", self.address.host) else 443

    def _tls(self) -> str:
        return f"--host 0.0.0.0 --port {self._port} --tls-cert %d/tls-cert --tls-key %d/tls-key"

    def _credentials(self) -> list[str]:
        files = {"tls-cert": self.certificate, "tls-key": self.key, "oidc": self.oidc}
        lines = [f"LoadCredential={name}:{path}" for name, path in files.items() if path is not None]
        return ["# Root reads these, and hands them to this service alone.", *lines] if lines else []


def _program() -> Path:
    return Path(sys.executable).with_name("loratory")


def _template(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")
