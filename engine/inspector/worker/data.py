"""The inspector's process for data: previews, checks and renders rows. It needs tokenizers and no torch."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from loratory.engine.config.run import DatasetConfig, ModelConfig
from loratory.engine.config.vision import VisionConfig
from loratory.engine.data.contract import DataRequest, SetQuestion
from loratory.engine.data.files.access import DataAccess
from loratory.engine.data.hub import is_on_hub
from loratory.engine.data.passes.check import check_steps
from loratory.engine.data.passes.page import find_row, read_columns, read_page, search_rows
from loratory.engine.data.passes.prepare import held_out_steps
from loratory.engine.data.passes.reader import DatasetReader, Renderer
from loratory.engine.data.passes.row_form import read_row_form
from loratory.engine.data.render.template import FrozenTemplate
from loratory.engine.data.source import SourceOptions
from loratory.engine.data.workshop.table import SetTables
from loratory.engine.errors import DatasetError
from loratory.engine.inspector.session import DetailsRequest, RenderedSequences
from loratory.engine.models.folder import ModelPart, tokenizer_files_fingerprint
from loratory.engine.models.source import ModelSource, resolve_model
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.limits import limit_memory
from loratory.engine.processes.messages import CancelledRequestError, JsonObject, Request, Steps, serve

_KEPT = 4
_KEPT_SECONDS = 300.0  # a branch of a dataset may move; an address that the Hub signed is good for longer


@dataclass
class OpenReaders:
    """The last few readers whose rows all come from the Hub; what is here is opened each time, for it may change."""

    open_reader: Callable[[DatasetConfig], DatasetReader]  # without a renderer
    clock: Callable[[], float] = time.monotonic  # in seconds
    # By configuration, the newest last, each with the time when it was opened.
    _readers: dict[str, tuple[DatasetReader, float]] = field(default_factory=dict, init=False)

    def get(self, config: DatasetConfig, renderer: Renderer | None) -> DatasetReader:
        """Return a reader for this dataset and renderer.

        Raises:
            DatasetError: If it has to be opened, and cannot be.
        """
        if not all(map(is_on_hub, (config.source, *config.mix))):
            return self.open_reader(config).with_renderer(renderer)
        key = config.model_dump_json(exclude={"eval_fraction", "max_samples"})  # which do not change single rows
        reader, since = self._readers.pop(key, (None, 0.0))
        if reader is None or self.clock() - since > _KEPT_SECONDS:
            reader, since = self.open_reader(config), self.clock()
        self._readers[key] = reader, since
        while len(self._readers) > _KEPT:
            del self._readers[next(iter(self._readers))]
        return reader.with_renderer(renderer)


class DatasetHandlers:
    """Answers questions about data."""

    def __init__(
        self,
        home: LoratoryHome,
        access: DataAccess,
        load: Callable[[ModelSource, VisionConfig], tuple[Any, FrozenTemplate]],
    ) -> None:
        self._home = home
        self._options = SourceOptions(access=access, home=home, fetches_images=True)
        streamed = replace(self._options, streaming=True)
        self._sets = SetTables(home, self._options)
        self._previews = OpenReaders(lambda dataset: DatasetReader(dataset, streamed))

        @lru_cache(maxsize=4)
        def renderer_of(
            source: ModelSource, _files: str, vision: VisionConfig
        ) -> Renderer:  # changed files: another key
            tokenizer, frozen = load(source, vision)
            return Renderer(tokenizer, max_length=0, model=source.name, notes=frozen.notes)

        self._renderer_of = renderer_of

    def preview(self, request: DataRequest, job: Request) -> Steps:
        # Chosen rows come from a pass over all of them, for which a dataset of the Hub was fetched.
        reader = self._reader(request, job, streaming=request.page.rows is None)
        return (yield from _reporting(read_page(reader, request.page), job))

    def sets(self, params: JsonObject, job: Request) -> Steps:
        return _reporting(self._sets.answer(SetQuestion.model_validate(params)), job)

    def columns(self, request: DataRequest, _job: Request) -> BaseModel:
        return read_columns(request.dataset, replace(self._options, streaming=True))

    def row_form(self, request: DataRequest, _job: Request) -> BaseModel:
        return read_row_form(request.dataset, replace(self._options, streaming=True))

    def find(self, request: DataRequest, job: Request) -> Steps:
        reader = self._reader(request, job, streaming=True)
        return (yield from _reporting(search_rows(reader, request.text, request.after_row), job))

    def check(self, request: DataRequest, job: Request) -> Steps:
        renderer = self._renderer(request, job)
        steps = check_steps(request.dataset, self._options, seed=request.seed, renderer=renderer)
        return (yield from _reporting(steps, job))

    def held_out(self, request: DataRequest, job: Request) -> Steps:
        renderer = self._renderer(request, job)
        assert renderer is not None  # a request for held-out rows has a model
        steps = held_out_steps(
            request.dataset, self._options, seed=request.seed, renderer=renderer, count=request.count
        )
        return (yield from _reporting(steps, job))

    def render(self, request: DataRequest, job: Request) -> BaseModel:
        row = find_row(self._reader(request, job, streaming=True), request.row)
        if row.rendering is None:
            what = f"Row {request.row + 1:,} is left out: {row.problem}."
            raise DatasetError(what, "Choose another row, or correct this one.")
        return RenderedSequences.model_validate({"sequences": row.rendering.rows}, from_attributes=True)

    def fetch(self, params: JsonObject, _job: Request) -> JsonObject:
        """Make a model of the Hub available on this machine; nothing but its configuration is read."""
        resolve_model(ModelConfig.model_validate(params["model"]), self._home, part=ModelPart[params["part"]])
        return {}

    def details(self, params: JsonObject, job: Request) -> JsonObject:
        """Return the details of a model, with what its tokenizer and files add."""
        from loratory.engine.inspector.worker.load_tokenizer import complete_details  # imported by then, without torch

        request = DetailsRequest.model_validate(params)
        return _dump(complete_details(request.details, request.model, self._home, job))

    def _reader(self, request: DataRequest, job: Request, *, streaming: bool) -> DatasetReader:
        renderer = self._renderer(request, job)
        if streaming:
            return self._previews.get(request.dataset, renderer)
        return DatasetReader(request.dataset, self._options, renderer)

    def _renderer(self, request: DataRequest, job: Request) -> Renderer | None:
        if request.model is None:
            return None
        source = resolve_model(request.model, self._home, part=ModelPart.TOKENIZER)
        files = tokenizer_files_fingerprint(Path(source.location))
        job.work_with(files)
        return replace(self._renderer_of(source, files, request.vision), max_length=request.max_length)


def _answer(
    method: Callable[[DataRequest, Request], Steps | BaseModel], params: JsonObject, job: Request
) -> Steps | JsonObject:
    answer = method(DataRequest.model_validate(params), job)
    return answer if isinstance(answer, Generator) else _dump(answer)


def _dump(result: BaseModel | JsonObject) -> JsonObject:
    return result.model_dump(mode="json") if isinstance(result, BaseModel) else result


def _reporting(steps: Generator[BaseModel | None, None, BaseModel | JsonObject], job: Request) -> Steps:
    """Do long work step by step, with other requests answered in between; ends early when it is cancelled."""
    while True:
        try:
            progress = next(steps)
        except StopIteration as end:
            return _dump(end.value)
        if job.is_cancelled():
            raise CancelledRequestError
        if progress is not None:
            job.progress(_dump(progress))
        yield


# What rows, tokenizers and indexes of rows may take beyond the imports; reading itself stays below a third of it. Each core
# brings threads whose stacks count, although they are hardly touched.
_MEMORY_BYTES = (5 << 28) + (os.cpu_count() or 1) * (16 << 20)


@contextlib.contextmanager
def torch_hidden() -> Iterator[None]:
    """Let transformers believe that torch is not installed; what it found out while being imported, it never asks again.

    Importing a tokenizer takes torch in as well, where there is one: 240 MB and two seconds for nothing used here.
    """
    torch_module = sys.modules.get("torch")
    sys.modules["torch"] = None  # type: ignore[assignment]  # what Python's import system reads as "not there"
    try:
        yield
    finally:
        if torch_module is None:
            del sys.modules["torch"]
        else:
            sys.modules["torch"] = torch_module


def main() -> None:
    """Answer until stdin closes."""
    with torch_hidden():
        from loratory.engine.inspector.worker.load_tokenizer import load_tokenizer

    limit_memory(_MEMORY_BYTES)
    roots, home = tuple(Path(root) for root in sys.argv[1:]), LoratoryHome.from_environment()
    answers = DatasetHandlers(home, DataAccess(roots or None), load_tokenizer)
    about_data = (answers.preview, answers.columns, answers.row_form, answers.find, answers.check, answers.held_out)
    handlers = {method.__name__: partial(_answer, method) for method in (*about_data, answers.render)}
    serve({**handlers, "sets": answers.sets, "fetch": answers.fetch, "model_details": answers.details})


if __name__ == "__main__":
    main()
