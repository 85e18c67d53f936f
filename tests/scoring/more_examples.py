"""Answers and their scores, in addition to the examples of each scorer."""

import json
import math

from loratory.engine.scoring.base import Example

_PARIS = {"answer": "Paris"}
_AGE = '{"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}'
_WEATHER = {"tool_calls": [{"name": "weather", "arguments": {"city": "Paris", "days": 2}}]}
_ADD = {"tests": "assert add(1, 2) == 3\nassert add(-1, 1) == 0"}
_JUDGE = {"endpoint": "http://localhost:8000/v1", "model": "m", "rubric": "Names Paris."}

MORE_EXAMPLES = {
    "equals": (
        Example("paris.", 1.0, _PARIS, {"ignore_case": True, "ignore_punctuation": True}),
        Example("", 0.0, {"answer": "?!"}, {"ignore_punctuation": True}),
        Example("paris.", 0.0, _PARIS),
        Example("<think>Rome?</think>Paris", 1.0, _PARIS),
        Example("", None, {"answer": ""}),
        Example("<think>Paris", 0.0, _PARIS),
        Example("London", 1.0, {"answer": ["Paris", "London"]}),
    ),
    "contains": (
        Example("x", 0.0, {"answer": ["Paris", " "]}),
        Example("red", 0.5, {"answer": ["red", "blue"]}, {"need": "share"}),
        Example("red", 0.0, {"answer": ["red", "blue"]}, {"need": "all"}),
        Example("red", 1.0, {"answer": ["red", "blue"]}),
        Example("anything", None, {"answer": "  "}),
        Example("It is paris.", 1.0, _PARIS),
        Example("東京です", 1.0, {"answer": "東京"}, {"whole_words": False}),
        Example("(a|b)*", 1.0, {"answer": "(a|b)*"}),
        Example("", 0.0, _PARIS),
    ),
    "regex": (
        Example("x <answer>4</answer>", 0.0, {}, {"pattern": r"^<answer>\d+</answer>$"}),
        Example("<answer>5</answer>", 0.0, {"answer": 4}, {"pattern": r"<answer>(.*?)</answer>", "column": "answer"}),
        Example("none", 0.0, {"answer": 4}, {"pattern": r"<answer>(.*?)</answer>", "column": "answer"}),
        Example("<answer>4</answer>", 1.0, {}, {"pattern": r"<answer>\d+</answer>"}),
        Example("", 0.0, {}, {"pattern": r"\d"}),
        Example("YES", 1.0, {}, {"pattern": "(?i)yes"}),
        Example("a" * 5000 + "!", None, {}, {"pattern": r"(?:a|aa|a?)+$(?<=b)|(a+a+)+b"}),
        Example("<answer>4</answer>", 1.0, {"answer": 4}, {"pattern": r"<answer>(.*?)</answer>", "column": "answer"}),
    ),
    "length": (
        Example("one", 0.9, {}, {"at_least": 2, "falloff": 10}),
        Example("one two three four", 0.0, {}, {"at_most": 3}),
        Example("one two three", 1.0, {}, {"at_most": 3}),
        Example("", 0.0),
        Example("a" * 1_000_001, None),
        Example("abc", 0.0, {}, {"unit": "characters", "at_most": 2}),
        Example("word " * 150_000, 0.0),
    ),
    "number": (
        Example("1 234 and then 5", 0.0, {"answer": 1234}),
        Example("x = −5", 1.0, {"answer": -5}),
        Example("about 3.14", 1.0, {"answer": math.pi}, {"tolerance": 0.01}),
        Example("It costs $12.", 1.0, {"answer": 12}),
        Example("10-5", 1.0, {"answer": 5}),
        Example("1,234.50 dollars", 1.0, {"answer": 1234.5}),
        Example("5", None, {"answer": "five"}),
        Example("1e999", 0.0, {"answer": 5}),
        Example("9" * 100_000, 0.0, {"answer": 5}),
        Example("none", 0.0, {"answer": 5}),
    ),
    "choice": (
        Example("B", 1.0, {"answer": "B"}),
        Example("A cat is a pet, so B.", 1.0, {"answer": "B"}),
        Example("$\\boxed{\\text{C}}$", 1.0, {"answer": 2, "choices": ["x", "y", "z"]}),
        Example("The answer is (B).", 1.0, {"answer": "B"}),
        Example("Answer: A. No, wait. Answer: B", 1.0, {"answer": "B"}),
        Example("Answer: B", 1.0, {"answer": "blue", "choices": ["red", "blue"]}),
        Example("B", None, {"answer": "purple", "choices": ["red", "blue"]}),
        Example("blue", 0.0, {"answer": "B", "choices": ["red", "blue"]}),
        Example("Answer: A. Answer: B.", 0.0, {"answer": "B", "choices": ["red", "blue"]}),
        Example("A) red\nB) blue", 0.0, {"answer": "B"}),
        Example("", 0.0, {"answer": "B"}),
    ),
    "rouge_l": (
        Example("the cat sat", 1.0, {"answer": "The cat sat."}),
        Example("世界 こんにちは", 0.5, {"answer": "こんにちは 世界"}),
        Example("cat " * 100, 2 / 103, {"answer": "the cat sat"}),
        Example("cat " * 20_000, None, {"answer": "cat " * 20_000}),
    ),
    "chrf": (
        Example("ранг мал", 1.0, {"answer": "ранг мал"}),
        Example("no", 1.0, {"answer": ["yes", "no"]}),
        Example("yes", None, {}),
    ),
    "json_schema": (
        Example('{"age": 4}', 1.0, {}, {"json_schema": _AGE}),
        Example('{"age": 4', 0.0, {}, {"json_schema": _AGE}),
        Example('{"age": 4}', None, {}, {"column": "schema"}),
        Example('{"age": NaN}', 0.0, {}, {"json_schema": _AGE}),
        Example("[" * 100_000, 0.0, {}, {"json_schema": _AGE}),
        Example("", 0.0, {}, {"json_schema": _AGE}),
        Example('{"age": 4}', 1.0, {"schema": json.loads(_AGE)}, {"column": "schema"}),
        Example('"' + "a" * 40 + 'b"', 0.0, {}, {"json_schema": '{"pattern": "^(a+)+$"}'}),
    ),
    "tool_call": (
        Example('{"name": "weather", "parameters": {"city": "Paris", "days": 2}}', 1.0, _WEATHER),
        Example('[{"function": {"name": "weather", "arguments": "{\\"city\\": \\"Paris\\", \\"days\\": 2}"}}]', 1.0, _WEATHER),
        Example('{"name": "weather", "arguments": {"city": "Rome", "days": 2}}', 0.0, _WEATHER),
        Example('{"name": "weather", "arguments": {"city": "Rome", "days": 2}}', 0.5, _WEATHER, {"partial_credit": True}),
        Example('{"name": "weather", "arguments": {"city": "Paris", "days": 2}}', 1.0, _WEATHER, {"partial_credit": True}),
        Example('<tool_call>{"name": "weather", "arguments": {"city": "Paris", "days": 2}}</tool_call>' * 2, 0.0, _WEATHER),
        Example("", None, {"tool_calls": "weather"}),
        Example('{"name": "rain", "arguments": {"city": "Paris", "days": 2}}', 0.0, _WEATHER, {"partial_credit": True}),
        Example('{"name": "weather", "arguments": {"city": "Paris", "days": true}}', 0.0, _WEATHER),
        Example("It is sunny.", 0.0, _WEATHER),
        Example("<tool_call>" + "[" * 50_000, 0.0, _WEATHER),
    ),
    "code_tests": (
        Example("def add(a, b): return a - b", 0.0, _ADD),
        Example("import builtins\nbuiltins.AssertionError = Exception\ndef add(a, b): return 0", 0.0, _ADD),
        Example("I cannot write code.", 0.0, _ADD),
        Example("while True: pass", None, _ADD, {"seconds": 0.5}),
        Example("import sys\nprint('passed')\nsys.exit(0)", 0.0, _ADD),
        Example("class E:\n    __eq__ = lambda *_: True\ndef add(a, b): return E()", 0.0, _ADD),
        Example("def add(a, b): return a + b", None),
    ),
    "file": (
        Example("Yes!!", 1.0, {}, {"path": "score.py"}),
        Example("Yes!!!", None, {}, {"path": "score.py"}),
        Example("<think>!</think>Yes", 0.0, {}, {"path": "score.py"}),
    ),
    "judge": (
        Example("It is London.", 0.0, {}, _JUDGE),
        Example("<think>Paris</think>Rome", 0.0, {}, _JUDGE),
        Example("", 0.0, {}, _JUDGE),
    ),
}  # fmt: skip
