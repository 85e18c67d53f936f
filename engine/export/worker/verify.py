"""Compare an exported model with the run: answers, logits and perplexity."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from loratory.engine.chat.contract import PromptView
from loratory.engine.chat.worker.answer import (
    DecodingTokenizer,
    end_token_ids,
    image_inputs_of,
    load_chat_tokenizer,
    render_prompt,
)
from loratory.engine.chat.worker.weights import BranchWeights, Weights
from loratory.engine.data.conversation import IMAGE_MARK, Conversation, ImageRef, Message
from loratory.engine.data.passes.prepare import PreparedDataset, TokenizedRows, prepare_dataset, spread_evenly
from loratory.engine.data.passes.reader import DatasetReader
from loratory.engine.data.render.tokenize import TokenizedRow
from loratory.engine.data.source import SourceOptions
from loratory.engine.errors import EngineError
from loratory.engine.evaluation.general_text import general_rows
from loratory.engine.export.worker.write import ExportTask
from loratory.engine.runs.run import RunFolder
from loratory.engine.training.failure import is_out_of_memory

ANSWER_TOKENS = 16

QUESTIONS = tuple(Path(__file__).with_name("questions.txt").read_text(encoding="utf-8").splitlines())

# A difference may be this multiple of the measured effect of rounding: both are extremes of random errors.
_MARGIN = 2.0
_IMAGES, _IMAGE_ROWS = 4, 200  # images that are asked about, from the first rows

OnAnswer = Callable[[float], None]


@dataclass(frozen=True)
class RecordedAnswer:
    """A prompt with the run's answer."""

    prompt: PromptView
    answer: tuple[int, ...]
    logits: torch.Tensor  # (answer tokens, vocabulary), before each token of the answer
    images: tuple[ImageRef, ...] = ()  # of the prompt


class ModelDifference(NamedTuple):
    """The difference between the answers of two models."""

    largest_logit_difference: float
    equal_answers: int
    equal_prompts: int | None = None  # with the same token ids; None if both share a tokenizer
    needed_answers: int | None = None  # how many answers must be equal; None if only logits decide


class Reference:
    """The answers of the run, for comparison with an export.

    The tokenizer in the `folder` of the trained weights renders the prompts; `on_answer` is called with the completed share.
    The last prompts are about `images`, one each.
    """

    def __init__(self, live: Weights, folder: Path, on_answer: OnAnswer, images: Sequence[ImageRef] = ()) -> None:
        tokenizer = load_chat_tokenizer([folder], live.spec.folder, live.spec.name, live.plan.vision)
        self.images = image_inputs_of(tokenizer, live.spec.media)  # opens them for another model
        live.show_images(self.images)
        branch = live.branch("tuned")
        end_ids = end_token_ids(tokenizer, branch.holder.model.generation_config)
        about_images = QUESTIONS[-len(images) :] if images else ()
        prompts = [
            render_prompt((Message("user", question),), tokenizer)
            for question in QUESTIONS[: len(QUESTIONS) - len(about_images)]
        ]
        answers: list[RecordedAnswer] = []
        for draft, prompt in zip(draft_answers(branch, prompts, end_ids), prompts, strict=True):
            answers.append(record_answer(branch, prompt, end_ids, draft))
            on_answer(len(answers) / len(QUESTIONS))
        for question, ref in zip(about_images, images, strict=True):
            prompt = render_prompt((Message("user", f"{IMAGE_MARK}{question}", images=(ref,)),), tokenizer)
            answers.append(record_answer(branch, prompt, end_ids, (), (ref,)))
            on_answer(len(answers) / len(QUESTIONS))
        self.answers = tuple(answers)
        self.end_ids = end_ids

    def compare(self, other: BranchWeights, on_answer: OnAnswer) -> ModelDifference:
        """Compare another model with the run on the recorded answers.

        Its greedy answer is equal if at each position, after the tokens before it, the same token is likeliest.
        """
        difference, equal = 0.0, 0
        for number, record in enumerate(self.answers, start=1):
            logits = _logits(other, record.prompt, record.answer, record.images)
            difference = max(difference, float((logits - record.logits).abs().max()))
            equal += torch.equal(logits.argmax(dim=-1), record.logits.argmax(dim=-1))
            on_answer(number / len(self.answers))
        return ModelDifference(difference, equal)

    def rounding_effect(self, live: BranchWeights, written_dtype: torch.dtype) -> float:
        """Return how far logits move if weights and activations change at random by up to one unit in the last place.

        The effect of a rounding error depends on the model, so it is measured on the recorded branch, whose weights stay
        changed; call it for finer precisions first. Weights change in the precision of the export (`written_dtype`),
        activations in that of the computation, because merged weights are summed in another order.
        """
        model = live.holder.model
        random = torch.Generator(model.device).manual_seed(0)
        epsilon = torch.finfo(model.dtype).eps
        with torch.inference_mode():
            for parameter in model.parameters():
                if parameter.is_floating_point():
                    parameter.copy_(_perturb(parameter, max(torch.finfo(written_dtype).eps, epsilon), random))
        effect = 0.0
        with _results_moved(model, epsilon, random):
            for record in self.answers:
                logits = _logits(live, record.prompt, record.answer, record.images)
                effect = max(effect, float((logits - record.logits).abs().max()))
        return _MARGIN * effect


def record_answer(
    branch: BranchWeights,
    prompt: PromptView,
    end_ids: frozenset[int],
    draft: Sequence[int],
    images: tuple[ImageRef, ...] = (),
) -> RecordedAnswer:
    """Return the greedy answer to a prompt, with a draft verified in one pass.

    The tokens of a draft up to the first difference are part of the answer, as in speculative decoding (Leviathan et al.
    2023, section 2, arXiv:2211.17192); the rest is generated token by token, with `images` from the beginning each time.
    """
    answer: list[int] = []
    if draft:
        logits = _logits(branch, prompt, draft)
        first = logits.argmax(dim=-1).tolist()
        right = next((index for index, token in enumerate(draft) if token != first[index]), len(draft))
        answer = first[: right + 1]
        if right == len(draft) and _is_over(answer, end_ids):
            return RecordedAnswer(prompt, tuple(answer), logits)
    while images and not _is_over(answer, end_ids):
        ids = [*prompt.ids, *answer]
        with torch.inference_mode():
            answer.append(int(branch.logits_at(ids, [len(ids) - 1], images).argmax(dim=-1)))
    with torch.inference_mode():
        cache = branch.new_cache()
        unread = torch.tensor([[*prompt.ids, *answer]], device=branch.holder.model.device)
        while not _is_over(answer, end_ids):
            answer.append(int(branch.next_logits(unread, cache).argmax(dim=-1)))
            input_ids = [*prompt.ids, *answer] if cache is None else answer[-1:]
            unread = torch.tensor([input_ids], device=unread.device)
    return RecordedAnswer(prompt, tuple(answer), _logits(branch, prompt, answer, images), images)


def _is_over(answer: Sequence[int], end_ids: frozenset[int]) -> bool:
    return len(answer) == ANSWER_TOKENS or (len(answer) > 0 and answer[-1] in end_ids)


def _logits(
    branch: BranchWeights, prompt: PromptView, answer: Sequence[int], images: Sequence[ImageRef] = ()
) -> torch.Tensor:
    """Return the logits before each token of an answer, (answer tokens, vocabulary), computed in one pass."""
    first = len(prompt.ids) - 1
    with torch.inference_mode():
        return branch.logits_at([*prompt.ids, *answer[:-1]], range(first, first + len(answer)), images).cpu()


def images_of_rows(export: ExportTask) -> tuple[ImageRef, ...]:
    """Return a few images that the run learned from; () of a text model, and with a note where they are missing here."""
    if export.family is None:
        return ()
    images: dict[ImageRef, None] = {}
    if export.order.run is not None:
        dataset = RunFolder(export.order.run).read_config().dataset
        options = SourceOptions(home=export.order.plan.home(export.home), streaming=True)
        with suppress(EngineError):
            rows = itertools.islice(DatasetReader(dataset, options).rows(), _IMAGE_ROWS)
            examples = (row.example for row in rows if isinstance(row.example, Conversation))
            images = dict.fromkeys(ref for each in examples for turn in each.messages for ref in turn.images)
    if not images:
        export.notes.append("Compared without images, because no row with one can be read here.")
    return tuple(images)[:_IMAGES]


def _perturb(values: torch.Tensor, unit: float, random: torch.Generator) -> torch.Tensor:
    noise = torch.rand(values.shape, generator=random, device=values.device)
    return (values.float() * (1 + unit * (2 * noise - 1))).to(values.dtype)


@contextmanager
def _results_moved(model: torch.nn.Module, unit: float, random: torch.Generator) -> Iterator[None]:
    """Perturb the outputs of all leaf modules by a random part of `unit` inside the block."""

    def move(_module: torch.nn.Module, _arguments: object, result: object) -> object:
        is_number = isinstance(result, torch.Tensor) and result.is_floating_point()
        return _perturb(result, unit, random) if is_number else result

    hooks = [module.register_forward_hook(move) for module in model.modules() if not any(module.children())]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def draft_answers(
    branch: BranchWeights, prompts: Sequence[PromptView], end_ids: frozenset[int]
) -> list[tuple[int, ...]]:
    """Draft the answers to all prompts as one batch. Padding and rounding can change tokens, so drafts may be wrong.

    Returns:
        For each prompt 1 to `ANSWER_TOKENS` tokens, of which the last may be one of `end_ids`; no tokens if memory is too
        small for the batch, and with virtual tokens, which transformers' `generate` does not count.
    """
    if branch.virtual_tokens:
        return [()] * len(prompts)
    branch.holder.switch_to(branch.adapter)
    rows = [torch.tensor(prompt.ids, device=branch.holder.model.device) for prompt in prompts]
    ids = pad_sequence(rows, batch_first=True, padding_side="left")
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
    # Greedy, regardless of the model's own generation settings.
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=ANSWER_TOKENS,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=sorted(end_ids) or None,
        pad_token_id=0,
    )
    try:
        with torch.inference_mode():
            sequences = branch.holder.model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return [()] * len(prompts)
    return [_until_end(row, end_ids) for row in sequences[:, ids.shape[1] :].tolist()]


def _until_end(tokens: Sequence[int], end_ids: frozenset[int]) -> tuple[int, ...]:
    length = next((index for index, token in enumerate(tokens, start=1) if token in end_ids), len(tokens))
    return tuple(tokens[:length])


_MAX_ROWS, _MAX_TOKENS = 32, 512  # a few thousand tokens: seconds for small models, minutes for those of billions


class PerplexityRows(NamedTuple):
    """Rows to measure perplexity on."""

    rows: Sequence[TokenizedRow]
    on: str  # description

    @property
    def tokens(self) -> int:
        """Trained tokens, except the first of a row, which nothing predicts."""
        return sum(label >= 0 for row in self.rows for label in row.labels[1:])


def choose_rows(export: ExportTask, tokenizer: DecodingTokenizer) -> PerplexityRows:
    """Return held-out rows of the run; general text if there are none, or the data is missing."""
    data = _read_rows(export, tokenizer)
    rows = _cut(data.held_out, _MAX_ROWS) if data is not None else []
    if rows:
        return PerplexityRows(rows, f"{len(rows):,} held-out rows")
    return PerplexityRows(general_rows(tokenizer), "general text")


def trained_rows(export: ExportTask, tokenizer: DecodingTokenizer, most: int) -> list[TokenizedRow]:
    """Return rows that the run learned from, spread evenly and cut; none where they cannot be read."""
    data = _read_rows(export, tokenizer)
    return _cut(data.train, most) if data is not None else []


def _read_rows(export: ExportTask, tokenizer: DecodingTokenizer) -> PreparedDataset | None:
    if export.order.run is None:
        return None
    export.report("verifying", "Reading the rows of the run.")
    config = RunFolder(export.order.run).read_config()
    training = config.training
    with suppress(EngineError):  # the data is missing on this machine
        return prepare_dataset(
            config.dataset,
            seed=training.seed,
            max_length=training.max_length,
            tokenizer=tokenizer,
            home=export.order.plan.home(export.home),
        )
    return None


def _cut(rows: TokenizedRows, most: int) -> list[TokenizedRow]:
    cut = (
        TokenizedRow(row.row, row.part, row.input_ids[:_MAX_TOKENS], row.labels[:_MAX_TOKENS])
        for row in spread_evenly(rows, most)
    )
    return [row for row in cut if any(label >= 0 for label in row.labels[1:])]


def mean_loss(branch: BranchWeights, rows: PerplexityRows, export: ExportTask, whose: str = "the run's") -> float:
    """Return the mean loss of a loaded model over all trained tokens, in nats."""
    total = 0.0
    with torch.inference_mode():
        for number, row in enumerate(rows.rows, start=1):
            total += sum(branch.token_losses(row.input_ids, row.labels))
            export.report("verifying", f"Measuring {whose} perplexity, row {number:,} of {len(rows.rows):,}.")
    return total / rows.tokens
