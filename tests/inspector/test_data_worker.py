"""The data process stays small: torch never gets in, whatever is asked."""

import subprocess
import sys

from tests.tiny_vision import make_vision_folder, member_of

PROGRAM = """
import sys
from loratory.engine.inspector.worker.data import DatasetHandlers, torch_hidden

with torch_hidden():
    from loratory.engine.inspector.worker.load_tokenizer import load_tokenizer
from loratory.engine.data.contract import DataRequest
from loratory.engine.data.files.access import DataAccess
from loratory.engine.paths import LoratoryHome

handlers = DatasetHandlers(LoratoryHome.from_environment(), DataAccess(), load_tokenizer)
dataset = {"source": "sample:lab-chats"}
params = {"dataset": dataset, "model": {"id": sys.argv[1]}, "max_length": 256, "row": 0}

class Request:
    def work_with(self, subject): ...

(sequence,) = handlers.render(DataRequest.model_validate(params), Request()).sequences
assert sequence.labels
from loratory.engine.data.hub import _import_datasets

datasets = _import_datasets()
rows = datasets.Dataset.from_list([{"text": "a"}, {"text": "b"}])
assert [row["text"] for row in rows.to_iterable_dataset().skip(1)] == ["b"]
print("torch" in sys.modules)
"""


IMAGES = """
import sys
from pathlib import Path
from loratory.engine.inspector.worker.data import torch_hidden

with torch_hidden():
    from loratory.engine.inspector.worker.load_tokenizer import load_tokenizer
from loratory.engine.models.source import ModelSource

tokenizer, _ = load_tokenizer(ModelSource(sys.argv[1], "model"))
print(tokenizer.image_text.expansion(200, 100).count("<image>"), "torch" in sys.modules)
"""


def test_the_text_of_images_needs_no_torch(tmp_path):
    folder = make_vision_folder(tmp_path / "model", member_of("smolvlm"))

    answer = subprocess.run([sys.executable, "-c", IMAGES, str(folder)], capture_output=True, text=True, check=False)

    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split() == ["144", "False"]


def test_tokenizers_and_hub_datasets_work_without_torch(home, tiny_model_folder):
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny_model_folder)], capture_output=True, text=True, check=False
    )

    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == "False"
