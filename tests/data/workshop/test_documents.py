"""Passages of documents: their text and places, and what is refused."""

import os
import zlib
from itertools import pairwise
from pathlib import Path

import pytest
from pypdf import PdfReader, PdfWriter

from loratory.engine.data.workshop import documents
from loratory.engine.data.workshop.documents import cut, read_passages
from loratory.engine.errors import DatasetError
from loratory.engine.processes.json_lines import JsonLinesProcess
from tests.data.workshop.made_documents import sentences, write_docx, write_pdf


@pytest.fixture
def read(home):
    return lambda *files, size=500, overlap=50: read_passages(files, home, size, overlap)


def refusal(read, file):
    with pytest.raises(DatasetError) as error:
        read(file)
    assert file.name in error.value.what
    assert error.value.fix
    return str(error.value)


def test_a_pdf_of_twenty_pages_is_cut_into_passages_that_know_their_page(read, tmp_path):
    pages = [f"Chapter {number}\n" + "\n".join(sentences(24, f"P{number}").split(". ")) for number in range(1, 21)]
    pages[6] = ""

    passages, notes = read(write_pdf(tmp_path / "manual.pdf", pages))

    assert notes == ["manual.pdf: pages without text: 1."]
    assert all(len(passage.text) <= 500 for passage in passages)
    text = "\n".join(passage.text for passage in passages)
    for number in range(1, 21):
        assert (f"P{number} 24 of the manual has 168 screws" in text) == (number != 7)
    assert passages[0].place == f"manual.pdf, page 1, characters 1 to {len(passages[0].text)}"
    assert all("P20 " in passage.text for passage in passages if "page 20," in passage.place)
    assert sum("page 20," in passage.place for passage in passages) >= 1


MARKDOWN = f"""Before.

# Screws

{sentences(3)}

```sh
# no heading is in here
```

## Nails

{sentences(6, "Nail")}
"""
HTML = f"""<!doctype html><head><title>Manual</title><style>p {{}}</style><script>alert("bad")</script></head>
<nav>Home</nav><p>Before.</p><h1>Screws</h1><p>{sentences(3)}</p><ul><li>snake_case<li>a * b</ul>
<h2>Nails</h2><p>Caf&eacute;</p><p>{sentences(6, "Nail")}</p>"""
PARAGRAPHS = [
    ("", "Before."),
    ("berschrift1", "Screws"),
    ("", sentences(3)),
    ("berschrift1", "Nails"),
    ("", sentences(6, "Nail")),
]


@pytest.mark.parametrize("ending", [".md", ".html", ".docx"])
def test_passages_end_at_headings_and_know_theirs(read, tmp_path, ending):
    file = tmp_path / f"manual{ending}"
    if ending == ".docx":
        write_docx(file, PARAGRAPHS)
    else:
        file.write_text(MARKDOWN if ending == ".md" else HTML, encoding="utf-8")

    passages, notes = read(file, size=300, overlap=0)

    assert notes == []
    nails = [passage for passage in passages if f"{file.name}, Nails, characters" in passage.place]
    assert nails[0].text.endswith((".", "screws."))
    assert "Nail 6 of the manual has 42 screws." in nails[-1].text
    text = " ".join(passage.text for passage in passages)
    assert "alert" not in text
    if ending == ".html":
        assert "Home" not in text
        assert "Café" in text
        assert "snake_case" in text
        assert "a * b" in text


def test_a_passage_is_the_text_at_its_place_and_repeats_the_end_of_the_one_before():
    text = sentences(40)
    parts = list(cut(text, 300, 60))

    for start, part in parts:
        assert text[start : start + len(part)] == part
        assert len(part) <= 300
        assert part.endswith(".")
    for (start, part), (following, _) in pairwise(parts):
        assert start < following < start + len(part)
        assert start + len(part) - following <= 61
    assert parts[-1][0] + len(parts[-1][1]) == len(text)


@pytest.mark.parametrize("text", ["x" * 1000, "漢字。" * 300, "\n" * 500 + "end", "", " ", "a\n\n\n\nb " * 99])
def test_any_text_is_cut_to_its_end(text):
    parts = list(cut(text, 200, 66))

    assert all(0 < len(part) <= 200 for _, part in parts)
    assert {at for start, part in parts for at in range(start, start + len(part))} >= {
        at for at, letter in enumerate(text) if not letter.isspace()
    }


def test_scans_passwords_and_damaged_files_are_refused_with_what_to_do(read, tmp_path):
    assert "scan.pdf has no text. If it has scans" in refusal(read, write_pdf(tmp_path / "scan.pdf", ["", ""]))

    plain = write_pdf(tmp_path / "plain.pdf", ["Some text."])
    writer = PdfWriter(PdfReader(plain))
    writer.encrypt("secret", algorithm="AES-256")
    writer.write(tmp_path / "locked.pdf")
    assert "locked.pdf needs a password. Save it without one" in refusal(read, tmp_path / "locked.pdf")

    writer = PdfWriter(PdfReader(plain))
    writer.encrypt("", "owner", algorithm="AES-256")
    writer.write(tmp_path / "open.pdf")
    assert read(tmp_path / "open.pdf")[0][0].text == "Some text."

    for name, content in {
        "cut.pdf": plain.read_bytes()[:80], "not.pdf": b"hello", "not.docx": b"hello", "old.docx": b"\xd0\xcf\x11\xe0" + bytes(600),
        "bytes.txt": b"\x00\x01", "latin.txt": "Größe".encode("latin-1"), "empty.md": b"  \n", "deep.html": b"<div>" * 100_000,
    }.items():  # fmt: skip
        file = tmp_path / name
        file.write_bytes(content)
        refusal(read, file)
    (tmp_path / "rows.csv").write_text("a,b")
    assert "has no ending of a document. Save it as .txt" in refusal(read, tmp_path / "rows.csv")
    os.mkfifo(tmp_path / "pipe.txt")
    refusal(read, tmp_path / "pipe.txt")


def test_a_bomb_ends_its_process_and_nothing_else(read, tmp_path, monkeypatch):
    stream = zlib.compress(b"(x) Tj " * 20_000_000, 9)
    write_pdf(tmp_path / "bomb.pdf", ["@"])
    content = (tmp_path / "bomb.pdf").read_bytes()
    start, end = content.index(b"<</Length"), content.index(b"endstream")
    bomb = b"<</Length %d/Filter/FlateDecode>>stream\n%s\n" % (len(stream), stream)
    (tmp_path / "bomb.pdf").write_bytes(content[:start] + bomb + content[end:])
    monkeypatch.setattr(documents, "_LIMITS", (2.0, 1 << 30))
    refusal(read, tmp_path / "bomb.pdf")
    monkeypatch.setattr(documents, "_LIMITS", (30.0, 64 << 20))
    (tmp_path / "large.txt").write_text("word " * 20_000_000)
    assert "large.txt cannot be read. Memory ran out. It may be damaged or too large" in refusal(
        read, tmp_path / "large.txt"
    )
    (tmp_path / "entities.docx").write_bytes(b"")
    write_docx(tmp_path / "entities.docx", [("", "&a;")])
    refusal(read, tmp_path / "entities.docx")


def test_the_process_gets_no_secret(read, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-this-test")
    (tmp_path / "a.txt").write_text("Text.")
    environments = []
    real = JsonLinesProcess.call

    def call(process, *arguments, **values):
        answer = real(process, *arguments, **values)
        environments.append(Path(f"/proc/{process.pid}/environ").read_bytes())
        return answer

    monkeypatch.setattr(JsonLinesProcess, "call", call)
    read(tmp_path / "a.txt")
    assert len(environments) == 1
    assert b"sk-secret-of-this-test" not in environments[0]
