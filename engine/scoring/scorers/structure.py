"""Scorers of answers that programs read: JSON of a schema, and calls of tools."""

import contextlib
import functools
import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import field_validator

from loratory.engine.errors import shorten
from loratory.engine.scoring.base import Example, NoScoreError, ScoredAnswer, Scorer, Verdict, json_of
from loratory.engine.section import setting

_AGE = {"json_schema": '{"properties": {"age": {"type": "integer"}}, "required": ["age"]}'}
_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_WEATHER = {"tool_calls": [{"name": "weather", "arguments": {"city": "Paris", "days": 2}}]}


@functools.lru_cache(maxsize=64)
def _validator(schema: str) -> Any:
    """Return the validator of a schema, whose patterns are bounded; a ValueError where it is none."""
    import jsonschema_rs

    def refuse(uri: str) -> Any:
        raise ValueError(f"schemas elsewhere are not read ({shorten(uri)})")

    try:
        return jsonschema_rs.validator_for(json.loads(schema), retriever=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"The schema is not valid: {shorten(str(error), 200)}.") from None


class JsonSchema(Scorer):
    """JSON that satisfies a schema."""

    label, sentence = "JSON Schema", "1 where the answer, or its last fence, is JSON that satisfies a schema."
    examples = (Example('```json\n{"age": 4}\n```', 1.0, {}, _AGE), Example('{"age": "4"}', 0.0, {}, _AGE))
    scorer: Literal["json_schema"]
    json_schema: str = setting("", "Schema", max_length=100_000)
    """The JSON Schema as text. Empty reads the column."""
    column: str = setting("schema", "Schema column", min_length=1, max_length=200)
    """The column that has the schema of each row, where none is given here."""

    @field_validator("json_schema")
    @classmethod
    def _is_schema(cls, schema: str) -> str:
        if schema:
            _validator(schema)
        return schema

    def rate(self, row: ScoredAnswer) -> Verdict:
        """Return 1 for JSON that satisfies the schema."""
        schema = self.json_schema or row.value(self.column)
        try:
            validator = _validator(schema if isinstance(schema, str) else json.dumps(schema))
        except ValueError as error:
            raise NoScoreError(str(error)) from None
        try:
            value = json_of(row.answer)
        except ValueError as error:
            return Verdict(0.0, str(error))
        miss = next(validator.iter_errors(value), None)
        return Verdict(0.0, shorten(miss.message, 200)) if miss else Verdict(1.0)


class ToolCall(Scorer):
    """Calls of tools."""

    label, sentence = "Tool call", "1 where the answer calls the tools of the reference with the same arguments."
    examples = (
        Example('<tool_call>{"name": "weather", "arguments": {"days": 2.0, "city": "Paris"}}', 1.0, _WEATHER),
        Example("It is sunny.", 1.0, {"tool_calls": []}),
    )
    scorer: Literal["tool_call"]
    column: str = setting("tool_calls", "Reference column", min_length=1, max_length=200)
    """The column that has the expected calls, as in a conversation; an empty list expects none."""
    partial_credit: bool = setting(False, "Partial credit")
    """Gives half of a call for its name, and the other half for its arguments."""

    def rate(self, row: ScoredAnswer) -> Verdict:
        """Return the share of right calls, or 1 where all are."""
        value = row.value(self.column)
        try:
            expected = _calls(json.loads(value) if isinstance(value, str) else value)
        except (ValueError, RecursionError):
            raise NoScoreError(f"The column {shorten(self.column)} has no tool calls.") from None
        parts = _CALL.findall(row.answer) or [row.answer.partition("[TOOL_CALLS]")[2] or row.answer]
        try:
            calls = [call for part in parts for call in _calls(json_of(part))]
        except ValueError as error:
            return Verdict(0.0, str(error)) if expected else Verdict(1.0)
        right = (Counter(calls) & Counter(expected)).total()
        same_name = (Counter(name for name, _ in calls) & Counter(name for name, _ in expected)).total()
        most = max(len(calls), len(expected))
        reason = "" if right == most else f"{len(calls)} calls, {len(expected)} expected; {right} agree."
        share = (right + same_name) / (2 * most) if self.partial_credit and most else float(right == most)
        return Verdict(share, reason)


def _calls(value: Any) -> list[tuple[str, str]]:
    """Return names and arguments of calls as OpenAI, Hermes, Llama or Mistral write them; a ValueError for anything else."""
    calls = []
    for call in value if isinstance(value, list | tuple) else [value]:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValueError("It has no call of a tool.")
        arguments = function.get("arguments", function.get("parameters"))
        text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, default=str)
        with contextlib.suppress(ValueError, RecursionError):  # the same text for the same values
            text = json.dumps(json.loads(text, parse_float=_number), sort_keys=True)
        calls.append((function["name"], text))
    return calls


def _number(text: str) -> int | float:
    """Return 2 for 2.0, which is the same in JSON."""
    return int(float(text)) if float(text).is_integer() else float(text)
