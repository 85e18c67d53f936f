"""What a script is written from: a configuration, and what a look at the data, the model and the run found.

The functions of a script are written against `facts`, an example; `engine.export.script.specialize` puts those of a
configuration in its place. Whatever they ask for beyond the configuration has a name here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from engine.config.methods.base import Source
from engine.config.methods.ia3 import FEEDFORWARD_ENDINGS
from engine.config.rules import CHECKPOINTS, MEASUREMENTS, keeps_best
from engine.config.run import DatasetConfig, ModelConfig, RunConfig
from engine.data.formats import FORMATS
from engine.data.formats.base import TURN_FIELDS
from engine.data.formats.turns import ROLES
from engine.data.render.template import DEFAULT_TEMPLATE, FROZEN_DATE
from engine.export.script.settings import (
    model_arguments,
    peft_arguments,
    quantization_arguments,
    short_trainer_arguments,
    trainer_arguments,
)

FileKind = Literal["json_lines", "json_array", "delimited", "lines", "paragraphs", "parquet", "hub"]


@dataclass(frozen=True)
class DataFacts:
    """What a look at the rows found."""

    kind: FileKind
    format: str
    columns: Mapping[str, str]  # of the format's roles
    fingerprint: str = ""  # sha256 over the content of the rows that are not left out, in order
    files: tuple[str, ...] = ()  # to read; empty for the Hub
    encoding: str = "utf-8-sig"
    delimiter: str = ","
    gzip: bool = False  # the files are packed
    has_long_rows: bool = False  # a row may hold a longer cell than Python's csv module takes by itself
    has_media: bool = False  # the rows have columns with pictures or sound, which are not read
    tags: tuple[str, ...] = ()  # names of the roles that turns have, as the rows spell them
    role_field: str = "role"  # of a turn
    content_field: str = "content"
    turn_columns: tuple[str, ...] = ()  # columns that hold lists of turns
    left_out: set[int] = field(
        default_factory=set
    )  # numbers of rows that were left out, from 0; they cannot be read or train nothing
    json_columns: tuple[str, ...] = ()  # columns whose lists may be written as JSON in a text
    has_list_rows: bool = False  # a row may be nothing but a list of turns
    has_system: bool = False  # any row has a system turn
    has_later_system: bool = False  # any row has one after its first turn
    has_repeated_roles: bool = False  # two turns of one role may follow each other
    has_parts: bool = False  # the text of a turn may be a list of parts
    has_reasoning: bool = False  # answers may hold reasoning
    has_reasoning_fields: bool = False  # turns may have their reasoning in a field of its own
    has_empty_answers: bool = False  # an assistant's turn may be empty
    opens_with_answer: bool = False  # an assistant may speak first
    most_answers: int = 1  # the most assistant's turns of one row
    can_hold_out: bool = True  # rows can be held out, as they cannot where all have the same content
    held_out_draw: bool = False  # there are so many held-out rows that only some of them are evaluated

    @property
    def has_turns(self) -> bool:
        """Whether rows are conversations, and not plain text."""
        return FORMATS[self.format].has_turns

    @property
    def has_conversation_column(self) -> bool:
        """Whether one column of a row holds all of its turns."""
        return bool(FORMATS[self.format].turn_column)

    @property
    def marks_completion(self) -> bool:
        """Whether turns of a completion carry a mark, because their place alone does not show them."""
        return bool(self.turn_columns) and bool(FORMATS[self.format].may_hold_turns)

    @property
    def roles(self) -> dict[str, str]:
        """The roles by their names in the rows."""
        return {tag: ROLES[tag] for tag in self.tags}

    @property
    def conversation_column(self) -> str:
        """The column with all turns of a row."""
        return self.columns[FORMATS[self.format].turn_column]

    @property
    def open_arguments(self) -> dict[str, Any]:
        """How the files are opened."""
        # Lines end at line feeds alone, so other line ends inside a text do no harm; a table has its own rules.
        newline = "" if self.kind == "delimited" else "\n"
        # What cannot be decoded is in rows that are left out.
        return {"encoding": self.encoding, **({"errors": "replace"} if self.left_out else {}), "newline": newline}


@dataclass(frozen=True)
class TokenizerFacts:
    """What is known about the tokenizer without loading it."""

    template: str | None = None  # that was trained with, where the model has another
    default_template: Literal["never", "always", "if_missing"] = "never"  # use of ours
    has_clock: bool = False  # the template may ask for today's date
    takes_parts: bool = False  # it may want the text of a turn as a list of parts
    names_eos: bool = True  # the files name an end-of-sequence token
    eos: str | None = None  # the one that was trained with, where that is known

    @property
    def written_template(self) -> str:
        """The template that the script holds; empty where it needs none."""
        return DEFAULT_TEMPLATE if self.default_template != "never" else self.template or ""


@dataclass(frozen=True)
class ModelFacts:
    """What is known about the model and the device of the run."""

    location: str  # hub id or folder, as `from_pretrained` takes it
    compute: str  # dtype of computation: bfloat16, float16 or float32
    on_cpu: bool  # the run computes on a CPU
    tokenizer: TokenizerFacts  # what is known about the tokenizer
    revision: str | None = None  # commit on the Hub
    warm_start: str | None = None  # folder of the adapter that training starts from
    grouped: bool = False  # the rows of a step are of similar length, as where they are padded


class RunRows(NamedTuple):
    """What a run made of its rows, by which a script proves that it makes the same of them."""

    fingerprint: str | None = None  # of the rows that it kept
    sequences: tuple[int, int] | None = None  # to train on, held out; None where the run did not get so far
    tokens: tuple[int, int] = (0, 0)  # trained, masked


_UNKNOWN_ROWS = RunRows()


@dataclass(frozen=True)
class ScriptFacts:
    """Everything that a script is made of."""

    config: RunConfig
    data: DataFacts
    model: ModelFacts
    title: str = "A run"
    output: str = "output"
    origin: str = "a configuration"  # or "the run 2026…"
    versions: str = ""
    run_rows: RunRows = _UNKNOWN_ROWS
    results: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()  # what the script does otherwise than the run, in sentences
    looks_ahead_after: ClassVar[int] = 8  # answers of one row, beyond which the cut is looked for
    frozen_date: ClassVar[str] = FROZEN_DATE.isoformat()
    evaluations: ClassVar[int] = MEASUREMENTS  # in a whole run, where the steps between them are not set

    @property
    def data_location(self) -> str | list[str]:
        """The dataset's id on the Hub, or its files."""
        return self.config.dataset.source if self.data.kind == "hub" else list(self.data.files)

    @property
    def hub_arguments(self) -> dict[str, Any]:
        """Arguments of `load_dataset` besides the dataset's id."""
        dataset = self.config.dataset
        found = {"name": dataset.subset, "split": dataset.split, "revision": dataset.revision}
        return {name: value for name, value in found.items() if value}

    @property
    def read_columns(self) -> list[str]:
        """Columns with what the rows hold."""
        return list(dict.fromkeys(name for role, name in self.data.columns.items() if role not in TURN_FIELDS))

    @property
    def trains_several_answers(self) -> bool:
        """Whether several answers of one row may be trained."""
        data, train_on = self.data, self.config.dataset.train_on
        if data.most_answers < 2 or train_on == "last_assistant":
            return False
        if train_on == "completion" and not data.marks_completion:
            # Two answers to one question: one after the other, or with a system turn between them.
            return data.has_repeated_roles or data.has_later_system
        return True

    @property
    def measures(self) -> bool:
        """Whether rows are held out and evaluated."""
        return self.config.dataset.eval_fraction > 0

    @property
    def measures_base_first(self) -> bool:
        """Whether the evaluation before the first step is of the base model, because the adapter already changes it."""
        return not self.config.adapter.traits.starts_as_identity or self.model.warm_start is not None

    @property
    def peft_arguments(self) -> dict[str, Any]:
        """Its arguments."""
        return peft_arguments(self.config)

    @property
    def method_callbacks(self) -> list[str]:
        """The callback of transformers that the method needs, as source."""
        callback = self.config.adapter.traits.script_callback
        return [Source(f"{callback}()")] if callback else []

    @property
    def is_regularized(self) -> bool:
        """Whether the method adds a regularizer to the loss."""
        return self.config.adapter.traits.regularized

    @property
    def feedforward_endings(self) -> list[str]:
        """Ends of the names of feed-forward modules."""
        return list(self.config.adapter.feedforward_modules or FEEDFORWARD_ENDINGS)

    @property
    def quantized(self) -> bool:
        """Whether the frozen weights are quantized."""
        return self.config.model.quantization != "none"

    @property
    def quantization_arguments(self) -> dict[str, Any]:
        """Arguments of `BitsAndBytesConfig`."""
        return quantization_arguments(self.config, self.model.compute)

    @property
    def model_arguments(self) -> dict[str, Any]:
        """Arguments of `from_pretrained` that do not depend on the model's name."""
        return model_arguments(self.config, on_cpu=self.model.on_cpu)

    @property
    def loaded_dtype(self) -> str:
        """Precision of the weights: what is trained is held in float32."""
        return "float32" if self.config.adapter.traits.trains_all else self.model.compute

    @property
    def saved_dtype(self) -> str | None:
        """Precision to which a model that was trained as a whole is rounded before it is saved."""
        return self.model.compute if self.config.adapter.traits.trains_all and self.model.compute != "float32" else None

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Arguments of `SFTConfig` that do not depend on the number of rows."""
        return trainer_arguments(self.config, compute=self.model.compute, on_cpu=self.model.on_cpu)

    @property
    def keeps_best(self) -> bool:
        """Whether training ends with the best weights."""
        return self.measures and keeps_best(self.config.training)

    @property
    def save_steps(self) -> int | None:
        """Steps between two checkpoints; transformers can only go back to the best if it was saved."""
        return self.config.training.eval_steps if self.keeps_best else self.config.training.save_steps

    @property
    def saves(self) -> int:
        """Checkpoints in a whole run, where the steps between them are not set."""
        return MEASUREMENTS if self.keeps_best else CHECKPOINTS

    @property
    def counts_steps(self) -> bool:
        """Whether the number of steps matters."""
        return self.save_steps is None or (self.measures and self.config.training.eval_steps is None)

    @property
    def patience(self) -> int | None:
        """Evaluations without improvement, after which training stops."""
        return self.config.training.early_stopping_patience if self.measures else None

    @property
    def dataset_builder(self) -> str:
        """The builder of `load_dataset` that reads the files."""
        builders = {"delimited": "csv", "parquet": "parquet", "lines": "text", "paragraphs": "text"}
        return builders.get(self.data.kind, "json")

    @property
    def dataset_arguments(self) -> dict[str, Any]:
        """Its arguments besides the files."""
        found: dict[str, Any] = {"encoding": self.data.encoding} if self.data.encoding.startswith("utf-16") else {}
        if self.data.kind == "delimited":
            found["sep"] = self.data.delimiter
        return found | ({"sample_by": "paragraph"} if self.data.kind == "paragraphs" else {})

    @property
    def split_arguments(self) -> dict[str, Any]:
        """Arguments of `train_test_split`."""
        return {"test_size": self.config.dataset.eval_fraction, "seed": self.config.training.seed}

    @property
    def question_column(self) -> str:
        """The column with what the user asks."""
        return self.data.columns[FORMATS[self.data.format].required[0]]

    @property
    def answer_column(self) -> str:
        """The column with the answer to it."""
        return self.data.columns[FORMATS[self.data.format].required[1]]

    @property
    def short_trainer_arguments(self) -> dict[str, Any]:
        """Arguments of `SFTConfig` in the short form, which leaves out what is TRL's default."""
        text = {} if self.data.has_turns else {"dataset_text_field": self.data.columns["text"]}
        whole = {"completion_only_loss": False} if self.config.dataset.train_on == "all" and not text else {}
        return {
            **short_trainer_arguments(self.config, compute=self.model.compute, on_cpu=self.model.on_cpu),
            **text,
            **whole,
        }

    @property
    def short_peft_arguments(self) -> dict[str, Any]:
        """Arguments of PEFT's configuration class in the short form; it names no module that has to be looked for."""
        known = {
            name: value
            for name, value in self.peft_arguments.items()
            if not isinstance(value, Source) or value == "MODEL"  # which both forms of a script have
        }
        return {"task_type": "CAUSAL_LM", **known}

    @property
    def merges(self) -> bool:
        """Whether the adapter can be merged into the model."""
        return not self.config.adapter.traits.trains_all and self.config.adapter.traits.mergeable


facts = ScriptFacts(
    config=RunConfig(model=ModelConfig(id="someone/model"), dataset=DatasetConfig(source="rows.jsonl")),
    data=DataFacts(
        kind="json_lines",
        format="messages",
        columns={"messages": "messages"},
        files=("rows.jsonl",),
        tags=("user", "assistant"),
        turn_columns=("messages",),
    ),
    model=ModelFacts(location="someone/model", compute="float32", on_cpu=True, tokenizer=TokenizerFacts()),
)
