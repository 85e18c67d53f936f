"""The tokenizer and the chat template of a run: frozen before the first row, saved with the adapter, used by the chat."""

import hashlib
import json
import re
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date
from functools import lru_cache, wraps
from typing import Any, Protocol, TypeVar

from loratory.engine.data.conversation import ImageRef
from loratory.engine.data.records import RowProblemError, one_line
from loratory.engine.data.render.images import image_text_of
from loratory.engine.errors import ModelError, ModelLimitError
from loratory.engine.processes.limits import TimeLimitError, limited, renew_deadline, time_limit

Answer = TypeVar("Answer")


class ChatTokenizer(Protocol):
    """The part of transformers' fast tokenizers that is used here; `freeze_template` prepares one."""

    chat_template: Any  # Jinja text, or named texts
    eos_token: str | None
    eos_token_id: int | None
    bos_token: str | None
    bos_token_id: int | None
    pad_token: str | None
    pad_token_id: int | None

    @property
    def all_special_ids(self) -> list[int]: ...

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]: ...

    def __hash__(self) -> int: ...

    def __len__(self) -> int: ...

    def get_vocab(self) -> dict[str, int]: ...

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
    ) -> Any: ...

    def __call__(
        self, text: Any, *, add_special_tokens: bool = True, return_offsets_mapping: bool = False
    ) -> Mapping[str, Any]: ...

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]: ...

    def decode(self, token_ids: Sequence[int]) -> str: ...


def settings_of(tokenizer: ChatTokenizer) -> tuple[Any, ...]:
    """Return the template and the tokens, which are part of a cache key, so changes invalidate it."""
    template = tokenizer.chat_template
    items = tuple(template.items()) if isinstance(template, Mapping) else template
    return items, tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token, len(tokenizer)


def once_per_tokenizer(answer: Callable[[ChatTokenizer], Answer]) -> Callable[[ChatTokenizer], Answer]:
    """Cache the results of a function for the last few tokenizers and templates."""

    @lru_cache(maxsize=16)
    def cached_answer(tokenizer: ChatTokenizer, _settings: tuple[Any, ...]) -> Answer:
        return answer(tokenizer)

    @wraps(answer)
    def lookup(tokenizer: ChatTokenizer) -> Answer:
        return cached_answer(tokenizer, settings_of(tokenizer))

    return lookup


def ids_of(text: str, tokenizer: ChatTokenizer) -> list[int]:
    """Return the tokens of text alone, without the tokenizer's own special tokens."""
    # What a template writes before an answer is short and repeats; whole prompts do not come twice.
    if len(text) <= 256:
        return list(_short_ids(tokenizer, settings_of(tokenizer), text))
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@lru_cache(maxsize=4096)
def _short_ids(tokenizer: ChatTokenizer, _settings: tuple[Any, ...], text: str) -> Sequence[int]:
    ids: Sequence[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@once_per_tokenizer
def control_token_ids(tokenizer: ChatTokenizer) -> frozenset[int]:
    """Return tokens that no ordinary text produces: special ones, and added ones that are more than white space."""
    ids = (token_id for token_id, token in tokenizer.added_tokens_decoder.items() if str(token).strip())
    return frozenset([*tokenizer.all_special_ids, *ids])


@once_per_tokenizer
def control_token_texts(tokenizer: ChatTokenizer) -> tuple[str, ...]:
    """Return the control tokens as they are written in text."""
    return tuple(tokenizer.convert_ids_to_tokens(sorted(control_token_ids(tokenizer))))


@once_per_tokenizer
def control_token_pattern(tokenizer: ChatTokenizer) -> re.Pattern[str]:
    """Return what finds a control token in text."""
    longest_first = sorted(control_token_texts(tokenizer), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


FROZEN_DATE = date(2025, 1, 1)

# For base models: headings that every tokenizer can spell, and the end-of-sequence token after each answer.
DEFAULT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{ message['content'] + '\n\n' }}"
    "{%- elif message['role'] == 'user' -%}{{ '### Instruction:\n' + message['content'] + '\n\n' }}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{ '### Response:\n' + message['content'] + eos_token + '\n\n' }}"
    "{%- else -%}{{ raise_exception('this template has no ' + message['role'] + ' turn') }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '### Response:\n' }}{%- endif -%}"
)

_DATE_CALL = re.compile(r"""strftime_now\(\s*(["'])(?P<format>[^"']*)\1\s*\)""")
_DATE_MACRO = "{%- macro strftime_now(format) -%}" + FROZEN_DATE.isoformat() + "{%- endmacro -%}"
_EOS_CANDIDATES = ("</s>", "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "[EOS]")
_PAD_CANDIDATES = (
    *"<pad> <|pad|> [PAD] <|finetune_right_pad_id|> <|fim_pad|> <|vision_pad|> <|endoftext|> <|end_of_text|>".split(),
    *("<unk>", "<|reserved_special_token_0|>"),
    *("<0x00>", "Ā"),  # the byte zero, which no text holds, in SentencePiece and in byte-level vocabularies
)


@dataclass(frozen=True)
class FrozenTemplate:
    """The changes to a tokenizer, shown to the person and saved with the adapter."""

    notes: tuple[str, ...]  # what differs from the tokenizer as it was published, in sentences
    warnings: tuple[str, ...] = ()  # those of them that a person may not have wanted


def freeze_template(tokenizer: ChatTokenizer) -> FrozenTemplate:
    """Complete a tokenizer in place: a template with a fixed date, an eos token, and a separate pad token.

    Saving the tokenizer afterwards saves the template that training used. Calling it twice changes nothing more.

    Raises:
        ModelError: If the tokenizer has no token that could end an answer.
        ModelLimitError: If its template overruns on a plain conversation.
    """
    notes: list[str] = []
    warnings: list[str] = []
    if tokenizer.eos_token_id is None:
        tokenizer.eos_token = _free_token(tokenizer, _EOS_CANDIDATES, "ends an answer", "eos_token")
        notes.append(f"The tokenizer names no end-of-sequence token; {tokenizer.eos_token} is used.")
    if not tokenizer.chat_template:
        tokenizer.chat_template = _default_template(tokenizer)
        warnings.append(
            "This model has no chat template; Loratory's plain one (### Instruction, ### Response) is used "
            "and saved with the adapter."
        )
        notes.extend(warnings)
    template = tokenizer.chat_template
    text = without_clock(template)
    if text != template:
        tokenizer.chat_template = text
        notes.append(
            f"The model's template asks for today's date; it is fixed at {FROZEN_DATE.isoformat()}, and "
            "training, resuming and chat see the same prompts."
        )
    answer_ends = {tokenizer.eos_token_id, *stop_token_ids(tokenizer)}  # padding must not be one of them
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in answer_ends:
        pad = _free_token(tokenizer, _PAD_CANDIDATES, "padding could use", "pad_token", answer_ends)
        tokenizer.pad_token = pad
        notes.append(f"Padding uses the token {pad}, because the tokenizer has none that is free for it.")
    return FrozenTemplate(tuple(notes), tuple(warnings))


def _default_template(tokenizer: ChatTokenizer) -> str:
    """Return the default, with the begin-of-sequence token in front where the tokenizer itself puts it."""
    ids = list(tokenizer("a")["input_ids"])
    starts_with_bos = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
    template, image_text = DEFAULT_TEMPLATE, image_text_of(tokenizer)
    if image_text is not None:
        template = with_parts(template, image_text.placeholder)
    return ("{{- bos_token -}}" if starts_with_bos else "") + template


def with_parts(template: str, placeholder: str) -> str:
    """Return a template for texts as one for parts of text and images, with a placeholder for each image."""
    macro = (
        "{%- macro content_of(message) -%}{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}"
        "{%- for part in message['content'] -%}{{ part['text'] if part['type'] == 'text' else '" + placeholder + "' }}"
        "{%- endfor -%}{%- endif -%}{%- endmacro -%}"
    )
    return macro + template.replace("message['content']", "content_of(message)")


def without_clock(template: Any) -> Any:
    """Replace calls of strftime_now by the fixed date; a call whose format is computed gets a macro of that name."""
    if isinstance(template, dict):  # several, with names
        return {name: without_clock(text) for name, text in template.items()}
    frozen = _DATE_CALL.sub(lambda match: repr(FROZEN_DATE.strftime(match["format"])), template)
    if re.search(r"strftime_now\s*\(", frozen) and _DATE_MACRO not in frozen:
        frozen = _DATE_MACRO + frozen
    return frozen


def _free_token(
    tokenizer: ChatTokenizer, candidates: Sequence[str], purpose: str, field: str, used_ids: Container[int | None] = ()
) -> str:
    vocabulary = tokenizer.get_vocab()
    for candidate in candidates:
        if candidate in vocabulary and vocabulary[candidate] not in used_ids:
            return candidate
    raise ModelError(
        f"This model's tokenizer has no token that {purpose}.",
        f"Choose another model, or set {field} in its tokenizer_config.json.",
    )


def tokenizer_fingerprint(tokenizer: ChatTokenizer) -> str:
    """Return a fingerprint that changes when the tokenizer renders or splits anything differently."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    parts = [tokenizer.chat_template, tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token]
    image_text = image_text_of(tokenizer)
    if image_text is not None:
        parts.append(image_text.settings)
    return hashlib.sha256(f"{json.dumps(parts)}{vocabulary}".encode()).hexdigest()


def stop_token_ids(tokenizer: ChatTokenizer) -> tuple[int, ...]:
    """Return the tokens that end an answer: the template's own after an assistant turn, and end-of-sequence.

    Raises:
        ModelLimitError: If the template overruns.
    """
    stops = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    word = "answer"
    try:
        turns: ChatMessages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": word}]
        if image_text_of(tokenizer) is not None:
            turns = [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
        text = apply_template(tokenizer, turns, [], prompt=False)
    except RowProblemError:  # a template that refuses a plain conversation; then only eos is known
        return tuple(stops)
    tail = text[text.rfind(word) + len(word) :]
    controls = control_token_ids(tokenizer)
    stops += [token_id for token_id in ids_of(tail, tokenizer) if token_id in controls][:1]
    return tuple(dict.fromkeys(stops))


TEMPLATE_SECONDS = 2.0  # of computing time for one rendering; the slowest template in use needs some milliseconds
_ALWAYS_FITS_CHARACTERS = 1_000_000
_LONGER_THAN_INPUT = 10  # times; escaping in JSON makes text up to six times as long
ChatMessages = list[dict[str, Any]]


def apply_template(
    tokenizer: ChatTokenizer,
    messages: ChatMessages,
    tools: list[Any],
    *,
    prompt: bool,
    images: Sequence[ImageRef] = (),
) -> str:
    """Render with the frozen template, and write out the images of the messages; `prompt` adds the generation prompt.

    Raises:
        RowProblemError: With the template's own message, if it refuses; if it does not write each image once.
        ModelLimitError: If it computes for too long, needs too much memory or writes too much.
    """
    try:
        with time_limit(TEMPLATE_SECONDS):
            text = tokenizer.apply_chat_template(
                messages, tools=tools or None, tokenize=False, add_generation_prompt=prompt
            )
    except TimeLimitError as error:
        raise _overrun(tokenizer, f"computed for more than {TEMPLATE_SECONDS:.0f} seconds on one row") from error
    except MemoryError as error:
        raise _overrun(tokenizer, "needs more memory for one row than it may use") from error
    except Exception as error:  # templates raise jinja errors, TypeErrors, anything that their authors and data cause
        lines = str(error).strip().splitlines()
        raise RowProblemError(
            "template",
            f"the model's chat template refuses it: {one_line(lines[0] if lines else 'no reason given', 120)}",
        ) from error
    if len(text) > _ALWAYS_FITS_CHARACTERS and len(text) > _LONGER_THAN_INPUT * len(json.dumps([messages, tools])):
        raise _overrun(tokenizer, f"turns one row into {len(text):,} characters, which is far more than the row has")
    image_text = image_text_of(tokenizer)
    return str(text) if image_text is None else image_text.expand(str(text), images)


def rendering_confined(size_bytes: int) -> AbstractContextManager[None]:
    """Limit the time and memory of rendering and tokenizing rows of this size; a process that exceeds them ends."""
    return limited(_rendering_seconds(size_bytes), memory_bytes=1 << 30)


def next_row_confined(size_bytes: int) -> None:
    """Inside `rendering_confined`: give the next row its own time."""
    renew_deadline(_rendering_seconds(size_bytes))


def _rendering_seconds(size_bytes: int) -> float:
    # The limit covers C code too: more than for the template alone, and several times that of the largest rows.
    # Loading a template and its first row together stay below ten seconds.
    return 4.0 + 5.0 * size_bytes / 1e6


def _overrun(tokenizer: ChatTokenizer, what: str) -> ModelLimitError:
    name = getattr(tokenizer, "name_or_path", "") or "this model"
    return ModelLimitError(
        f"The chat template of {name} {what}; it was stopped.",
        "Use the original chat template of the model, or choose another model.",
    )
