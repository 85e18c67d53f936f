"""Asks a model behind an OpenAI-compatible endpoint."""

import json
import re
import time
from collections.abc import Callable
from typing import Any

import httpx

from loratory.engine.errors import ModelError, shorten

_ADDRESS = re.compile(r"(https?://(?:[\w.-]+|\[[\da-f:]+\])(?::\d{1,5})?)(?:/(?:[\w./~-]*[\w~-])?)?/?", re.ASCII)
_WAITS_SECONDS = (1.0, 5.0, 20.0, None)  # before a request is sent again
_ADDRESS_FIX = "Check the address, which often ends in /v1, the name of the model, and whether the server runs."
_KEY_FIX = "Give a key of this endpoint; a command reads it from the variable that --key-variable names."
_MOST_BYTES = 4 << 20  # of a response
Resolve = Callable[[str, int], str] | None  # what a host and a port are asked at, or its error


class Endpoint:
    """Asks one model; a ModelError says what cannot be used, or is not answered. No error has the key or the address."""

    def __init__(self, settings: dict[str, Any], key: str | None, timeout: float, resolve: Resolve = None) -> None:
        match = _ADDRESS.fullmatch(settings["endpoint"])
        if match is None or not settings["model"]:
            fix = "Give the model, and the endpoint as http://localhost:8000/v1, without user name, key or query."
            raise ModelError("The address of the endpoint or the name of the model cannot be used.", fix)
        path = settings["endpoint"].removeprefix(match[1]).rstrip("/").removesuffix("/chat/completions") or "/v1"
        self._address, self._timeout = f"{match[1]}{path}", timeout
        self._takes_schema, self._was_reached = True, False
        self._model, self._tokens, self._limit_name = settings["model"], settings["answer_tokens"], "max_tokens"
        self._key, self._resolve = key or "", resolve
        if key is not None and not re.fullmatch(r"[\x21-\x7e]{1,10000}", key):
            raise ModelError("The key is empty, or has characters that no key has.", _KEY_FIX)

    def complete(self, messages: list[dict[str, str]], schema: dict[str, Any]) -> tuple[str, int, bool]:
        """Return text, tokens (0 where they are not counted), and whether it is cut."""
        form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
        for wait in _WAITS_SECONDS:
            limit_name, more = self._limit_name, {"response_format": form} if self._takes_schema else {}
            payload = {"model": self._model, limit_name: self._tokens, **more, "messages": messages}
            status, text = self.request("/chat/completions", payload)
            self._was_reached |= text != "ConnectError"
            if status in (400, 422) and "max_completion_tokens" in text and limit_name == "max_tokens":
                self._limit_name = "max_completion_tokens"  # its name for newer models
            elif status in (400, 422) and more:
                self._takes_schema = False  # not every server knows response_format
            elif wait is None or not self._was_reached or (status not in (0, 429) and status < 500):
                break
            else:
                time.sleep(wait)
        try:
            reply = json.loads(text) if status == 200 else {}
            choice, usage = reply["choices"][0], reply.get("usage") or {}
            tokens = sum(max(0, int(usage.get(name) or 0)) for name in ("prompt_tokens", "completion_tokens"))
            return str(choice["message"]["content"] or ""), tokens, choice["finish_reason"] == "length"
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise refusal(status, text) from None

    def request(self, path: str, payload: dict[str, Any] | None = None) -> tuple[int, str]:
        """Post a payload to a path below the address, or get it; return status and content.

        Where nothing came, or not all of it, they are 0 and the reason.
        """
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        is_direct = re.match(r"http://(localhost|127\.|\[::1)", self._address) is not None  # no proxy leads there
        url, extensions = httpx.URL(self._address + path), dict[str, Any]()
        if self._resolve is not None:  # what was checked is what is connected to
            headers, extensions, is_direct = {**headers, "Host": url.netloc.decode()}, {"sni_hostname": url.host}, True
            url = url.copy_with(host=self._resolve(url.host, url.port or {"http": 80, "https": 443}[url.scheme]))
        body, deadline = bytearray(), time.monotonic() + self._timeout
        try:
            with (
                httpx.Client(trust_env=not is_direct, timeout=self._timeout) as client,
                client.stream(
                    "POST" if payload else "GET", url, json=payload, headers=headers, extensions=extensions
                ) as response,
            ):
                for piece in response.iter_bytes():
                    body += piece
                    if len(body) > _MOST_BYTES:
                        raise ModelError(f"The endpoint sends more than {_MOST_BYTES:,} bytes.", _ADDRESS_FIX)
                    if time.monotonic() > deadline:
                        raise httpx.ReadTimeout("")
        except (httpx.ReadTimeout, httpx.WriteTimeout):  # not sent again: the model may still work on it, for money
            raise ModelError(f"The endpoint did not answer within {self._timeout:g} s.", "Raise the timeout.") from None
        except (OSError, httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            return 0, type(error).__name__
        return response.status_code, body.decode(errors="replace").replace(self._key or "\0", "(key)")


def refusal(status: int, text: str) -> ModelError:
    """Return what a response without an answer says."""
    page = shorten("".join(filter(str.isprintable, text[:600])), 300)
    page = "a web page" if text.lstrip().startswith("<") else page
    what = f"The endpoint answered {status}: {page}." if status else f"The endpoint did not answer: {text}."
    return ModelError(what, _KEY_FIX if status in (401, 403) else _ADDRESS_FIX)
