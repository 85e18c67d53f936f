"""Jobs: what an endpoint is asked, how a job continues, and what reviewers say."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from loratory.engine import endpoint
from loratory.engine.data.workshop.documents import Passage
from loratory.engine.data.workshop.generation import Job, unknown_claims
from loratory.engine.data.workshop.sets import find_set
from loratory.engine.endpoint import Endpoint
from loratory.engine.errors import DatasetError, ModelError
from loratory.engine.serve.model import ServedModel
from tests.data.workshop.made_sets import read
from tests.local_endpoint import GOOD, completion, send, serving
from tests.serve.running import TARGET, ScriptedSession, listening

SECRET = "sk-this/is+the=secret-of-a-test"
PASSAGES = [
    Passage(place=f"manual.md, characters {n} to {n}", text=f"Part {n} has {7 * n} screws.") for n in range(1, 6)
]
GOOD_REPLY = (200, completion(GOOD))


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr(endpoint, "_WAITS_SECONDS", (0.0, 0.0, None))
    monkeypatch.setenv("TEST_KEY", SECRET)  # for the command


def settings_for(address):
    return {"endpoint": address, "model": "m", "answer_tokens": 100}


def make_job(home, passages=PASSAGES, **settings):
    usual = {
        "recipe": "question_answer",
        "detail": "",
        "model": "m",
        "endpoint": "http://127.0.0.1:9/v1",
        "answer_tokens": 1024,
    }
    return Job(home, usual | settings, passages)


def run(job, server, key=SECRET, timeout=5.0, most=float("inf")):
    steps = []
    job.run(Endpoint({**job.settings, "endpoint": server.url}, key, timeout), most, lambda *step: steps.append(step))
    return steps


def log_of(job):
    return [json.loads(line) for line in (job.folder / "candidates.jsonl").read_text().splitlines()]


def test_a_job_asks_once_for_each_passage_and_saves_what_it_paid_for(home):
    job = make_job(home)
    with serving() as server:
        steps = run(job, server)
        again = run(make_job(home), server)

    assert len(server.requests) == 5
    assert [step[1] for step in steps] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert steps[-1] == ("Passage 5 of 5, 600 tokens.", 1.0)
    assert again == []
    assert set(server.paths) == {"/v1/chat/completions"}
    assert set(server.keys) == {f"Bearer {SECRET}"}
    request = server.requests[1]
    assert request["max_tokens"] == 1024
    assert "Part 2 has 14 screws." in request["messages"][1]["content"]
    schema = request["response_format"]["json_schema"]
    assert schema["strict"] is True
    assert schema["schema"]["required"] == ["answer", "question"]
    assert schema["schema"]["additionalProperties"] is False
    assert job.rows()[3] == {
        "messages": [{"role": "user", "content": GOOD["question"]}, {"role": "assistant", "content": GOOD["answer"]}]
    }
    assert [entry["tokens"] for entry in log_of(job)] == [120] * 5


RECIPES = {
    "question_answer": (GOOD, "", [GOOD["question"], GOOD["answer"]]),
    "summary": ({"summary": "Short."}, "", ["Summarize this text.\n\nPart 1 has 7 screws.", "Short."]),
    "extraction": ({"facts": "screws: 7"}, "counts", ["List from this text: counts\n\nPart 1 has 7 screws.", "screws: 7"]),
    "rewrite": ({"text": "Yo."}, "slang {x}", ["Rewrite this text in this style: slang {x}\n\nPart 1 has 7 screws.", "Yo."]),
    "own": ({"user": "U {0}", "assistant": "A"}, "Write {something}.", ["U {0}", "A"]),
}  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_recipe_makes_its_row(home, recipe):
    answer, detail, texts = RECIPES[recipe]
    job = make_job(home, PASSAGES[:1], recipe=recipe, detail=detail)
    with serving((200, completion(answer))) as server:
        run(job, server)

    assert [turn["content"] for turn in job.rows()[1]["messages"]] == texts
    assert detail in server.requests[0]["messages"][1]["content"]


def test_loratory_serve_is_such_an_endpoint_without_response_format(home):
    session = ScriptedSession((json.dumps(GOOD),))
    job = make_job(home, PASSAGES[:2], model="my-run")
    with listening(ServedModel(session, TARGET, "my-run")) as url:
        job.run(Endpoint({**job.settings, "endpoint": url}, None, 60.0), float("inf"), lambda *_: None)

    assert len(session.requests) == len(job.rows()) == 2
    assert "Part 1 has 7 screws." in session.requests[0].messages[-1].content


def test_a_preference_pair_is_a_row_of_three_columns(home):
    job = make_job(home, PASSAGES[:1], recipe="preference_pair")
    with serving((200, completion({"question": "Q?", "chosen": "Right.", "rejected": "Wrong."}))) as server:
        run(job, server)

    assert job.rows() == {1: {"prompt": "Q?", "chosen": "Right.", "rejected": "Wrong."}}


@pytest.mark.parametrize(("recipe", "detail"), [("none", ""), ("../x", "x"), ("rewrite", ""), ("own", "")])
def test_a_recipe_that_does_not_exist_or_needs_a_detail_is_refused(home, recipe, detail):
    with pytest.raises(DatasetError, match="is unknown or needs a detail"):
        make_job(home, recipe=recipe, detail=detail)


@pytest.mark.parametrize(
    "text",
    ["```json\n{}\n```", "<think>I {think}.</think>\n\n{}", "  {}  ", "```\n{}```"],
)
def test_an_answer_without_response_format_is_parsed_from_its_text(home, text):
    job = make_job(home, PASSAGES[:2])
    refusal = (400, {"error": {"message": "response_format is not supported"}})
    with serving(refusal, (200, completion(text.replace("{}", json.dumps(GOOD))))) as server:
        run(job, server)

    assert ["response_format" in request for request in server.requests] == [True, False, False]
    assert len(job.rows()) == 2


@pytest.mark.parametrize(
    ("content", "finish", "problem"),
    [
        ("Here you are: {}", "stop", "JSON"),
        ({**GOOD, "more": "x"}, "stop", "Extra"),
        ({"question": "Q?"}, "stop", "required"),
        ({**GOOD, "answer": 7}, "stop", "string"),
        ({**GOOD, "answer": "  "}, "stop", "at least 1 character"),
        (json.dumps(GOOD)[:-5], "length", "cut at the limit of answer tokens"),
        ("[" * 100_000, "stop", ""),
        ("{" + " " * 100_000 + "x", "stop", ""),
        ("", "stop", ""),
    ],
)  # fmt: skip
def test_an_answer_of_another_form_is_paid_and_logged_but_is_no_candidate(home, content, finish, problem):
    job = make_job(home)
    with serving(GOOD_REPLY, (200, completion(content, finish)), GOOD_REPLY) as server:
        steps = run(job, server)
        assert run(job, server) == []

    assert len(server.requests) == 5
    assert sorted(job.rows()) == [1, 3, 4, 5]
    assert problem in log_of(job)[1]["problem"]
    assert f"; 1 unusable, the last: {log_of(job)[1]['problem']}." in steps[1][0]
    assert job.review("ann")["unusable"] == 1


@pytest.mark.parametrize(
    ("recipe", "content", "finish", "row"),
    [
        ("summary", "The part has 7 screws.", "stop", "The part has 7 screws."),
        ("summary", "<think>Hm.</think> It has 7.", "stop", "It has 7."),
        ("summary", "The part has", "length", None),
        ("summary", '{"summary": "The part', "stop", None),
        ("summary", "", "stop", None),
        ("question_answer", "How many? It has 7.", "stop", None),
    ],
)
def test_a_plain_text_is_the_answer_where_one_text_is_wanted(home, recipe, content, finish, row):
    job = make_job(home, PASSAGES[:1], recipe=recipe)
    with serving((200, completion(content, finish))) as server:
        run(job, server)

    assert [row["messages"][1]["content"] for row in job.rows().values()] == ([row] if row else [])
    assert job.review("ann")["unusable"] == (row is None)


def test_a_model_whose_answers_are_all_unusable_is_not_paid_for_long(home):
    job = make_job(home, PASSAGES * 4)
    with serving((200, completion("no"))) as server, pytest.raises(ModelError, match="5 unusable answers in a row"):
        run(job, server)

    assert len(server.requests) == 5


def test_a_job_continues_after_an_endpoint_that_failed(home, caplog):
    job = make_job(home)
    reply = (401, {"error": f"Incorrect API key {SECRET}"})
    with serving(GOOD_REPLY, reply) as server, pytest.raises(ModelError, match="answered 401") as error:
        run(job, server)
    assert SECRET not in repr(error.value) + str(error.value) + caplog.text

    with serving() as server:
        run(job, server)
    assert len(server.requests) == 4
    assert sorted(job.rows()) == [1, 2, 3, 4, 5]
    assert not any(SECRET.encode() in file.read_bytes() for file in home.root.rglob("*") if file.is_file())


def test_the_limit_of_tokens_is_never_exceeded_and_may_be_raised(home):
    job = make_job(home, answer_tokens=50)
    prompt = job.most_tokens[0] // 5
    limit = 2 * 120 + prompt + 49
    with serving() as server:
        with pytest.raises(ModelError, match=r"240 tokens are used; .* more may be needed") as error:
            run(job, server, most=limit)
        assert "Raise the limit" in error.value.fix
        assert len(server.requests) == 2
        run(job, server, most=10_000)
    assert len(server.requests) == 5


def test_tokens_are_estimated_where_the_endpoint_does_not_count_them(home):
    reply = completion(GOOD)
    del reply["usage"]
    job = make_job(home, PASSAGES[:1])
    with serving((200, reply)) as server:
        run(job, server)

    assert log_of(job)[0]["tokens"] == job.most_tokens[0] + len(json.dumps(GOOD)) // 3


def test_a_line_that_was_not_written_to_its_end_is_asked_for_again(home):
    job = make_job(home)
    with serving() as server:
        run(job, server)
        log = job.folder / "candidates.jsonl"
        log.write_bytes(log.read_bytes()[:-20])
        run(job, server)

    assert len(server.requests) == 6
    assert sorted(job.rows()) == [1, 2, 3, 4, 5]
    assert len(log.read_bytes().splitlines()) == 6


@pytest.mark.e2e
def test_a_killed_command_continues_and_asks_for_no_passage_twice(home, tmp_path):
    (tmp_path / "manual.md").write_text(
        "\n\n".join(f"# Part {n}\n\n" + f"It has {n} screws. " * 12 for n in range(1, 11))
    )
    hold = threading.Event()
    is_waiting = threading.Event()

    def wait(handler):
        is_waiting.set()
        hold.wait(60)
        handler.connection.close()

    with serving(*[GOOD_REPLY] * 4, wait, GOOD_REPLY) as server:
        command = [
            sys.executable, "-m", "loratory.engine.cli", "data", "generate", str(tmp_path / "manual.md"), "--endpoint", server.url,
            "--model", "m", "--chunk", "250", "--overlap", "0", "--key-variable", "TEST_KEY", "--json",
        ]  # fmt: skip
        environment = {**os.environ, "LORATORY_HOME": str(home.root)}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert is_waiting.wait(120)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        hold.set()
        (name,) = (folder.name for folder in (home.datasets / "_generated").iterdir())
        assert len(Job.find(home, name).rows()) == 4

        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
        result = json.loads(done.stdout)
        resume = [*command[:5], "--resume", name, "--json"]
        again = subprocess.run(resume, env=environment, capture_output=True, text=True, timeout=300, check=True)

    assert result["job"] == name
    assert result["passages"] == result["candidates"] == json.loads(again.stdout)["candidates"] == 10
    assert len(server.requests) == 11  # ten passages, and the one that was under way
    prompts = [request["messages"][1]["content"] for request in server.requests]
    assert len(set(prompts)) == 10
    assert prompts.count(prompts[4]) == 2
    assert not any(SECRET.encode() in file.read_bytes() for file in home.root.rglob("*") if file.is_file())
    assert SECRET not in done.stdout + done.stderr + process.stderr.read().decode()


def test_a_job_that_is_running_is_not_started_twice(home):
    job = make_job(home)
    errors: list[str] = []

    def start_again(handler):
        try:
            run(make_job(home), server)
        except DatasetError as error:
            errors.append(str(error))
        send(handler, 200, json.dumps(completion(GOOD)).encode())

    with serving(start_again, GOOD_REPLY) as server:
        run(job, server)

    assert errors == [f"The job {job.folder.name} is running already. Wait for its end."]
    assert len(server.requests) == 5


@pytest.fixture
def ready(home):
    job = make_job(home)
    with serving() as server:
        run(job, server)
    return job


def judge(job, reviewer, **verdicts):
    job.judge(
        [json.dumps({"candidate": int(key[1:]), "verdict": verdict}).encode() for key, verdict in verdicts.items()],
        reviewer,
    )


def test_only_rows_that_are_accepted_and_not_rejected_become_a_set(home, ready):
    edit = {"messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "Edited."}]}
    judge(ready, "ann", c1="accept", c2="accept", c3="reject", c5="skip")
    judge(ready, "bob", c1="reject", c3="accept")
    assert sorted(ready.accepted()) == [2]
    judge(ready, "bob", c1="accept")
    ready.judge(
        [json.dumps({"candidate": 2, "verdict": "edit", "row": edit}).encode(), b'{"candidate": 4, "verdict": ""}'],
        "bob",
    )
    assert [json.loads(line)["candidate"] for line in ready.open_candidates("ann")] == [4]

    ready.make_set(home, "manual", "ann", lambda size: None)

    values = read(home, "set:manual")
    assert list(values.values()) == [ready.rows()[1], edit]
    assert [entry.operation.model_dump() for entry in find_set(home, "manual").entries] == [
        {"kind": "note", "rows": str(n), "text": f"manual.md, characters {n} to {n}; {ready.folder.name} by m"}
        for n in (1, 2)
    ]


@pytest.mark.parametrize(
    "line",
    [b"{", b"[]", b'{"candidate": 99, "verdict": "accept"}', b'{"candidate": 1, "verdict": "yes"}', b'{"verdict": "accept"}',
     b'{"candidate": 1, "verdict": "edit", "row": {"prompt": "a", "chosen": "b", "rejected": "c"}}',
     b'{"candidate": 1, "verdict": "edit", "row": {"messages": [{"role": "user", "content": " "}]}}'],
)  # fmt: skip
def test_verdicts_that_cannot_be_used_add_nothing(ready, line):
    with pytest.raises(DatasetError, match=r"Verdict \d cannot be used"):
        ready.judge([b'{"candidate": 1, "verdict": "accept"}', line], "ann")

    assert ready.verdicts() == {}


def test_the_agreement_of_two_reviewers_is_counted_on_what_both_judged(ready):
    judge(ready, "ann", c1="accept", c2="accept", c3="reject", c4="reject", c5="accept")
    judge(ready, "bob", c1="accept", c2="reject", c3="reject", c4="reject", c5="skip")

    # They agree on 3 of 4; by chance on half: (0.75 - 0.5) / (1 - 0.5).
    expected = {"reviewers": ("ann", "bob"), "rows": 4, "percent": 75.0, "kappa": 0.5, "differ": [2]}
    assert list(ready.agreements()) == [expected]
    assert ready.review("ann")["agreements"] == [expected]


def test_a_reviewer_elsewhere_agrees_through_a_file(ready):
    """People of a lab do not see each other's jobs: one exports the candidates for the other, and imports the verdicts."""
    judge(ready, "ann", c1="accept", c2="reject", c3="accept", c4="accept", c5="accept")
    lines = [json.loads(line) for line in ready.open_candidates("bob")]
    for line, verdict in zip(lines, ["accept", "accept", "edit", "reject", "accept"], strict=True):
        line["verdict"] = verdict
    lines[2]["row"]["messages"][1]["content"] = "It has 21."

    ready.judge([json.dumps(line).encode() for line in lines], "bob")

    (facts,) = ready.agreements()
    assert (facts["rows"], facts["percent"], facts["differ"]) == (5, 60.0, [2, 4])
    assert facts["kappa"] == pytest.approx((0.6 - 0.68) / (1 - 0.68), abs=1e-3)
    assert sorted(ready.accepted()) == [1, 3, 5]
    assert ready.accepted()[3]["messages"][1]["content"] == "It has 21."


def test_a_job_that_is_deleted_leaves_nothing_and_its_sets_stay(home, ready):
    judge(ready, "ann", c1="accept")
    ready.make_set(home, "manual", "ann", lambda size: None)

    first = ready.rows()[1]

    ready.delete()

    assert Job.files(home) == []
    assert sorted(path.name for path in home.datasets.iterdir()) == ["_generated", "manual"]
    assert list(ready.folder.parent.iterdir()) == []
    assert list(read(home, "set:manual").values()) == [first]


@pytest.mark.parametrize(
    ("answer", "claims"),
    [
        ("It has 14 screws. The maker is Acme.", []),
        ("It has 15 screws.", ["15"]),
        ("Made by Bolt and Acme in 1,400 pieces.", ["Bolt"]),
        ("Screws: Made in Paris. London is near.", ["Paris"]),
        ("It costs 3.50 and weighs 3.5 kg.", ["3.5"]),
    ],
)
def test_numbers_and_names_that_the_passage_lacks_are_noted(answer, claims):
    row = {"messages": [{"role": "user", "content": "Q 99?"}, {"role": "assistant", "content": answer}]}

    assert unknown_claims(row, "Part 2 of ACME has 14 screws, 1400 pieces, 3.50 each. The maker is known.") == claims
    assert unknown_claims({"prompt": "", "chosen": answer, "rejected": "7777"}, "14 1400 3.50 acme") == claims


def test_a_reviewer_gets_what_they_have_not_judged_and_their_own_edit(ready):
    facts = ready.review("ann")
    assert (facts["candidate"], facts["verdict"], facts["left"]) == (1, "", [1, 2, 3, 4, 5])
    assert facts["place"] == "manual.md, characters 1 to 1"
    edit = {"messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "It has 8 screws."}]}
    ready.judge([json.dumps({"candidate": 1, "verdict": "edit", "row": edit}).encode()], "ann")

    facts = ready.review("ann", 1)
    assert (facts["verdict"], facts["row"], facts["unsupported"]) == ("edit", edit, ["8"])
    assert ready.review("ann")["candidate"] == 2
    assert ready.review("bob", 1)["row"] == ready.rows()[1]
    assert (facts["accepted"], facts["left"]) == (1, [2, 3, 4, 5])
