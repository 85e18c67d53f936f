"""An inspector that needs no model: the Model and Data tabs on it run without torch, in the same shapes."""

import threading
import time
from collections.abc import Callable, Iterator

from loratory.engine.config.objectives import RowKind
from loratory.engine.config.run import DataFormatName, DatasetConfig, ModelConfig
from loratory.engine.config.vision import MODELS_OWN, VisionConfig
from loratory.engine.data.contract import (
    CheckProgress,
    DatasetColumns,
    DatasetPage,
    DatasetReport,
    FoundRow,
    HeldOutRows,
    Histogram,
    PageRow,
    PairLengths,
    RowForm,
    RowLengths,
    RowProblem,
    SearchProgress,
    SequenceView,
    SetQuestion,
    TokenLengths,
    TokenSpan,
    searchable,
)
from loratory.engine.data.conversation import Conversation, Message
from loratory.engine.data.passes.row_form import read_row_form
from loratory.engine.data.source import SourceOptions
from loratory.engine.data.workshop.table import SetTables
from loratory.engine.errors import EngineError, ModelError
from loratory.engine.models.shape import ModelDetails, ModelShape
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.messages import JsonObject, OnProgress
from tests.benchmarks.published.shapes import PublishedSizes, published_shape

QUESTIONS = (
    ("What does lora_alpha do?", "It scales the adapter's update: the product of the two matrices is multiplied by "
     "lora_alpha / r before it is added."),
    ("Why is my QLoRA run slower than LoRA?", "The frozen weights are unpacked from four bits in every pass. You trade "
     "speed for memory."),
    ("When should I merge the adapter?", "When you serve one fine-tune: merging removes the extra matrix products."),
    ("Can I train <b>embeddings</b> with LoRA?", "Yes: name them in modules_to_save & they are trained in full."),
)  # fmt: skip

SMOLLM2 = PublishedSizes(
    hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
    vocab_size=49152, tie_word_embeddings=True, max_position_embeddings=8192,
)  # fmt: skip


def a_shape() -> ModelShape:
    """Return the shape of SmolLM2-135M."""
    return published_shape("LlamaForCausalLM", SMOLLM2)


def a_report(dataset: DatasetConfig, model: ModelConfig | None, max_length: int) -> DatasetReport:
    """Return a report on some 350 rows; pairs or rated answers where the dataset's name says so."""
    report = _report_on_answers(dataset, model, max_length)
    kind = _kind_of(dataset)
    if kind == "answers":
        return report
    lengths = report.row_lengths
    changes: dict[str, object] = {"format": _FORMATS[kind], "prompts": 340, "columns": _COLUMNS[kind]}
    if kind == "ratings":
        changes["desirable"] = 300
    else:
        changes |= {
            "sequences": 694, "length_gap_rows": (3, 1), "contradictions": 2, "contradicting_rows": (5, 9),
            "pair_lengths": PairLengths(
                unit="tokens", chosen_longer=250, rejected_longer=90, equal=7, median=4,
                histogram=Histogram(edges=(-9, -3, 3, 9), counts=(90, 7, 250)),
            ),
        }  # fmt: skip
    if lengths is not None:
        per_row = 2 if kind == "pairs" else 1
        changes["row_lengths"] = lengths.model_copy(
            update={"kind": kind, "per_row": per_row, "count": lengths.count // per_row}
        )
    return report.model_copy(update=changes)


_FORMATS: dict[RowKind, DataFormatName] = {"answers": "alpaca", "pairs": "preference", "ratings": "kto"}
_COLUMNS: dict[RowKind, tuple[str, ...]] = {
    "answers": ("instruction", "input", "output"),
    "pairs": ("prompt", "chosen", "rejected"),
    "ratings": ("prompt", "completion", "label"),
}


def _kind_of(dataset: DatasetConfig) -> RowKind:
    return "pairs" if "preferences" in dataset.source else "ratings" if "ratings" in dataset.source else "answers"


def _report_on_answers(dataset: DatasetConfig, model: ModelConfig | None, max_length: int) -> DatasetReport:
    tokens = (*(24 + 7 * number % 95 for number in range(311)), 240)
    lengths = RowLengths(tokens=tokens, trained=tuple(length // 2 for length in tokens), count=len(tokens))
    return DatasetReport(
        source=dataset.source,
        format="alpaca",
        format_reason="every row has instruction and output",
        format_sure=True,
        columns=("instruction", "input", "output"),
        column_map={},
        fingerprint="f" * 16,
        rows=349,
        kept=347,
        dropped=2,
        problems=(
            RowProblem(row=87, line=88, kind="empty", problem="the answer is empty", sample="{\"instruction\": \"Hi"),
        ),
        problem_counts={"empty": 2},
        duplicates=0,
        train_rows=312,
        held_out_rows=35,
        model=model.id if model is not None else None,
        max_length=max_length,
        sequences=347,
        token_lengths=TokenLengths(
            min=24, p50=61, p95=118, max=240, over_max_length=0,
            histogram=Histogram(edges=(0, 40, 80, 120, 160, 200, 240, 280), counts=(61, 180, 82, 15, 6, 2, 1)),
        ),
        total_tokens=23_400,
        trained_tokens=14_800,
        masked_tokens=8_600,
        lost_trained_tokens=0,
        row_lengths=lengths if model is not None else None,
        size_bytes=98_000,
        seconds=0.4,
    )  # fmt: skip


class FakeInspector:
    """Answers at once, for one model and one dataset.

    Args:
        delay_seconds: How long a check takes.
    """

    def __init__(self, delay_seconds: float = 0.0, home: LoratoryHome | None = None) -> None:
        self._sets = SetTables(home, SourceOptions(home=home)) if home is not None else None
        self._lock = threading.Lock()
        self.delay_seconds = delay_seconds
        self.unreachable: set[str] = set()  # model ids that cannot be read

    def start(self) -> None:
        """Nothing to start."""

    def close(self) -> None:
        """Nothing to end."""

    def stop_fetching(self) -> None:
        """Nothing is fetched."""

    def module_inventory(self, model: ModelConfig) -> ModelShape:
        if model.id in self.unreachable or "nowhere" in model.id:
            raise ModelError(f"The model {model.id} cannot be reached.", "Check its name and your connection.")
        return a_shape()

    def model_details(self, model: ModelConfig) -> ModelDetails:
        shape = self.module_inventory(model)
        return ModelDetails(
            name="SmolLM2-135M-Instruct",
            hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
            architecture=shape.architecture,
            parameters=shape.num_parameters,
            num_hidden_layers=shape.num_hidden_layers,
            hidden_size=shape.hidden_size,
            num_attention_heads=shape.num_attention_heads,
            num_key_value_heads=shape.num_key_value_heads,
            max_position_embeddings=8192,
            dtype="bfloat16",
            vocab_size=shape.vocab_size,
            linear_names=shape.linear_names(),
            license="apache-2.0",
            size_bytes=269_060_552,
            tokenizer_tokens=49152,
            special_tokens={"bos": "<|im_start|>", "eos": "<|im_end|>"},
            chat_template="{% for message in messages %}…{% endfor %}",
        )

    def preview(
        self,
        dataset: DatasetConfig,
        model: ModelConfig | None = None,
        max_length: int = 1024,
        *,
        first_row: int = 0,
        count: int = 10,
        rows: tuple[int, ...] | None = None,
        brief: bool = False,
        edit: JsonObject | None = None,
        vision: VisionConfig = MODELS_OWN,
    ) -> DatasetPage:
        if edit is not None:
            answer = str(next(iter(edit.values())))
            row = _row(first_row, with_tokens=model is not None)
            shown_row = row.model_copy(update={"sequences": tuple(_with_answer(s, answer) for s in row.sequences)})
            return self.preview(DatasetConfig(source="-"), model).model_copy(update={"rows": (shown_row,)})
        if "missing" in dataset.source:
            raise EngineError(f"{dataset.source} does not exist.", "Check the path.")
        if "odd-columns" in dataset.source and dataset.format == "auto":
            raise EngineError("No format fits the columns 'q', 'a'.", "Say which column is which.")
        numbers = rows if rows is not None else tuple(range(first_row, min(first_row + count, 349)))
        kind = _kind_of(dataset)
        row_of = {"answers": lambda row: row, "pairs": _pair, "ratings": _rate}
        return DatasetPage(
            rows=tuple(row_of[kind](_row(number, with_tokens=model is not None, brief=brief)) for number in numbers),
            first_row=first_row,
            total_rows=349,
            format=_FORMATS[kind],
            format_reason=f"every row has {' and '.join(_COLUMNS[kind][::2])}",
            format_sure=True,
            columns=_COLUMNS[kind],
            column_map={},
            notes=("Columns that hold pictures or sound are not read: photo.",)
            if "some-data" in dataset.source
            else (),
        )

    def sets(self, question: SetQuestion, on_progress: OnProgress | None = None) -> JsonObject:
        with self._lock:  # the real one has a process
            steps = self._sets.answer(question)
            while True:
                try:
                    progress = next(steps)
                except StopIteration as end:
                    return end.value
                if progress is not None and on_progress is not None:
                    on_progress(progress.model_dump())

    def row_form(self, dataset: DatasetConfig) -> RowForm:
        return read_row_form(dataset, SourceOptions())

    def columns(self, dataset: DatasetConfig) -> DatasetColumns:
        if "missing" in dataset.source:
            raise EngineError(f"{dataset.source} does not exist.", "Check the path.")
        return DatasetColumns(columns=("q", "a"), format="prompt_completion", samples={"q": "What is LoRA?"})

    def find_steps(self, dataset: DatasetConfig, text: str, *, after_row: int) -> Iterator[SearchProgress | FoundRow]:
        searchable(text)
        for row_count in range(0, 349, 50):
            yield SearchProgress(rows=row_count, total_rows=349)
            time.sleep(self.delay_seconds / 7)
        holding = [row for row in range(349) if text.lower() in QUESTIONS[row % len(QUESTIONS)][0].lower()]
        after = [row for row in holding if row > after_row]
        yield FoundRow(row=(after or holding or [None])[0], from_top=not after and bool(holding))

    def check(
        self,
        dataset: DatasetConfig,
        model: ModelConfig | None = None,
        max_length: int = 1024,
        *,
        seed: int = 42,
        vision: VisionConfig = MODELS_OWN,
        on_progress: Callable[[CheckProgress], None] | None = None,
    ) -> DatasetReport:
        for part in range(3):
            if on_progress is not None and self.delay_seconds:
                on_progress(CheckProgress(rows=part * 116, bytes_read=part * 32_000, size_bytes=98_000))
            time.sleep(self.delay_seconds / 3)
        return a_report(dataset, model, max_length)

    def held_out(
        self,
        dataset: DatasetConfig,
        model: ModelConfig,
        max_length: int | None,
        *,
        seed: int,
        count: int = 200,
        vision: VisionConfig = MODELS_OWN,
    ) -> HeldOutRows:
        if "missing" in dataset.source:
            raise EngineError(f"{dataset.source} does not exist.", "Check the path.")
        rows = tuple(range(3, 349, 7)) if dataset.eval_fraction else ()
        return HeldOutRows(rows=rows[:count], total=len(rows))


def _row(number: int, *, with_tokens: bool = True, brief: bool = False) -> PageRow:
    question, answer = QUESTIONS[number % len(QUESTIONS)]
    spans = (
        TokenSpan(text="<|im_start|>", tokens=1, trained=False, special=True),
        TokenSpan(text=f"user\n{question}", tokens=12, trained=False, special=False),
        TokenSpan(text="<|im_end|>", tokens=1, trained=False, special=True),
        TokenSpan(text=answer, tokens=28, trained=True, special=False),
        TokenSpan(text="<|im_end|>", tokens=1, trained=True, special=True),
    )
    return PageRow(
        row=number,
        line=number + 1,
        conversation=Conversation((Message("user", question), Message("assistant", answer))),
        raw=f'{{"instruction": "{question}"',
        trained_turns=(1,),
        sequences=(
            (SequenceView(spans=() if brief else spans, tokens=43, trained_tokens=29, uncut_tokens=43),)
            if with_tokens
            else ()
        ),
    )


def _with_answer(sequence: SequenceView, answer: str) -> SequenceView:
    spans = tuple(s.model_copy(update={"text": answer}) if s.tokens == 28 else s for s in sequence.spans)
    return sequence.model_copy(update={"spans": spans})


def _rate(row: PageRow) -> PageRow:
    return row.model_copy(update={"desirable": row.row % 3 > 0})


def _pair(row: PageRow) -> PageRow:
    """Return the row as a pair whose rejected answer starts like the chosen one."""
    assert row.conversation is not None
    worse = "It depends on many things."
    conversation = Conversation(row.conversation.messages, completion_start=1)
    sides = []
    for sequence in row.sequences:
        *prompt, answer, end = sequence.spans or (None, None)
        for text in (answer.text if answer is not None else "", worse):
            own = TokenSpan(text=text, tokens=28, trained=True, special=False, differs=True)
            spans = (*prompt, own, end) if answer is not None else ()
            sides.append(sequence.model_copy(update={"spans": spans, "shared_tokens": 14}))
    changes = {"conversation": conversation, "rejected": (Message("assistant", worse),), "sequences": tuple(sides)}
    return row.model_copy(update=changes)
