"""The part of a stand-alone script that loads the tokenizer, and settles about it what a run settles."""

from dataclasses import dataclass
from typing import Literal

from engine.data.render.template import DEFAULT_TEMPLATE, FROZEN_DATE
from engine.export.script.text import literal


@dataclass(frozen=True)
class TokenizerFacts:
    """What is known about the tokenizer without loading it.

    Attributes:
        template: The chat template that was trained with, where the model's own is another; None where it is that one.
        default_template: Whether ours for base models is used; by the script's own look where the files are not here.
        has_clock: Whether the template may ask for today's date.
        takes_parts: Whether it may want the words of a turn as a list of parts.
        names_eos: Whether the files name an end-of-sequence token.
        eos: The one that was trained with, where that is known.
    """

    template: str | None = None
    default_template: Literal["never", "always", "if_missing"] = "never"
    has_clock: bool = False
    takes_parts: bool = False
    names_eos: bool = True
    eos: str | None = None

    @property
    def written_template(self) -> str | None:
        """What the script holds."""
        return DEFAULT_TEMPLATE if self.default_template != "never" else self.template


def tokenizer_code(facts: TokenizerFacts, revision: str | None) -> str:
    """`load_tokenizer`, with what it needs for this template."""
    arguments = f"name, revision={literal(revision)} if name == MODEL else None" if revision else "name"
    lines = [f"tokenizer = AutoTokenizer.from_pretrained({arguments})"]
    if not facts.names_eos:
        lines += ["if tokenizer.eos_token is None:", f"    {_eos_line(facts)}"]
    lines += [
        "if tokenizer.pad_token is None:",
        "    tokenizer.pad_token = tokenizer.eos_token  # padding is masked, so that any token serves",
    ]
    if facts.default_template != "never":
        default = [
            "# Where the tokenizer opens a text with a token of its own, that opens conversations as well.",
            'opens = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]',
            'tokenizer.chat_template = ("{{- bos_token -}}" if opens else "") + CHAT_TEMPLATE',
        ]
        if facts.default_template == "if_missing":
            default = ["if not tokenizer.chat_template:", *(f"    {line}" for line in default)]
        lines += default
    elif facts.template is not None:
        lines.append("tokenizer.chat_template = CHAT_TEMPLATE")
    if facts.has_clock:
        lines.append("tokenizer.chat_template = without_clock(tokenizer.chat_template)")
    body = "\n    ".join([*lines, "return tokenizer"])
    code = f'def load_tokenizer(name):\n    """The tokenizer with the template of all conversations."""\n    {body}\n'
    return f"{_CLOCK.strip()}\n\n\n{code}" if facts.has_clock else code


def _eos_line(facts: TokenizerFacts) -> str:
    if facts.eos is not None:
        return f"tokenizer.eos_token = {literal(facts.eos)}"
    what = "This model's tokenizer names no token that ends an answer. Set eos_token in its tokenizer_config.json."
    return f"raise SystemExit({literal(what)})"


_CLOCK = f'''
def without_clock(template):
    """A template that says the date of all runs, {FROZEN_DATE.isoformat()}, where it would say today's."""
    if isinstance(template, dict):  # several, with names
        return {{name: without_clock(text) for name, text in template.items()}}
    fixed = datetime.date({FROZEN_DATE.year}, {FROZEN_DATE.month}, {FROZEN_DATE.day})
    call = r"""strftime_now\\(\\s*(["'])([^"']*)\\1\\s*\\)"""
    template = re.sub(call, lambda found: repr(fixed.strftime(found[2])), template)
    if not re.search(r"strftime_now\\s*\\(", template):
        return template
    return "{{%- macro strftime_now(format) -%}}" + fixed.isoformat() + "{{%- endmacro -%}}" + template
'''
