"""A person's account at Hugging Face: its login, and the hardware with its prices and the time that a run needs it."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from loratory.engine.accounts.limits import is_lab
from loratory.engine.accounts.people import Logins, require_token
from loratory.engine.errors import EngineError, HubUnreachableError, PushError, SignInNeededError
from loratory.engine.hardware.device import Device, similar_device
from loratory.engine.hub import JOBS
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.prediction import PROCESSOR_TFLOPS_PER_CORE, estimated_hours, in_half_hours

if TYPE_CHECKING:
    from huggingface_hub import HfApi, JobHardwareInfo

_KEPT_SECONDS = 14 * 24 * 3600.0  # of a token that a person gave: as long as a session of a lab may last


class HubLogin(NamedTuple):
    """A person's login at Hugging Face."""

    api: HfApi
    hours_left: float = math.inf  # until its token expires


LoginOf = Callable[[str], HubLogin]  # by the owner of a run; raises SignInNeededError or PushError where there is none


def logins_of(home: LoratoryHome, logins: Logins | None = None) -> LoginOf:
    """Return the function that finds the login for the runs of a home.

    In a lab it is each person's own, whatever login its machine has; commands there have none, for tokens are in the memory
    of the server.
    """

    def find(owner: str) -> HubLogin:
        from huggingface_hub import HfApi, get_token

        if logins is None and not is_lab(home):
            token = get_token()
            if not token:
                what = "Training at Hugging Face needs a token, and there is none."
                raise PushError(what, "Run `hf auth login`, or set HF_TOKEN.")
            return HubLogin(HfApi(token=token))
        token = logins.token_of(owner) if logins is not None and owner else None
        if logins is None or not token:
            raise SignInNeededError(
                "Hugging Face Jobs run under your own account, and you are not signed in there.",
                "Give a token of yours under “Where” on the Train tab; in a Space, sign in again.",
            )
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

    with JOBS.explain_errors("your account"):
        name = str(HfApi(token=token).whoami()["name"])
    logins.put(person_name, token, time.time() + _KEPT_SECONDS)
    return name


DEFAULT_LIMIT_HOURS = 6.0  # where the length of a run cannot be estimated


@dataclass(frozen=True)
class Flavor:
    """One kind of machine."""

    name: str  # as a job names it
    title: str
    device: Device
    price_per_hour_usd: float
    tflops: float  # dense, at 16 bits


def price_per_hour_usd(hardware: JobHardwareInfo) -> float:
    """Return the price of an hour; Hugging Face gives it per minute, or per another unit that it names."""
    units = {"second": 3600, "minute": 60, "hour": 1}
    return hardware.unit_cost_usd * units.get(hardware.unit_label.lower(), 60)


def read_flavors(hardware: Iterable[JobHardwareInfo]) -> tuple[Flavor, ...]:
    """Return the machines with one device, the cheapest first; a GPU that is not known here is left out."""
    flavors = (_flavor_of(machine) for machine in hardware)
    return tuple(sorted(filter(None, flavors), key=lambda flavor: flavor.price_per_hour_usd))


def _flavor_of(hardware: JobHardwareInfo) -> Flavor | None:
    price = price_per_hour_usd(hardware)
    ram = round(_number(hardware.ram) * (1e12 if "TB" in hardware.ram.upper() else 1e9))
    accelerator = hardware.accelerator
    if accelerator is None:
        cores = int(_number(hardware.cpu))
        device = Device("cpu", 0, hardware.pretty_name, ram, ram, has_fast_bfloat16=False, cores=cores)
        return Flavor(hardware.name, hardware.pretty_name, device, price, cores * PROCESSOR_TFLOPS_PER_CORE)
    known_device = (
        similar_device(accelerator.model, _number(accelerator.vram)) if _number(accelerator.quantity) == 1 else None
    )
    if known_device is None or known_device.dense_tflops is None:
        return None
    return Flavor(hardware.name, hardware.pretty_name, known_device.device(), price, known_device.dense_tflops)


def _number(text: str) -> float:
    match = re.search(r"\d+(\.\d+)?", text)
    return float(match[0]) if match else 0.0


_LONGEST_HOURS = 72.0


def estimate_limit_hours(flavor: Flavor, parameters: int, tokens: float) -> float:
    """Return a time limit that a run is unlikely to reach, in half hours; `tokens` are those of all epochs."""
    return in_half_hours(estimated_hours(parameters, tokens, flavor.tflops), _LONGEST_HOURS)


def flavor_named(flavors: Sequence[Flavor], name: str) -> Flavor | None:
    """Return the flavor of a name; None where there is none."""
    return next((flavor for flavor in flavors if flavor.name == name), None)


_LIST_SECONDS = 3600.0  # prices change seldom
_TROUBLE_SECONDS = 20.0  # a login or a network comes back


class HardwareList:
    """The machines and prices that Hugging Face lists, cached for an hour.

    Args:
        login: Asks Hugging Face; called each time, so a login that is gone is noticed.
    """

    def __init__(self, login: Callable[[], HubLogin]) -> None:
        self._login = login
        self._answer: tuple[float, tuple[Flavor, ...]] | None = None
        self.trouble: EngineError | None = None  # why the last request failed
        self._trouble_since = 0.0

    @property
    def is_known(self) -> bool:
        """Whether there is an answer, or a recent error."""
        is_refused = time.monotonic() - self._trouble_since < _TROUBLE_SECONDS
        return is_refused if self.trouble is not None else self._answer is not None

    def known(self) -> tuple[Flavor, ...]:
        """Return the cached answer without waiting; raises as `refresh` did, or if it was never called."""
        if self.trouble is not None:
            raise self.trouble
        if self._answer is None:
            raise HubUnreachableError("Asking Hugging Face for its hardware and prices …", "Wait a moment.")
        return self._answer[1]

    def refresh(self) -> tuple[Flavor, ...]:
        """Return the machines, the cheapest first.

        Raises:
            PushError: If there is no login, or it is refused.
            HubUnreachableError: If Hugging Face does not answer.
        """
        answer = self._answer
        try:
            api = self._login().api
            if answer is None or time.monotonic() - answer[0] > _LIST_SECONDS:
                with JOBS.explain_errors("your account"):
                    answer = time.monotonic(), read_flavors(api.list_jobs_hardware())
        except EngineError as error:
            self.trouble, self._trouble_since = error, time.monotonic()
            raise
        self._answer, self.trouble = answer, None
        return answer[1]

    def forget(self) -> None:
        """Discard the answer, because the login has changed."""
        self._answer = self.trouble = None
