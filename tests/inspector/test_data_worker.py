"""The data process stays small: torch never gets in, whatever is asked."""

import subprocess
import sys

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


def test_tokenizers_and_hub_datasets_work_without_torch(home, tiny_model_folder):
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny_model_folder)], capture_output=True, text=True, check=False
    )

    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == "False"
