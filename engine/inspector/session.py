"""Asking the inspector: processes that know tokenizers and model modules, which the page does not import."""

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from loratory.engine.config.run import DatasetConfig, ModelConfig
from loratory.engine.config.vision import MODELS_OWN, VisionConfig
from loratory.engine.data import contract
from loratory.engine.data.files.access import shown_name
from loratory.engine.data.hub import reads_from_hub
from loratory.engine.errors import DatasetAccessError, DatasetError, EngineError, ModelAccessError, ModelLimitError
from loratory.engine.models.catalog import find_in_catalog
from loratory.engine.models.folder import ModelPart
from loratory.engine.models.inventory_cache import known_inventory
from loratory.engine.models.shape import ModelDetails, ModelShape
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.json_lines import JsonLinesProcess, result_of
from loratory.engine.processes.messages import JsonObject, OnProgress
from loratory.engine.processes.pool import ProcessPool, ProcessSlots
from loratory.engine.processes.spawn import Access, has_hub_login

DATA_WORKER_MODULE = "loratory.engine.inspector.worker.data"
MODELS_WORKER_MODULE = "loratory.engine.inspector.worker.inventory"

Result = TypeVar("Result", bound=BaseModel)


class RenderedSequence(BaseModel, frozen=True):
    """One training sequence, exactly as the trainer sees it."""

    row: int
    part: int
    text: str
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    tokens: tuple[str, ...]  # as the vocabulary spells them
    pieces: tuple[str, ...]  # the text of each
    uncut_tokens: int


class RenderedSequences(BaseModel, frozen=True):
    """All training sequences of a row."""

    sequences: tuple[RenderedSequence, ...]


class DetailsRequest(BaseModel, frozen=True):
    """A question for the details of a model."""

    model: ModelConfig
    details: ModelDetails  # what is known without its tokenizer and files


@dataclass(frozen=True)
class InspectorSlots:
    """How many processes the inspectors of all people of a lab have at once; each kind has slots of its own."""

    data: ProcessSlots = field(default_factory=lambda: ProcessSlots(8))  # of 90 MB each, for previews and checks
    # Of 350 MB each, with torch; only architectures that were never seen need one.
    models: ProcessSlots = field(default_factory=lambda: ProcessSlots(2))
    # While they fetch datasets, which may take an hour.
    hub: ProcessSlots = field(default_factory=lambda: ProcessSlots(4))


_IDLE_SECONDS = 600.0
_IDLE_SECONDS_IN_LAB = 180.0
_WAITS_SECONDS = 60.0  # for a slot
_WAITS_FOR_MODELS_SECONDS = 300.0


class Inspector:
    """Asks about data and about models; processes for each start when they are needed, and again after they ended.

    They end after some idle minutes. Without accounts, one for data stays: a preview would wait for its imports,
    1.3 s of processor time.

    Args:
        data_roots: Folders that datasets may be read from, besides the samples and the Hub; None reads any regular file.
        slots: Of a lab, shared by the inspectors of all people.
    """

    def __init__(
        self, home: LoratoryHome, data_roots: tuple[Path, ...] | None = None, slots: InspectorSlots | None = None
    ) -> None:
        self._home = home
        # They read models and data; they must never take a GPU from training.
        environment = {**home.environment, "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "true"}
        roots = tuple(str(root) for root in data_roots or ())

        is_alone = slots is None

        def pool(
            module: str, log: str, size: int, shared: ProcessSlots | None, *access: Access, resident: bool = False
        ) -> ProcessPool:
            reads_data = module == DATA_WORKER_MODULE
            arguments = roots if reads_data else ()
            processes = (
                JsonLinesProcess(
                    module, arguments=arguments, log_file=home.logs / log, environment=environment, access=access
                )
                for _ in range(size)
            )
            return ProcessPool(
                tuple(processes), _explain_overrun, spare=reads_data and is_alone, permanent=int(resident), slots=shared,
                person=home.owner, idle_seconds=_IDLE_SECONDS if is_alone else _IDLE_SECONDS_IN_LAB,
            )  # fmt: skip

        for_data, for_models, for_hub = (slots.data, slots.models, slots.hub) if slots else (None, None, None)
        # The first answers alone until it is busy with one long step.
        self._data = pool(DATA_WORKER_MODULE, "inspector-data.log", 3 if is_alone else 2, for_data, resident=is_alone)
        # A dataset is fetched from the Hub in one go, which nothing but the end of its process can stop; the same
        # program once more keeps previews answered meanwhile.
        self._fetching = pool(DATA_WORKER_MODULE, "inspector-hub.log", 1, for_hub)
        # What the Hub gives only to those who are logged in: a process that may log in, for one question.
        self._logged_in = pool(DATA_WORKER_MODULE, "inspector-hub.log", 1, for_hub, Access.HUB)
        self._models = pool(MODELS_WORKER_MODULE, "inspector.log", 2 if is_alone else 1, for_models)
        self._pools = (self._data, self._fetching, self._logged_in, self._models)

    def start(self) -> None:
        """Start the data process now, to have its imports done before the first request.

        The models process waits for a model that was never seen here: it imports torch, and CPU time is short at the start.
        """
        self._data.start()

    def close(self) -> None:
        """End the processes."""
        for pool in self._pools:
            pool.close()

    def stop_fetching(self) -> None:
        """End what is being fetched from the Hub; checks that wait for it end with a WorkerError."""
        self._fetching.stop(timeout_seconds=0.5)
        self._logged_in.stop(timeout_seconds=0.5)

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of all processes that live."""
        return tuple(pid for pool in self._pools for pid in pool.pids)

    def module_inventory(self, model: ModelConfig) -> ModelShape:
        """Return the modules of a model and their sizes, without loading a weight; at once where they were read before.

        Raises:
            ModelError: If the model cannot be found, reached or read.
        """
        inventory = known_inventory(model, self._home)
        if inventory is not None:
            return inventory
        params = {"model": model.model_dump(mode="json")}
        answers = self._stream(self._models, "module_inventory", params, waits_seconds=_WAITS_FOR_MODELS_SECONDS)
        for answer in answers:
            if "result" in answer:
                return ModelShape.model_validate(answer["result"])
            # While this one waits, the process of another person may read the same model of the catalogue.
            if (inventory := known_inventory(model, self._home)) is not None:
                answers.close()
                return inventory
        raise AssertionError("a stream ends with its result or an error")

    def model_details(self, model: ModelConfig) -> ModelDetails:
        """Return architecture, context length, chat template and licence of a model.

        Raises:
            ModelError: If the model cannot be found, reached or read.
        """
        shape, entry = self.module_inventory(model), find_in_catalog(model.id)
        details = ModelDetails.from_shape(model.id, shape, entry)
        # The rest needs its tokenizer, and no torch.
        return self._request(self._data, "model_details", DetailsRequest(model=model, details=details), ModelDetails)

    def preview(
        self,
        dataset: DatasetConfig,
        model: ModelConfig | None = None,
        max_length: int | None = None,
        *,
        first_row: int = 0,
        count: int = 10,
        rows: tuple[int, ...] | None = None,
        brief: bool = False,
        edit: JsonObject | None = None,
        vision: VisionConfig = MODELS_OWN,
    ) -> contract.DatasetPage:
        """Return rows of a dataset, as conversations and, with a model, as the tokens that training will see.

        Those from `first_row` to `edit` are those of a `PageRequest`; without a model, rows have no tokens.

        Raises:
            DatasetError: If the dataset cannot be read.
            ModelError: If the tokenizer cannot be loaded.
        """
        page = contract.PageRequest(first_row=first_row, count=count, rows=rows, brief=brief, edit=edit)
        request = contract.DataRequest(dataset=dataset, model=model, vision=vision, max_length=max_length, page=page)
        return self._request(self._reader(dataset), "preview", request, contract.DatasetPage)

    def sets(self, question: contract.SetQuestion, on_progress: OnProgress | None = None) -> JsonObject:
        """Return what `SetTables` answers to a question about the person's sets; raises as it does."""
        return result_of(self._stream(self._data, "sets", question.model_dump(mode="json")), on_progress)

    def columns(self, dataset: DatasetConfig) -> contract.DatasetColumns:
        """Return the columns of a dataset that no format fits, and the format to begin with.

        Raises:
            DatasetError: If it cannot be opened.
        """
        return self._request(self._data, "columns", contract.DataRequest(dataset=dataset), contract.DatasetColumns)

    def row_form(self, dataset: DatasetConfig) -> contract.RowForm:
        """Return the form of a dataset's rows, as its first ones show it, for a script that reads them with usual readers.

        Raises:
            DatasetError: If it cannot be opened, or such readers would read rows otherwise; has the reason.
        """
        return self._request(self._data, "row_form", contract.DataRequest(dataset=dataset), contract.RowForm)

    def find_steps(
        self, dataset: DatasetConfig, text: str, *, after_row: int
    ) -> Iterator[contract.SearchProgress | contract.FoundRow]:
        """Find the next row that holds a text, in any case: yields progress, then at last where. Closing it stops it.

        The search begins after `after_row`, and continues from the first row up to it.

        Raises:
            DatasetError: If the dataset cannot be read, or the text is too long.
        """
        request = contract.DataRequest(dataset=dataset, text=contract.searchable(text), after_row=after_row)
        for answer in self._stream(self._data, "find", request.model_dump(mode="json")):
            if "result" in answer:
                yield contract.FoundRow.model_validate(answer["result"])
            elif "progress" in answer:
                yield contract.SearchProgress.model_validate(answer["progress"])

    def check(
        self,
        dataset: DatasetConfig,
        model: ModelConfig | None = None,
        max_length: int | None = None,
        *,
        seed: int = 42,
        vision: VisionConfig = MODELS_OWN,
        on_progress: Callable[[contract.CheckProgress], None] | None = None,
    ) -> contract.DatasetReport:
        """Check every row in one pass; a report that is known already is returned at once.

        `on_progress` is called a few times a second; raising out of it stops the check.

        Raises:
            DatasetError: If the dataset cannot be read, or nothing in it can be trained on.
            ModelError: If the tokenizer cannot be loaded.
        """
        request = contract.DataRequest(dataset=dataset, model=model, vision=vision, max_length=max_length, seed=seed)
        params, report = request.model_dump(mode="json"), on_progress or (lambda _: None)
        for answer in self._stream(self._reader(dataset, whole=True), "check", params, waits_seconds=math.inf):
            if "result" in answer:
                return contract.DatasetReport.model_validate(answer["result"])
            if "waiting" in answer:
                report(contract.CheckProgress(rows=0, bytes_read=0, size_bytes=None, waiting=answer["waiting"]))
            elif "progress" in answer:
                report(contract.CheckProgress.model_validate(answer["progress"]))
        raise AssertionError("a check ends with its report or an error")

    def held_out(
        self,
        dataset: DatasetConfig,
        model: ModelConfig,
        max_length: int | None,
        *,
        seed: int,
        count: int = 200,
        vision: VisionConfig = MODELS_OWN,
    ) -> contract.HeldOutRows:
        """Return which rows a run with these settings keeps back from training; one pass over the data.

        Returns at most `count` of them, spread evenly.

        Raises:
            DatasetError: If the dataset cannot be read, or nothing in it can be trained on.
            ModelError: If the tokenizer cannot be loaded.
        """
        request = contract.DataRequest(
            dataset=dataset, model=model, vision=vision, max_length=max_length, seed=seed, count=count
        )
        return self._request(self._reader(dataset, whole=True), "held_out", request, contract.HeldOutRows)

    def render(
        self,
        dataset: DatasetConfig,
        model: ModelConfig,
        max_length: int | None = None,
        *,
        row: int,
        vision: VisionConfig = MODELS_OWN,
    ) -> tuple[RenderedSequence, ...]:
        """Return the training sequences of one row: one, or several where the template rewrites earlier turns.

        Raises:
            DatasetError: If there is no such row, or it is left out, with the reason.
            ModelError: If the tokenizer cannot be loaded.
        """
        request = contract.DataRequest(dataset=dataset, model=model, vision=vision, max_length=max_length, row=row)
        return self._request(self._reader(dataset), "render", request, RenderedSequences).sequences

    def _reader(self, dataset: DatasetConfig, *, whole: bool = False) -> ProcessPool:
        fetches = "fetch" in dataset.images or (whole and reads_from_hub(dataset))
        return self._fetching if fetches else self._data

    def _request(self, pool: ProcessPool, method: str, request: BaseModel, result: type[Result]) -> Result:
        return result.model_validate(result_of(self._stream(pool, method, request.model_dump(mode="json"))))

    def _stream(
        self, pool: ProcessPool, method: str, params: JsonObject, *, waits_seconds: float = _WAITS_SECONDS
    ) -> Generator[JsonObject, None, None]:
        """Ask a process without a login; what the Hub refuses it is fetched by one that has a login, and ends then."""
        try:
            yield from pool.stream(method, params, waits_seconds=waits_seconds)
            return
        except (ModelAccessError, DatasetAccessError) as error:
            if not has_hub_login():
                raise
            refusal = error
        try:
            if isinstance(refusal, DatasetAccessError):
                yield from self._logged_in.stream(method, params)
                return
            part = ModelPart.CONFIG if method == "module_inventory" else ModelPart.TOKENIZER
            self._logged_in.call("fetch", {"model": params["model"], "part": part.name})
        finally:
            self._logged_in.close_if_unused()
        yield from pool.stream(method, params)


def _explain_overrun(params: JsonObject) -> EngineError:
    """Return what a request's process was ended over: the model where it had one, else the dataset."""
    model, dataset = params.get("model"), params.get("dataset")
    if model is not None:
        return ModelLimitError(
            f"Reading the files of {ModelConfig.model_validate(model).shown_name} or rendering one row with its chat template took more time or "
            "memory than it may; it was stopped.",
            "Use the original files of the model, or choose another model.",
        )
    return DatasetError(
        f"Reading {shown_name(dataset['source']) if dataset else 'the data'} took more time or memory than it may; "
        "it was stopped.",
        "Choose another dataset, or split it into smaller rows.",
    )
