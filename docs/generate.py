"""Write the reference pages from the program itself: `python docs/generate.py`; with `--check`, only compare.

Every setting, command and event is described once, in its source. A test fails where these pages differ from it.
"""

import inspect
import json
import re
import sys
import typing
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any

import typer
from annotated_types import BaseMetadata
from pydantic import BaseModel, JsonValue
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from loratory.engine.accounts.limits import LabLimits
from loratory.engine.cli import build_app
from loratory.engine.config.derived_defaults import RULES
from loratory.engine.config.load import config_from_mapping
from loratory.engine.config.methods.registry import METHODS
from loratory.engine.config.results import EvaluationConfig, ExportConfig, PushConfig, SamplingConfig
from loratory.engine.config.run import RunConfig
from loratory.engine.data.workshop.checks.settings import CheckSettings
from loratory.engine.errors import shorten
from loratory.engine.evaluation.server_check import ServerCheckConfig
from loratory.engine.hardware.device import known_device
from loratory.engine.memory.compare import compare_methods
from loratory.engine.models.catalog import find_in_catalog
from loratory.engine.models.inventory_cache import cached_inventory
from loratory.engine.models.shape import ModelShape
from loratory.engine.paths import LoratoryHome
from loratory.engine.places.slurm.place import ClusterPlace
from loratory.engine.quantities import GIB
from loratory.engine.runs.history.events import EVENT_KINDS, Event
from loratory.engine.scoring.base import Example, SandboxedScorer, Scorer
from loratory.engine.scoring.registry import SCORERS
from loratory.engine.serve.contract import IGNORED, NEUTRAL, ChatCompletionRequest

DOCS = Path(__file__).parent
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
_MODEL, _GPU = "Qwen/Qwen3-0.6B", "RTX-4090"  # of the table of methods
_PART = re.compile(r"(?<=<!-- begin: written by docs/generate.py -->\n).*?(?=\n<!-- end -->)", re.DOTALL)
_GENERATED = "<!-- Written by docs/generate.py; change the sources instead. -->\n"
# Settings that are not part of a run's configuration: title, what uses them, and the class.
_OTHERS: tuple[tuple[str, str, type[BaseModel]], ...] = (
    ("Sampling", "The Chat tab, `loratory chat`, and the defaults of `loratory serve`.", SamplingConfig),
    ("Evaluation", "**Chat → Measure** and `loratory evaluate`.", EvaluationConfig),
    ("Server check", "**Export → Check a server** and `loratory check`.", ServerCheckConfig),
    ("Export", "The Export tab and `loratory export`.", ExportConfig),
    ("Push", "**Export → Hub** and `loratory push`.", PushConfig),
    ("Row checks", "`loratory data check`; see [Row checks](data-checks.md).", CheckSettings),
    ("Limits of a lab", "An admin sets them on the Lab tab.", LabLimits),
    ("cluster.yaml", "An admin's description of a Slurm cluster; see [Slurm](slurm.md).", ClusterPlace),
)


def settings_page() -> str:
    """Return every setting with type, default, bounds, help and, where it has one, the rule of its derived default.

    Raises:
        ValueError: If a setting has no help.
    """
    lines = [
        "# Settings",
        "",
        "Every setting of a run, as `config.yaml`, `--set section.name=value` and the form take it. Names are those of PEFT, TRL "
        "and transformers wherever these libraries have the setting.",
        "",
        "A setting that is left out gets its default. Six defaults are derived from other settings or from the rows; the rule is "
        "given below the table of their section.",
    ]
    for name, field in RunConfig.model_fields.items():
        section = typing.cast(type[BaseModel], field.annotation)
        lines += ["", f"## {name}", "", inspect.getdoc(section) or "", "", *_settings_table(section, name)]
        for setting in filter(lambda setting: setting.startswith(f"{name}."), RULES):
            lines += ["", f"**{setting.partition('.')[2]}, derived.** {_paragraph(RULES[setting])}"]
    lines += ["", "## Which method reads which setting", "", "| method | settings |", "|---|---|"]
    lines += [f"| {method.label} (`{name}`) | {_codes(method.fields) or 'none'} |" for name, method in METHODS.items()]
    for title, where, model in _OTHERS:
        lines += ["", f"## {title}", "", where, "", *_settings_table(model)]
    return _page(lines)


def commands_page() -> str:
    """Return every command with its arguments and options."""
    lines = [
        "# Commands",
        "",
        "`--json` prints one JSON value on stdout and nothing else; progress and errors go to stderr. The exit code is 0 after success, "
        "1 after an error, 2 after wrong usage.",
    ]
    root = typer.main.get_command(build_app())
    for name, command in _commands("loratory", root):
        lines += ["", f"## {name}", "", _plain(command.help or "")]
        rows = [_parameter(parameter) for parameter in command.params if parameter.name != "help"]
        if rows:
            lines += ["", "| argument or option | meaning | default |", "|---|---|---|", *rows]
    return _page(lines)


def events_page() -> str:
    """Return every kind of event in `events.jsonl`."""
    envelope = ", ".join(f"`{name}`" for name in Event.model_fields)
    lines = [
        "# Events",
        "",
        "A run's `events.jsonl` has one JSON object per line, oldest first, only ever appended. Each has an envelope of "
        f"{envelope}; `data` depends on `kind`. Readers skip kinds and fields that they do not know.",
        "",
        "```json",
        '{"v":1,"seq":41,"attempt":1,"time":1764000000.5,"kind":"step","data":{"step":40,"loss":2.31}}',
        "```",
    ]
    for name, kind in EVENT_KINDS.items():
        lines += ["", f"## {name}", "", inspect.getdoc(kind) or "", "", "| field | type | meaning |", "|---|---|---|"]
        comments = _comments(kind)
        for field_name, field in kind.model_fields.items():
            optional = "" if field.is_required() else ", optional"
            lines.append(f"| `{field_name}` | {_type(field.annotation)}{optional} | {comments.get(field_name, '')} |")
    return _page(lines)


def _inventory(config: Mapping[str, JsonValue]) -> ModelShape:
    """Return what the package has no copy of for this transformers; the import of torch takes seconds."""
    from loratory.engine.inspector.worker.inventory import inventory_of

    return inventory_of(config)


def methods_part() -> str:
    """Return each method with its paper, settings and memory, for the page about choosing a method."""
    config = config_from_mapping(
        {"model": {"id": _MODEL}, "dataset": {"source": "rows.jsonl"}, "training": {"max_length": 1024}}
    )
    entry = find_in_catalog(_MODEL)
    assert entry is not None, f"{_MODEL} is not in the catalogue"
    shape = cached_inventory(entry.config, LoratoryHome(Path("/nowhere")), is_public=True) or _inventory(entry.config)
    needs = {need.method: need for need in compare_methods(shape, config, known_device(_GPU).device())}
    lines = [
        f"Memory is the estimate for {_MODEL} on {known_device(_GPU).title}, with rows of 1,024 tokens in batches of "
        f"{config.training.per_device_train_batch_size} and the defaults of each method: the 90% upper bound.",
        "",
        "| method | trained parameters | memory |",
        "|---|---:|---:|",
    ]
    for name, need in needs.items():
        if need.needed_bytes is not None and need.trainable:
            lines.append(f"| {name} | {need.trainable:,} | {need.needed_bytes / GIB:.1f} GiB |")
    for name, method in METHODS.items():
        module = inspect.getmodule(type(method))
        paper = "" if method.trains_all else " ".join((inspect.getdoc(module) or "").split("\n\n")[0].split())
        traits = [
            f"`adapter.method: {name}`",
            f"learning rate {method.learning_rate:g}",
            "can be merged" if method.mergeable else f"cannot be merged: {method.why_not_mergeable}",
            f"on weights in {_codes(sorted(method.quantization))} as well"
            if method.quantization
            else "on 16 or 32 bits alone",
        ]
        lines += ["", f"## {method.label}", "", method.help, "", f"{'; '.join(traits)}."]
        if method.fields:
            lines += ["", f"Settings: {_codes(method.fields)}."]
        if paper:
            lines += ["", paper]
    return "\n".join(lines)


def endpoint_part() -> str:
    """Return the parameters of a chat completion that the endpoint reads, ignores and refuses."""
    lines = ["| parameter | type | bounds |", "|---|---|---|"]
    for name, field in ChatCompletionRequest.model_fields.items():
        lines.append(f"| `{name}` | {_type(field.annotation)} | {_bounds(field)} |")
    neutral = ", ".join(f"`{name}`" for name in NEUTRAL)
    return "\n".join(
        [
            *lines,
            "",
            f"Accepted without effect: {_codes(sorted(IGNORED))}.",
            "",
            f"Refused, unless they ask for nothing: {neutral}.",
        ]
    )


def scorers_page() -> str:
    """Return every scorer with its settings and examples."""
    lines = [
        "# Scorers",
        "",
        "A scorer gives an answer a score from 0 to 1, or none with a reason. Test sets, rewards and quality columns use the same "
        "scorers. The total of several is the sum of their scores times their weights; a missing score counts as 0.",
        "",
        "Columns of a row are those of its dataset, such as the reference. Scorers that run code do so in a sandbox: processes of "
        "their own without network, secrets or files, with limits on time, memory and output.",
        "",
        "## Settings of all",
        "",
        *_settings_table(Scorer, exclude=("scorer",)),
        "",
        "## Settings of those with a sandbox",
        "",
        *_settings_table(SandboxedScorer, exclude=Scorer.model_fields),
    ]
    for name, kind in sorted(SCORERS.items()):
        common = {*Scorer.model_fields, *(SandboxedScorer.model_fields if issubclass(kind, SandboxedScorer) else ())}
        lines += ["", f"## {name}", "", f"**{kind.label}.** {kind.sentence}", ""]
        lines += [*_settings_table(kind, exclude=common), ""] if kind.model_fields.keys() - common else []
        lines += ["| answer | columns | settings | score |", "|---|---|---|---|", *map(_example, kind.examples)]
        if hasattr(kind, "example_file"):
            lines += ["", "`score.py` of the examples:", "", "```python", kind.example_file.rstrip(), "```"]
    return _page(lines)


def _example(example: Example) -> str:
    cells = [example.answer, *(json.dumps(part, ensure_ascii=False) if part else "" for part in example[2:])]
    texts = [f"`{_cell(repr(shorten(cell, 200))[1:-1].replace('`', 'ˋ'))}`" if cell else "" for cell in cells]
    return f"| {' | '.join(texts)} | {'none' if example.score is None else f'{example.score:.3g}'} |"


PAGES = {"settings.md": settings_page, "cli.md": commands_page, "events.md": events_page, "scorers.md": scorers_page}
PARTS = {"methods.md": methods_part, "openai-endpoint.md": endpoint_part}  # between two comments of the page


def _page(lines: list[str]) -> str:
    return _GENERATED + "\n".join(lines) + "\n"


def _settings_table(model: type[BaseModel], section: str = "", exclude: Collection[str] = ()) -> Iterator[str]:
    yield "| setting | type | default | bounds | help |"
    yield "|---|---|---|---|---|"
    for name, field in model.model_fields.items():
        if name in exclude:
            continue
        if not field.description:
            raise ValueError(f"{section or model.__name__}.{name} has no help")
        default = _default(field) + (", derived" if f"{section}.{name}" in RULES else "")
        yield f"| `{name}` | {_type(field.annotation)} | {default} | {_bounds(field)} | {_cell(field.description)} |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or value is None:
        return "empty"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return "empty" if value in ("", (), {}) else f"`{value}`"


def _bounds(field: FieldInfo) -> str:
    bounds = []
    for metadata in field.metadata:
        if isinstance(metadata, BaseMetadata):
            bounds += [
                f"{sign} {_number(getattr(metadata, name))}"
                for name, sign in _BOUNDS.items()
                if hasattr(metadata, name)
            ]
            if hasattr(metadata, "max_length"):
                bounds.append(f"at most {metadata.max_length:,} long")
    return ", ".join(bounds)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is typing.Literal:
        return " \\| ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, UnionType):
        return " \\| ".join(dict.fromkeys(_type(part) for part in arguments if part is not type(None)))
    if origin in (tuple, list):
        return f"list of {_type(arguments[0])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "object"
    if origin is dict:
        return f"mapping of {_type(arguments[0])} to {_type(arguments[1])}"
    return {"str": "text", "int": "integer", "float": "number", "bool": "true or false"}.get(
        getattr(annotation, "__name__", ""), getattr(annotation, "__name__", str(annotation))
    )


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Yield every command below a group with its whole name. Typer has a Click of its own, whose classes are not public."""
    if hasattr(command, "commands"):
        for part, inner in command.commands.items():
            yield from _commands(f"{name} {part}", inner)
    else:
        yield name, command


def _parameter(parameter: Any) -> str:
    is_argument = parameter.param_type_name == "argument"
    names = (
        [(parameter.metavar or parameter.name).upper()] if is_argument else [*parameter.opts, *parameter.secondary_opts]
    )
    meaning = _cell(parameter.help or "")
    annotation = parameter.type_descriptor.annotation
    if typing.get_origin(annotation) is typing.Literal:
        meaning += f" One of {_codes(typing.get_args(annotation))}."
    default = parameter.default
    default_text = (
        "required"
        if parameter.required
        else ""
        if default in (None, (), False, "") or callable(default)
        else f"`{default}`"
    )
    return f"| {_codes(names)} | {meaning.strip()} | {default_text} |"


def _comments(kind: type[BaseModel]) -> dict[str, str]:
    """Return the comment behind each field of a class."""
    return {
        match[1]: _cell(match[2])
        for match in re.finditer(r"^    (\w+): .*?  # (.+)$", inspect.getsource(kind), re.MULTILINE)
    }


def _codes(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _paragraph(function: Any) -> str:
    return " ".join((inspect.getdoc(function) or "").split())


def _plain(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", text.replace("\f", "\n\n")))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main(arguments: list[str]) -> int:
    """Write the pages, or compare them; return 1 if one differs."""
    different = {name: text for name, text in _pages_and_parts() if _read(name) != text}
    if "--check" in arguments:
        for name in different:
            print(f"docs/{name} differs from the sources; run `python docs/generate.py`.")
        return int(bool(different))
    for name, text in different.items():
        (DOCS / name).write_text(text, encoding="utf-8")
        print(f"docs/{name}")
    return 0


def _pages_and_parts() -> Iterator[tuple[str, str]]:
    for name, page in PAGES.items():
        yield name, page()
    for name, part in PARTS.items():
        text = part()
        yield name, _PART.sub(lambda _, text=text: text, _read(name))


def _read(name: str) -> str:
    file = DOCS / name
    return file.read_text(encoding="utf-8") if file.is_file() else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
