"""Folders that we make: once, by one process, never seen half-made."""

import os
import resource
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from loratory.engine.errors import ModelError, StorageError
from loratory.engine.models.prepared import MANIFEST_NAME, ModelProgress, is_prepared, prepare_once
from tests.models.interrupted_maker import RECIPE
from tests.recorded_request import RecordedRequest

REPOSITORY = Path(__file__).parents[2]


def build(target):
    (target / "config.json").write_text("{}")
    (target / "model.safetensors").write_bytes(b"w" * 100)


def never(_target):
    pytest.fail("it was made again")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "models" / "mine"


def start_maker(folder):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.models.interrupted_maker", str(folder)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_finished_folder_is_used_again(folder):
    messages: list[ModelProgress] = []
    assert prepare_once(folder, RECIPE, build, messages.append) == folder
    assert [progress.phase for progress in messages] == ["verifying"]

    messages.clear()
    assert prepare_once(folder, RECIPE, never, messages.append) == folder
    assert messages == []
    assert sorted(path.name for path in folder.parent.iterdir()) == [".mine.lock", "mine"]


@pytest.mark.parametrize("manifest", ["", '{"made_from"', '{"made_from": "another"}'])
def test_a_folder_that_was_not_finished_from_its_recipe_is_made_again(folder, manifest):
    prepare_once(folder, RECIPE, build)
    (folder / MANIFEST_NAME).write_text(manifest)
    (folder / "config.json").write_text("[]")
    (folder / "old.json").write_text("[]")
    assert not is_prepared(folder, RECIPE)

    prepare_once(folder, RECIPE, build)

    assert is_prepared(folder, RECIPE)
    assert (folder / "config.json").read_text() == "{}"
    assert not (folder / "old.json").exists()


@pytest.mark.parametrize(
    ("failure", "error", "message"),
    [
        (ModelError("It broke.", "Mend it."), ModelError, "It broke"),
        (OSError(28, "No space left on device"), StorageError, "disk is full"),
    ],
)
def test_a_failure_is_reported_and_leaves_nothing_behind(folder, failure, error, message):
    def fail(target):
        (target / "half").write_text("x")
        (target.parent / "scrap").write_text("x")
        raise failure

    with pytest.raises(error, match=message):
        prepare_once(folder, RECIPE, fail)

    assert [path.name for path in folder.parent.iterdir()] == [".mine.lock"]


@pytest.mark.exhaustive(quick=2)
@pytest.mark.parametrize("step", ["begun", "config.json", "model.safetensors", "tokenizer.json", "verifying"])
def test_a_maker_killed_at_any_step_leaves_nothing_that_counts(folder, step):
    maker = start_maker(folder)
    for line in maker.stdout:
        if line.strip() == step:
            os.kill(maker.pid, signal.SIGKILL)
            break
    maker.wait()
    # Killed in the instant of the last rename it may be finished; it is never half-made.
    assert not folder.exists() or is_prepared(folder, RECIPE)

    prepare_once(folder, RECIPE, build)

    assert is_prepared(folder, RECIPE)
    assert sorted(path.name for path in folder.parent.iterdir()) == [".mine.lock", "mine"]


def test_two_makers_at_once_make_it_once(folder):
    makers = [start_maker(folder), start_maker(folder)]

    outputs = [maker.communicate(timeout=600)[0].split() for maker in makers]

    assert all(lines[-1] == "done" for lines in outputs)
    assert sum("begun" in lines for lines in outputs) == 1
    assert is_prepared(folder, RECIPE)


def gguf_setting(name: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<QQQ", 0, 1, len(name)) + name + struct.pack("<I", kind) + value


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel bounds memory on Linux alone")
@pytest.mark.parametrize(
    "head",
    [
        gguf_setting(b"general.architecture", 8, struct.pack("<Q", 5) + b"llama"),
        struct.pack("<QQ", 2**60, 0) + bytes(1000),
        gguf_setting(b"tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 2**40)) + bytes(1000),
        gguf_setting(b"other", 9, struct.pack("<IQ", 77, 1)) + bytes(1000),
    ],
    ids=["no tokenizer", "tensors", "tokens", "unknown type"],
)
def test_a_conversion_may_not_need_much_more_memory_than_its_weights(tmp_path, head):
    from loratory.engine.inspector.worker.convert_gguf import convert  # imports torch

    gguf, before = tmp_path / "small.gguf", resource.getrlimit(resource.RLIMIT_DATA)
    gguf.write_bytes(b"GGUF" + struct.pack("<I", 3) + head)
    allocated = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    try:
        with pytest.raises(ModelError, match="small"):
            convert({"gguf": str(gguf), "target": str(tmp_path)}, RecordedRequest())
        assert 0 < resource.getrlimit(resource.RLIMIT_DATA)[0] - allocated < 5 << 30
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
