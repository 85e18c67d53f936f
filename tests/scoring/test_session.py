"""Sessions: every example of a scorer that needs a process, what goes wrong in one answer, cancelling, and totals."""

import threading
import time

import pytest

from loratory.engine.errors import ConfigError, ModelError
from loratory.engine.scoring.base import SandboxedScorer, ScoredAnswer, Verdict
from loratory.engine.scoring.registry import SCORERS
from loratory.engine.scoring.scorers.judge import judging_cost, key_environment
from loratory.engine.scoring.scorers.programs import FileScorer
from loratory.engine.scoring.session import ScoringSession, total
from tests.any_scorer import scorer_from
from tests.local_endpoint import completion, serving
from tests.scoring.more_examples import MORE_EXAMPLES

PROCESS_EXAMPLES = [
    pytest.param(name, example, id=f"{name}-{number}")
    for name, kind in SCORERS.items()
    if issubclass(kind, SandboxedScorer) or name == "judge"
    for number, example in enumerate((*kind.examples, *MORE_EXAMPLES[name]))
]
JUDGE = {"scorer": "judge", "endpoint": "http://localhost:9/v1", "model": "m", "rubric": "Names Paris."}


def answers(*texts, **columns):
    return [ScoredAnswer("Which city?", text, columns) for text in texts]


class StrictJudge:
    """Gives ten where the answer that it is shown names Paris."""

    def complete(self, messages, schema):
        answer = messages[1]["content"].partition('"answer": ')[2]
        return f'{{"reason": "It was read.", "score": {10 * ("Paris" in answer)}}}', 10, False


@pytest.fixture
def file_scorer(tmp_path):
    def write(body, **settings):
        path = tmp_path / f"scorer_{len(list(tmp_path.iterdir()))}.py"
        path.write_text(body)
        return scorer_from({"scorer": "file", "path": str(path), **settings})

    return write


@pytest.mark.parametrize(("name", "example"), PROCESS_EXAMPLES)
def test_an_example_has_its_score(name, example, tmp_path, monkeypatch):
    (tmp_path / "score.py").write_text(FileScorer.example_file)
    monkeypatch.chdir(tmp_path)
    scorer = scorer_from({"scorer": name, **example.settings})

    with ScoringSession([scorer], ask=lambda _: StrictJudge().complete) as session:
        ((verdict,),) = session.score([ScoredAnswer("Which city?", example.answer, example.columns)])

    assert verdict.score == example.score, verdict.reason
    assert verdict.reason or verdict.score is not None


def test_each_row_has_a_verdict_of_each_scorer_in_order(file_scorer):
    scorers = [
        file_scorer("def score(prompt, answer, column_answer): return len(answer + column_answer) / 10"),
        scorer_from({"scorer": "equals"}),
        scorer_from(JUDGE),
    ]
    with ScoringSession(scorers, workers=2, ask=lambda _: StrictJudge().complete) as session:
        verdicts = session.score(answers("Paris", "Rome", answer="Rome"))

    assert [[verdict.score for verdict in row] for row in verdicts] == [[0.9, 0.0, 1.0], [0.8, 1.0, 0.0]]


BAD_VALUES = {
    "float('nan')": "not a number from 0 to 1",
    "float('inf')": "not a number from 0 to 1",
    "1.5": "not a number from 0 to 1",
    "-1": "not a number from 0 to 1",
    "'high'": "not a number from 0 to 1",
    "[1]": "not a number from 0 to 1",
    "1 / 0": "ZeroDivisionError",
    "None": "gave None",
    "exit(1)": "SystemExit",
    "columns['missing']": "KeyError",
}


def test_nonsense_of_a_file_is_a_reason_and_the_next_answer_has_a_score(file_scorer):
    scorer = file_scorer("def score(prompt, answer, **columns): return eval(answer)")
    texts = [text for value in BAD_VALUES for text in (value, "0.5")]
    with ScoringSession([scorer], workers=1) as session:
        verdicts = [verdict for (verdict,) in session.score(answers(*texts))]

    assert [verdict.score for verdict in verdicts] == [None, 0.5] * len(BAD_VALUES)
    for verdict, part in zip(verdicts[::2], BAD_VALUES.values(), strict=True):
        assert part in verdict.reason


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("def score(:", "SyntaxError"),
        ("x = 1", "no function called score"),
        ("import no_such_module", "ModuleNotFoundError"),
        ("import os; os._exit(3)", "code 3"),
    ],
)
def test_a_file_that_cannot_be_used_is_a_reason_for_each_answer(file_scorer, body, reason):
    with ScoringSession([file_scorer(body)], workers=1) as session:
        verdicts = session.score(answers("a", "b"))

    assert [verdict.score for (verdict,) in verdicts] == [None, None]
    assert all(reason in verdict.reason for (verdict,) in verdicts)


def test_a_missing_file_is_a_reason_without_its_folder(tmp_path):
    scorer = scorer_from({"scorer": "file", "path": str(tmp_path / "gone.py")})
    with ScoringSession([scorer]) as session:
        ((verdict,),) = session.score(answers("a"))

    assert verdict == (None, "gone.py cannot be read (FileNotFoundError).")


def test_a_file_is_imported_once_per_worker_and_scores_hundreds_of_answers_a_second(file_scorer):
    scorer = file_scorer("import os\nimports = [os.urandom(4).hex()]\ndef score(prompt, answer, **c): return 1\n")
    with ScoringSession([scorer], workers=2) as session:
        session.score(answers("warm", "warm"))
        begin = time.monotonic()
        verdicts = session.score(answers(*map(str, range(400))))
        seconds = time.monotonic() - begin

    assert {verdict.score for (verdict,) in verdicts} == {1.0}
    assert 400 / seconds > 200


def test_a_file_may_use_numpy(file_scorer):
    scorer = file_scorer("import numpy as np\ndef score(prompt, answer, **c): return np.float32(0.5)\n", seconds=30)
    with ScoringSession([scorer], workers=1) as session:
        ((verdict,),) = session.score(answers("a"))

    assert verdict == (0.5, "")


def test_cancelling_ends_what_runs_and_leaves_nothing_behind(file_scorer):
    class CancelError(Exception):
        pass

    calls = []

    def between():
        calls.append(time.monotonic())
        if len(calls) == 4:
            raise CancelError

    scorer = file_scorer("def score(prompt, answer, **c):\n    while True: pass", seconds=60)
    begin = time.monotonic()
    with ScoringSession([scorer], workers=2) as session, pytest.raises(CancelError):
        session.score(answers(*"abcdef"), between)

    assert time.monotonic() - begin < 5
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sandbox") and thread.is_alive()]


def test_a_closed_session_has_no_scores(file_scorer):
    session = ScoringSession([file_scorer("def score(prompt, answer, **c): return 1")])
    session.close()

    with pytest.raises(RuntimeError):
        session.score(answers("a"))


class TestJudge:
    """A judge behind a real endpoint."""

    def test_the_key_and_the_schema_reach_the_endpoint_and_neither_the_reason(self, monkeypatch):
        monkeypatch.setenv("JUDGE_API_KEY", "sk-secret")
        with serving((200, completion({"reason": "Good.", "score": 7}))) as server:
            judge = scorer_from({**JUDGE, "endpoint": server.url, "key_variable": "JUDGE_API_KEY", "column": "answer"})
            with ScoringSession([judge]) as session:
                ((verdict,),) = session.score(answers("Paris", answer="Rome"))

        assert verdict == (0.7, "Good.")
        assert server.keys == ["Bearer sk-secret"]
        assert server.requests[0]["response_format"]["json_schema"]["schema"]["required"] == ["reason", "score"]
        assert '"reference": "Rome"' in server.requests[0]["messages"][1]["content"]

    @pytest.mark.parametrize(
        ("reply", "reason"),
        [
            ((401, {"error": "bad key"}), "answered 401"),
            ((200, completion("It is good.")), "has no score"),
            ((200, completion({"score": "ten"})), "has no score"),
            ((200, completion({"score": 70})), "not a number from 0 to 1"),
            ((200, completion('{"score": NaN}')), "has no score"),
            ((200, completion('{"score": 7', "length")), "cut at its token limit"),
        ],
    )
    def test_a_bad_reply_is_a_reason(self, reply, reason):
        with serving(reply) as server, ScoringSession([scorer_from({**JUDGE, "endpoint": server.url})]) as session:
            ((verdict,),) = session.score(answers("Paris"))

        assert verdict.score is None
        assert reason in verdict.reason

    def test_a_judge_that_fails_is_not_asked_for_all_answers(self):
        class Failing:
            requests = 0

            def complete(self, messages, schema):
                Failing.requests += 1
                raise ModelError("The endpoint answered 401.", "Give a key.")

        with ScoringSession([scorer_from(JUDGE)], ask=lambda _: Failing().complete) as session:
            verdicts = session.score(answers(*map(str, range(50))))

        assert {verdict for (verdict,) in verdicts} == {Verdict(None, "The endpoint answered 401. Give a key.")}
        assert Failing.requests <= 3 + 8

    def test_the_cost_is_known_before_anything_is_asked(self):
        prices = {"prompt_price": 1.0, "answer_price": 10.0}
        scorers = [scorer_from({**JUDGE, "answer_tokens": 100, **prices}), scorer_from({"scorer": "number"})]

        cost = judging_cost(scorers, answers=2000, tokens=500)

        assert (cost.calls, cost.answer_tokens) == (2000, 200_000)
        assert 500 * 2000 < cost.prompt_tokens < 900 * 2000
        assert cost.price == pytest.approx((cost.prompt_tokens + 10 * 200_000) / 1e6)
        assert str(cost).startswith("2,000 calls of judges: at most ")

    def test_the_cost_is_unknown_where_one_of_the_prices_is(self):
        judge = {**JUDGE, "prompt_price": 1.0}
        assert str(judging_cost([scorer_from(judge)], 1, 1)).endswith("price unknown")
        free = scorer_from({**judge, "answer_price": 0.0, "prompt_price": 0.0})
        assert judging_cost([free], 1, 1).price == 0
        assert judging_cost([free, scorer_from(judge)], 1, 1).price is None
        assert judging_cost([scorer_from({"scorer": "number"})], 1, 1) is None

    def test_a_key_is_the_one_that_it_names_and_a_missing_one_is_an_error(self, monkeypatch):
        judge = scorer_from({**JUDGE, "key_variable": "FIRST_API_KEY"})
        monkeypatch.delenv("FIRST_API_KEY", raising=False)
        with pytest.raises(ConfigError, match="FIRST_API_KEY is not set here"):
            key_environment([judge])
        monkeypatch.setenv("FIRST_API_KEY", "sk-1")
        monkeypatch.setenv("SECOND_API_KEY", "sk-2")
        assert key_environment([judge, scorer_from(JUDGE), scorer_from({"scorer": "number"})]) == {
            "FIRST_API_KEY": "sk-1"
        }

    @pytest.mark.parametrize("variable", ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "PATH", "sk-1"])
    def test_no_other_secret_is_sent_to_an_endpoint(self, variable):
        with pytest.raises(ValueError, match="key_variable"):
            scorer_from({**JUDGE, "key_variable": variable})


def test_a_total_is_the_weighted_sum_of_the_scores_that_there_are():
    scorers = [scorer_from({"scorer": "equals", "weight": weight}) for weight in (1.0, 0.5, -2.0)]

    assert total([Verdict(1.0), Verdict(0.5), Verdict(0.25)], scorers) == pytest.approx(0.75)
    assert total([Verdict(None), Verdict(0.5), Verdict(None)], scorers) == 0.25
    assert total([Verdict(None)] * 3, scorers) is None
