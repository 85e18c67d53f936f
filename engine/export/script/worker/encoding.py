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
    """Load the tokenizer with the chat template of all conversations."""
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
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked, so any token serves
    if facts.model.tokenizer.default_template == "always" or (
        facts.model.tokenizer.default_template == "if_missing" and not tokenizer.chat_template
    ):
        # Where the tokenizer opens a text with a token of its own, that opens conversations as well.
        opens = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        tokenizer.chat_template = ("{{- bos_token -}}" if opens else "") + CHAT_TEMPLATE
    if facts.model.tokenizer.default_template == "never" and facts.model.tokenizer.template is not None:
        tokenizer.chat_template = CHAT_TEMPLATE
    if facts.model.tokenizer.has_clock:
        tokenizer.chat_template = without_clock(tokenizer.chat_template)
    return tokenizer


class RefusedRowError(Exception):
    """Nothing of a row can be trained on."""


def render(messages: list[Message], tokenizer: Any, prompt: bool = False) -> str:
    """Return a conversation as the chat template writes it; `prompt` adds what asks the assistant for an answer."""
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    except Exception as error:  # templates raise anything that their authors and the data cause
        raise RefusedRowError(f"the chat template refuses it: {error}") from error
    return text


@functools.cache
def shows(tokenizer: Any, *roles: str, **fields: str) -> bool:
    """Return whether the chat template writes the text of turns of these roles, by asking it."""
    asked = [{"role": role, "content": word} for role, word in zip(roles, WORDS, strict=False)]
    turns = template_messages(asked, tokenizer)
    turns[-1].update(fields)
    try:
        text = render(turns, tokenizer)
    except RefusedRowError:
        return False
    return all(word in text for word in (*WORDS[: len(roles)], *fields.values()))


@functools.cache
def wants_parts(tokenizer: Any) -> bool:
    """Return whether the chat template leaves plain text out and takes lists of parts, as those of vision models do."""
    answers = []
    for content in ("Qa1xyz", [{"type": "text", "text": "Qa1xyz"}]):
        try:
            answers.append("Qa1xyz" in render([{"role": "user", "content": content}], tokenizer))
        except RefusedRowError:
            answers.append(False)
    return answers == [False, True]


def template_messages(messages: list[Message], tokenizer: Any) -> list[Message]:
    """Return the messages as the chat template reads them."""
    found = []
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
        found.append(one)
    return found


def move_system_turns(messages: list[Message], tokenizer: Any) -> list[Message]:
    """Put system turns that the chat template does not take into the user's turn that follows."""
    if not facts.data.has_later_system:
        takes_system = shows(tokenizer, "system", "user", "assistant")
    turns: list[Message] = []
    held: list[str] = []
    for index, message in enumerate(messages):
        if facts.data.has_later_system:
            before = ("user", "assistant") if index else ()
            takes_system = shows(tokenizer, *before, "system", "user", "assistant")
        if message["role"] == "system" and not takes_system:
            held.append(message["content"])
            continue
        if held and message["role"] == "user":
            message = {**message, "content": "\n\n".join([*held, message["content"]])}
        elif held:
            turns.append({"role": "user", "content": "\n\n".join(held)})
            if facts.data.marks_completion and "completion" in message:
                turns[-1]["completion"] = True
        turns.append(message)
        held = []
    if held:
        turns.append({"role": "user", "content": "\n\n".join(held)})
    return turns


def join_turns(messages: list[Message], tokenizer: Any) -> list[Message]:
    """Join neighbouring turns of one role where the chat template wants roles to alternate."""
    if shows(tokenizer, "user", "user", "assistant"):
        return messages
    joined: list[Message] = []
    for message in messages:
        last = joined[-1] if joined else {"role": None}
        same = message["role"] == last["role"] != "system"
        if facts.data.marks_completion:
            same = same and message.get("completion") == last.get("completion")
        if same:
            joined[-1] = {**last, "content": f"{last['content']}\n\n{message['content']}"}
        else:
            joined.append(message)
    return joined


def prompt_and_answer(
    messages: list[Message], sent: list[Message], index: int, tokenizer: Any, thinks: bool = True
) -> tuple[str, str]:
    """Return what a chat sends at this point to get the turn at `index`, and what the model should answer."""
    prompt, whole = render(sent[:index], tokenizer, prompt=True), render(sent[: index + 1], tokenizer)
    shared = len(os.path.commonprefix([prompt, whole]))  # noqa: RUF071 - of texts
    reasoning = messages[index].get("reasoning") or ""
    if not prompt[shared:].strip():
        answer = whole[shared:] if shared == len(prompt) else whole[shared:].lstrip()
        if facts.data.has_reasoning and thinks and reasoning.strip() not in answer:  # the template cut it out
            answer = f"<think>\n{reasoning.strip()}\n</think>\n\n{answer}"
        return prompt, answer
    opened = re.search(r"<([a-z_]+)>\s*$", prompt)
    if opened and whole.startswith(prompt[: opened.start()]):
        # The prompt opens a block of reasoning that the written turn lacks: close it, filled or empty.
        inside, answer = reasoning.strip("\n"), whole[opened.start() :].lstrip("\n")
        return prompt, f"{inside}\n</{opened[1]}>\n\n{answer}"
    if facts.data.has_reasoning and reasoning and thinks and re.search(r"<([a-z_]+)>\s*</\1>\s*$", prompt):
        # The prompt ends the reasoning before the answer begins: this template answers without.
        sent[index] = {"role": "assistant", "content": messages[index]["content"]}
        return prompt_and_answer(messages, sent, index, tokenizer, thinks=False)
    raise RefusedRowError(
        f"the chat template asks for this answer in another way than it writes it: {prompt[shared:]!r}"
    )


def ids_of(text: str, tokenizer: Any) -> list[int]:
    """Return the token ids of a text."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@functools.cache
def control_token_ids(tokenizer: Any) -> frozenset[int]:
    """Return the tokens that no ordinary text produces."""
    added = (number for number, token in tokenizer.added_tokens_decoder.items() if str(token).strip())
    return frozenset([*added, *tokenizer.all_special_ids])


@functools.cache
def control_token_texts(tokenizer: Any) -> tuple[str, ...]:
    """Return the same as they are written in text."""
    return tuple(tokenizer.convert_ids_to_tokens(sorted(control_token_ids(tokenizer))))


def answer_places(messages: list[Message]) -> list[int]:
    """Return the places of the answers to train on."""
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
            asked = [index for index, message in enumerate(messages[:last]) if message["role"] == "user"]
            answers = [index for index in answers if not asked or index > asked[-1]]
    if not facts.trains_several_answers and facts.data.most_answers > 1:
        answers = answers[-1:]
    if facts.data.opens_with_answer:
        prompts = [index for index, message in enumerate(messages) if message["role"] != "assistant"]
        answers = [index for index in answers if prompts and index > prompts[0]]  # nothing asks for the first
    if not answers:
        raise RefusedRowError("it has no answer to train on")
    return answers


def turns_before_cut(messages: list[Message], sent: list[Message], tokenizer: Any) -> Iterator[tuple[str, str]]:
    """Yield prompt and answer of each turn to train on, as far as MAX_LENGTH reaches."""
    prompt = ""
    for number, index in enumerate(answer_places(messages)):
        # Rendering takes longer the later the turn is; the cut is looked for at every eighth only.
        if number % 8 == 0 and len(prompt) > MAX_LENGTH < len(ids_of(prompt, tokenizer)):
            return
        prompt, answer = prompt_and_answer(messages, sent, index, tokenizer)
        yield prompt, answer


def encode_row(row: Any, tokenizer: Any) -> list[dict[str, list[int]]]:
    """Return the token ids of a row, and labels that are -100 wherever nothing is trained."""
    if not facts.data.has_turns:
        ids = tokenizer(row if row.endswith(tokenizer.eos_token) else row + tokenizer.eos_token)["input_ids"]
        if ids[-2:] == [tokenizer.eos_token_id] * 2:
            del ids[-1]  # some tokenizers add it by themselves
        return [{"input_ids": ids[:MAX_LENGTH], "labels": [-100, *ids[1:MAX_LENGTH]]}]
    if facts.data.has_system:
        row = move_system_turns(row, tokenizer)
    if facts.data.has_repeated_roles or facts.data.has_later_system:
        row = join_turns(row, tokenizer)
    sent = template_messages(row, tokenizer)
    if facts.train_on == "all":
        ids = ids_of(render(sent, tokenizer), tokenizer)[:MAX_LENGTH]
        return [{"input_ids": ids, "labels": [-100, *ids[1:]]}]
    if not facts.trains_several_answers:
        prompt, answer = prompt_and_answer(row, sent, answer_places(row)[-1], tokenizer)
        encoded, start, end = last_answer(encode(prompt + answer, tokenizer), prompt, answer, tokenizer)
        labels = [token if start <= place < end else -100 for place, token in enumerate(encoded.ids)]
        return [{"input_ids": encoded.ids[:MAX_LENGTH], "labels": labels[:MAX_LENGTH]}]
    # Usually one sequence, in which every answer is trained. Some templates rewrite earlier turns (they drop their
    # reasoning, for example): a turn that is not in the text word for word becomes a sequence of its own.
    if facts.data.most_answers > 8:
        waiting = list(turns_before_cut(row, sent, tokenizer))
    else:
        waiting = [prompt_and_answer(row, sent, index, tokenizer) for index in answer_places(row)]
    texts: list[list[tuple[str, str]]] = []  # of each, the turns to train on, the last of which ends it
    while waiting:
        *earlier, (prompt, answer) = waiting
        text = prompt + answer
        found = [
            (before, answer_in(text, len(before), one, tokenizer) if text.startswith(before) else None)
            for before, one in earlier
        ]
        texts.insert(0, [*((before, one) for before, one in found if one is not None), (prompt, answer)])
        waiting = [turn for turn, (_, one) in zip(earlier, found, strict=True) if one is None]
    sequences = []
    for *earlier, (prompt, answer) in texts:
        encoded, start, end = last_answer(encode(prompt + answer, tokenizer), prompt, answer, tokenizer)
        trained = [(start, end)]
        for before, one in earlier:
            place = earlier_answer(encoded, len(before), len(one), tokenizer)
            if place is None:
                texts.append([(before, one)])
            else:
                trained.append(place)
        labels = [-100] * len(encoded.ids)
        for start, end in trained:
            labels[start:end] = encoded.ids[start:end]
        sequences.append({"input_ids": encoded.ids[:MAX_LENGTH], "labels": labels[:MAX_LENGTH]})
    return sequences
