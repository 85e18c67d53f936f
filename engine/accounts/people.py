"""People of a lab, the one function that decides what each may do, and their tokens for Hugging Face."""

import re
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, get_args

from loratory.engine.errors import AccountError, shorten

Role = Literal["admin", "member", "guest"]
ROLES: tuple[Role, ...] = get_args(Role)

# A name is also the folder of the person's runs, uploads and exports, so it is a folder name on every file system: Windows
# has devices that answer to some names in any folder.
_NAME = re.compile(r"[a-z][a-z0-9_-]{1,31}")
DEMO_OWNER = "demo"  # of the run that a Space shows to people who have no account there
_RESERVED_NAMES = frozenset(  # folders next to those of people, and devices
    {"shared", "local", "lab", "server", DEMO_OWNER, "con", "prn", "aux", "nul"}
    | {f"{port}{number}" for port in ("com", "lpt") for number in range(10)}
)


class Action(StrEnum):
    """What a person can do to a run, or in the lab."""

    READ = "read"  # settings, losses, logs, evaluations
    CHAT = "chat"
    COPY = "copy"  # its settings, into a draft
    EVALUATE = "evaluate"
    EXPORT = "export"
    PUSH = "push"
    CONTINUE = "continue"  # start another run from its adapter
    SHARE = "share"  # with the lab, or no longer
    STOP = "stop"  # also cancel, and move in the queue
    RESUME = "resume"
    DELETE = "delete"

    START = "start"  # a run, in the lab
    USE_OWN_DATA = "use own data"  # upload it, or name a path in the person's or the lab's folders
    USE_JOBS = "use jobs"  # train at Hugging Face in the person's own name
    USE_URGENT_SLOT = "use urgent slot"
    MANAGE = "manage"  # people, limits, shared models and data, announcements, maintenance


_LAB_ACTIONS = frozenset({Action.START, Action.USE_OWN_DATA, Action.USE_JOBS, Action.USE_URGENT_SLOT, Action.MANAGE})
RUN_ACTIONS = frozenset(Action) - _LAB_ACTIONS


@dataclass(frozen=True)
class Person:
    """An account."""

    name: str  # lower case; also the name of the person's folders. Never given to another person again
    role: Role  # what the person may do; see `may`
    created: float  # seconds since the epoch, as all times here
    last_sign_in: float | None = None  # None before the first
    disabled: float | None = None  # when an admin disabled the account; None while it may be used


@dataclass(frozen=True)
class RunAccess:
    """What decides about a run: whose it is, and whether its owner shared it with the lab."""

    owner: str
    is_shared: bool = False


@dataclass(frozen=True)
class _Rights:
    own: frozenset[Action]
    lab: frozenset[Action]
    shared: frozenset[Action] = frozenset()
    foreign: frozenset[Action] = frozenset()


_RIGHTS: dict[Role, _Rights] = {
    "admin": _Rights(own=RUN_ACTIONS, shared=RUN_ACTIONS, foreign=RUN_ACTIONS, lab=_LAB_ACTIONS),
    "member": _Rights(
        own=RUN_ACTIONS,
        shared=frozenset({Action.READ, Action.CHAT, Action.COPY}),
        lab=frozenset({Action.START, Action.USE_OWN_DATA, Action.USE_JOBS}),
    ),
    "guest": _Rights(own=RUN_ACTIONS - {Action.PUSH, Action.SHARE}, lab=frozenset({Action.START})),
}


def may(person: Person, action: Action, run: RunAccess | None = None) -> bool:
    """Return whether a person may do something; what no rule allows is refused.

    Args:
        person: Who asks. A disabled account may do nothing.
        run: The run that it concerns; None for what concerns the lab.
    """
    if person.disabled is not None or (run is None) == (action in RUN_ACTIONS):
        return False
    rights = _RIGHTS[person.role]
    if run is None:
        return action in rights.lab
    if run.owner == person.name:
        return action in rights.own
    return action in (rights.shared if run.is_shared else rights.foreign)


def require(person: Person | None, action: Action, run: RunAccess | None = None) -> None:
    """Raise unless a person may do something; without accounts, everyone may.

    Raises:
        AccountError: With the same words for everything.
    """
    if person is not None and not may(person, action, run):
        raise AccountError("Your account may not do that.", "Ask an admin of the lab.")


def is_logged(person: Person, run: RunAccess) -> bool:
    """Return whether looking into a run goes to the audit log: it is another person's, and was not shared."""
    return run.owner != person.name and not run.is_shared


def require_name(name: str) -> str:
    """Return a name for a new account as it is kept.

    Raises:
        AccountError: If it cannot be one.
    """
    text = name.strip().lower()
    if text in _RESERVED_NAMES:
        raise AccountError(f"{text!r} cannot be the name of an account: it is reserved.", "Choose another name.")
    if not _NAME.fullmatch(text):
        raise AccountError(
            f"{shorten(name, 40)!r} cannot be the name of an account.",
            "Use 2 to 32 letters, digits, - and _, beginning with a letter.",
        )
    return text


def require_role(role: str) -> Role:
    """Return a role by its name.

    Raises:
        AccountError: If there is no such role.
    """
    for known in ROLES:
        if role == known:
            return known
    raise AccountError(f"{role[:40]!r} is not a role.", f"Choose {', '.join(ROLES[:-1])} or {ROLES[-1]}.")


class Logins:
    """Tokens for Hugging Face of people who signed in with an account there. In memory alone: a restart forgets them."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # guards `_tokens`
        self._tokens: dict[str, tuple[str, float]] = {}  # with the time at which each expires

    def __repr__(self) -> str:
        """Name people, not their tokens."""
        return f"Logins of {len(self._tokens)} people"

    def put(self, person_name: str, token: str, expires: float) -> None:
        """Keep the token of a person who has just signed in, in place of an earlier one.

        Args:
            expires: When it does, in seconds since the epoch.
        """
        with self._lock:
            self._tokens[person_name] = token, expires

    def token_of(self, person_name: str) -> str | None:
        """Return a person's token; None where there is none, or it has expired."""
        with self._lock:
            token, expires = self._tokens.get(person_name, ("", 0.0))
            if expires > self._clock():
                return token
            self._tokens.pop(person_name, None)
            return None

    def seconds_left(self, person_name: str) -> float:
        """Return how long a person's token is valid; 0 where there is none."""
        with self._lock:
            return max(self._tokens.get(person_name, ("", 0.0))[1] - self._clock(), 0.0)

    def forget(self, person_name: str) -> None:
        """Forget a person's token, where there is one."""
        with self._lock:
            self._tokens.pop(person_name, None)

    def forget_all_but(self, names: Collection[str]) -> None:
        """Forget the tokens of people who may no longer sign in."""
        with self._lock:
            for name in self._tokens.keys() - set(names):
                del self._tokens[name]


def require_token(text: str, right: str) -> str:
    """Return a token for Hugging Face that a person typed.

    Args:
        right: What the token must allow, for the words of the error.

    Raises:
        AccountError: If that cannot be a token.
    """
    token = text.strip()
    if not token.isascii() or not token.isprintable() or not 0 < len(token) <= 200 or " " in token:
        what = "That is not a Hugging Face token."
        raise AccountError(what, f"Make one with {right} at https://huggingface.co/settings/tokens.")
    return token
