"""How often signing in may be tried, and the demo asked: per address and in all. In memory, so a restart forgets it."""

import ipaddress
import math
import time

from limits import RateLimitItem, RateLimitItemPerHour, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from engine.errors import AccountError

_OF_AN_ADDRESS = RateLimitItemPerMinute(20, namespace="address")
_OF_A_NAME = RateLimitItemPerHour(10, namespace="name")  # of failures: a right password clears them
_OF_ALL = RateLimitItemPerMinute(120, namespace="all")
_NOTED = RateLimitItemPerMinute(6, namespace="noted")  # of refused attempts in the audit log, which must not be filled
_IPV6_PREFIX = 64  # what one customer has
_ASKED_BY_AN_ADDRESS = RateLimitItemPerHour(20, namespace="asked by an address")
_ASKED_BY_ALL = RateLimitItemPerHour(120, namespace="asked by all")  # at some 10 s of two cores each: a third of them


class ThrottledError(AccountError):
    """Too many attempts; try again after `seconds`."""

    def __init__(self, seconds: float, what: str = "There were too many attempts to sign in.") -> None:
        self.seconds = max(1, math.ceil(seconds))
        super().__init__(what, f"Try again in {self.seconds} s.")


class SignInThrottle:
    """Counts attempts to sign in.

    A name that does not exist is counted as one that does, so the answer reveals nothing.
    """

    def __init__(self) -> None:
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def begin(self, address: str, name: str) -> None:
        """Count an attempt, before its password is looked at.

        Args:
            address: Of the client, as a proxy that is trusted gives it.

        Raises:
            ThrottledError: If there were too many from this address, for this name, or in all.
        """
        for limit, key in ((_OF_AN_ADDRESS, _network(address)), (_OF_ALL, "")):
            if not self._limiter.hit(limit, key):
                raise ThrottledError(_seconds_until(self._limiter, limit, key))
        key = _key(name)
        if not self._limiter.test(_OF_A_NAME, key):
            raise ThrottledError(_seconds_until(self._limiter, _OF_A_NAME, key))

    def failed(self, name: str) -> None:
        """Count a wrong password."""
        self._limiter.hit(_OF_A_NAME, _key(name))

    def may_note(self) -> bool:
        """Whether an attempt that was refused goes into the audit log: a few a minute are enough to see an attack."""
        return self._limiter.hit(_NOTED, "")

    def succeeded(self, name: str) -> None:
        """Forget the wrong passwords of a person who has just given the right one."""
        self._limiter.clear(_OF_A_NAME, _key(name))


class DemoThrottle:
    """Counts the questions that people without an account ask the demo of a Space."""

    def __init__(self) -> None:
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def begin(self, address: str) -> None:
        """Count a question, before it is answered.

        Raises:
            ThrottledError: If there were too many from this address, or in all.
        """
        limits = (_ASKED_BY_AN_ADDRESS, _network(address), "from your network"), (_ASKED_BY_ALL, "", "to this demo")
        for limit, key, where in limits:
            if not self._limiter.hit(limit, key):
                seconds = _seconds_until(self._limiter, limit, key)
                raise ThrottledError(seconds, f"There were {limit.amount} questions {where} within an hour.")


def _seconds_until(limiter: MovingWindowRateLimiter, limit: RateLimitItem, key: str) -> float:
    return limiter.get_window_stats(limit, key).reset_time - time.time()


def _key(name: str) -> str:
    return name.strip().lower()[:64]


def _network(address: str) -> str:
    """Return what is counted for an address: of IPv6 the network, since one client has all of its addresses."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is None:
        return str(ipaddress.ip_network((ip, _IPV6_PREFIX), strict=False))
    return str(ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else ip)
