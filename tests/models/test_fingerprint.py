"""Weights are the same while their bytes are, and reading them again costs time once."""

import os

import pytest

from loratory.engine.files import sha256_of
from loratory.engine.models import fingerprint
from loratory.engine.models.fingerprint import BackgroundHash, changed_file, list_weights


@pytest.fixture
def base(tmp_path):
    return write(tmp_path / "base", b"weights" * 1000)


def write(folder, content):
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(content)
    return folder


def list_with_hashes(folder, cache):
    hashes = BackgroundHash(list_weights(folder, "base"), folder, cache)
    hashes.run()
    return hashes.files


def later(folder):
    os.utime(folder / "model.safetensors", ns=(1, 1))


@pytest.fixture
def reads(monkeypatch):
    paths = []
    monkeypatch.setattr(fingerprint, "sha256_of", lambda path: paths.append(path) or sha256_of(path))
    return paths


def test_weights_that_were_only_copied_again_are_the_same(base, tmp_path, reads):
    before = list_with_hashes(base, tmp_path)
    later(base)

    assert [changed_file(before, base, "base", tmp_path) for _ in range(3)] == ["", "", ""]
    assert len(reads) == 2  # once as they were recorded, once for their other time


def test_other_weights_of_the_same_size_differ(base, tmp_path):
    before = list_with_hashes(base, tmp_path)
    write(base, b"WEIGHTS" * 1000)

    assert changed_file(before, base, "base", tmp_path) == "model.safetensors"


@pytest.mark.parametrize("content", [b"weights" * 999, b""])
def test_weights_of_another_size_differ_without_a_hash_and_without_reading(base, tmp_path, reads, content):
    before = list_weights(base, "base")
    write(base, content)

    assert changed_file(before, base, "base", tmp_path) == "model.safetensors"
    assert reads == []


@pytest.mark.parametrize("is_recorded", [True, False], ids=["recorded without a hash", "not recorded"])
def test_what_was_not_recorded_raises_no_alarm(base, tmp_path, is_recorded):
    before = list_weights(base, "base") if is_recorded else ()
    write(base, b"WEIGHTS" * 1000)
    later(base)

    assert changed_file(before, base, "base", tmp_path) == ""


def test_weights_in_other_shards_differ(base, tmp_path):
    before = list_with_hashes(base, tmp_path)
    (base / "model.safetensors").rename(base / "model-00001-of-00001.safetensors")
    (base / "model.safetensors.index.json").write_text('{"weight_map": {"x": "model-00001-of-00001.safetensors"}}')

    assert changed_file(before, base, "base", tmp_path) == "model.safetensors"


def test_the_hubs_cache_has_hashes_already(tmp_path, reads):
    sha256, snapshot = "ab" * 32, tmp_path / "snapshots" / "main"
    (tmp_path / "blobs").mkdir()
    snapshot.mkdir(parents=True)
    (tmp_path / "blobs" / sha256).write_bytes(b"weights")
    (snapshot / "model.safetensors").symlink_to(tmp_path / "blobs" / sha256)

    assert [file.sha256 for file in list_with_hashes(snapshot, tmp_path)] == [sha256]
    assert reads == []


def test_weights_that_changed_while_they_were_loaded_get_no_hash(base, tmp_path):
    hashes = BackgroundHash(list_weights(base, "base"), base, tmp_path)
    later(base)
    hashes.run()

    assert [file.sha256 for file in hashes.files] == [""]
