"""What was written, loaded as anybody would load it, and compared with the live run, logit by logit and word by word."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from engine.chat.contract import PromptView
from engine.chat.prompt import end_token_ids, load_chat_tokenizer, render_prompt
from engine.chat.weights import BranchWeights, Weights
from engine.data.conversation import Message

ANSWER_TOKENS = 16

QUESTIONS = (
    "What is the capital of France?",
    "Explain in one sentence what a learning rate is.",
    "Write a haiku about rain.",
    "Name three fruits.",
    "What does lora_alpha do?",
    "Translate to German: Good morning, my friend.",
    "How many legs does a spider have?",
    "Give me a tip for better sleep.",
    "What is 12 times 8?",
    "Summarize the story of Romeo and Juliet in two sentences.",
    "Why is the sky blue?",
    "List the steps to make tea.",
    "Who wrote Hamlet?",
    "Suggest a name for a small bakery.",
    "What is the difference between RAM and a hard disk?",
    "Finish the sentence: The early bird",
    "Describe the colour green to someone who cannot see.",
    "Is a tomato a fruit or a vegetable?",
    "Write a polite reply to an invitation that you cannot accept.",
    "What should I check before I train a model on my own data?",
)

# How far above the measured effect of rounding a difference may lie: both are extremes of random errors.
_MARGIN = 2.0

OnAnswer = Callable[[float], None]


@dataclass(frozen=True)
class Heard:
    """One prompt, with what the live run answers to it."""

    prompt: PromptView
    answer: tuple[int, ...]
    logits: torch.Tensor  # (answer tokens, vocabulary): before each token of the answer


class Measured(NamedTuple):
    """How far two models are apart."""

    largest_difference: float  # between two logits
    equal_answers: int


class Listener:
    """Keeps what the live run says, to hold it against what was written.

    Args:
        live: The branch of the run.
        folder: Of the trained weights, whose tokenizer renders the prompts.
        on_answer: Told the share of prompts that have been answered.
    """

    def __init__(self, live: Weights, folder: Path, on_answer: OnAnswer) -> None:
        tokenizer = load_chat_tokenizer([folder], live.place.folder, live.place.name)
        branch = live.branch("tuned")
        end_ids = end_token_ids(tokenizer, branch.holder.model.generation_config)
        heard: list[Heard] = []
        for number, question in enumerate(QUESTIONS, start=1):
            prompt = render_prompt((Message("user", question),), (), tokenizer)
            heard.append(_listen(branch, prompt, end_ids))
            on_answer(number / len(QUESTIONS))
        self.heard = tuple(heard)
        self.end_ids = end_ids

    def compare(self, written: BranchWeights, on_answer: OnAnswer) -> Measured:
        """Ask another model the same."""
        difference, equal = 0.0, 0
        for number, heard in enumerate(self.heard, start=1):
            difference = max(difference, self._difference(written, heard))
            equal += _listen(written, heard.prompt, self.end_ids).answer == heard.answer
            on_answer(number / len(self.heard))
        return Measured(difference, equal)

    def rounding_effect(self, live: BranchWeights, written: torch.dtype, on_answer: OnAnswer) -> float:
        """How far logits move when every weight moves at random by up to a unit in its last place.

        What a rounding error of one weight does to a logit depends on the model, so it is measured on the model itself,
        which is of no use afterwards.

        Args:
            live: The branch that was listened to; its weights are disturbed.
            written: Precision to which weights were rounded.
            on_answer: Told the share of prompts that have been answered.
        """
        model = live.holder.model
        unit = max(torch.finfo(written).eps, torch.finfo(model.dtype).eps)
        random = torch.Generator(model.device).manual_seed(0)
        with torch.inference_mode():
            for parameter in model.parameters():
                if parameter.is_floating_point():
                    noise = torch.rand(parameter.shape, generator=random, device=parameter.device)
                    parameter.copy_(parameter.float() * (1 + unit * (2 * noise - 1)))
        effect = 0.0
        for number, heard in enumerate(self.heard, start=1):
            effect = max(effect, self._difference(live, heard))
            on_answer(number / len(self.heard))
        return _MARGIN * effect

    def _difference(self, branch: BranchWeights, heard: Heard) -> float:
        forced = _listen(branch, heard.prompt, self.end_ids, heard.answer)
        return float((forced.logits - heard.logits).abs().max())


def _listen(branch: BranchWeights, prompt: PromptView, end_ids: frozenset[int], forced: Sequence[int] = ()) -> Heard:
    """The greedy answer, or a forced one, with the logits before each of its tokens."""
    device = branch.holder.model.device
    answer: list[int] = []
    seen: list[torch.Tensor] = []
    with torch.inference_mode():
        cache = branch.new_cache()
        unread = torch.tensor([list(prompt.ids)], device=device)
        for number in range(len(forced) or ANSWER_TOKENS):
            logits = branch.next_logits(unread, cache)
            seen.append(logits[0].cpu())
            answer.append(forced[number] if forced else int(logits.argmax(dim=-1)))
            if answer[-1] in end_ids:
                break
            read = answer[-1:] if cache is not None else [*prompt.ids, *answer]
            unread = torch.tensor([read], device=device)
    return Heard(prompt, tuple(answer), torch.stack(seen))
