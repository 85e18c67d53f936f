"""Scorers of answers that programs read: JSON of a schema, and calls of tools."""

import contextlib
import functools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from loratory.engine.errors import shorten
from loratory.engine.scoring.base import Example, NoScoreError, ScoredAnswer, Scorer, Verdict, json_of
from loratory.engine.section import setting

_AGE = '{"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}'
_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_WEATHER = {"tool_calls": [{"name": "weather", "arguments": {"city": "Paris", "days": 2}}]}
_MOST_CALLS = 100


@functools.lru_cache(maxsize=64)
def _validator(schema: str) -> Any:
    import jsonschema_rs

    def refuse(uri: str) -> Any:
        raise ValueError(f"schemas elsewhere are not read ({shorten(uri)})")

    return jsonschema_rs.validator_for(json.loads(schema), retriever=refuse)  # its patterns are bounded


class JsonSchema(Scorer):
    """JSON that satisfies a schema."""

    label, sentence = "JSON Schema", "1 where the answer, or its last fence, is JSON that satisfies a schema."
    examples: ClassVar[tuple[Example, ...]] = (
        Example('Here:\n```json\n{"age": 4}\n```', 1.0, {}, {"json_schema": _AGE}),
        Example('{"age": "4"}', 0.0, {}, {"json_schema": _AGE}),
        Example('{"age": "4"}', 0.5, {}, {"json_schema": _AGE, "partial_credit": True}),
        Example('{"age": 4', 0.0, {}, {"json_schema": _AGE}),
        Example('{"age": 4}', None, {}, {"column": "schema"}),
    )
    scorer: Literal["json_schema"]
    json_schema: str = setting("", "Schema", max_length=100_000)
    """The JSON Schema as text. Empty reads the column."""
    column: str = setting("schema", "Schema column", min_length=1, max_length=200)
    """The column that has the schema of each row, where none is given here."""
    partial_credit: bool = setting(False, "Partial credit")
    """Gives 0.5 for JSON that does not satisfy the schema."""

    @field_validator("json_schema")
    @classmethod
    def _is_schema(cls, schema: str) -> str:
        try:
            if schema:
                _validator(schema)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"is not a JSON Schema: {shorten(str(error), 200)}") from None
        return schema

    def rate(self, row: ScoredAnswer) -> Verdict:
        """Return 1 for JSON that satisfies the schema."""
        schema = self.json_schema or row.value(self.column)
        try:
            validator = _validator(schema if isinstance(schema, str) else json.dumps(schema))
        except (ValueError, RecursionError) as error:
            raise NoScoreError(f"The schema is not valid: {shorten(str(error), 200)}.") from None
        try:
            value = json_of(row.answer)
        except ValueError as error:
            return Verdict(0.0, str(error))
        miss = next(validator.iter_errors(value), None)
        return Verdict(0.5 * self.partial_credit, shorten(miss.message, 200)) if miss else Verdict(1.0)


class ToolCall(Scorer):
    """Calls of tools."""

    label, sentence = "Tool call", "1 where the answer calls the tools of the reference with the same arguments."
    examples: ClassVar[tuple[Example, ...]] = (
        Example('<tool_call>\n{"name": "weather", "arguments": {"days": 2.0, "city": "Paris"}}\n</tool_call>', 1.0, _WEATHER),
        Example('{"name": "weather", "arguments": {"city": "Rome", "days": 2}}', 0.75, _WEATHER, {"partial_credit": True}),
        Example('<tool_call>{"name": "weather", "arguments": {"city": "Paris", "days": 2}}</tool_call>' * 2, 0.0, _WEATHER),
        Example("It is sunny.", 1.0, {"tool_calls": []}),
        Example("", None, {"tool_calls": "weather"}),
    )  # fmt: skip
    scorer: Literal["tool_call"]
    column: str = setting("tool_calls", "Reference column", min_length=1, max_length=200)
    """The column that has the expected calls, as in a conversation; an empty list expects none."""
    partial_credit: bool = setting(False, "Partial credit")
    """Gives half of a call for its name, and the other half by the share of right arguments."""

    def rate(self, row: ScoredAnswer) -> Verdict:
        """Return the share of right calls, or 1 where all are."""
        value = row.value(self.column)
        try:
            expected = list(_calls(json.loads(value) if isinstance(value, str) else value))
        except (ValueError, RecursionError):
            raise NoScoreError(f"The column {shorten(self.column)} has no tool calls.") from None
        try:
            calls = list(_calls_of_answer(row.answer))
        except ValueError as error:
            return Verdict(float(not expected), "" if not expected else str(error))
        if len(calls) > _MOST_CALLS:
            return Verdict(0.0, f"The answer makes {len(calls):,} calls.")
        rest, share = list(calls), 0.0
        for reference in expected:
            best = max(rest, key=lambda call: _similarity(call, reference), default=None)
            if best is not None and (similarity := _similarity(best, reference)):
                share += similarity
                rest.remove(best)
        share = share / count if (count := max(len(expected), len(calls))) else 1.0
        reason = "" if share == 1 else f"{len(calls)} calls, {len(expected)} expected; {share:.0%} agree."
        return Verdict(share if self.partial_credit else float(share == 1), reason)


_Call = tuple[str, dict[str, Any]]


def _calls_of_answer(answer: str) -> Iterator[_Call]:
    parts = _CALL.findall(answer)
    for part in parts or [answer.partition("[TOOL_CALLS]")[2] or answer]:
        yield from _calls(json_of(part))


def _calls(value: Any) -> Iterator[_Call]:
    """Yield the names and arguments of calls as OpenAI, Hermes, Llama and Mistral write them; else a ValueError."""
    for call in value if isinstance(value, list | tuple) else [value]:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValueError("It has no call of a tool.")
        arguments = function.get("arguments", function.get("parameters"))
        if isinstance(arguments, str):
            with contextlib.suppress(ValueError, RecursionError):
                arguments = json.loads(arguments)
        yield (
            function["name"],
            dict(arguments) if isinstance(arguments, Mapping) else {"": arguments} if arguments else {},
        )


def _similarity(call: _Call, reference: _Call) -> float:
    """Return 1 for the same call, 0 for another name, between for other arguments."""
    if call[0] != reference[0]:
        return 0.0
    names = call[1].keys() | reference[1].keys()
    right = sum(_same(call[1].get(name, ...), reference[1].get(name, ...)) for name in names)
    return 0.5 + 0.5 * right / len(names) if names else 1.0


def _same(first: Any, second: Any) -> bool:
    """Return whether two values are the same in JSON, where 1 is 1.0 and not true."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_same(first[name], second[name]) for name in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_same, first, second))
    return isinstance(first, bool) == isinstance(second, bool) and bool(first == second)
