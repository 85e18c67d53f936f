"""A lab on this machine, behind real TLS, with people in it."""

import contextlib
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
from argon2 import PasswordHasher

from loratory.engine.accounts.accounts import Accounts, open_database
from loratory.engine.accounts.lab import PublicAddress, change_settings
from loratory.engine.accounts.listener import bound_socket
from loratory.engine.accounts.oidc import Provider
from loratory.engine.accounts.passwords import Passwords
from loratory.engine.accounts.people import Logins, Person, Role
from loratory.engine.accounts.sessions import Sessions
from loratory.engine.paths import LoratoryHome
from loratory.engine.private_hub import PrivateCopy
from loratory.ui.backend.background import FunctionJob
from loratory.ui.backend.models import OwnDownloads
from loratory.ui.front.gate import COOKIE
from loratory.ui.front.pages import PersonPages
from loratory.ui.front.serve import build_gate
from loratory.ui.front.space import Space
from loratory.ui.services import Services
from tests.fake_services import fake_services
from tests.real_tls import certificate_for, serve_over_tls

PASSWORD = "correct horse battery"
PATIENCE_SECONDS = 300


@dataclass
class Lab:
    """A lab that is being served.

    Attributes:
        home: Its folder.
        url: Its address.
        accounts: Its people.
        sessions: Their sessions.
        pages: Their pages.
        trust: Knows its certificate.
        logins: Of its people, at Hugging Face.
        has_demo: Whether it is that of a Space.
    """

    home: LoratoryHome
    url: str
    accounts: Accounts
    sessions: Sessions
    pages: PersonPages
    trust: ssl.SSLContext
    logins: Logins
    has_demo: bool = False

    def add(self, name: str, role: Role = "member") -> Person:
        """Make an account."""
        return self.accounts.accept(self.accounts.invite(role, by="").token, name, PASSWORD)

    def browser(self, token: str | None = None, **headers: str) -> httpx.Client:
        """Return a client that behaves as the lab's own page does."""
        own = {"Origin": self.url, "Sec-Fetch-Site": "same-origin", **headers}
        cookies = {} if token is None else {COOKIE: token}
        # It gives up an unused connection before the server does, after five seconds: a request would meet its end.
        limits = httpx.Limits(keepalive_expiry=1)
        return httpx.Client(
            base_url=self.url, verify=self.trust, headers=own, cookies=cookies, timeout=300, limits=limits
        )

    def signed_in(self, name: str) -> httpx.Client:
        """Return a client with a session of that person."""
        return self.browser(self.sessions.begin(self.accounts.person(name), "127.0.0.1", "test"))


@contextmanager
def running_lab(
    root: Path,
    services_of: Callable[[LoratoryHome, Person], Services] | None = None,
    *,
    behind_proxy: bool = False,
    provider_at: Callable[[str], Provider] | None = None,
    space_at: Callable[[str], Space] | None = None,
    logins: Logins | None = None,
) -> Iterator[Lab]:
    """Serve a lab from a thread, or that of a Space; with services that need no model where none are given."""
    logins = logins or Logins()
    home = LoratoryHome(root)
    home.make_writable()
    change_settings(home, limits={"free_disk_gb": 0})  # whatever this machine's disk has left
    bound = bound_socket("127.0.0.1", 0)
    address = PublicAddress.parse(f"https://localhost:{bound.getsockname()[1]}")
    certificate = certificate_for("localhost", root)

    def make(person: Person) -> Services:
        own = home.for_person(person.name, person.role)
        return services_of(own, person) if services_of is not None else fake_services_of(own, person)

    provider = provider_at(address.origin) if provider_at is not None else None
    space = space_at(address.origin) if space_at is not None else None
    gate, pages = build_gate(
        home, address, make, behind_proxy=behind_proxy, provider=provider, space=space, logins=logins
    )
    quick = Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    with serve_over_tls(gate, bound, certificate, grace_seconds=2), contextlib.closing(open_database(home)) as database:
        yield Lab(
            home,
            address.origin,
            Accounts(database, quick),
            Sessions(database),
            pages,
            certificate.trust,
            logins,
            has_demo=space is not None,
        )


def fake_services_of(own: LoratoryHome, person: Person) -> Services:
    """Services that need no model, in a person's own folders."""
    services = fake_services(own.root, home=own, owner=person.name)
    if own.is_guest:
        return replace(services, person=person)
    models = OwnDownloads(services.runs, "model", lambda _home, _kind, hub_id, *_: Arriving(hub_id))
    return replace(services, person=person, own_models=models, own_datasets=OwnDownloads(services.runs, "dataset"))


class Arriving(FunctionJob[PrivateCopy]):
    """A download of a model that is there at once."""

    def __init__(self, hub_id: str) -> None:
        super().__init__(lambda _: PrivateCopy(hub_id, 0, Path(hub_id)))
