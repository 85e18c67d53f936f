"""Names that are not the field's: `python .ci/names.py [FILE …]` lists each with its line and fails where there is one.

Bindings that say nothing (`one`, `words`, `of`), functions that look, ask or settle, names of tests that nobody reads to their end.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_EMPTY = frozenset({"one", "words", "of"})
_VAGUE = re.compile(r"_*(look|looks|ask|asks|settle|settles)(_|$)")
_LONGEST_TEST = 80
_FOLDERS = ("app.py", "engine", "ui", "tests", "docs", ".ci")


def problems(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the reason of each name that should be another one."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if _VAGUE.match(node.name):
                yield node.lineno, f"{node.name}: poll, refresh, scan, read; confirm, request, query; choose, resolve"
            if node.name in _EMPTY:
                yield node.lineno, f"{node.name}: the noun of what is returned"
            if node.name.startswith("test_") and len(node.name) > _LONGEST_TEST:
                yield node.lineno, f"{node.name}: {len(node.name)} characters, of {_LONGEST_TEST}"
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in _EMPTY:
            yield node.lineno, f"{node.id}: the thing's own noun, such as row, module, step, message"
        elif isinstance(node, ast.arg) and node.arg in _EMPTY:
            yield node.lineno, f"{node.arg}: the thing's own noun, such as row, module, step, message"


def main(names: list[str]) -> int:
    """Print the problems of some files, or of all; returns 1 where there are any."""
    listed = subprocess.run(["git", "ls-files", *_FOLDERS], capture_output=True, text=True, check=True).stdout.split()  # noqa: S607
    found = [(file, *problem) for file in names or listed if file.endswith(".py") for problem in problems(Path(file))]
    for file, line, reason in found:
        print(f"{file}:{line}: {reason}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
