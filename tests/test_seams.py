"""The seams: a toy variant of each kind is added to a copy of the sources, in as many files as the design allows, and used.

A toy changes sources as a contributor would: new files, and lines in those that name what there is. Its proof is a program that
runs on the copy alone.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Toy:
    """A variant of one seam.

    Attributes:
        most_files: That it may add or change, as the design has them.
        proof: A program that fails where the variant is not in use. Its arguments are an empty folder and a tiny model.
        new: Files that it adds, with their content.
        lines: Lines that it adds to files, each behind the text that they follow.
    """

    most_files: int
    proof: str
    new: Mapping[str, str] = field(default_factory=dict)
    lines: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def files(self) -> set[str]:
        return {*self.new, *self.lines}


# For proofs that train: a run of two steps on the tiny model, and what its worker reported.
TRAIN = """
import sys
from pathlib import Path

from loratory.engine.config.load import config_from_mapping
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.store import RunStore
from loratory.engine.training import worker
from tests.training.worker_runs import WorkerRuns, events_of, losses_of, write_questions

home, model = map(Path, sys.argv[1:])

def train(**sections):
    runs = WorkerRuns(LoratoryHome(home), model, write_questions(home / "questions.jsonl"))
    run = runs.create(**{"training": {"max_steps": 2, "save_steps": 2, "eval_steps": 2}} | sections)
    assert worker.main([str(run.folder.path)]) == 0, run.folder.events.read_text()
    return run
"""

METHOD = Toy(
    most_files=4,
    new={
        "engine/config/methods/toy.py": '''
from loratory.engine.config.methods.base import PeftMethod
from loratory.engine.section import Section, setting


class ToySettings(Section):
    apply_GS: bool = setting(False, "Orthogonal")
    """Orthogonalizes the reflections."""


class Toy(PeftMethod):
    name, label, help = "toy", "Toy", "Householder reflections."
    peft_type, peft_class = "HRA", "HRAConfig"
    fields = ("r", "target_modules", "apply_GS")
    quantization = frozenset()
    tensor_marks = ("hra_",)
''',
        "engine/memory/methods/toy.py": """
from loratory.engine.memory.methods.base import MemoryRule


class ToyMemory(MemoryRule):
    def layer_tensors(self, module, adapter):
        return ((module.in_features, adapter.r),)
""",
    },
    lines={
        "engine/config/methods/registry.py": {
            "from loratory.engine.config.methods.oft import Oft, OftSettings\n": (
                "from loratory.engine.config.methods.toy import Toy, ToySettings\n"
            ),
            "_CLASSES = (": "Toy, ",
            "    LoraSettings,\n": "    ToySettings,\n",
        },
        "engine/memory/methods/registry.py": {
            "from loratory.engine.memory.methods.lora import AdaLoraMemory, LoraMemory\n": (
                "from loratory.engine.memory.methods.toy import ToyMemory\n"
            ),
            "MEMORY_RULES: dict[str, MemoryRule] = {\n": '    "toy": ToyMemory(),\n',
        },
    },
    proof=TRAIN
    + """
run = train(adapter={"method": "toy", "r": 4, "apply_GS": True})

assert len(losses_of(run)) == 2
counts = next(event.data for event in events_of(run) if event.kind == "parameters")
assert counts.trainable == 2 * 4 * (6 * 64 + 128), "six linear layers of 64 inputs and one of 128, in each of two blocks"

from loratory.engine.config.load import config_from_mapping
from loratory.engine.hardware.devices import list_devices
from loratory.engine.memory.compare import compare_methods
from loratory.engine.models.inventory_cache import known_inventory

config = config_from_mapping({"model": {"id": "smollm2-135m-instruct"}, "dataset": {"source": "rows.jsonl"}})
shape = known_inventory(config.model, LoratoryHome(home))
rows = {row.method: row for row in compare_methods(shape, config, list_devices()[-1])}
assert rows["Toy"].needed_bytes and rows["Toy"].trainable < rows["Full fine-tuning"].trainable
""",
)

OBJECTIVE = Toy(
    most_files=4,
    new={
        "engine/training/objectives/toy.py": """
from loratory.engine.config.objectives import TOY
from loratory.engine.training.objectives.base import PassLosses, TrainingObjective


class Doubled(TrainingObjective):
    traits = TOY

    def losses(self, model, one, estimate=None):
        return PassLosses(tuple(2 * part for part in super().losses(model, one, estimate).sums))
"""
    },
    lines={
        "engine/config/training.py": {'ObjectiveName = Literal["sft", ': '"toy", '},
        "engine/config/objectives.py": {
            '"Learns to give the answers in the rows.", ("answers",))\n': (
                'TOY = Objective("toy", "Toy", "Learns everything twice.", ("answers",))\n'
            ),
            "for objective in (SUPERVISED, ": "TOY, ",
        },
        "engine/training/assembly.py": {
            "from loratory.engine.training.objectives.base import TrainingObjective\n": (
                "from loratory.engine.training.objectives.toy import Doubled\n"
            ),
            "for objective in (TrainingObjective, ": "Doubled, ",
        },
    },
    proof=TRAIN
    + """
single, double = (
    losses_of(train(training={"max_steps": 2, "save_steps": 2, "eval_steps": 2, "objective": name})) for name in ("sft", "toy")
)

assert abs(double[0][1] / single[0][1] - 2) < 1e-3, (single, double)
""",
)

LOOP = Toy(
    most_files=2,
    new={
        "engine/training/loops/toy.py": """
from loratory.engine.training.loops.supervised import SupervisedLoop


class RepeatedStep(SupervisedLoop):
    def get_train_dataloader(self):
        return [next(iter(super().get_train_dataloader()))] * 9
"""
    },
    lines={
        "engine/training/loops/__init__.py": {
            "from loratory.engine.training.loops.supervised import SupervisedLoop\n": (
                "from loratory.engine.training.loops.toy import RepeatedStep\n"
            ),
            '"supervised": SupervisedLoop': ', "toy": RepeatedStep',
        },
    },
    proof=TRAIN
    + """
from loratory.engine.config.objectives import SUPERVISED

def tokens_of_steps():
    return [event.data.tokens for event in events_of(train()) if event.kind == "step"]

first, both = tokens_of_steps()
assert both != 2 * first, "two steps have different rows"
object.__setattr__(SUPERVISED, "loop", "toy")  # as an objective would name it
first, both = tokens_of_steps()
assert both == 2 * first, "two steps have the same rows"
""",
)

FORMAT = Toy(
    most_files=3,
    new={
        "engine/data/formats/toy.py": """
from loratory.engine.data.conversation import Conversation, Message
from loratory.engine.data.formats.base import Column, DataFormat, Detection


class Toy(DataFormat):
    name, label = "toy", "toy"
    columns = (Column("riddle", True, "what is asked"), Column("solution", True, "what is answered"))

    def detect(self, table):
        both = {role: table.names[role] for role in self.required if role in table.names}
        return [Detection("toy", "riddles with solutions", both)] if len(both) == 2 else []

    def convert(self, row):
        return Conversation((Message("user", row.text("riddle")), Message("assistant", row.text("solution"))))


TOY = Toy()
"""
    },
    lines={
        "engine/data/formats/__init__.py": {
            "from loratory.engine.data.formats.preferences import FORMATS_OF_PREFERENCES\n": "from loratory.engine.data.formats.toy import TOY\n",
            "for format_ in (": "TOY, ",
        },
        "engine/config/run.py": {"DataFormatName = Literal[\n": '    "toy",'},
    },
    proof="""
import sys
from pathlib import Path

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.passes.reader import DatasetReader
from loratory.engine.data.source import SourceOptions

file = Path(sys.argv[1]) / "riddles.jsonl"
file.write_text('{"riddle": "What is 1?", "solution": "It is 1."}\\n')
reader = DatasetReader(DatasetConfig(source=str(file)), SourceOptions())

assert reader.detection.format == "toy"
assert [message.content for message in next(reader.rows()).example.messages] == ["What is 1?", "It is 1."]
""",
)

FILE_KIND = Toy(
    most_files=3,
    new={
        "engine/data/files/toy.py": """
from loratory.engine.data.files.base import PlainTextReader


class ToyReader(PlainTextReader):
    label = "toy"
    endings = (".toy",)
"""
    },
    lines={
        "engine/data/files/__init__.py": {
            "from loratory.engine.data.files.text_stream import TextStream\n": "from loratory.engine.data.files.toy import ToyReader\n",
            "_TEXT_KINDS: tuple[type[TextReader], ...] = (": "ToyReader, ",
        }
    },
    proof="""
import sys
from pathlib import Path

from loratory.engine.data.files import DATA_ENDINGS, open_file

file = Path(sys.argv[1]) / "lines.toy"
file.write_text("one\\ntwo\\n")

assert ".toy" in DATA_ENDINGS
assert [record.value for record in open_file(file).records()] == [{"text": "one"}, {"text": "two"}]
""",
)

EVENT = Toy(
    most_files=1,
    lines={
        "engine/runs/history/events.py": {
            '    kind = "warning"\n\n    message: str\n    code: str = ""\n': (
                '\n\nclass ToyData(EventData):\n    kind = "toy"\n\n    grade: int\n'
            )
        }
    },
    proof="""
import sys
from pathlib import Path

from loratory.engine.runs.history.events import ToyData
from loratory.engine.runs.history.log import EventWriter, read_events

log = Path(sys.argv[1]) / "events.jsonl"
with EventWriter(log, 1) as writer:
    writer.append(ToyData(grade=3))

assert [event.data for event in read_events(log).events] == [ToyData(grade=3)]
""",
)

ROW_KIND = Toy(
    most_files=4,
    lines={
        "engine/config/objectives.py": {
            'RowKind = Literal["answers", ': '"toys", ',
            "ROW_KINDS: Mapping[RowKind, RowTraits] = {\n": '    "toys": RowTraits("toys", "toy"),\n',
            '"Learns to give the answers in the rows.", ("answers",': ' "toys"',
        },
        "engine/data/conversation.py": {
            '        return {**Conversation.preview(self, clip), "rejected": _clipped(self.rejected, clip)}\n': (
                '\n\n@dataclass(frozen=True, slots=True)\nclass ToyRow(Conversation):\n    kind: ClassVar[RowKind] = "toys"\n\n'
                '    def warnings(self):\n        return (("order", "it is a toy"),)\n'
            )
        },
        "engine/data/formats/preferences.py": {
            "PREFERENCE, HH_DIALOGUES, RANKING, RATINGS = Preference(), HH(), Ranking(), Ratings()\n": """

class ToyFormat(DataFormat):
    name, label, rows = "toy", "toys", "toys"
    columns = (Column("toy", True, "what is said"),)

    def detect(self, table):
        return [Detection("toy", "a column of toys", {"toy": table.names["toy"]})] if "toy" in table.names else []

    def convert(self, row):
        return ToyRow((Message("user", "Say it."), Message("assistant", row.text("toy"))))

""",
            "FORMATS_OF_PREFERENCES: tuple[DataFormat, ...] = (": "ToyFormat(), ",
            "from loratory.engine.data.conversation import ": "ToyRow, ",
        },
        "engine/config/run.py": {"DataFormatName = Literal[\n": '    "toy",'},
    },
    proof=TRAIN
    + """
import json

(home / "toys.jsonl").write_text("".join(json.dumps({"toy": f"Toy {n}."}) + "\\n" for n in range(20)))

run = train(dataset={"source": str(home / "toys.jsonl"), "eval_fraction": 0.1})
assert len(losses_of(run)) == 2

from loratory.engine.config.run import DatasetConfig, ModelConfig
from loratory.engine.inspector.session import Inspector

inspector = Inspector(LoratoryHome(home))
report = inspector.check(DatasetConfig(source=str(home / "toys.jsonl")), ModelConfig(id=str(model)), 64, seed=0)
inspector.close()
assert report.notice_counts == {"order": 20}, report
""",
)

EXPORT = Toy(
    most_files=3,
    lines={
        "engine/config/results.py": {'ExportKind = Literal["adapter", ': '"toy", '},
        "engine/export/kinds.py": {
            'and compress that with llm-compressor.",\n)\n': (
                'TOY = Kind(name="toy", title="Toy", about="A toy.", library="peft", refusal=_must_have_adapter)\n'
            ),
            "KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (": "TOY, ",
        },
        "engine/export/worker/main.py": {
            "from loratory.engine.export.kinds import ": "TOY, ",
            "WRITERS: Mapping[str, Writer] = {\n": "    TOY.name: Writer(trained_bytes, _write_adapter),\n",
        },
    },
    proof=TRAIN
    + """
from loratory.engine.chat.contract import ChatTarget
from loratory.engine.config.results import ExportConfig
from loratory.engine.export.contract import ExportRequest
from loratory.engine.export.job import ExportJob

run = train()
request = ExportRequest(target=ChatTarget.of_run(run.folder.path), folder=home / "out", settings=ExportConfig(kind="toy"))
result = ExportJob(LoratoryHome(home), request).run()

assert result.verified.passed
assert (home / "out" / "adapter_model.safetensors").is_file()
""",
)

PLACE = Toy(
    most_files=3,
    new={
        "engine/places/toy.py": """
from loratory.engine.places.local import LocalExecutor
from loratory.engine.places.run_place import ThisMachine


class ToyPlace(ThisMachine):
    name, label, starts = "toy", "Toy room", "in the toy room"


class ToyExecutor(LocalExecutor):
    name = "toy"
"""
    },
    lines={
        "engine/config/run.py": {
            'Place = Literal["local", "jobs", ': '"toy", ',
            '        return self.nodes * (1 if run.devices == "cpu" else self.gpus)\n': (
                '\n\nclass ToyConfig(Section):\n    grade: int = setting(3, "Grade", ge=1)\n    """How good the toy is."""\n\n'
                "    def count_processes(self, run):\n        return 1\n"
            ),
            "    slurm: SlurmConfig = SlurmConfig()\n": "    toy: ToyConfig = ToyConfig()\n",
        },
        "engine/places/__init__.py": {
            "from loratory.engine.places.local import LocalContext, LocalExecutor\n": (
                "from loratory.engine.places.toy import ToyExecutor, ToyPlace\n"
            ),
            "for place in (ThisMachine, ": "ToyPlace, ",
            "for executor in (here, ": "ToyExecutor(context, command), ",
            "every = (ThisMachine(devices), ": "ToyPlace(devices), ",
        },
    },
    proof="""
import sys
from pathlib import Path

from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.store import RunStore
from loratory.engine.supervision.supervisor import Supervisor
from tests.fake_services import fake_services
from tests.supervision.fake_runs import config_for, fake_settings, wait_for_state
from loratory.ui.build import build_app

home = LoratoryHome(Path(sys.argv[1]))
worker = [sys.executable, "-P", "-m", "tests.supervision.fake_worker"]
supervisor = Supervisor(home, fake_settings(lambda spec: [*worker, str(spec.run.folder.path)]))
supervisor.start()
run = RunStore(home, "ann").create(config_for("steps=2", run={"where": "toy"}, toy={"grade": 5}))
state = wait_for_state(run, "completed", "failed")
supervisor.stop()
assert (state.state, state.executor) == ("completed", "toy"), state

page = build_app(fake_services(home.root / "page"))
parts = {block.elem_id: block for block in page.blocks.values() if block.elem_id}
assert ("Toy room", "toy") in parts["where"].choices
assert parts["toy-grade"].label == "Grade"
""",
)

ROW_CHECK = Toy(
    most_files=2,
    new={
        "engine/data/workshop/checks/toy.py": '''
from loratory.engine.data.workshop.checks.base import RowCheck


class Shouting(RowCheck):
    """Turns in capitals."""

    def add(self, row):
        for turn in row.turns:
            if turn.text.isupper():
                self.report(row.number, "capitals", f"Turn {turn.number} shouts.")
'''
    },
    lines={
        "engine/data/workshop/checks/run.py": {
            "from loratory.engine.data.workshop.checks.text import Language, Mojibake, Refusals, Thinking\n": "from loratory.engine.data.workshop.checks.toy import Shouting\n",
            "CHECKS: Mapping[str, type[RowCheck]] = {\n": '    "shouting": Shouting,\n',
        },
    },
    proof="""
import json
import subprocess
import sys
from pathlib import Path

home = Path(sys.argv[1])
(home / "rows.jsonl").write_text(json.dumps({"text": "HELLO THERE"}))
command = [sys.executable, "-P", "-m", "loratory.engine.cli", "data", "check", str(home / "rows.jsonl"), "--only", "shouting", "--json"]
report = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
assert report["checks"][0]["kinds"] == {"capitals": 1}
assert report["checks"][0]["finds"] == "Turns in capitals."
""",
)

SCORER = Toy(
    most_files=1,
    new={
        "engine/scoring/scorers/toy.py": '''
from typing import Literal

from loratory.engine.scoring.base import Example, Scorer
from loratory.engine.section import setting


class Shouting(Scorer):
    """Capitals."""

    label, sentence, examples = "Shouting", "1 where the answer shouts.", (Example("HEY", 1.0),)
    scorer: Literal["shouting"]
    marks: int = setting(0, "Marks", ge=0)
    """Exclamation marks that it needs."""

    def rate(self, row):
        return row.answer.isupper() and row.answer.count("!") >= self.marks
'''
    },
    proof="""
from loratory.engine.scoring.base import ScoredAnswer
from loratory.engine.scoring.registry import SCORERS
from tests.any_scorer import scorer_from
from loratory.engine.scoring.session import ScoringSession

shouting = scorer_from({"scorer": "shouting", "marks": 1, "weight": 0.5})
assert type(shouting) is SCORERS["shouting"]
with ScoringSession([shouting]) as session:
    verdicts = session.score([ScoredAnswer("", text) for text in ("HEY!", "HEY", "hey!")])
assert [verdict.score for (verdict,) in verdicts] == [1, 0, 0]
""",
)

TOYS = {
    "method": METHOD,
    "objective": OBJECTIVE,
    "loop": LOOP,
    "row kind": ROW_KIND,
    "format": FORMAT,
    "file": FILE_KIND,
    "place": PLACE,
    "export": EXPORT,
    "event": EVENT,
    "row check": ROW_CHECK,
    "scorer": SCORER,
}


def add(toy: Toy, sources: Path) -> None:
    """Copy the sources to a folder, with the toy."""
    sources.mkdir(parents=True)
    shutil.copy(ROOT / ".package" / "loratory" / "__init__.py", sources)
    half_compiled = shutil.ignore_patterns("*.pyc.*")  # files of other processes, which rename them at once
    for name in ("engine", "ui", "presets"):  # with what is compiled, which stays valid for unchanged files
        shutil.copytree(ROOT / name, sources / name, ignore=half_compiled)
    for name, content in toy.new.items():
        assert not (sources / name).exists()
        (sources / name).write_text(content, encoding="utf-8")
    for name, additions in toy.lines.items():
        text = (sources / name).read_text(encoding="utf-8")
        for before, line in additions.items():
            assert text.count(before) == 1, f"{name} no longer has {before!r} once"
            text = text.replace(before, before + line)
        (sources / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    "seam", [pytest.param(name, marks=[pytest.mark.e2e] if TRAIN in toy.proof else []) for name, toy in TOYS.items()]
)
def test_a_variant_takes_few_files_and_is_used_at_once(seam, tmp_path, tiny_model_folder):
    toy, sources, home = TOYS[seam], tmp_path / "sources", tmp_path / "home"
    home.mkdir()
    add(toy, sources / "loratory")

    process = subprocess.run(
        [sys.executable, "-P", "-c", toy.proof, str(home), str(tiny_model_folder)],
        env={**os.environ, "PYTHONPATH": f"{sources}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"},
        cwd=sources,
        capture_output=True,
        text=True,
        check=False,
    )

    assert process.returncode == 0, process.stderr[-3000:]
    assert len(toy.files) <= toy.most_files
