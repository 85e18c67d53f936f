"""What a run left on the disk to be taken away, and how to use it without Loratory."""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from engine.chat.target import ADAPTER_CONFIG
from ui.views.quantities import plural, size

_ADAPTER_SCRIPT = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = {folder!r}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base!r}), folder)
"""
_MODEL_SCRIPT = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = {folder!r}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
"""


class AdapterFile(NamedTuple):
    """One file that can be taken away."""

    name: str  # relative to the folder, with forward slashes
    bytes: int


def list_files(folder: Path) -> list[AdapterFile]:
    """Regular files below `folder`, sorted by name; links are left out, for they may lead elsewhere."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and not path.parent.is_symlink():
            found.append(AdapterFile(path.relative_to(folder).as_posix(), path.stat().st_size))
    return found


def loading_script(folder: Path, base: str) -> str:
    """Plain transformers and PEFT code that loads the folder, as any other program would."""
    config = folder / ADAPTER_CONFIG
    if not config.is_file():
        return _MODEL_SCRIPT.format(folder=str(folder))
    try:
        named = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        named = None
    return _ADAPTER_SCRIPT.format(folder=str(folder), base=named or base)


def render_files(folder: Path, files: Sequence[AdapterFile]) -> str:
    """Where the result lies, and its files with their sizes."""
    rows = "".join(
        f'<tr><td>{escape(file.name)}</td><td class="r" title="{file.bytes:,} bytes">{size(file.bytes)}</td></tr>'
        for file in files
    )
    total = sum(file.bytes for file in files)
    return (
        f'<p class="lead">{plural(len(files), "file")}, {size(total)}, in</p>{render_copyable(str(folder), "path")}'
        '<div class="scroll"><table class="plain"><thead><tr><th>File</th><th class="r">Size</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def render_script(script: str) -> str:
    """The code, with a button that copies it."""
    return (
        "<h3>Load it anywhere</h3>"
        '<p class="small">Plain transformers and PEFT; nothing of Loratory is needed.</p>'
        + render_copyable(script, "code")
    )


def render_command_line(run_id: str) -> str:
    """The same run from the terminal."""
    commands = (
        f'loratory show {run_id}\nloratory chat {run_id} --prompt "…"\n'
        f"loratory export {run_id} --to merged --out merged-model"
    )
    return f"<h3>From the terminal</h3>{render_copyable(commands, 'commands')}"


def render_copyable(text: str, what: str) -> str:
    """Text with a button that copies it; the script of the component does the copying."""
    return (
        f'<div class="copyable"><pre tabindex="0">{escape(text.rstrip())}</pre>'
        f'<button type="button" data-copy aria-label="Copy the {escape(what)}">Copy</button></div>'
    )
