"""Data of persons that patterns and check digits can find: mail, phone, IBAN, card and IP addresses."""

import contextlib
import ipaddress
import re
from collections.abc import Iterator
from itertools import islice
from string import digits

from phonenumbers import Leniency, NumberParseException, PhoneNumberMatcher, is_valid_number, parse
from stdnum import iban, luhn

from loratory.engine.data.records import one_line
from loratory.engine.data.workshop.checks.base import CheckedRow, RowCheck

MAX_TURNS, MAX_CHARACTERS, MAX_TESTED = 200, 100_000, 50  # of a row, of a turn, and possible phone numbers in it
_NUMBER = re.compile(r"\d(?:[ ().:\-/]{0,2}[0-9a-fA-F]){3}")
_MAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,5}[a-z]{2,24}(?![\w-])", re.IGNORECASE)
# Domains that RFC 2606 and RFC 6761 reserve for examples.
_EXAMPLE = re.compile(r"[@.](?:example\.(?:com|org|net)|example|test|invalid|localhost|local)$", re.IGNORECASE)
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
_CARD = re.compile(r"(?<![\w.+-])(?:[2-6]\d{3}(?:[ -]?\d{4}){2}[ -]?\d{1,7}|3[47]\d\d[ -]?\d{6}[ -]?\d{5})(?![\w-])")
_IP = re.compile(r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9a-fA-F]{1,4}(?:::?[0-9a-fA-F]{1,4}){3,7})(?![\w:]|\.\d)")
_PHONE = re.compile(r"(?<![\w.,/=#-])(?!\d{4}-\d\d-\d\d)[+(]?\d[\d ().\-/]{5,22}\d(?!\w)")
_GROUPED = re.compile(r"\d[ ().\-/]+\d")


class PersonalData(RowCheck):
    """Mail addresses, phone numbers, IBANs, card numbers and public IP addresses."""

    def add(self, row: CheckedRow) -> None:
        values: dict[str, tuple[int, str]] = {}
        for turn in row.turns[:MAX_TURNS]:
            for kind, value in self._values(turn.text[:MAX_CHARACTERS]):
                values.setdefault(kind, (turn.number, value))
                self.masks.setdefault(row.number, {})[value] = f"[{kind}]"
        for kind, (number, value) in values.items():
            self.report(row.number, kind, f"Turn {number}, {kind}: {one_line(value, 40)}.")

    def _values(self, text: str) -> Iterator[tuple[str, str]]:
        """Yield the kind and the value of what is found in a text; patterns are tried where a cheap sign occurs."""
        if "@" in text:
            yield from (("mail", match[0]) for match in _MAIL.finditer(text) if not _EXAMPLE.search(match[0]))
        if (number := _NUMBER.search(text)) is None:
            return
        text = text[max(0, number.start() - 40) : max(map(text.rfind, digits)) + 40]
        yield from (("iban", match[0]) for match in _IBAN.finditer(text) if iban.is_valid(match[0]))
        text = _IBAN.sub(" ", text)
        yield from (("card", match[0]) for match in _CARD.finditer(text) if luhn.is_valid(re.sub("[ -]", "", match[0])))
        text = _CARD.sub(" ", text)
        yield from (("ip", match[0]) for match in _IP.finditer(text) if _is_public(match[0]))
        numbers = islice(_PHONE.finditer(_IP.sub(" ", text)), MAX_TESTED)
        yield from (("phone", match[0]) for match in numbers if self._is_phone(match[0]))

    def _is_phone(self, text: str) -> bool:
        """Return whether a number is valid; national ones need the groups of their country."""
        regions = self.settings.phone_regions.split(",") if _GROUPED.search(text) else []
        for region in ["ZZ"] if (is_international := text.startswith("+")) else regions:
            with contextlib.suppress(NumberParseException):
                matcher = PhoneNumberMatcher(text, region, Leniency.STRICT_GROUPING, 1)
                if is_valid_number(parse(text, region)) and (is_international or matcher.has_next()):
                    return True
        return False


def _is_public(text: str) -> bool:
    """Return whether a text is the address of a host on the internet."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(text).is_global
    return False
