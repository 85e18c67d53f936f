"""Datasets on the Hub, and a process that reads of them through the real `datasets` library."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.hub.published import PublishedHub

_READ = """
import json, sys
from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.passes.reader import DatasetReader
from loratory.engine.data.source import SourceOptions
from loratory.engine.errors import EngineError

def answer(source, streaming):
    try:
        reader = DatasetReader(DatasetConfig(source=source), SourceOptions(streaming=streaming))
        return {"rows": [row.record.value for row in reader.rows()], "columns": reader.columns}
    except EngineError as error:
        return {"what": error.what, "fix": error.fix}

print(json.dumps([answer(*request) for request in json.loads(sys.argv[1])]))
"""


class DatasetHub(PublishedHub):
    """A Hub that is read of from another process."""

    def read(self, cache: Path, requests: Sequence[tuple[str, bool]]) -> list[dict[str, Any]]:
        """Read datasets in another process, one after the other: the rows of each, or the two sentences.

        Args:
            cache: The working folder of that process.
            requests: The source of each, and whether it is streamed.
        """
        environment = {
            **os.environ,
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(cache / "hf"),
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        command = [sys.executable, "-c", _READ, json.dumps(requests)]
        process = subprocess.run(command, cwd=cache, env=environment, capture_output=True)
        assert process.returncode == 0, process.stderr.decode()[-3000:]
        answers: list[dict[str, Any]] = json.loads(process.stdout.decode().splitlines()[-1])
        return answers
