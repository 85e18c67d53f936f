"""The part of a stand-alone script that makes token ids of what rows say, as `engine.data` does, step by step."""

from engine.config.run import RunConfig
from engine.export.script.rendering import rendering_code
from engine.export.script.rows import DataFacts

# Proving a turn takes longer the later it stands: so often it is looked whether those that follow are cut away.
_LOOK_EVERY_TURNS = 8


def encoding_code(config: RunConfig, facts: DataFacts, *, takes_parts: bool) -> str:
    """`encode`, with what it needs for rows like these.

    Args:
        config: Which turns are learned.
        facts: About the rows.
        takes_parts: Whether the chat template may want the words of a turn as a list of parts.
    """
    if facts.format == "text":
        return _ENCODE_TEXT
    by_turns = config.dataset.train_on != "all"
    rendering = rendering_code(facts, takes_parts=takes_parts, by_turns=by_turns)
    if not by_turns:
        pieces = [rendering.code, _ENCODE_ALL]
        answers: list[str] = []
    else:
        several = _can_learn_several(config, facts)
        answers = _answers(config, facts, several=several)
        pieces = [rendering.code, _SPELLING, *([_AS_IN, _ENCODE_SEVERAL] if several else [_ENCODE_ONE])]
    looks_ahead = facts.most_answers > _LOOK_EVERY_TURNS
    opening = "".join(f"    {line}\n" for line in (*rendering.opening, *answers))
    filled = {
        "$OPENING": opening,
        "$SENT": rendering.sent,
        "$WAITING": _WAITING_AHEAD.replace("$OFTEN", str(_LOOK_EVERY_TURNS)) if looks_ahead else _WAITING,
        "$LAST": rendering.turn.replace("$INDEX", "answers[-1]"),
        "$EACH": rendering.turn.replace("$INDEX", "index"),
    }
    for mark, words in filled.items():
        pieces[-1] = pieces[-1].replace(mark, words)
    return "\n\n".join(piece.strip("\n") + "\n" for piece in pieces)


def _can_learn_several(config: RunConfig, facts: DataFacts) -> bool:
    """Whether several answers of one row may be learned."""
    if facts.most_answers < 2 or config.dataset.train_on == "last_assistant":
        return False
    if config.dataset.train_on == "completion" and not facts.marks_completion:
        # Two answers to one question: behind each other, or with a system turn between them.
        return facts.has_repeated_roles or facts.has_later_system
    return True


def _answers(config: RunConfig, facts: DataFacts, *, several: bool) -> list[str]:
    """Lines that find the places of the answers to learn."""
    train_on = config.dataset.train_on
    conditions = ['if message["role"] == "assistant"']
    if facts.has_empty_answers:
        words = 'message["content"]'
        words = f'({words} + (message.get("reasoning") or ""))' if facts.has_reasoning else words
        conditions.append(f"and {words}.strip()")
    if train_on == "completion" and facts.marks_completion:
        conditions.append('and "completion" in message')
    if len(conditions) == 1:
        lines = [f"answers = [index for index, message in enumerate(messages) {conditions[0]}]"]
    else:
        inside = ("index", "for index, message in enumerate(messages)", *conditions)
        lines = ["answers = [", *(f"    {line}" for line in inside), "]"]
    if several and train_on == "completion" and not facts.marks_completion:
        lines += [
            "last_answer = max(answers, default=0)",
            'asked = [index for index, message in enumerate(messages[:last_answer]) if message["role"] == "user"]',
            "answers = [index for index in answers if not asked or index > asked[-1]]",
        ]
    if not several and facts.most_answers > 1:
        lines.append("answers = answers[-1:]  # only the last one is learned")
    if facts.opens_with_answer:
        lines += [
            'others = [index for index, message in enumerate(messages) if message["role"] != "assistant"]',
            "answers = [index for index in answers if others and index > others[0]]  # nothing asks for the first",
        ]
    if facts.has_empty_answers or facts.opens_with_answer or facts.marks_completion:
        lines += ["if not answers:", '    raise Refused("no answer of it can be learned")']
    return lines


_ENCODE_TEXT = '''
def encode(text, tokenizer):
    """Token ids of a text with the end-of-sequence token; all of it is learned but the first token."""
    ids = tokenizer(text if text.endswith(tokenizer.eos_token) else text + tokenizer.eos_token)["input_ids"]
    if ids[-2:] == [tokenizer.eos_token_id] * 2:
        del ids[-1]  # some tokenizers add it by themselves
    ids = ids[:MAX_LENGTH]
    return [{"input_ids": ids, "labels": [-100, *ids[1:]]}]
'''

_ENCODE_ALL = '''
def encode(messages, tokenizer):
    """Token ids of a conversation, all of which is learned but the first token."""
$OPENING    text = rendered($SENT, tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][:MAX_LENGTH]
    return [{"input_ids": ids, "labels": [-100, *ids[1:]]}]
'''

_SPELLING = '''
@functools.cache
def controls(tokenizer):
    """Tokens that no ordinary text produces."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if str(token).strip()}
    return added.union(tokenizer.all_special_ids)


def spelled(text, tokenizer):
    """Token ids of a text, and where in it each token begins and ends."""
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(found["input_ids"]), list(found["offset_mapping"])


def continued(before, text, tokenizer):
    """The same for a text that follows another, tokenized as no beginning of its own."""
    shift, lead = len(before) - 1, len(spelled("\\n", tokenizer)[0])
    ids, spans = spelled("\\n" + text, tokenizer)
    if len(ids) <= lead or spans[lead][0] != 1:  # the line feed melted into the text
        shift, lead, (ids, spans) = len(before), 0, spelled(text, tokenizer)
    return ids[lead:], [(start + shift, end + shift) for start, end in spans[lead:]]


def boundary(ids, spans, prompt, tokenizer):
    """Number of the token behind a prompt, if those before it are the ones that a chat sends for it; else None."""
    first = bisect.bisect_left(spans, len(prompt), key=lambda span: span[0])
    across = first > 0 and spans[first - 1][1] > len(prompt)
    if across or (first < len(spans) and spans[first][0] != len(prompt)):
        return None
    return first if spelled(prompt, tokenizer)[0] == ids[:first] else None


def turn_end(ids, spans, text, first, after, tokenizer):
    """Where an answer ends: after the token that ends the turn. What a template puts behind it is never asked for."""
    for end in range(after, first, -1):
        if ids[end - 1] in controls(tokenizer):
            return end
        if text[slice(*spans[end - 1])].strip():
            break
    return None


def answered(prompt, answer, tokenizer):
    """Token ids of a prompt and its answer, their spans, and which of them are to be learned."""
    text = prompt + answer
    ids, spans = spelled(text, tokenizer)
    start = boundary(ids, spans, prompt, tokenizer)
    if start is None:  # a token reaches across; a chat sends the prompt by itself
        ids, spans = spelled(prompt, tokenizer)
        start, more = len(ids), continued(prompt, answer, tokenizer)
        ids, spans = ids + more[0], spans + more[1]
    end = turn_end(ids, spans, text, start, len(ids), tokenizer)
    if end is None:  # this template ends a turn without a token of its own
        more = continued(text, tokenizer.eos_token, tokenizer)
        ids, spans = ids + more[0], spans + more[1]
        end = len(ids)
    return ids, spans, (start, end)
'''

_ENCODE_ONE = '''
def encode(messages, tokenizer):
    """Token ids of a conversation, and labels that are -100 wherever nothing is learned."""
$OPENING    ids, _, (start, end) = answered(*$LAST, tokenizer)
    labels = [token if start <= place < end else -100 for place, token in enumerate(ids)]
    return [{"input_ids": ids[:MAX_LENGTH], "labels": labels[:MAX_LENGTH]}]
'''

_WAITING = """\
    waiting = [$EACH for index in answers]
"""

_WAITING_AHEAD = """\
    waiting = []
    for number, index in enumerate(answers):
        before = waiting[-1][0] if waiting else ""
        if number % $OFTEN == 0 and len(before) > MAX_LENGTH < len(spelled(before, tokenizer)[0]):
            break  # what follows lies beyond the cut
        waiting.append($EACH)
"""

_AS_IN = '''
def as_in(text, prompt, answer, tokenizer):
    """The answer as it stands in a longer text, or None where that holds something else."""
    if text.startswith(prompt + answer):
        return answer
    # Some templates, such as Phi-3's, close only the whole text with eos, after the turn's own end.
    shorter = answer.removesuffix(tokenizer.eos_token)
    ends_itself = shorter.rstrip().endswith(tuple(tokenizer.convert_ids_to_tokens(sorted(controls(tokenizer)))))
    return shorter if ends_itself and text.startswith(prompt + shorter) else None
'''

_ENCODE_SEVERAL = '''
def encode(messages, tokenizer):
    """Token ids of a conversation, and labels that are -100 wherever nothing is learned.

    Usually one sequence in which every answer is learned. Some templates rewrite earlier turns (they drop their
    reasoning, for example); a turn whose prompt and answer do not stand in the text word for word gets a sequence
    of its own.
    """
$OPENING$WAITING    texts = []  # of each, the turns to learn, the last of which ends it
    while waiting:
        *earlier, (prompt, answer) = waiting
        found = [(before, as_in(prompt + answer, before, said, tokenizer)) for before, said in earlier]
        texts.insert(0, [*(one for one in found if one[1] is not None), (prompt, answer)])
        waiting = [one for one, (_, said) in zip(earlier, found) if said is None]
    sequences = []
    for *earlier, (prompt, answer) in texts:
        ids, spans, last = answered(prompt, answer, tokenizer)
        learned = [last]
        for before, said in earlier:
            start = boundary(ids, spans, before, tokenizer)
            if start is None:
                texts.append([(before, said)])
                continue
            after = bisect.bisect_left(spans, len(before + said), key=lambda span: span[0])
            learned.append((start, turn_end(ids, spans, prompt + answer, start, after, tokenizer) or after))
        labels = [-100] * len(ids)
        for start, end in learned:
            labels[start:end] = ids[start:end]
        sequences.append({"input_ids": ids[:MAX_LENGTH], "labels": labels[:MAX_LENGTH]})
    return sequences
'''
