"""A job reads the images that its rows name, although their files stay here."""

import json

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.conversation import Conversation
from loratory.engine.data.passes.reader import DatasetReader
from loratory.engine.data.source import SourceOptions
from loratory.engine.paths import LoratoryHome
from loratory.engine.places.huggingface_jobs import layout
from loratory.engine.places.huggingface_jobs.companion import Companion
from loratory.engine.places.huggingface_jobs.layout import JobOrder
from loratory.engine.places.huggingface_jobs.transfer import collect_inputs
from loratory.engine.runs.provenance import Provenance
from loratory.engine.runs.store import RunStore
from tests.data.pictures import picture
from tests.invented_runs import a_config


class Bucket:
    """Holds the inputs of one attempt."""

    def __init__(self, folder, inputs):
        self.files = {f"{folder}/{layout.INPUTS}/{name}": source for name, source in inputs.items()}

    def list(self, folder):
        return {name.removeprefix(f"{folder}/"): name for name in self.files if name.startswith(f"{folder}/")}

    def get(self, files):
        for name, target in files:
            source = self.files[name]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source if isinstance(source, bytes) else source.read_bytes())


def refs_of(source, home):
    rows = DatasetReader(DatasetConfig(source=source), SourceOptions(home=home)).rows()
    examples = (row.example for row in rows)
    return [
        [ref for turn in each.messages for ref in turn.images] for each in examples if isinstance(each, Conversation)
    ]


def send(home, tmp_path, rows, **config):
    data = tmp_path / "data"
    data.mkdir(exist_ok=True)
    (data / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = RunStore(home, "local").create(a_config(dataset__source=str(data / "rows.jsonl"), **config), Provenance())
    return run, collect_inputs(run, home)


def test_the_images_of_the_rows_alone_are_sent_and_read_there(home, tmp_path):
    (tmp_path / "data").mkdir()
    for name, color, size in (
        ("red.png", "red", (40, 30)),
        ("blue.png", "blue", (20, 20)),
        ("other.png", "green", (9, 9)),
    ):
        (tmp_path / "data" / name).write_bytes(picture(color, size))
    rows = [
        {"instruction": "What?", "output": "A.", "images": names}
        for names in (["red.png", "blue.png"], ["red.png"], [])
    ]

    run, inputs = send(home, tmp_path, rows)

    assert len([name for name in inputs if name.startswith("media/")]) == 2
    order = JobOrder(bucket="b", folder="runs/x/1", wheel="w", run_id=run.id, attempt=1, limit_seconds=9)
    there = LoratoryHome(tmp_path / "there")
    companion = Companion(Bucket(order.folder, inputs), order, there)
    companion.fetch()
    source = companion.folder.read_config().dataset.source
    assert source.startswith(str(there.root))
    assert refs_of(source, there) == refs_of(str(tmp_path / "data" / "rows.jsonl"), home)
    assert [len(refs) for refs in refs_of(source, there)] == [2, 1, 0]


def test_rows_of_text_bring_their_file_alone(home, tmp_path):
    _, inputs = send(home, tmp_path, [{"instruction": "What?", "output": "A."}] * 3)

    assert sorted(name for name in inputs if not name.startswith("run/")) == ["data/rows.jsonl"]
