"""A page session over HTTP: what a browser sends when it opens the page, and nothing drawn."""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import httpx

_API = "/gradio_api"


class PageClient:
    """One open page. Its values follow the answers, as the components of a browser do.

    Args:
        http: Connected to the server.
        config: The layout, as `read_config` gives it.
    """

    def __init__(self, http: httpx.Client, config: dict[str, Any]) -> None:
        self._http = http
        self._events = config["dependencies"]
        self._values = {part["id"]: part["props"].get("value") for part in config["components"]}
        self._texts = {part["id"] for part in config["components"] if "choices" not in part["props"]}
        self._parts: dict[str, list[int]] = {}
        for part in config["components"]:
            name = part["props"]["label"] if part["type"] == "tabitem" else part["props"].get("elem_id")
            self._parts.setdefault(name or "", []).append(part["id"])
        self._stamps: dict[str, tuple[str, str]] = {}  # of each poll: its question, and the stamp of the last answer
        self.session = uuid.uuid4().hex

    @classmethod
    @contextmanager
    def open(cls, http: httpx.Client, config: dict[str, Any]) -> Iterator[Self]:
        """Open a page, with the stream that keeps it alive, and fire what a browser fires on its own; closes it."""
        page = cls(http, config)
        with http.stream("GET", f"{_API}/heartbeat/{page.session}") as alive:
            beats = alive.iter_lines()  # held, because the stream ends with its iterator
            next(beats)
            http.get("/").raise_for_status()
            for event in page._events:
                if any(target[1] == "load" for target in event["targets"]):
                    page._fire_chain(event)
            yield page

    def _fire_chain(self, event: dict[str, Any], event_data: Any = None) -> None:
        changes = []
        if event["backend_fn"]:
            self.fire(event, event_data)
        elif not event["inputs"] or self._values.get(event["inputs"][0]):
            # The browser's alone: ours give their outputs another value, leave what is chosen, and do nothing about an empty box.
            outputs = [part for part in event["outputs"] if part in self._texts]
            changes = [[part, "change"] for part in outputs]
            self._values.update(dict.fromkeys(outputs, uuid.uuid4().hex))
        for following in self._events:
            if following["trigger_after"] == event["id"] or any(target in changes for target in following["targets"]):
                self._fire_chain(following)

    def press(self, part: str, event_name: str, value: Any = None, event_data: Any = None) -> None:
        """Fire an event of a part of the page, found by its `elem_id` (a tab by its label), and all that follows it.

        A value is what a person put there before.
        """
        (number,) = self._parts[part]
        if value is not None:
            self._values[number] = value
        for event in self._events:
            if [number, event_name] in event["targets"]:
                self._fire_chain(event, event_data)

    def value(self, part: str) -> Any:
        """Return what a part of the page shows, found by its `elem_id`."""
        (number,) = self._parts[part]
        return self._values[number]

    def poll(self, part: str) -> bool:
        """Send the request of a poll and apply its answer; return whether there was news."""
        (number,) = self._parts[part]
        question = self._values[number]
        if not question:
            return False
        last_question, stamp = self._stamps.get(part, ("", ""))
        body = {
            "data": [question, stamp if last_question == question else ""],
            "fn_name": "query",
            "component_id": number,
            "session_hash": self.session,
        }
        response = self._http.post(f"{_API}/component_server", json=body).raise_for_status()
        if response.json() is None:
            return False
        news = json.loads(response.json())
        self._stamps[part] = question, news["stamp"]
        if news["submit"]:
            self.press(part, "submit")
        return True

    def fire(self, event: dict[str, Any], event_data: Any = None) -> list[Any]:
        """Send one event with the values that the page has; returns what came for its outputs."""
        body = {
            "data": [self._values[part] for part in event["inputs"]],
            "fn_index": event["id"],
            "session_hash": self.session,
            "event_data": event_data,
            "trigger_id": event["targets"][0][0] if event["targets"] else None,
        }
        response = (
            self._post_event(body) if event["queue"] else self._http.post(f"{_API}/run/predict", json=body).json()
        )
        data: list[Any] = response["data"]
        for part, value in zip(event["outputs"], data, strict=True):
            is_update = isinstance(value, dict) and value.get("__type__") == "update"
            if not is_update:
                self._values[part] = value
            elif "value" in value:
                self._values[part] = value["value"]
        return data

    def _post_event(self, body: dict[str, Any]) -> dict[str, Any]:
        self._http.post(f"{_API}/queue/join", json=body).raise_for_status()
        with self._http.stream("GET", f"{_API}/queue/data", params={"session_hash": self.session}) as stream:
            messages = [json.loads(line.removeprefix("data: ")) for line in stream.iter_lines() if line]
        return next(dict(message["output"]) for message in messages if message["msg"] == "process_completed")


def read_config(http: httpx.Client) -> dict[str, Any]:
    """Return the layout of the page: its components and events."""
    return dict(http.get("/config").json())
