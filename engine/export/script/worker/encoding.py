"""The part of a script that loads the tokenizer and turns rows into token ids and labels, as `engine.data` does."""

import functools
import os.path
import re
from collections.abc import Iterator
from typing import Any

from transformers import AutoTokenizer

from engine.data.render.encoded import answer_in, earlier_answer, encode, last_answer
from engine.data.render.template import without_clock
from engine.export.script.facts import facts
from engine.export.script.worker.rows import Message

MODEL = facts.model.location  # a Hub id or a folder
REVISION = facts.model.revision  # commit on the Hub
CHAT_TEMPLATE = facts.model.tokenizer.written_template
MAX_LENGTH = facts.config.training.max_length  # tokens; longer rows are truncated
ChatTokenizer = Any
WORDS = ("Qa1xyz", "Wb2xyz", "Ec3xyz", "Rd4xyz", "Te5xyz")


def load_tokenizer(name: str) -> Any:
    """Load the tokenizer with the chat template of the run."""
    if facts.model.revision:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=REVISION if name == MODEL else None)
    else:
        tokenizer = AutoTokenizer.from_pretrained(name)
    if not facts.model.tokenizer.names_eos and tokenizer.eos_token is None:
        if facts.model.tokenizer.eos is not None:
            tokenizer.eos_token = facts.model.tokenizer.eos
        else:
            raise SystemExit(
                "This model's tokenizer names no token that ends an answer. Set eos_token in its tokenizer_config.json."
            )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked, so any token will do
    if facts.model.tokenizer.default_template == "always" or (
        facts.model.tokenizer.default_template == "if_missing" and not tokenizer.chat_template
    ):
        # If the tokenizer starts a text with bos, conversations start with it too.
        opens = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        tokenizer.chat_template = ("{{- bos_token -}}" if opens else "") + CHAT_TEMPLATE
    if facts.model.tokenizer.default_template == "never" and facts.model.tokenizer.template is not None:
        tokenizer.chat_template = CHAT_TEMPLATE
    if facts.model.tokenizer.has_clock:
        tokenizer.chat_template = without_clock(tokenizer.chat_template)
    return tokenizer


class RefusedRowError(Exception):
    """A row cannot be trained on."""


def render(messages: list[Message], tokenizer: Any, prompt: bool = False) -> str:
    """Render a conversation; `prompt` adds the start of the assistant's answer."""
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    except Exception as error:  # templates raise anything that their authors and the data cause
        raise RefusedRowError(f"the chat template refuses it: {error}") from error
    return text


@functools.cache
def shows(tokenizer: Any, *roles: str, **fields: str) -> bool:
    """Return whether the chat template writes the text of turns of these roles, by asking it."""
    messages = [{"role": role, "content": word} for role, word in zip(roles, WORDS, strict=False)]
    turns = template_messages(messages, tokenizer)
    turns[-1].update(fields)
    try:
        text = render(turns, tokenizer)
    except RefusedRowError:
        return False
    return all(word in text for word in (*WORDS[: len(roles)], *fields.values()))


@functools.cache
def wants_parts(tokenizer: Any) -> bool:
    """Return whether the chat template ignores plain text and takes lists of parts, as in vision models."""
    answers = []
    for content in ("Qa1xyz", [{"type": "text", "text": "Qa1xyz"}]):
        try:
            answers.append("Qa1xyz" in render([{"role": "user", "content": content}], tokenizer))
        except RefusedRowError:
            answers.append(False)
    return answers == [False, True]


def template_messages(messages: list[Message], tokenizer: Any) -> list[Message]:
    """Return the messages in the format of the chat template."""
    result = []
    for message in messages:
        one = {"role": message["role"], "content": message["content"]}
        if facts.data.has_reasoning:
            reasoning = (message.get("reasoning") or "").strip()
            if reasoning and shows(tokenizer, "user", "assistant", reasoning_content="Ec3xyz"):
                one["reasoning_content"] = reasoning
            elif reasoning:
                one["content"] = f"<think>\n{reasoning}\n</think>\n\n{one['content']}"
        if facts.model.tokenizer.takes_parts and wants_parts(tokenizer):
            one["content"] = [{"type": "text", "text": one["content"]}]
        result.append(one)
    return result


def move_system_turns(messages: list[Message], tokenizer: Any) -> list[Message]:
    """Move system turns that the chat template does not support into the next user turn."""
    if not facts.data.has_later_system:
        takes_system = shows(tokenizer, "system", "user", "assistant")
    turns: list[Message] = []
    pending: list[str] = []
    for index, message in enumerate(messages):
        if facts.data.has_later_system:
            before = ("user", "assistant") if index else ()
            takes_system = shows(tokenizer, *before, "system", "user", "assistant")
        if message["role"] == "system" and not takes_system:
            pending.append(message["content"])
            continue
        if pending and message["role"] == "user":
            message = {**message, "content": "\n\n".join([*pending, message["content"]])}
        elif pending:
            turns.append({"role": "user", "content": "\n\n".join(pending)})
            if facts.data.marks_completion and "completion" in message:
                turns[-1]["completion"] = True
        turns.append(message)
        pending = []
    if pending:
        turns.append({"role": "user", "content": "\n\n".join(pending)})
    return turns


def join_turns(messages: list[Message], tokenizer: Any) -> list[Message]:
    """Join consecutive turns of one role if the chat template requires alternating roles."""
    if shows(tokenizer, "user", "user", "assistant"):
        return messages
    result: list[Message] = []
    for message in messages:
        last = result[-1] if result else {"role": None}
        same = message["role"] == last["role"] != "system"
        if facts.data.marks_completion:
            same = same and message.get("completion") == last.get("completion")
        if same:
            result[-1] = {**last, "content": f"{last['content']}\n\n{message['content']}"}
        else:
            result.append(message)
    return result


def prompt_and_answer(
    messages: list[Message], turns: list[Message], index: int, tokenizer: Any, thinks: bool = True
) -> tuple[str, str]:
    """Return the prompt of the turn at `index`, and the answer to train on."""
    prompt, whole = render(turns[:index], tokenizer, prompt=True), render(turns[: index + 1], tokenizer)
    common = len(os.path.commonprefix([prompt, whole]))  # noqa: RUF071 - of texts
    reasoning = messages[index].get("reasoning") or ""
    if not prompt[common:].strip():
        answer = whole[common:] if common == len(prompt) else whole[common:].lstrip()
        if facts.data.has_reasoning and thinks and reasoning.strip() not in answer:  # the template cut it out
            answer = f"<think>\n{reasoning.strip()}\n</think>\n\n{answer}"
        return prompt, answer
    tag = re.search(r"<([a-z_]+)>\s*$", prompt)
    if tag and whole.startswith(prompt[: tag.start()]):
        # The prompt opens a block of reasoning that the written turn lacks: close it, filled or empty.
        inside, answer = reasoning.strip("\n"), whole[tag.start() :].lstrip("\n")
        return prompt, f"{inside}\n</{tag[1]}>\n\n{answer}"
    if facts.data.has_reasoning and reasoning and thinks and re.search(r"<([a-z_]+)>\s*</\1>\s*$", prompt):
        # The prompt ends the reasoning before the answer begins: this template answers without.
        turns[index] = {"role": "assistant", "content": messages[index]["content"]}
        return prompt_and_answer(messages, turns, index, tokenizer, thinks=False)
    raise RefusedRowError(
        f"the prompt of this answer is not the start of the rendered conversation: {prompt[common:]!r}"
    )


def ids_of(text: str, tokenizer: Any) -> list[int]:
    """Return the token ids of a text."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@functools.cache
def control_token_ids(tokenizer: Any) -> frozenset[int]:
    """Return the tokens that no ordinary text produces."""
    numbers = (number for number, token in tokenizer.added_tokens_decoder.items() if str(token).strip())
    return frozenset([*numbers, *tokenizer.all_special_ids])


@functools.cache
def control_token_texts(tokenizer: Any) -> tuple[str, ...]:
    """Return the same tokens as text."""
    return tuple(tokenizer.convert_ids_to_tokens(sorted(control_token_ids(tokenizer))))


def answer_places(messages: list[Message]) -> list[int]:
    """Return the indices of the answers to train on."""
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if facts.data.has_empty_answers:
        answers = [
            index
            for index in answers
            if (messages[index]["content"] + (messages[index].get("reasoning") or "")).strip()
        ]
    if facts.train_on == "completion":
        if facts.data.marks_completion:
            answers = [index for index in answers if "completion" in messages[index]]
        elif facts.trains_several_answers:
            last = max(answers, default=0)
            questions = [index for index, message in enumerate(messages[:last]) if message["role"] == "user"]
            answers = [index for index in answers if not questions or index > questions[-1]]
    if not facts.trains_several_answers and facts.data.most_answers > 1:
        answers = answers[-1:]
    if facts.data.opens_with_answer:
        prompts = [index for index, message in enumerate(messages) if message["role"] != "assistant"]
        answers = [index for index in answers if prompts and index > prompts[0]]  # the first has no prompt
    if not answers:
        raise RefusedRowError("it has no answer to train on")
    return answers


def turns_before_cut(messages: list[Message], turns: list[Message], tokenizer: Any) -> Iterator[tuple[str, str]]:
    """Yield prompt and answer of each turn to train on, up to MAX_LENGTH."""
    prompt = ""
    for number, index in enumerate(answer_places(messages)):
        # Later turns take longer to render; the length is checked at every eighth only.
        if number % 8 == 0 and len(prompt) > MAX_LENGTH < len(ids_of(prompt, tokenizer)):
            return
        prompt, answer = prompt_and_answer(messages, turns, index, tokenizer)
        yield prompt, answer


def encode_row(row: Any, tokenizer: Any) -> list[dict[str, list[int]]]:
    """Return the token ids of a row, and labels that are -100 for masked tokens."""
    if not facts.data.has_turns:
        ids = tokenizer(row if row.endswith(tokenizer.eos_token) else row + tokenizer.eos_token)["input_ids"]
        if ids[-2:] == [tokenizer.eos_token_id] * 2:
            del ids[-1]  # some tokenizers add it themselves
        return [{"input_ids": ids[:MAX_LENGTH], "labels": [-100, *ids[1:MAX_LENGTH]]}]
    if facts.data.has_system:
        row = move_system_turns(row, tokenizer)
    if facts.data.has_repeated_roles or facts.data.has_later_system:
        row = join_turns(row, tokenizer)
    turns = template_messages(row, tokenizer)
    if facts.train_on == "all":
        ids = ids_of(render(turns, tokenizer), tokenizer)[:MAX_LENGTH]
        return [{"input_ids": ids, "labels": [-100, *ids[1:]]}]
    if not facts.trains_several_answers:
        prompt, answer = prompt_and_answer(row, turns, answer_places(row)[-1], tokenizer)
        encoding, start, end = last_answer(encode(prompt + answer, tokenizer), prompt, answer, tokenizer)
        labels = [token if start <= place < end else -100 for place, token in enumerate(encoding.ids)]
        return [{"input_ids": encoding.ids[:MAX_LENGTH], "labels": labels[:MAX_LENGTH]}]
    # Usually one sequence, in which every answer is trained. Some templates rewrite earlier turns, for example without
    # their reasoning: a turn that is not in the text word for word becomes a separate sequence.
    if facts.data.most_answers > 8:
        waiting = list(turns_before_cut(row, turns, tokenizer))
    else:
        waiting = [prompt_and_answer(row, turns, index, tokenizer) for index in answer_places(row)]
    texts: list[list[tuple[str, str]]] = []  # of each, the turns to train on, the last of which ends it
    while waiting:
        *earlier, (prompt, answer) = waiting
        text = prompt + answer
        places = [
            (before, answer_in(text, len(before), one, tokenizer) if text.startswith(before) else None)
            for before, one in earlier
        ]
        texts.insert(0, [*((before, one) for before, one in places if one is not None), (prompt, answer)])
        waiting = [turn for turn, (_, one) in zip(earlier, places, strict=True) if one is None]
    sequences = []
    for *earlier, (prompt, answer) in texts:
        encoding, start, end = last_answer(encode(prompt + answer, tokenizer), prompt, answer, tokenizer)
        spans = [(start, end)]
        for before, one in earlier:
            place = earlier_answer(encoding, len(before), len(one), tokenizer)
            if place is None:
                texts.append([(before, one)])
            else:
                spans.append(place)
        labels = [-100] * len(encoding.ids)
        for start, end in spans:
            labels[start:end] = encoding.ids[start:end]
        sequences.append({"input_ids": encoding.ids[:MAX_LENGTH], "labels": labels[:MAX_LENGTH]})
    return sequences
