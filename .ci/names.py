"""Names that are not the field's: `python .ci/names.py [FILE …]` lists each with its line and fails where there is one.

Vague bindings (`one`, `words`, `of`), lone participles (`told`, `kept`, `drawn`: what was done to a thing, not what it is) that are not
terms of the field, functions that look, ask or settle, and names of tests that are too long.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_EMPTY = frozenset({"one", "words", "of"})
_VAGUE = re.compile(r"_*(look|looks|ask|asks|settle|settles)(_|$)")
_PARTICIPLE = re.compile(
    "[a-z]{3,}ed|begun|drawn|found|given|gone|heard|held|kept|known|lost|made|meant|said|seen|sent|shown|spent|taken|told|worn|written"
)
# Terms of the field, states of runs and files, and what a flag or a test calls by no other name.
_TERMS = frozenset(
    """
    accepted accumulated advanced allocated allowed attended batched cached cancelled changed checked chosen clipped
    closed compiled completed compressed confirmed created damaged decoded deleted detected disabled elapsed embed
    enabled encoded ended escaped estimated evaluated excluded expected failed fetched finished freed fused gated
    grouped hashed ignored installed joined known learned limited loaded masked matched measured merged missed mixed
    modified moved needed nested normalized normed opened packed padded paged parsed passed pinned planned predicted
    preferred prepared projected proved published pushed quantized queued quoted reached read received recomputed
    rejected released reloaded removed replaced required reserved resized resolved restored resumed retried rounded
    sampled saved scaled selected sharded shared shifted signed skipped sorted speed started stopped streamed stripped
    supported suspended trained transposed tried tuned typed unexpected unpacked unquantized unsaved untied untrained
    updated used validated verified weighted
    """.split()
)
# Names of fields that are keys of JSON which people read.
_JSON_KEYS = {"engine/data/contract.py": ("dropped", "kept")}
_LONGEST_TEST = 80
_FOLDERS = ("app.py", "engine", "ui", "tests", "docs", ".ci")


def _reason(name: str) -> str | None:
    """Return what to use instead of a name of a binding."""
    if name in _EMPTY:
        return "the thing's own noun, such as row, module, step, message"
    bare = name.lstrip("_")
    if _PARTICIPLE.fullmatch(bare) and bare not in _TERMS:
        return "a noun, or a verb: what the thing is, not what was done to it"
    return None


def problems(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the reason of each name that should be another one."""
    keys = _JSON_KEYS.get(file.as_posix(), ())
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if _VAGUE.match(node.name):
                yield node.lineno, f"{node.name}: poll, refresh, scan, read; confirm, request, query; choose, resolve"
            if reason := _reason(node.name):
                yield node.lineno, f"{node.name}: {reason}"
            if node.name.startswith("test_") and len(node.name) > _LONGEST_TEST:
                yield node.lineno, f"{node.name}: {len(node.name)} characters, of {_LONGEST_TEST}"
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            if node.id not in keys and (reason := _reason(node.id)):
                yield node.lineno, f"{node.id}: {reason}"
        elif isinstance(node, ast.arg) and (reason := _reason(node.arg)):
            yield node.lineno, f"{node.arg}: {reason}"


def main(names: list[str]) -> int:
    """Print the problems of some files, or of all; return 1 if there are any."""
    listing = subprocess.run(["git", "ls-files", *_FOLDERS], capture_output=True, text=True, check=True)  # noqa: S607
    files = names or listing.stdout.split()
    violations = [(file, *problem) for file in files if file.endswith(".py") for problem in problems(Path(file))]
    for file, line, reason in violations:
        print(f"{file}:{line}: {reason}")
    return int(bool(violations))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
