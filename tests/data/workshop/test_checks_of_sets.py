"""Row checks of a set with planted faults: what they find, the rows of a check, and remedies that are one operation each."""

import json

import pytest

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.contract import SetQuestion
from loratory.engine.data.source import SourceOptions
from loratory.engine.data.workshop.operations import Mark, Mask
from loratory.engine.data.workshop.sets import find_set, rows_of
from loratory.engine.data.workshop.table import SetTables
from loratory.engine.errors import DatasetError
from loratory.engine.paths import LoratoryHome
from tests.data.checks import yield_at_every_row
from tests.data.workshop.made_sets import apply, make_set, read

WORDS = "The rank of an adapter bounds how much it can change the weights of its base model in training".split()
TOPICS = (
    "Tea is steeped in water that has just boiled, and green tea in cooler water",
    "A bicycle chain wears out after some thousand kilometres and then skips under load",
    "The moon is about four hundred times smaller than the sun and as many times closer",
    "Bread dough rests twice, once before it is shaped and once in its tin",
)


def row(question, answer, **more):
    return {"instruction": question, "output": answer, **more}


ROWS = [
    row("What is a rank?", " ".join(WORDS)),  # 1
    row("Tea?", TOPICS[0]),
    row("What is a rank?", " ".join(WORDS)),  # 3 equals 1
    row("What is a rank?", " ".join([*WORDS[:6], "limits", *WORDS[7:]]) + " and in use"),  # 4 is near 1, and longer
    row("Chain?", TOPICS[1]),
    row("Moon?", f"{TOPICS[2]}, says bob.smith@gmail.com; bob.smith@gmail.com.au is another", source="bob.smith@gmail.com"),
    row("Bread?", TOPICS[3]),
    row("Whom do I call?", "Ring +44 20 7946 0018, or write to carol@gmail.com"),
]  # fmt: skip


def finish(steps):
    """Return the answer, and the progress on the way."""
    progress = []
    while True:
        try:
            progress.append(next(steps))
        except StopIteration as end:
            return end.value, progress


@pytest.fixture
def home(tmp_path):
    home = LoratoryHome(tmp_path / "home")
    home.make_writable()
    make_set(home, tmp_path, ROWS)
    return home


@pytest.fixture
def query(home):
    tables = SetTables(home, SourceOptions(home=home))
    return lambda do, **values: finish(tables.answer(SetQuestion(do=do, name="faq", **values)))[0]


@pytest.fixture
def check(query):
    """Check the rows; returns what each check found."""

    def run(eval_fraction=0.0, **settings):
        dataset = DatasetConfig(source="-", eval_fraction=eval_fraction)
        answer = query("check", dataset=dataset, seed=1, settings=settings)
        return {check["name"]: check for check in answer["checks"]}

    return run


def rows_shown(query, name, **values):
    return [row["row"] for row in query("rows", check=name, **values)["rows"]]


def test_planted_faults_are_found_with_both_sides(query, check, home):
    outcomes = check()
    assert {name for name, outcome in outcomes.items() if outcome["rows"]} == {
        "duplicates", "near_duplicates", "personal_data",
    }  # fmt: skip
    (example,) = outcomes["near_duplicates"]["examples"]
    assert (example["row"], example["partners"]) == (3, (0,))
    assert 0.3 <= example["similarity"] < 1
    assert "What is a rank?" in example["sample"]
    assert "bounds" in example["other"]
    assert outcomes["duplicates"]["counts"]["exclude"] == 1
    assert find_set(home, "faq").entries == []


def test_a_pair_below_the_threshold_is_shown_and_not_counted(check):
    similarity = check()["near_duplicates"]["examples"][0]["similarity"]
    outcomes = check(similarity=min(1.0, similarity + 0.05))["near_duplicates"]
    assert (outcomes["rows"], outcomes["examples"]) == (0, [])
    assert [below["row"] for below in outcomes["below"]] == [3]
    assert outcomes["below"][0]["other"]


def test_a_filter_shows_the_rows_of_a_check(query, check):
    check()
    assert rows_shown(query, "duplicates") == [3]
    assert rows_shown(query, "personal_data", sort="-row") == [8, 6]
    assert rows_shown(query, "personal_data", text="carol") == [8]
    assert query("numbers", check="near_duplicates")["numbers"] == [4]
    assert rows_shown(query, "spelling") == []


def test_findings_outlive_their_process_and_name_their_version(query, check, home):
    check()
    version = find_set(home, "faq").versions[-1].name
    query("apply", operations=[{"kind": "exclude", "rows": "2"}])
    other = SetTables(home, SourceOptions(home=home))
    answer, _ = finish(other.answer(SetQuestion(do="found", name="faq")))
    assert answer["source"] == f"set:faq@{version}"
    assert answer["version"] != version
    assert len(answer["checks"]) == 9


def test_exclusion_is_one_operation_on_exactly_these_rows(query, check, home):
    check()
    query("apply", check="duplicates", remedy="exclude", since=0)
    assert find_set(home, "faq").entries[-1].operation == Mark(kind="drop", rows="3", text="duplicates")
    assert 3 not in read(home)
    with pytest.raises(DatasetError, match="no rows left"):
        query("apply", check="duplicates", remedy="exclude")
    query("apply", operations=[{"kind": "undo", "id": 1}])
    assert read(home)[3] == ROWS[2]
    assert {c["name"]: c["counts"]["exclude"] for c in query("found")["checks"]}["duplicates"] == 1


def test_of_a_cluster_the_longest_answer_stays(query, check, home):
    check()
    query("apply", check="near_duplicates", remedy="best")
    assert find_set(home, "faq").entries[-1].operation == Mark(kind="drop", rows="1,3", text="near_duplicates")
    assert 4 in read(home)


def test_of_a_cluster_whose_longest_row_is_excluded_the_next_one_stays(query, check, home):
    check()
    apply(home, {"kind": "exclude", "rows": "4"})
    query("apply", check="near_duplicates", remedy="best")
    assert rows_of(find_set(home, "faq").entries[-1].operation, []) == ((2, 3),)
    assert 1 in read(home)


def test_rows_that_were_edited_since_the_check_are_left_alone(query, check, home):
    check()
    apply(home, {"kind": "edit", "row": 8, "record": row("Whom?", "Nobody")})
    query("apply", check="personal_data", remedy="exclude")
    assert rows_of(find_set(home, "faq").entries[-1].operation, []) == ((5, 6),)


def test_what_was_found_is_masked_in_all_columns_and_comes_back(query, check, home):
    check()
    query("apply", check="personal_data", remedy="mask")
    operation = find_set(home, "faq").entries[-1].operation
    assert isinstance(operation, Mask)
    assert operation.rows == ((5, 6), (7, 8))
    rows = read(home)
    assert rows[6]["output"] == f"{TOPICS[2]}, says [mail]; [mail] is another"
    assert rows[6]["source"] == "[mail]"
    assert rows[8]["output"] == "Ring [phone], or write to [mail]"
    assert rows[1] == ROWS[0]
    assert "[mail]" in json.dumps(query("row", row=6)["record"])
    assert "gmail" not in json.dumps(query("log"), default=str)
    assert {c["name"]: c["counts"]["mask"] for c in query("found")["checks"]}["personal_data"] == 0
    query("apply", operations=[{"kind": "undo", "id": 1}])
    assert read(home)[6] == ROWS[5]
    assert query("row", row=6)["record"] == ROWS[5]


def test_after_a_mask_nothing_is_found(query, check):
    check()
    query("apply", check="personal_data", remedy="mask")
    assert check()["personal_data"]["rows"] == 0


def test_leaks_end_where_their_clusters_are_held_out(query, check, home):
    copies = [row("What is a rank?", " ".join([*WORDS[:at], "indeed", *WORDS[at:]])) for at in range(2, 16, 2)]
    apply(home, *({"kind": "edit", "row": at, "record": copy} for at, copy in enumerate(copies, 1)))
    apply(home, {"kind": "split", "rows": "5"})
    outcomes = check()["leakage"]
    assert (outcomes["rows"], outcomes["counts"]["hold_out"]) == (1, 6)
    query("apply", check="leakage", remedy="hold_out")
    assert find_set(home, "faq").entries[-1].operation == Mark(kind="split", rows="1-4,6-7", text="leakage")
    assert check()["leakage"]["rows"] == 0


def test_a_report_is_the_same_as_markdown_and_json(query, check):
    check()
    files = query("report")
    assert "## personal_data: 2 mail, 1 phone" in files["md"]
    assert "row 6: Turn 2, mail: bob.smith@gmail.com" in files["md"]
    assert [c["name"] for c in json.loads(files["json"])["checks"]][:2] == ["duplicates", "near_duplicates"]


def test_without_a_report_there_are_the_default_thresholds(query):
    answer = query("found")
    assert answer["checks"] == []
    assert answer["settings"]["similarity"] == 0.3


def test_a_check_yields_and_reports_its_progress(home, tmp_path, monkeypatch):
    yield_at_every_row(monkeypatch)
    rows = [row(f"Question {number}?", f"{TOPICS[number % 4]} {number}") for number in range(300)]
    make_set(home, tmp_path, rows, name="many")
    steps = SetTables(home, SourceOptions(home=home)).answer(SetQuestion(do="check", name="many"))
    answer, progress = finish(steps)
    assert answer["rows"] == 300
    assert len(progress) > 300
    assert [step.rows for step in progress if step is not None] == list(range(1, 301))


@pytest.mark.parametrize("values", [{}, {"0": {"a": "[mail]"}}, {"1": {"a": "\\1"}}, {"99": {"a": "[x]"}}])
def test_a_mask_that_a_client_made_up_is_refused(query, values):
    with pytest.raises(DatasetError):
        query("apply", operations=[{"kind": "mask", "values": values}])


def test_rows_are_sorted_by_their_score_and_excluded_below_it(query, home):
    scorers = [{"scorer": "length", "at_least": 76, "unit": "characters"}]
    assert query("rows")["rows"][0]["score"] is None
    dataset = DatasetConfig(source="-", eval_fraction=0.0, scorers=scorers)
    answer = query("check", dataset=dataset, settings={"score_below": 1.0})

    rows = query("rows", sort="score")["rows"]
    assert [row["score"] for row in rows] == sorted(row["score"] for row in rows)
    assert query("rows", sort="-score")["rows"][0]["score"] == 1.0
    assert query("rows")["has_scores"]
    assert answer["scorers"][0]["at_least"] == 76

    below = [number for number, row in enumerate(ROWS, 1) if len(row["output"]) < 76]
    assert rows_shown(query, "quality") == below
    query("apply", check="quality", remedy="exclude")
    assert set(read(home)) == set(range(1, len(ROWS) + 1)) - set(below)
    apply(home, {"kind": "undo", "id": 1})
    assert len(read(home)) == len(ROWS)
