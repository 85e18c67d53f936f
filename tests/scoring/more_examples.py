"""Answers and their scores, in addition to the examples of each scorer."""

import json
import math

from loratory.engine.scoring.base import Example

_PARIS = {"answer": "Paris"}
_AGE = '{"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}'
_WEATHER = {"tool_calls": [{"name": "weather", "arguments": {"city": "Paris", "days": 2}}]}
_ADD = {"tests": "assert add(1, 2) == 3\nassert add(-1, 1) == 0"}

MORE_EXAMPLES = {
    "equals": (
        Example("", 0.0, {"answer": "?!"}, {"ignore_punctuation": True}),
        Example("paris.", 0.0, _PARIS),
        Example("<think>Paris", 0.0, _PARIS),
        Example("London", 1.0, {"answer": ["Paris", "London"]}),
    ),
    "contains": (
        Example("x", 0.0, {"answer": ["Paris", " "]}),
        Example("It is paris.", 1.0, _PARIS),
        Example("東京です", 1.0, {"answer": "東京"}, {"whole_words": False}),
        Example("(a|b)*", 1.0, {"answer": "(a|b)*"}),
        Example("", 0.0, _PARIS),
    ),
    "regex": (
        Example("x <answer>4</answer>", 0.0, {}, {"pattern": r"<answer>\d+</answer>", "whole_answer": True}),
        Example("<answer>4</answer>", 1.0, {"answer": 4}, {"pattern": r"<answer>(.*?)</answer>", "column": "answer"}),
    ),
    "length": (
        Example("one", 0.9, {}, {"at_least": 2, "falloff": 10}),
        Example("a_b, c!", 1.0, {}, {"unit": "tokens", "at_least": 2, "at_most": 2}),
        Example("abc", 0.0, {}, {"unit": "characters", "at_most": 2}),
        Example("word " * 150_000, 0.0),
    ),
    "number": (
        Example("1 234 and then 5", 0.0, {"answer": 1234}),
        Example("x = −5", 1.0, {"answer": -5}),
        Example("about 3.14", 1.0, {"answer": math.pi}, {"tolerance": 0.01}),
        Example("1.234,5", 1.0, {"answer": 1234.5}, {"decimal_mark": ","}),
        Example("12 miles", 0.0, {"answer": 12}, {"unit": "km"}),
        Example("It costs $12.", 1.0, {"answer": 12}, {"unit": "$"}),
        Example("9" * 100_000, 0.0, {"answer": 5}),
        Example("none", 0.0, {"answer": 5}),
    ),
    "choice": (
        Example("B", 1.0, {"answer": "B"}),
        Example("A cat is a pet, so B.", 1.0, {"answer": "B"}),
        Example("$\\boxed{\\text{C}}$", 1.0, {"answer": 2, "choices": ["x", "y", "z"]}),
        Example("blue", 1.0, {"answer": "B", "choices": ["red", "blue"]}),
        Example("It is dark red.", 1.0, {"answer": "dark red", "choices": ["red", "dark red"]}),
        Example("Answer: A. Answer: B.", 0.0, {"answer": "B", "choices": ["red", "blue"]}),
        Example("A) red\nB) blue", 0.0, {"answer": "B"}),
        Example("", 0.0, {"answer": "B"}),
    ),
    "rouge_l": (
        Example("the cat sat", 1.0, {"answer": "The cat sat."}),
    ),
    "chrf": (
        Example("ранг мал", 1.0, {"answer": "ранг мал"}),
    ),
    "json_schema": (
        Example('{"age": 4}', 1.0, {}, {"json_schema": _AGE}),
        Example('{"age": NaN}', 0.0, {}, {"json_schema": _AGE}),
        Example("[" * 100_000, 0.0, {}, {"json_schema": _AGE}),
        Example("", 0.0, {}, {"json_schema": _AGE, "partial_credit": True}),
        Example('{"age": 4}', 1.0, {"schema": json.loads(_AGE)}, {"column": "schema"}),
        Example('"' + "a" * 40 + 'b"', 0.0, {}, {"json_schema": '{"pattern": "^(a+)+$"}'}),
    ),
    "tool_call": (
        Example('{"name": "weather", "parameters": {"city": "Paris", "days": 2}}', 1.0, _WEATHER),
        Example('[{"function": {"name": "weather", "arguments": "{\\"city\\": \\"Paris\\", \\"days\\": 2}"}}]', 1.0, _WEATHER),
        Example('{"name": "weather", "arguments": {"city": "Rome", "days": 2}}', 0.0, _WEATHER),
        Example('{"name": "rain", "arguments": {"city": "Paris", "days": 2}}', 0.0, _WEATHER, {"partial_credit": True}),
        Example('{"name": "weather", "arguments": {"city": "Paris", "days": true}}', 0.0, _WEATHER),
        Example("It is sunny.", 0.0, _WEATHER),
        Example("<tool_call>" + "[" * 50_000, 0.0, _WEATHER),
    ),
    "code_tests": (
        Example("def add(a, b): return a - b", 0.0, _ADD),
        Example("import builtins\nbuiltins.AssertionError = Exception\ndef add(a, b): return 0", 0.0, _ADD),
        Example("I cannot write code.", 0.0, _ADD),
    ),
}  # fmt: skip
