"""A tokenized text, and where a turn begins and ends among its tokens; exported scripts hold these very functions.

A script has functions of its own for what is remembered here: `ids_of`, `control_token_ids` and `control_token_texts`.
"""

from bisect import bisect_left
from dataclasses import dataclass

from engine.data.render.template import ChatTokenizer, control_token_ids, control_token_texts, ids_of


@dataclass
class Encoded:
    """A text, its tokens, and the range of characters of each token."""

    text: str
    ids: list[int]
    spans: list[tuple[int, int]]

    def append(self, text: str, tokenizer: ChatTokenizer) -> None:
        """Append the tokens of `text`, tokenized as a continuation, not as the start of a text."""
        lead, shift, more = len(ids_of("\n", tokenizer)), len(self.text) - 1, encode(f"\n{text}", tokenizer)
        if len(more.ids) <= lead or more.spans[lead][0] != 1:  # the line feed was merged with the text
            lead, shift, more = 0, len(self.text), encode(text, tokenizer)
        self.text += text
        self.ids += more.ids[lead:]
        self.spans += [(start + shift, end + shift) for start, end in more.spans[lead:]]

    def boundary(self, character: int, tokenizer: ChatTokenizer) -> int | None:
        """Return the token that starts at `character`; None if tokens before it do not end there."""
        first = bisect_left(self.spans, (character, -1))
        across = first > 0 and self.spans[first - 1][1] > character
        if across or (first < len(self.spans) and self.spans[first][0] != character):
            return None
        # Control tokens split a text before any merge, so comparing from the last one on is enough.
        controls = control_token_ids(tokenizer)
        back = next((token for token in range(first - 1, -1, -1) if self.ids[token] in controls), 0)
        begin = self.spans[back][0] if first else 0
        return first if ids_of(self.text[begin:character], tokenizer) == self.ids[back:first] else None

    def turn_end(self, first: int, after: int, tokenizer: ChatTokenizer) -> int | None:
        """Return the index after the control token that ends a turn, and before the white space that a template adds."""
        for end in range(after, first, -1):
            if self.ids[end - 1] in control_token_ids(tokenizer):
                return end
            if self.text[slice(*self.spans[end - 1])].strip():
                break
        return None


def encode(text: str, tokenizer: ChatTokenizer) -> Encoded:
    """Tokenize a text."""
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return Encoded(text, list(encoding["input_ids"]), list(encoding["offset_mapping"]))


def last_answer(encoded: Encoded, prompt: str, answer: str, tokenizer: ChatTokenizer) -> tuple[Encoded, int, int]:
    """Return the tokens of a prompt and its final answer, and the token range of the answer."""
    start = encoded.boundary(len(prompt), tokenizer)
    if start is None:  # a token reaches across; the chat sends the prompt by itself
        encoded = encode(prompt, tokenizer)
        start = len(encoded.ids)
        encoded.append(answer, tokenizer)
    end = encoded.turn_end(start, len(encoded.ids), tokenizer)
    if end is None:  # this template ends a turn without a token of its own
        encoded.append(tokenizer.eos_token or "", tokenizer)
        end = len(encoded.ids)
    return encoded, start, end


def earlier_answer(encoded: Encoded, start: int, length: int, tokenizer: ChatTokenizer) -> tuple[int, int] | None:
    """Return the token range of an answer within the text; None if its prompt alone is tokenized differently."""
    first = encoded.boundary(start, tokenizer)
    if first is None:
        return None
    after = bisect_left(encoded.spans, (start + length, -1))
    return first, encoded.turn_end(first, after, tokenizer) or after


def answer_in(text: str, start: int, answer: str, tokenizer: ChatTokenizer) -> str | None:
    """Return an answer as it appears in a longer text from `start` on; None if the text differs."""
    if text.startswith(answer, start):
        return answer
    # Some templates, such as Phi-3's, close only the whole text with eos, after the turn's own end.
    shorter = answer.removesuffix(tokenizer.eos_token or "")
    ends_itself = shorter.rstrip().endswith(control_token_texts(tokenizer))
    return shorter if ends_itself and text.startswith(shorter, start) else None
