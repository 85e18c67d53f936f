"""Folders that we make: once, by one process, never seen half-made."""

import json
import os
import resource
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import ModelError, StorageError
from engine.models.prepared import MANIFEST_NAME, ModelProgress, Recipe, is_prepared, prepare_gguf, prepare_once
from engine.paths import LoratoryHome
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


def test_the_manifest_lists_every_file_with_size_and_hash(folder):
    prepare_once(folder, RECIPE, build)

    manifest = json.loads((folder / MANIFEST_NAME).read_text())

    assert manifest["files"]["config.json"] == {
        "size_bytes": 2,
        "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    }
    assert manifest["files"].keys() == {"config.json", "model.safetensors"}


def test_a_folder_with_folders_in_it_is_prepared_and_watched_too(folder):
    def build_deep(target):
        build(target)
        (target / "additional_chat_templates").mkdir()
        (target / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")

    prepare_once(folder, RECIPE, build_deep)

    assert is_prepared(folder, RECIPE)
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("other")
    assert not is_prepared(folder, RECIPE)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "config.json").write_text("[]"),
        lambda folder: (folder / "model.safetensors").write_bytes(b"w" * 99),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / MANIFEST_NAME).unlink(),
        lambda folder: (folder / MANIFEST_NAME).write_text('{"v": 1, "files"'),
        lambda folder: (folder / MANIFEST_NAME).write_text('{"made_from": "the test", "files": {}}'),
    ],
    ids=["edited", "cut off", "file lost", "manifest lost", "manifest torn", "manifest empty"],
)
def test_a_damaged_folder_is_rebuilt(folder, spoil):
    prepare_once(folder, RECIPE, build)
    spoil(folder)
    assert not is_prepared(folder, RECIPE)

    prepare_once(folder, RECIPE, build)

    assert is_prepared(folder, RECIPE)
    assert (folder / "config.json").read_text() == "{}"


def test_a_folder_of_another_recipe_is_replaced(folder):
    prepare_once(folder, RECIPE, build)
    newer = Recipe(made_from="a better test", needed_bytes=1)

    prepare_once(folder, newer, lambda target: (target / "config.json").write_text('{"v": 2}'))

    assert is_prepared(folder, newer)
    assert {path.name for path in folder.iterdir()} == {"config.json", MANIFEST_NAME}


def test_a_failure_leaves_nothing_behind(folder):
    def fail(target):
        (target / "half").write_text("x")
        (target.parent / "scrap").write_text("x")
        raise ModelError("It broke.", "Mend it.")

    with pytest.raises(ModelError):
        prepare_once(folder, RECIPE, fail)

    assert [path.name for path in folder.parent.iterdir()] == [".mine.lock"]


def test_a_full_disk_is_reported_and_leaves_nothing_behind(folder):
    def fill(target):
        (target / "half").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="disk is full"):
        prepare_once(folder, RECIPE, fill)

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


def gguf_array(name: bytes, kind: int, count: int) -> bytes:
    """The beginning of a GGUF file with one array in its settings."""
    return struct.pack("<QQQ", 0, 1, len(name)) + name + struct.pack("<IIQ", 9, kind, count)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (struct.pack("<QQ", 2**60, 0), "it has 1,152,921,504,606,846,976 tensors, and 100,000 are the most"),
        (struct.pack("<QQ", 0, 2**60), "settings, and 100,000 are the most"),
        (gguf_array(b"tokenizer.ggml.tokens", 8, 3_000_000), "it has 3,000,000 tokens, and 1,000,000 are the most"),
        (gguf_array(b"other", 4, 2**40), "values in its settings, and 5,000,000 are the most"),
        (gguf_array(b"tokenizer.ggml.tokens", 8, 900_000), "its head is damaged"),
        (gguf_array(b"other", 77, 1), "its head is damaged"),
    ],
    ids=["tensors", "settings", "tokens", "values", "cut off", "unknown type"],
)
def test_counts_in_the_head_of_a_gguf_file_are_checked_before_it_is_converted(tmp_path, head, reason):
    (tmp_path / "huge.gguf").write_bytes(b"GGUF\x03\0\0\0" + head + bytes(1000))

    with pytest.raises(ModelError, match=rf"huge\.gguf cannot be converted: .*{reason}"):
        prepare_gguf(tmp_path / "huge.gguf", LoratoryHome(tmp_path / "home"))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel bounds memory on Linux alone")
def test_a_conversion_may_not_need_much_more_memory_than_the_weights_of_its_file(tmp_path):
    from engine.inspector.worker.convert_gguf import convert  # imports torch

    gguf, before = tmp_path / "small.gguf", resource.getrlimit(resource.RLIMIT_DATA)
    name, value = b"general.architecture", b"llama"
    setting = struct.pack("<Q", len(name)) + name + struct.pack("<IQ", 8, len(value)) + value  # 8: text
    gguf.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + setting)
    allocated = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    try:
        with pytest.raises(ModelError):  # it has no tokenizer
            convert({"gguf": str(gguf), "target": str(tmp_path)}, RecordedRequest())
        assert 0 < resource.getrlimit(resource.RLIMIT_DATA)[0] - allocated < 5 << 30
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
