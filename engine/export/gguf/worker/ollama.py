"""An Ollama Modelfile beside the GGUF: the trained chat template, the tokens that end an answer, the system prompt."""

from collections.abc import Sequence
from pathlib import Path

from engine.chat.worker.prompt import TalkingTokenizer, end_token_ids, render_prompt
from engine.config.dataset import DatasetConfig
from engine.data.conversation import Conversation, Message
from engine.data.passes.reader import DatasetReader
from engine.data.source import SourceOptions
from engine.errors import EngineError
from engine.export.gguf.go_template import NotTranslatableError, translate

_LOOKED_AT_ROWS = 200

MODELFILE = "Modelfile"


def write_modelfile(gguf: Path, name: str, tokenizer: TalkingTokenizer, *, adds_bos: bool, system: str | None) -> str:
    """Write the Modelfile.

    Args:
        gguf: The file; the Modelfile stands beside it.
        name: What the model may be called in Ollama.
        tokenizer: With the trained template.
        adds_bos: Whether the GGUF tells llama.cpp to put the begin-of-sequence token in front.
        system: System prompt that the training data always had.

    Returns:
        What the person should know, in words.
    """
    lines = [f"# ollama create {name} -f {MODELFILE}", f"FROM ./{gguf.name}", ""]
    bos = tokenizer.bos_token or ""

    def render(messages: Sequence[Message]) -> str:
        return render_prompt(messages, (), tokenizer).text

    try:
        template = translate(render, bos if adds_bos else "")
    except (NotTranslatableError, EngineError) as reason:
        why = reason.what if isinstance(reason, EngineError) else f"{reason}"
        note = (
            f"The Modelfile has no TEMPLATE: the chat template could not be translated for Ollama, because {why}. Ollama "
            "then guesses one from the GGUF's own, and its prompts may differ from those of training; llama.cpp and "
            "LM Studio read the trained template from the GGUF."
        )
        lines += ["# No TEMPLATE: the trained one, which the GGUF holds, cannot be said in Ollama's language.", ""]
    else:
        note = "The Modelfile's TEMPLATE renders sample conversations exactly as the trained chat template does."
        lines += [f'TEMPLATE """{template}"""', ""]
    if system is not None and '"""' not in system:
        lines += [f'SYSTEM """{system}"""', ""]
    stops = tokenizer.convert_ids_to_tokens(sorted(end_token_ids(tokenizer, None)))
    lines += [f'PARAMETER stop "{_escaped(stop)}"' for stop in stops]
    gguf.with_name(MODELFILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return note


def common_system_prompt(dataset: DatasetConfig) -> str | None:
    """The system prompt with which every one of the first rows begins, if the data can still be read and has one."""
    found: set[str] = set()
    try:
        for number, row in enumerate(DatasetReader(dataset, SourceOptions(streaming=True)).rows()):
            if isinstance(row.example, Conversation):
                first = row.example.messages[0]
                found.add(first.content if first.role == "system" else "")
            if number >= _LOOKED_AT_ROWS or len(found) > 1:
                break
    except EngineError:  # it is gone, or was never on this machine
        return None
    return found.pop() or None if len(found) == 1 else None


def _escaped(token: str) -> str:
    return token.replace("\\", "\\\\").replace('"', '\\"')
