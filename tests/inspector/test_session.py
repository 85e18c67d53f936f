"""The inspector, asked from this process and answering from its own."""

import json

import pytest

from loratory.engine.config.run import DatasetConfig, ModelConfig
from loratory.engine.config.vision import VisionConfig
from loratory.engine.data.contract import CheckProgress, DatasetReport, FoundRow, SearchProgress, SetQuestion
from loratory.engine.errors import DatasetError, ModelError
from loratory.engine.inspector.session import Inspector
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.messages import CancelledRequestError
from tests.data.pictures import picture
from tests.tiny_vision import make_vision_folder, member_of

ROWS = 400


@pytest.fixture(scope="module")
def inspected_home(tmp_path_factory):
    """Make a home, and an uploads folder with a dataset in it."""
    home = LoratoryHome(tmp_path_factory.mktemp("inspected") / "home")
    home.make_writable()
    home.uploads.mkdir()
    rows = [{"instruction": f"Question {n}?", "output": f"Answer {n}." if n != 7 else ""} for n in range(ROWS)]
    (home.uploads / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return home


@pytest.fixture(scope="module")
def inspector(inspected_home):
    session = Inspector(inspected_home, data_roots=(inspected_home.uploads,))
    yield session
    session.close()


@pytest.fixture
def dataset(inspected_home):
    return DatasetConfig(source=str(inspected_home.uploads / "rows.jsonl"))


@pytest.fixture
def model(tiny_model_folder):
    return ModelConfig(id=str(tiny_model_folder))


def test_preview_check_and_render_agree(inspector, dataset, model):
    page = inspector.preview(dataset, model, 64, first_row=6, count=2)
    report = inspector.check(dataset, model, 64)
    (rendering,) = inspector.render(dataset, model, 64, row=6)

    assert [row.row for row in page.rows] == [6, 7]
    assert page.rows[1].problem == report.problems[0].problem
    (sequence,) = page.rows[0].sequences
    assert sequence.tokens == len(rendering.input_ids) == len(rendering.labels) == len(rendering.tokens)
    assert "".join(span.text for span in sequence.spans) == "".join(rendering.pieces)
    assert (report.rows, report.kept, report.dropped) == (ROWS, ROWS - 1, 1)
    assert report.model == model.id.rsplit("/", 1)[-1]
    assert report.trained_tokens + report.masked_tokens == report.total_tokens


def test_without_a_model_conversations_are_shown_and_no_tokens_counted(inspector, dataset):
    page = inspector.preview(dataset, count=1)
    report = inspector.check(dataset)

    assert page.rows[0].conversation.messages[1].content == "Answer 0."
    assert page.rows[0].sequences == ()
    assert report.total_tokens is None


def test_the_size_of_images_counts_in_previews_and_checks(inspector, inspected_home, tmp_path):
    folder = make_vision_folder(tmp_path / "vision", member_of("qwen2_vl"))
    (inspected_home.uploads / "red.png").write_bytes(picture("red", (200, 150)))
    turns = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "Red."}]
    path = inspected_home.uploads / "images.jsonl"
    path.write_text("".join(json.dumps({"messages": turns, "images": ["red.png"]}) + "\n" for _ in range(3)))
    dataset, model = DatasetConfig(source=str(path)), ModelConfig(id=str(folder))
    small = VisionConfig(max_pixels=4 * 28 * 28)

    tokens = [
        (
            inspector.preview(dataset, model, 512, count=1, vision=vision).rows[0].sequences[0].tokens,
            (inspector.check(dataset, model, 512, vision=vision).total_tokens or 0) / 3,
            len(inspector.render(dataset, model, 512, row=0, vision=vision)[0].input_ids),
        )
        for vision in (VisionConfig(), small)
    ]

    assert [len(set(counts)) for counts in tokens] == [1, 1]
    assert tokens[0][0] - tokens[1][0] == 7 * 5 - 2 * 1
    length = int(tokens[1][0])
    assert inspector.held_out(dataset, model, length, seed=0, vision=small).total == 0
    with pytest.raises(DatasetError, match="max_length"):  # no image fits
        inspector.held_out(dataset, model, length, seed=0)


def test_chosen_rows(inspector, dataset):
    assert [row.row for row in inspector.preview(dataset, rows=(5, 2)).rows] == [5, 2]


def test_a_check_can_be_watched_and_stopped(inspector, inspected_home):
    big = inspected_home.uploads / "big.jsonl"
    big.write_text('{"instruction": "x", "output": "y"}\n' * 200_000)
    dataset = DatasetConfig(source=str(big))

    def on_progress(progress):
        assert isinstance(progress, CheckProgress)
        assert 0 < progress.rows < 200_000
        page = inspector.preview(dataset, count=1)  # answered in the middle of the check
        assert page.rows[0].row == 0
        raise CancelledRequestError

    with pytest.raises(CancelledRequestError):
        inspector.check(dataset, on_progress=on_progress)

    assert isinstance(inspector.check(dataset), DatasetReport)


def test_a_search_can_be_watched_and_stopped(inspector, inspected_home):
    big = inspected_home.uploads / "searched.jsonl"
    # Seconds of any processor, and it reports after 0.2.
    big.write_text('{"instruction": "x", "output": "y"}\n' * 1_000_000)
    dataset = DatasetConfig(source=str(big))

    steps = inspector.find_steps(dataset, "nothing says this", after_row=0)
    assert isinstance(next(steps), SearchProgress)
    steps.close()

    assert list(inspector.find_steps(dataset, "X", after_row=3)) == [FoundRow(row=4)]
    with pytest.raises(DatasetError, match="are the most"):
        next(inspector.find_steps(dataset, "x" * 2000, after_row=0))


def test_row_checks_of_a_set_can_be_watched_and_stopped_next_to_its_rows(inspector, inspected_home):
    rows = [{"instruction": f"What is {number}?", "output": f"It is {number}. " * 40} for number in range(3000)]
    file = inspected_home.uploads / "checked.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in (*rows, rows[0])))
    name = inspector.sets(SetQuestion(do="make", dataset=DatasetConfig(source=str(file))))["name"]
    check, window = (SetQuestion.model_validate({"do": do, "name": name}) for do in ("check", "rows"))

    def stop(progress):
        assert 0 < progress["rows"] <= 3000
        assert inspector.sets(window)["count"] == 3001
        raise CancelledRequestError

    with pytest.raises(CancelledRequestError):
        inspector.sets(check, stop)
    assert inspector.sets(SetQuestion(do="found", name=name))["checks"] == []
    assert inspector.sets(check)["checks"][0]["kinds"] == {"exact": 1}
    assert inspector.sets(SetQuestion(do="rows", name=name, check="duplicates"))["rows"][0]["row"] == 3001


def test_columns_are_known_where_no_format_fits(inspector, inspected_home):
    (inspected_home.uploads / "odd.csv").write_text("q,a\nWhy?,So.\n")
    dataset = DatasetConfig(source=str(inspected_home.uploads / "odd.csv"))

    with pytest.raises(DatasetError, match="No format fits"):
        inspector.preview(dataset)
    columns = inspector.columns(dataset)

    assert (columns.columns, columns.format) == (("q", "a"), "prompt_completion")
    with_columns = dataset.model_copy(update={"format": "alpaca", "column_map": {"instruction": "q", "output": "a"}})
    assert inspector.preview(with_columns, count=1).rows[0].conversation.messages[1].content == "So."


def test_sets_are_made_read_and_changed(inspector, dataset, model):
    name = inspector.sets(SetQuestion(do="make", dataset=dataset))["name"]
    operations = [{"kind": "exclude", "rows": "3"}, {"kind": "edit", "row": 7, "record": {"instruction": "Why?"}}]
    inspector.sets(SetQuestion(do="apply", name=name, operations=operations))

    answer = inspector.sets(SetQuestion(do="rows", name=name, state="kept", first=5, count=2))
    typed = inspector.preview(
        DatasetConfig(source=f"set:{name}"), model, 64, first_row=6, edit={"instruction": "Why?", "output": "So."}
    )

    assert (answer["count"], [row["row"] for row in answer["rows"]]) == (ROWS - 1, [7, 8])
    assert answer["rows"][0]["parts"] == [["instruction", "Why?"]]
    assert "So." in "".join(span.text for span in typed.rows[0].sequences[0].spans if span.trained)


def test_a_hub_dataset_is_fetched_next_to_the_previews_and_the_fetch_can_be_ended(inspector, dataset):
    inspector.preview(dataset, count=1)
    previews, hub = inspector._data.pids, DatasetConfig(source="nobody/nothing-here")

    with pytest.raises(DatasetError):
        inspector.check(hub)
    fetching = inspector._fetching.pids
    assert fetching
    inspector.stop_fetching()

    assert not inspector._fetching.pids
    assert inspector._data.pids[0] == previews[0] != fetching[0]
    with pytest.raises(DatasetError):
        inspector.check(hub)  # it starts again when it is needed


def test_errors_keep_their_class_and_words(inspector, dataset, inspected_home, model):
    with pytest.raises(DatasetError, match="in the folders that this page may read"):
        inspector.preview(DatasetConfig(source="/etc/hosts"))
    with pytest.raises(DatasetError, match="was not found"):
        inspector.check(dataset.model_copy(update={"source": str(inspected_home.uploads / "none.jsonl")}))
    with pytest.raises(DatasetError, match="Row 8 is left out: the answer is empty"):
        inspector.render(dataset, model, row=7)


def test_a_model_that_is_not_there_is_a_model_error(inspector, dataset, tmp_path):
    with pytest.raises(ModelError):
        inspector.preview(dataset, ModelConfig(id=str(tmp_path / "nothing")))


def test_module_inventory_and_details_are_answered_next_to_it(inspector, model):
    shape = inspector.module_inventory(model)
    details = inspector.model_details(model)

    assert shape.hidden_size == 64
    assert "q_proj" in shape.linear_names()
    assert details.hidden_size == 64
