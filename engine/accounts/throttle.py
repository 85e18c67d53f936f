"""How often signing in may be tried, and the demo asked: per address and in all. In memory, so a restart forgets it."""

import ipaddress
import math
import time

from limits import RateLimitItem, RateLimitItemPerHour, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from loratory.engine.errors import AccountError

_OF_AN_ADDRESS = RateLimitItemPerMinute(20, namespace="address")
_OF_ALL = RateLimitItemPerMinute(120, namespace="all")
# Of a name, from one network and from all together: so many attempts at once, and so many a minute beyond, so the right
# password waits for a minute instead of an hour. It clears the wrong ones.
_AT_ONCE = RateLimitItemPerHour(10, namespace="name")
_BEYOND_OF_A_NETWORK = RateLimitItemPerMinute(1, namespace="name at an address")
_BEYOND_OF_A_NAME = RateLimitItemPerMinute(3, namespace="name")  # more than one network can use up
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

    def begin(self, address: str, name: str, *, device: str = "") -> None:
        """Count an attempt, before its password is checked: also of those that are made at the same time.

        Args:
            address: Of the client, as a proxy that is trusted gives it.
            device: Names the browser or the session that this name was signed in with before; it is then counted alone.

        Raises:
            ThrottledError: If there were too many from this address, for this name, or in all.
        """
        if device:
            self._count_guess(_BEYOND_OF_A_NETWORK, "device", device)
            return
        for limit, key in ((_OF_AN_ADDRESS, network_of(address)), (_OF_ALL, "")):
            if not self._limiter.hit(limit, key):
                raise ThrottledError(_seconds_until(self._limiter, limit, key))
        self._count_guess(_BEYOND_OF_A_NETWORK, network_of(address), _key(name))
        self._count_guess(_BEYOND_OF_A_NAME, _key(name))

    def may_note(self) -> bool:
        """Whether an attempt that was refused goes into the audit log: a few a minute are enough to see an attack."""
        return self._limiter.hit(_NOTED, "")

    def clear_attempts(self, address: str, name: str, *, device: str = "") -> None:
        """Forget the attempts of a person who has just given the right password."""
        for key in ((network_of(address), _key(name)), (_key(name),), ("device", device)):
            self._limiter.clear(_AT_ONCE, *key)

    def _count_guess(self, beyond: RateLimitItem, *key: str) -> None:
        is_slow = self._limiter.hit(beyond, *key)  # counted from the first one on
        if not self._limiter.hit(_AT_ONCE, *key) and not is_slow:
            raise ThrottledError(_seconds_until(self._limiter, beyond, *key))


class DemoThrottle:
    """Counts the questions that people without an account ask the demo of a Space."""

    def __init__(self) -> None:
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def begin(self, address: str) -> None:
        """Count a question, before it is answered.

        Raises:
            ThrottledError: If there were too many from this address, or in all.
        """
        limits = (_ASKED_BY_AN_ADDRESS, network_of(address), "from your network"), (_ASKED_BY_ALL, "", "to this demo")
        for limit, key, where in limits:
            if not self._limiter.hit(limit, key):
                seconds = _seconds_until(self._limiter, limit, key)
                raise ThrottledError(seconds, f"There were {limit.amount} questions {where} within an hour.")


def _seconds_until(limiter: MovingWindowRateLimiter, limit: RateLimitItem, *key: str) -> float:
    return limiter.get_window_stats(limit, *key).reset_time - time.time()


def _key(name: str) -> str:
    return name.strip().lower()[:64]


def network_of(address: str) -> str:
    """Return what is counted for an address: of IPv6 the network, since one client has all of its addresses."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is None:
        return str(ipaddress.ip_network((ip, _IPV6_PREFIX), strict=False))
    return str(ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else ip)
