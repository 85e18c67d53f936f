"""Passages of documents, which a process with limits reads: run as a module, this is that process."""

import contextlib
import io
import re
from bisect import bisect
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from loratory.engine.data.files.access import open_regular, shown_name
from loratory.engine.data.records import one_line
from loratory.engine.errors import DatasetError, WorkerError
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.json_lines import JsonLinesProcess
from loratory.engine.processes.limits import limited
from loratory.engine.processes.messages import JsonObject, Request, serve

ENDINGS = (".txt", ".md", ".html", ".htm", ".pdf", ".docx")
# Seconds of computing (a page of PDF takes some 30 ms) and bytes for one file; characters of all.
_LIMITS, _MOST_CHARACTERS = (120.0, 1 << 30), 100_000_000
# Where a passage may end, the best first: before a heading, after a paragraph, a sentence, a word.
_BREAKS = [re.compile(text) for text in (r"\n(?=#{1,6} )", r"\n\n", r"(?<=[.!?…])\s|(?<=[。！？])", r"\s")]
_HEADING, _PAGE = re.compile(r"^#{1,6} +(.+)$", re.MULTILINE), re.compile("\f")


class Passage(BaseModel, frozen=True):
    """A part of a document."""

    place: str  # file, heading or page where there is one, and its characters of the document's text
    text: str


def read_passages(files: list[Path], home: LoratoryHome, size: int, overlap: int) -> tuple[list[Passage], list[str]]:
    """Return the passages of files, and notes on pages without text; a file that cannot be read is a DatasetError."""
    passages, notes = list[Passage](), list[str]()
    if not files:
        raise DatasetError("No document is named.", "Choose one or more, or continue a job.")
    with contextlib.closing(JsonLinesProcess(__name__, log_file=home.logs / "documents.log")) as process:
        for path in files:
            params = {"path": str(path), "size": size, "overlap": overlap, "limits": _LIMITS}
            try:
                answer = process.call("read", params)
            except WorkerError as error:  # whatever a damaged file does to a library, or a bomb to the limits
                fix = "It may be damaged or too large: save it again with its program, divide it, or save it as .txt."
                raise DatasetError(f"{shown_name(path.name)} cannot be read. {error.what}", fix) from error
            passages += [Passage.model_validate(value) for value in answer["passages"]]
            notes += answer["notes"]
            if sum(len(passage.text) for passage in passages) > _MOST_CHARACTERS:
                raise DatasetError(f"The documents have more than {_MOST_CHARACTERS:,} characters.", "Choose fewer.")
    return passages, notes


def cut(text: str, size: int, overlap: int) -> Iterator[tuple[int, str]]:
    """Yield parts of at most `size` characters with where they begin; each repeats the end of the one before."""
    end, overlap = 0, min(overlap, size // 3)  # or it would not get on
    while end < len(text):
        word = _BREAKS[-1].search(text, max(end - overlap, 0), end)
        start = word.end() if word is not None else max(end - overlap, 0)
        limit = start + size
        ends = ([match.end() for match in pattern.finditer(text, start + size // 2, limit)] for pattern in _BREAKS)
        end = len(text) if limit >= len(text) else next(filter(None, ends), [limit])[-1]
        if part := text[start:end].strip():
            yield text.index(part[0], start), part


def _read(params: JsonObject, _: Request) -> JsonObject:
    path = Path(params["path"])
    name, ending = shown_name(path.name), path.suffix.lower()
    if ending not in ENDINGS:
        raise DatasetError(f"{name} has no ending of a document.", f"Save it as {', '.join(ENDINGS)}.")
    with limited(*params["limits"]), open_regular(path) as file:
        try:
            text = _text(file.read(), name, ending).encode(errors="replace").decode()
        except ImportError as error:
            raise DatasetError(f"{name} needs {error.name}.", "Run `pip install 'loratory[documents]'`.") from error
        text = re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip(" \t") for line in text.split("\n")))
        is_pdf, passages = ending == ".pdf", []
        starts, places = [0], [f"{name}, page 1" if is_pdf else name]
        for number, match in enumerate((_PAGE if is_pdf else _HEADING).finditer(text), 2):
            starts.append(match.start())
            places.append(f"{name}, {f'page {number}' if is_pdf else one_line(match[1], 120)}")
        for start, part in cut(text, params["size"], params["overlap"]):
            place = f"{places[bisect(starts, start) - 1]}, characters {start + 1:,} to {start + len(part):,}"
            passages.append({"place": place, "text": part.replace("\f", "\n")})
    if not passages:
        raise DatasetError(f"{name} has no text.", "If it has scans, recognize their text first, as with ocrmypdf.")
    empty = sum(not page.strip() for page in text.split("\f")) if is_pdf else 0
    return {"passages": passages, "notes": [f"{name}: pages without text: {empty:,}."] if empty else []}


def _text(data: bytes, name: str, ending: str) -> str:
    """Return the text of a document; of a PDF with a form feed between pages, of others as Markdown."""
    if ending in (".txt", ".md"):
        with contextlib.suppress(UnicodeDecodeError):
            text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
            if "\0" not in text:
                return text.replace("\r\n", "\n")
        raise DatasetError(f"{name} is not text in UTF-8.", "Save it as UTF-8, or give it the ending of its kind.")
    from bs4 import BeautifulSoup
    from mammoth import convert_to_html
    from markdownify import MarkdownConverter
    from pypdf import PdfReader

    if ending == ".pdf":
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise DatasetError(f"{name} needs a password.", "Save it without one, such as with qpdf --decrypt.")
        return "\f".join(page.extract_text().replace("\f", "\n") for page in reader.pages)
    if data.startswith(b"\xd0\xcf\x11\xe0"):  # the magic of OLE
        raise DatasetError(f"{name} has a password, or is of an old Word.", "Save it as .docx without a password.")
    page = convert_to_html(io.BytesIO(data), include_embedded_style_map=False).value if ending == ".docx" else data
    soup = BeautifulSoup(page, "html.parser")  # finds the encoding
    for element in soup(["script", "style", "template", "noscript", "svg", "nav"]):
        element.decompose()
    plain: JsonObject = dict.fromkeys(["escape_underscores", "escape_asterisks", "escape_misc"], False)
    converter = MarkdownConverter(heading_style="ATX", strip=["a", "img", "b", "strong", "i", "em"], **plain)
    return str(converter.convert_soup(soup))


if __name__ == "__main__":
    serve({"read": _read})
