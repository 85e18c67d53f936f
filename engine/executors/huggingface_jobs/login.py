"""Logins for Hugging Face: at home the machine's own, in a lab each person's token."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from engine.accounts.limits import is_lab
from engine.accounts.people import Logins, require_token
from engine.errors import PushError, SignInNeededError
from engine.hub import JOBS
from engine.paths import LoratoryHome

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_KEPT_SECONDS = 14 * 24 * 3600.0  # of a token that a person gave: as long as a session of a lab may last


class HubLogin(NamedTuple):
    """A person's login at Hugging Face."""

    api: HfApi
    hours_left: float = math.inf  # until its token expires


LoginOf = Callable[[str], HubLogin]  # by the owner of a run; raises SignInNeededError or PushError where there is none


def this_login(_owner: str = "") -> HubLogin:
    """Return the login of this machine, for a home without accounts.

    Raises:
        PushError: If there is none.
    """
    from huggingface_hub import HfApi, get_token

    token = get_token()
    if not token:
        raise PushError(
            "Training at Hugging Face needs a token, and there is none.", "Run `hf auth login`, or set HF_TOKEN."
        )
    return HubLogin(HfApi(token=token))


def logins_of(home: LoratoryHome, logins: Logins | None = None) -> LoginOf:
    """Return the function that finds the login for the runs of a home.

    In a lab it is each person's own, whatever login its machine has; commands there have none, for tokens are in the memory
    of the server.
    """

    def find(owner: str) -> HubLogin:
        if logins is None and not is_lab(home):
            return this_login()
        token = logins.token_of(owner) if logins is not None and owner else None
        if logins is None or not token:
            raise SignInNeededError(
                "Hugging Face Jobs run under your own account, and you are not signed in there.",
                "Give a token of yours under “Where” on the Train tab; in a Space, sign in again.",
            )
        from huggingface_hub import HfApi

        return HubLogin(HfApi(token=token), logins.seconds_left(owner) / 3600)

    return find


def sign_in(logins: Logins, person_name: str, token: str) -> str:
    """Store a person's token in memory for as long as a session may last; return its account.

    Raises:
        AccountError: If that is not a token.
        PushError: If Hugging Face does not accept it.
        HubUnreachableError: If it does not answer.
    """
    token = require_token(token, "write access and the right to jobs")
    from huggingface_hub import HfApi

    with JOBS.explained("your account"):
        name = str(HfApi(token=token).whoami()["name"])
    logins.put(person_name, token, time.time() + _KEPT_SECONDS)
    return name
