"""A model behind an address that speaks OpenAI's protocol; what goes wrong there is a fact and a fix, without the key."""

import json
import os
import re
import time
from typing import Any

from loratory.engine.data.records import one_line
from loratory.engine.errors import EngineError

_ADDRESS = re.compile(r"(https?://(?:[\w.-]+|\[[\da-f:]+\])(?::\d{1,5})?)(?:/(?:[\w./~-]*[\w~-])?)?/?", re.ASCII)
_WAITS_SECONDS = (1.0, 5.0, 20.0, None)  # before a request is sent again
_MOST_BYTES = 4 << 20  # of a response
_ADDRESS_FIX = "Check the address, which often ends in /v1, the name of the model, and whether the server runs."
_KEY_FIX = "Set a variable to the key, and give its name, not the key, as --key-variable."


class EndpointError(EngineError):
    """An endpoint did not answer, or not as it should."""


class Endpoint:
    """Asks one model; an EndpointError says what cannot be used, or is not answered. No error has the key or the address."""

    def __init__(self, address: str, model: str, key_variable: str, answer_tokens: int, timeout_seconds: float) -> None:
        match = _ADDRESS.fullmatch(address)
        if match is None or not model:
            fix = "Give --model, and --endpoint as http://localhost:8000/v1, without user name, key or query."
            raise EndpointError("The address of the endpoint or the name of the model cannot be used.", fix)
        path = address.removeprefix(match[1]).rstrip("/").removesuffix("/chat/completions") or "/v1"
        self._address, self._timeout, self._takes_schema = f"{match[1]}{path}/chat/completions", timeout_seconds, True
        self._request = {"model": model, "max_tokens": answer_tokens}
        self._key = os.environ.get(key_variable, "").strip() if key_variable else ""
        if key_variable and not re.fullmatch(r"[\x21-\x7e]{1,10000}", self._key):
            raise EndpointError("The variable that --key-variable names is empty, or holds no key.", _KEY_FIX)

    def complete(self, messages: list[dict[str, str]], schema: dict[str, Any]) -> tuple[str, int, bool]:
        """Return text, tokens (0 where they are not counted), and whether it is cut."""
        form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
        for wait in _WAITS_SECONDS:
            status, text = self._post(
                {"messages": messages, **({"response_format": form} if self._takes_schema else {})}
            )
            if status in (400, 422) and "max_completion_tokens" in text and "max_tokens" in self._request:
                self._request["max_completion_tokens"] = self._request.pop("max_tokens")  # its name for newer models
            elif status in (400, 422) and self._takes_schema:
                self._takes_schema = False  # not every server knows response_format
            elif wait is None or (status not in (0, 429) and status < 500):
                break
            else:
                time.sleep(wait)
        is_page = text.lstrip().startswith("<")
        try:
            reply = json.loads(text) if status == 200 else {}
            choice, usage = reply["choices"][0], reply.get("usage") or {}
            tokens = sum(max(0, int(usage.get(name) or 0)) for name in ("prompt_tokens", "completion_tokens"))
            return str(choice["message"]["content"] or ""), tokens, choice["finish_reason"] == "length"
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            what = "a web page" if is_page else one_line(text, 300)
            what = f"The endpoint answered {status}: {what}." if status else f"The endpoint did not answer: {text}."
            raise EndpointError(what, _KEY_FIX if status in (401, 403) else _ADDRESS_FIX) from None

    def _post(self, values: dict[str, Any]) -> tuple[int, str]:
        """Return status and content; 0 and the reason where nothing came, or not all of it."""
        import httpx  # takes long to import

        headers = {"Accept-Encoding": "identity", **({"Authorization": f"Bearer {self._key}"} if self._key else {})}
        is_here = re.match(r"http://(localhost|127\.|\[::1)", self._address) is not None  # no proxy leads there
        body, deadline = bytearray(), time.monotonic() + self._timeout
        try:
            with (
                httpx.Client(trust_env=not is_here, timeout=self._timeout) as client,
                client.stream("POST", self._address, json={**self._request, **values}, headers=headers) as response,
            ):
                for piece in response.iter_bytes():
                    body += piece
                    if len(body) > _MOST_BYTES:
                        raise EndpointError(
                            f"The endpoint answered with more than {_MOST_BYTES:,} bytes.", _ADDRESS_FIX
                        )
                    if time.monotonic() > deadline:
                        raise httpx.ReadTimeout("")
        except (httpx.ReadTimeout, httpx.WriteTimeout):
            # Not sent again: the model may still be working on it, and be paid for it.
            what = f"The endpoint did not answer within {self._timeout:g} s."
            raise EndpointError(what, "Raise --timeout, or lower --answer-tokens.") from None
        except (OSError, httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            return 0, type(error).__name__
        text = body.decode(errors="replace")
        return response.status_code, text.replace(self._key, "(key)") if self._key else text
