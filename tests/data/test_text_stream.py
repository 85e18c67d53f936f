"""What a text file may be wrapped in."""

import gzip
import pickle

import pytest

from loratory.engine.data.files import text_stream
from loratory.engine.data.files.text_stream import TextStream
from loratory.engine.errors import DatasetError

TEXT = '{"a": "é 語 😀"}\n{"a": 2}\n'


def read_stream(path, offset=0):
    return b"".join(TextStream(path).chunks(offset)).decode()


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        b"\xef\xbb\xbf" + TEXT.encode(),
        b"\xff\xfe" + TEXT.encode("utf-16-le"),
        b"\xfe\xff" + TEXT.encode("utf-16-be"),
    ],
    ids=["utf-8", "utf-8 with mark", "utf-16-le", "utf-16-be"],
)
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("chunk_bytes", [1, 1 << 20])
def test_everything_becomes_utf_8(tmp_path, monkeypatch, data, compressed, chunk_bytes):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(gzip.compress(data) if compressed else data)
    stream = TextStream(path)
    monkeypatch.setattr(text_stream, "CHUNK_BYTES", chunk_bytes)

    assert b"".join(stream.chunks()).decode() == TEXT
    if stream.seeks:
        offset = TEXT.encode().index(b"\n") + 1
        assert b"".join(stream.chunks(offset)).decode() == '{"a": 2}\n'
    assert stream.bytes_read == path.stat().st_size


def test_bare_carriage_returns_end_lines_where_nothing_else_does(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\r{"a": 2}\r')
    assert read_stream(path) == '{"a": 1}\n{"a": 2}\n'

    path.write_bytes(b'{"a": 1}\r\n{"a": 2}\r\n')
    assert read_stream(path) == '{"a": 1}\r\n{"a": 2}\r\n'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickle.dumps([1]), "pickle"),
        (pickle.dumps([1], protocol=2), "pickle"),
        (b"\xd0\xcf\x11\xe0rest", "Office document"),
        (b"BZh9rest", "bzip2"),
        (b"\x28\xb5\x2f\xfdrest", "zstd"),
        (b"%PDF-1.4", "PDF"),
        (gzip.compress(pickle.dumps([1]), mtime=0), "pickle"),
    ],
)
def test_files_of_other_kinds_are_named_and_refused(tmp_path, data, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data)

    with pytest.raises(DatasetError, match=message):
        TextStream(path)


def test_a_decompression_bomb_is_stopped_early(tmp_path):
    path = tmp_path / "rows.csv"
    with gzip.open(path, "wb") as file:
        for _ in range(200):
            file.write(b"\0" * (1 << 20))
    chunk_sizes: list[int] = []

    with pytest.raises(DatasetError, match="200-fold"):
        chunk_sizes.extend(len(chunk) for chunk in TextStream(path).chunks())

    assert sum(chunk_sizes) <= 65 << 20
