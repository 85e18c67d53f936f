"""Duplicates, near-duplicates and leaks."""

import time

import pytest

from tests.data.checks import write_rows
from tests.data.workshop.checks.reports import LONG, findings_of, report_of, talk


def test_case_punctuation_and_white_space_do_not_count(tmp_path):
    rows = [talk("Hello, you?", "Fine!"), talk("hello  you", "FINE"), talk("Hello me?", "Fine!")]

    assert findings_of(tmp_path, rows, "duplicates") == [(1, "exact")]


@pytest.mark.parametrize(("first", "second"), [("2 + 3", "2 - 3"), ("f(x)", "f[x]"), ("😀", "😃")])
def test_operators_brackets_and_signs_alone_count(tmp_path, first, second):
    assert findings_of(tmp_path, [talk("Say", first), talk("Say", second)], "duplicates") == []


def test_only_what_over_names_is_compared(tmp_path):
    rows = [talk("Say hi.", "Hi."), talk("Say hi!", "Hello.")]

    assert findings_of(tmp_path, rows, "duplicates", over="prompts") == [(1, "exact")]
    assert findings_of(tmp_path, rows, "duplicates", over="answers") == []


def test_plain_text_is_compared_whatever_over_names(tmp_path):
    assert findings_of(tmp_path, [{"text": LONG}, {"text": LONG.upper()}], "duplicates", over="prompts") == [
        (1, "exact")
    ]


def test_a_system_prompt_that_rows_share_makes_them_no_duplicates(tmp_path):
    system = {"role": "system", "content": LONG * 5}
    rows = [talk("Name a fruit.", "An apple."), talk("Count to three.", "One, two, three.")]
    for row in rows:
        row["messages"].insert(0, system)

    assert findings_of(tmp_path, rows, "near_duplicates") == []


def test_a_pair_is_compared_with_both_of_its_answers(tmp_path):
    pair = {"prompt": "Say hi.", "chosen": "Hi.", "rejected": "No."}

    assert findings_of(tmp_path, [pair, {**pair, "rejected": "Never."}], "duplicates") == []
    assert findings_of(tmp_path, [pair, {**pair, "rejected": "no"}], "duplicates") == [(1, "exact")]


def test_rows_longer_than_what_is_read_are_compared_as_a_whole(tmp_path):
    rows = [{"text": "a" * 30_000 + end} for end in ("x", "y", "x")]
    report = report_of(tmp_path, rows, "duplicates")

    assert [finding.row for finding in report.checks[0].findings] == [2]


def test_one_changed_word_of_ten_is_near_and_half_is_not(tmp_path):
    near = LONG.replace("bounds", "limits")
    far = "The cost of a network shows how much it can lose on its way of base steps in practice."
    rows = [talk("Explain.", LONG), talk("Explain.", far), talk("Explain.", near), talk("Explain.", LONG)]
    (check,) = report_of(tmp_path, rows, "near_duplicates").checks

    (finding,) = check.findings
    assert (finding.row, finding.kind, finding.partners) == (2, "near", (0,))
    assert "in common with row 1" in finding.why
    assert "limits" in finding.sample or "Explain" in finding.sample


def test_of_similar_rows_the_first_stays_and_each_other_names_an_earlier_one(tmp_path):
    changes = ("bounds", "limits", "shapes", "governs")
    rows = [talk("Explain.", LONG.replace("bounds", change)) for change in changes]
    (check,) = report_of(tmp_path, rows, "near_duplicates").checks

    assert [finding.row for finding in check.findings] == [1, 2, 3]
    assert all(finding.partners[0] < finding.row for finding in check.findings)


def test_many_similar_rows_take_little_memory_and_time(tmp_path):
    rows = [talk(f"{LONG} {LONG} Number {number}.", LONG) for number in range(3000)]
    started = time.process_time()
    (check,) = report_of(tmp_path, rows, "near_duplicates").checks

    assert check.rows == 2999
    assert time.process_time() - started < 60  # 2 s on an idle core


def test_the_threshold_decides(tmp_path):
    near = [talk("Explain.", LONG), talk("Explain.", LONG.replace("bounds", "limits").replace("weights", "layers"))]

    assert findings_of(tmp_path, near, "near_duplicates", similarity=0.4) == [(1, "near")]
    assert findings_of(tmp_path, near, "near_duplicates", similarity=0.9) == []


def test_chinese_without_spaces_has_near_duplicates(tmp_path):
    text = "适配器的秩决定了它在训练中能够多大程度地改变基础模型的权重，因此应该根据任务来选择。"
    rows = [
        {"text": text},
        {"text": text.replace("任务", "数据")},
        {"text": "今天天气很好，我们一起去公园散步，然后吃饭。" * 2},
    ]

    assert findings_of(tmp_path, rows, "near_duplicates") == [(1, "near")]


def test_a_held_out_row_that_is_nearly_trained_on_is_a_leak(tmp_path):
    rows = [talk(f"Question {number} about {number * 7919}?", str(number**5) * 9) for number in range(40)]
    rows += [talk(row["messages"][0]["content"], row["messages"][1]["content"] + " so") for row in rows]
    report = report_of(tmp_path, rows, "leakage", eval_fraction=0.3)
    (check,) = report.checks

    assert check.kinds["held_out"] > 0
    assert all(abs(finding.row - finding.partners[0]) == 40 for finding in check.findings)
    assert findings_of(tmp_path, rows, "leakage") == []  # nothing is held out


def test_rows_with_prompts_of_another_dataset_are_found(tmp_path):
    question = "How many legs do three spiders and two ants have together?"
    against = write_rows(
        tmp_path / "benchmark.jsonl", [{"instruction": question, "output": "36"}, {"instruction": "Hi", "output": "Hi"}]
    )
    rows = [
        talk(f"Here is a task. {question.upper()} Think.", "36"),
        talk("Hi", "Hi"),
        talk("How many legs has it?", "Six."),
    ]
    (check,) = report_of(tmp_path, rows, "leakage", against=str(against)).checks

    assert [(finding.row, finding.kind) for finding in check.findings] == [(0, "against")]
    assert "prompt in row 1 of" in check.findings[0].why
