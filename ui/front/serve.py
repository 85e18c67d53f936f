"""Serve a lab: one gate before the pages of all people, on a Unix socket behind a proxy, with its own TLS, or in a Space."""

import gc
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from starlette.applications import Starlette

from loratory.engine.accounts.access_tokens import AccessTokens
from loratory.engine.accounts.accounts import Accounts, open_database
from loratory.engine.accounts.audit import AuditKind, AuditLog
from loratory.engine.accounts.identities import Identities
from loratory.engine.accounts.lab import PublicAddress, audit_log_path, read_notice, read_settings, save_settings
from loratory.engine.accounts.listener import Listener, TrustedProxy
from loratory.engine.accounts.people import Action, Logins, Person, may
from loratory.engine.accounts.sessions import Sessions
from loratory.engine.accounts.throttle import SignInThrottle
from loratory.engine.chat.session import ChatSession
from loratory.engine.errors import EngineError
from loratory.engine.inspector.session import InspectorSlots
from loratory.engine.lab.queue import QueueBoard
from loratory.engine.paths import LoratoryHome
from loratory.engine.places import make_executors
from loratory.engine.places.huggingface_jobs.account import logins_of
from loratory.engine.runs.disk import DiskSamples, DiskUse, disk_warning, free_bytes
from loratory.engine.runs.store import list_owners
from loratory.engine.supervision.memory_measurement import sweep_measurements
from loratory.engine.supervision.scheduler import SupervisorSettings
from loratory.engine.supervision.supervisor import Supervisor
from loratory.ui.backend.lab import LabAdmin
from loratory.ui.backend.models import KnownFits, Shapes
from loratory.ui.backend.run_reader import SharedReaders
from loratory.ui.front.account import AccountPages
from loratory.ui.front.connections import bounded_server
from loratory.ui.front.forms import Front
from loratory.ui.front.gate import Gate, NamedByProxy
from loratory.ui.front.identities import IdentityPages, ProxyPages
from loratory.ui.front.memory import prepare_memory
from loratory.ui.front.pages import PersonPages, housekeeping
from loratory.ui.serve import build_services, close_services
from loratory.ui.services import Services

if TYPE_CHECKING:
    from loratory.engine.accounts.oidc import Provider
    from loratory.ui.front.space import Space

_GOODBYE_SECONDS = 5  # that open answers get when the server ends


def build_gate(
    home: LoratoryHome,
    address: PublicAddress,
    services_of: Callable[[Person], Services],
    *,
    behind_proxy: bool,
    provider: "Provider | None" = None,
    proxy: TrustedProxy | None = None,
    space: "Space | None" = None,
    logins: Logins,
) -> tuple[Gate, PersonPages]:
    """Put accounts, sign-in and pages together; the pages are maintained for as long as the gate is served.

    Args:
        behind_proxy: Whether all requests come through a proxy of ours.
        space: In a Space: who gets in there, with its own provider.
    """
    database = open_database(home)
    sessions = Sessions(database)
    audit = AuditLog(audit_log_path(home))
    accounts = Accounts(database)
    shared = accounts, sessions, SignInThrottle(), audit
    other: IdentityPages | None = None
    if space is not None:
        from loratory.ui.front.space import build_sign_in

        front, other = build_sign_in(space, database, shared, lambda: read_notice(home), logins)
    elif provider is not None:
        from loratory.ui.front.oidc import OidcPages  # only needed with a provider

        other = OidcPages(*shared, Identities(database, accounts), provider)
    names = None
    if proxy is not None:
        other = by_proxy = ProxyPages(*shared, Identities(database, accounts), proxy.header)
        names = NamedByProxy(proxy.header, by_proxy.may_continue)
    if space is None:
        front = Front(*shared, lambda: read_notice(home), other.service.title if other else "", logins)
    account = AccountPages(*shared, has_passwords=space is None)
    if other is not None:
        account = replace(account, parts_of=(other.links_of,))
    board = QueueBoard(home)
    disk = DiskSamples(home, lambda: {*(person.name for person in accounts.people()), *list_owners(home)})
    confirms_with = other.service.title if other is not None and other.service.can_confirm else ""

    def complete(person: Person) -> Services:
        is_admin = may(person, Action.MANAGE)
        admission = "" if space is None else space.who_gets_in()
        lab = LabAdmin(home, address, *shared, board, disk, person.name, confirms_with, admission) if is_admin else None

        def notice() -> str:
            unsaved_words = "" if space is None else space.unsaved_words(person.name)
            return " ".join(
                filter(None, (read_notice(home), unsaved_words, _disk_notice(home, disk.newest(person.name))))
            )

        def log(kind: AuditKind, run_id: str) -> None:
            audit.write(person.name, kind, f"{person.name}/{run_id}")

        return replace(services_of(person), notice=notice, log=log, lab=lab, board=board)

    def enabled_names() -> set[str]:
        names = {person.name for person in accounts.people() if person.disabled is None}
        logins.forget_all_but(names)
        return names

    pages = PersonPages(complete, address, close_services)
    agents, token_routes = None, []
    if space is None and find_spec("mcp") is not None:
        from loratory.ui.front.agents import AgentEndpoint, TokenPages

        tokens = AccessTokens(database)
        agents = AgentEndpoint(tokens, complete, close_services)
        token_pages = TokenPages(*shared, tokens, address.origin)
        token_routes = token_pages.routes()
        account = replace(account, parts_of=(*account.parts_of, token_pages.part_of))
    routes = [*front.routes(), *account.routes(), *token_routes, *(other.routes() if other else ())]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with (
            housekeeping(pages, enabled_names, disk.measure),
            agents.running() if agents is not None else nullcontext(),
        ):
            yield

    plain = Starlette(routes=routes, lifespan=lifespan)
    paths = frozenset(route.path for route in routes)
    welcome = None if space is None else space.welcome
    gate = Gate(
        address=address, find_session=sessions.find, front=plain, front_paths=paths, pages=pages, behind_proxy=behind_proxy,
        names=names, welcome=welcome, agents=agents,
    )  # fmt: skip
    return gate, pages


def _disk_notice(home: LoratoryHome, use: DiskUse | None) -> str:
    """Return what a person should do before disk space runs out; empty while there is enough, or it is not known."""
    try:
        return disk_warning(use, read_settings(home).limits, free_bytes(home)) if use is not None else ""
    except (EngineError, OSError):
        return ""


def serve_lab(
    home: LoratoryHome,
    address: PublicAddress,
    listener: Listener,
    provider: "Provider | None" = None,
    proxy: TrustedProxy | None = None,
    space: "Space | None" = None,
) -> None:
    """Serve a lab until Ctrl+C or SIGTERM.

    Args:
        proxy: Which names people; with a listener on a socket, and without a provider.
        space: In a Space: what was restored there, and who gets in.

    Raises:
        EngineError: If a service cannot start.
    """
    prepare_memory()
    server_socket = listener.open() if proxy is None else proxy.guard(listener.open())
    settings = read_settings(home)
    if settings.public_url != address.origin:
        save_settings(home, settings.model_copy(update={"public_url": address.origin}))
    logins = Logins()
    executors = partial(make_executors, login_of=logins_of(home, logins))
    supervisor = Supervisor(home, SupervisorSettings(executors=executors))
    catalog_shapes: Shapes = {}
    fits, shared = KnownFits(), SharedReaders()
    slots = InspectorSlots() if space is None else space.slots

    def services_of(person: Person) -> Services:
        own = home.for_person(person.name, person.role)
        own.uploads.mkdir(mode=0o700, parents=True, exist_ok=True)
        roots = (own.uploads, home.shared_data)
        own_services = build_services(own, person.name, roots, supervisor, person, catalog_shapes, slots, logins)
        if space is not None and space.zero_gpu is not None:
            own_services = replace(own_services, chat=ChatSession(own, zero_gpu=space.zero_gpu))
        return replace(own_services, fits=fits, shared=shared)

    sweep_measurements(home)
    behind_proxy = listener.behind_proxy
    gate, _ = build_gate(
        home, address, services_of, behind_proxy=behind_proxy, provider=provider, proxy=proxy, space=space,
        logins=logins,
    )  # fmt: skip
    if supervisor.start() == "standing_by":
        print(supervisor.explain_standing_by(), flush=True)
    grace_seconds = _GOODBYE_SECONDS if space is None else 1  # a Space needs the time to save
    server, server_socket = bounded_server(gate, server_socket, listener.certificate, listener.key, grace_seconds)
    gc.freeze()  # the objects of the imports stay; no collection visits them again
    gc.enable()
    # uvicorn raises the signal again after the last answer; by default that would end the process early.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    print(f"The lab is at {address.origin} (Ctrl+C closes it; runs continue).", flush=True)
    try:
        server.run(sockets=[server_socket])
    finally:
        supervisor.stop()
        if listener.socket_path is not None:
            listener.socket_path.unlink(missing_ok=True)
