"""Text, mappings and `key=value` overrides into a RunConfig, with every problem reported together; and back."""

import copy
import difflib
import itertools
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from yaml import CSafeDumper as SafeDumper  # libyaml: ten times as fast, and bounded in how deep it nests
from yaml import CSafeLoader as SafeLoader

from loratory.engine.config.constraints import constraint_problems
from loratory.engine.config.derived_defaults import DatasetKind, apply_derived_defaults
from loratory.engine.config.run import RunConfig
from loratory.engine.errors import ConfigError, Problem, StorageError, brief_repr, explain_os_errors, shorten

_MAX_CHARACTERS = 200_000  # of a configuration; one with every default has 2,400
_MAX_NUMBER_CHARACTERS = 100
_MAX_UNKNOWN_SETTINGS = 20  # of which each is reported

SectionType = TypeVar("SectionType", bound=BaseModel)

# What PyYAML raises for text that it cannot parse, and for tags and dates whose value cannot be made.
UNREADABLE_YAML = (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError)

_YAML_NULLS = frozenset({"", "~", "null", "Null", "NULL"})

_SECTIONS: dict[str, type[BaseModel]] = {name: field.annotation for name, field in RunConfig.model_fields.items()}  # type: ignore[misc]

# By pydantic's types of errors.
_MESSAGES = {
    "missing": "it is missing and has no default.",
    "literal_error": "{shown} is not one of {expected}.",
    "union_tag_invalid": "{tag} is not one of {expected_tags}.",
    "union_tag_not_found": "it has no {discriminator}, which names it.",
    "tuple_type": "{shown} is not a list.",
    "greater_than": "{shown} is out of range; it must be above {gt:,g}.",
    "greater_than_equal": "{shown} is out of range; it must be at least {ge:,}.",
    "less_than": "{shown} is out of range; it must be below {lt:,}.",
    "less_than_equal": "{shown} is out of range; it must be at most {le:,}.",
    **dict.fromkeys(
        ("int_parsing", "int_type", "int_from_float", "int_parsing_size"), "{shown} is not a whole number."
    ),
    **dict.fromkeys(("float_parsing", "float_type", "finite_number"), "{shown} is not a finite number."),
    **dict.fromkeys(("bool_parsing", "bool_type"), "{shown} is neither true nor false."),
    **dict.fromkeys(("model_type", "dict_type"), "{shown} is not a group of settings."),
    "string_pattern_mismatch": "{shown} has characters that are not allowed here.",
    "string_too_short": "it is empty.",
    "string_too_long": "it is longer than {max_length:,} characters.",
    "string_type": "{shown} is not text.",
    "value_error": "{error}",  # a rule of our own, with its own message
}


class StrictLoader(SafeLoader):
    """Safe YAML that refuses anchors and a key given twice, and reads 2e-4 as the number that people mean.

    Raises:
        ConfigError: If it is too long, or has anchors: a few, nested, expand to more values than any memory holds.
    """

    def __init__(self, text: str) -> None:
        if len(text) > _MAX_CHARACTERS:
            raise ConfigError([Problem("", f"it is {len(text):,} characters long; a configuration has a few hundred.")])
        for event in yaml.parse(text, Loader=SafeLoader) if "&" in text else ():
            if isinstance(event, yaml.NodeEvent) and not isinstance(event, yaml.AliasEvent) and event.anchor:
                name = shorten(event.anchor, 20)
                message = f"YAML anchors and aliases (&{name}, *{name}) are not supported; write the value out."
                where = yaml.MarkedYAMLError(problem_mark=event.start_mark)  # type: ignore[arg-type]
                raise ConfigError([Problem("", message)]) from where
        super().__init__(text)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in keys:
                reason = f"key {shorten(key)!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, reason, key_node.start_mark)
            keys.add(key)
        return super().construct_mapping(node, deep)


def _limit_length(construct: Callable[[StrictLoader, Any], Any]) -> Callable[[StrictLoader, Any], Any]:
    """Refuse numbers too long to be meant: of base 16 or 60, Python reads any length and cannot print them."""

    def construct_number(loader: StrictLoader, node: yaml.ScalarNode) -> Any:
        if len(node.value) > _MAX_NUMBER_CHARACTERS:
            reason = f"a number of {len(node.value):,} characters"
            raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark)
        return construct(loader, node)

    return construct_number


StrictLoader.add_constructor("tag:yaml.org,2002:int", _limit_length(SafeLoader.construct_yaml_int))
StrictLoader.add_constructor("tag:yaml.org,2002:float", _limit_length(SafeLoader.construct_yaml_float))
StrictLoader.yaml_implicit_resolvers = copy.deepcopy(SafeLoader.yaml_implicit_resolvers)
StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def config_from_mapping(values: Mapping[str, Any], rows: DatasetKind | None = None) -> RunConfig:
    """Build a RunConfig from nested plain values; what they leave out gets the default that suits the rest.

    Where `rows` are not known yet, `apply_derived_defaults` settles what follows them later.

    Raises:
        ConfigError: Lists every problem: of single fields, and of pairs whose fields are fine by themselves.
    """
    try:
        config = apply_derived_defaults(RunConfig.model_validate(dict(values)), rows)
    except ValidationError as error:
        problems = _field_problems(error)
        broken = frozenset(problem.field for problem in problems)
        raise ConfigError([*problems, *_check_valid_fields(values, broken)]) from error
    if problems := constraint_problems(config):
        raise ConfigError(problems)
    return config


def _check_valid_fields(values: Mapping[str, Any], broken: frozenset[str]) -> list[Problem]:
    """Check pairs although some fields are broken, with the defaults of these; not where most rules would read them.

    What rules say about a broken field is about its default, and left out.
    """
    if not broken.isdisjoint(("adapter.method", "training.objective")):
        return []
    sections: dict[str, Any] = {}
    for name, section in _SECTIONS.items():
        group = values.get(name)
        group = group if isinstance(group, Mapping) else {}
        sections[name] = {
            field: group[field] for field in section.model_fields if field in group and f"{name}.{field}" not in broken
        }
    try:
        config = parse_partial_config(sections)  # no rule reads the stand-ins
    except ValidationError:  # a section was itself malformed; its fields are reported already
        return []
    return [problem for problem in constraint_problems(config) if problem.field not in broken]


def section_from_mapping(section: type[SectionType], values: Mapping[str, Any]) -> SectionType:
    """Build one group of settings from plain values; those that are None keep their defaults.

    Raises:
        ConfigError: Lists everything that is wrong with it.
    """
    try:
        return section.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        raise ConfigError(_field_problems(error)) from error


def mapping_from_yaml(text: str) -> dict[str, Any]:
    """Parse YAML into plain nested values, before any of them is checked.

    Raises:
        ConfigError: If the text is not a YAML mapping.
    """
    try:
        values = yaml.load(text, Loader=StrictLoader)  # noqa: S506 - a SafeLoader, made stricter
    except UNREADABLE_YAML as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        # YAML's own tag prefix means nothing to a person.
        reason = (getattr(error, "problem", None) or str(error).splitlines()[0]).replace("tag:yaml.org,2002:", "!!")
        raise ConfigError([Problem("", f"it is not readable as YAML ({where}{reason}).")]) from error
    if not isinstance(values, dict):
        raise ConfigError([Problem("", "it holds no settings; expected sections such as model: and dataset:.")])
    return values


def locate_problems(text: str, error: ConfigError) -> list[tuple[int, str]]:
    """Return the line, from 1, and the text of each problem of a draft in YAML."""
    mark, lines = getattr(error.__cause__, "problem_mark", None), dict[str, int]()
    root = yaml.compose(text, Loader=StrictLoader) if error.problems[0].field else None
    for key, group in root.value if root is not None else ():
        lines[str(key.value)] = key.start_mark.line
        for name, _ in group.value if isinstance(group, yaml.MappingNode) else ():
            lines[f"{key.value}.{name.value}"] = name.start_mark.line
    first = mark.line if mark is not None else 0
    numbers = [lines.get(field, lines.get(field.split(".")[0], first)) + 1 for field, _ in error.problems]
    return sorted(zip(numbers, (": ".join(filter(None, problem)) for problem in error.problems), strict=True))


def mapping_from_file(path: Path) -> dict[str, Any]:
    """Read a YAML file into plain nested values.

    Raises:
        StorageError: If the file cannot be read as text.
        ConfigError: If it is not a YAML mapping.
    """
    with explain_os_errors(f"{path.name} cannot be read", "Check its name and permissions."):
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise StorageError(f"{path.name} is not a UTF-8 text file.", "Choose a YAML configuration.") from error
    return mapping_from_yaml(text)


def with_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply `section.field=value` overrides; values are read as YAML, so `[q_proj, v_proj]` and `null` work.

    Settings that hold text take it as written, so `no`, 12e4567 and 2024-12-05 can be names and revisions.

    Raises:
        ConfigError: Lists every override that is not of that form.
    """
    merged: dict[str, Any] = copy.deepcopy(dict(values))
    problems = []
    for override in overrides:
        key, equals, text = override.partition("=")
        parts = key.strip().split(".")
        if not equals or len(parts) < 2 or not all(parts):
            message = f"{shorten(override)!r} is not of the form section.field=value."
            problems.append(Problem(shorten(key.strip()), message))
            continue
        target = merged
        for part in parts[:-1]:
            child = target.get(part)
            target[part] = child if isinstance(child, dict) else {}
            target = target[part]
        try:
            target[parts[-1]] = _value_given(parts, text)
        except ConfigError as error:
            problems.extend(Problem(key.strip(), problem.message) for problem in error.problems)
    if problems:
        raise ConfigError(problems)
    return merged


def command_of(settings: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the command that trains with these settings, quoted for a shell."""
    names = ((f"{section}.{name}", value) for section, values in settings.items() for name, value in values.items())
    return " ".join(["loratory train", *(f"--set {shlex.quote(override_of(name, value))}" for name, value in names)])


def override_of(name: str, value: Any) -> str:
    """Return `section.field=value`: text as it is where that is read as the same, else JSON."""
    is_plain = isinstance(value, str) and "&" not in value and _value_given(name.split("."), value) == value
    return f"{name}={value if is_plain else json.dumps(value, ensure_ascii=False)}"


def change_of(overrides: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what `section.field=value` overrides change, by section.

    Raises:
        ConfigError: Lists every override that is not of that form, names no setting, or has a value that it cannot take.
    """
    change = with_overrides({}, overrides)
    try:
        parse_partial_config(change)
    except ValidationError as error:
        raise ConfigError(_field_problems(error)) from error
    return change


def parse_partial_config(values: Mapping[str, Any]) -> RunConfig:
    """Read nested plain values as far as they are given: model and data have stand-ins, and no pair of settings is checked.

    Raises:
        ValidationError: If a setting has a value that it cannot take.
    """
    return RunConfig.model_validate(with_stand_ins(values))


def with_stand_ins(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested plain values with a stand-in for the model and the dataset where they are missing."""
    stand_ins = {"model": {"id": "-"}, "dataset": {"source": "-"}}
    groups = ((name, values.get(name, {})) for name in stand_ins)
    return {**values, **{name: {**stand_ins[name], **group} for name, group in groups if isinstance(group, dict)}}


def _value_given(parts: Sequence[str], text: str) -> Any:
    kind, plain = _kind_of(parts), text.strip()
    if kind is str and not plain:
        return ""
    # Quotes mark text in YAML; a list or a mapping is not text, and is refused as what it is.
    if kind in (str, str | None) and plain not in _YAML_NULLS and plain[0] not in "'\"[{":
        return plain
    try:
        return yaml.load(text, Loader=StrictLoader)  # noqa: S506 - a SafeLoader, made stricter
    except UNREADABLE_YAML:
        return text


def _kind_of(parts: Sequence[str]) -> Any:
    """Return the type of the setting with these names, such as `run` and `name`; None for an unknown setting."""
    fields = _SECTIONS[parts[0]].model_fields if parts[0] in _SECTIONS else {}
    kind = fields[parts[1]].annotation if parts[1] in fields else None
    if len(parts) == 2:
        return kind
    return str if kind == dict[str, str] and len(parts) == 3 else None


def config_to_yaml(config: RunConfig | Mapping[str, Any]) -> str:
    """Write a configuration, every default included, so a later default cannot change an old run; or nested plain values."""
    values = config.model_dump(mode="json") if isinstance(config, RunConfig) else config
    return yaml.dump(values, Dumper=SafeDumper, sort_keys=False, allow_unicode=True, width=110)


def _field_problems(error: ValidationError) -> list[Problem]:
    problems: dict[str, str] = {}
    unknown = 0
    for item in error.errors():
        # A setting is section.field, or a field alone; what follows is a position in a list, and names of what is in it.
        names = list(itertools.takewhile(lambda part: isinstance(part, str), item["loc"][:2]))
        field = ".".join(shorten(str(name)) for name in names)
        unknown += item["type"] == "extra_forbidden"
        if item["type"] != "extra_forbidden" or unknown <= _MAX_UNKNOWN_SETTINGS:
            problems.setdefault(field, _plain_message(field, item, item["loc"][len(names) :]))
    if unknown > _MAX_UNKNOWN_SETTINGS:
        problems[""] = f"there are {unknown:,} settings that do not exist; the first {_MAX_UNKNOWN_SETTINGS} are named."
    return [Problem(field, message) for field, message in problems.items()]


def _plain_message(field: str, item: Any, where: Sequence[str | int]) -> str:
    if where and isinstance(where[0], int) and isinstance(where[-1], str):  # a setting of an entry in a list
        message = "unknown setting." if item["type"] == "extra_forbidden" else _message(item)
        return f"entry {where[0] + 1}, {shorten(where[-1])}: {message}"
    if item["type"] == "extra_forbidden":
        guess = _closest_field(field)
        return f"there is no such setting{f'; did you mean {guess}?' if guess else '.'}"
    return _message(item)


def _message(item: Any) -> str:
    value = brief_repr(item.get("input"))
    if item["type"] in _MESSAGES:
        facts = {
            name: shorten(fact, 300) if isinstance(fact, str) else fact for name, fact in item.get("ctx", {}).items()
        }
        return _MESSAGES[item["type"]].format(shown=value, **facts)
    return f"{value} is refused: {item['msg'][:1].lower()}{item['msg'][1:]}."


def _closest_field(field: str) -> str | None:
    section, _, last = field.rpartition(".")
    names: dict[str, str] = {}  # by field and by title, as in "Rank (r)"; the given section comes first
    for each, model in sorted(_SECTIONS.items(), key=lambda item: item[0] != section):
        for setting, info in model.model_fields.items():
            for word in (setting, (info.title or "").split(" (")[0].lower().replace(" ", "_")):
                names.setdefault(word, f"{each}.{setting}")
    return next((names[word] for word in difflib.get_close_matches(last, names, n=1, cutoff=0.7)), None)


def setting_names() -> list[str]:
    """Return the dotted names of all settings, in the order of the form."""
    return [f"{name}.{field}" for name, section in _SECTIONS.items() for field in section.model_fields]
