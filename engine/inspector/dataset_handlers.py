"""Answers to questions about data: pages, checks, held-out rows and renders."""

from collections.abc import Callable, Generator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from engine.config.dataset import DatasetConfig
from engine.config.model import ModelConfig
from engine.data.access import DataAccess
from engine.data.check import check_steps
from engine.data.columns import read_columns
from engine.data.examine import DatasetReader, Renderer
from engine.data.held_out import held_out_steps
from engine.data.open_readers import OpenReaders
from engine.data.page import PageRequest
from engine.data.read_page import find_row, read_page, search_rows
from engine.data.source import SourceOptions
from engine.data.tokenize import RenderedRow
from engine.errors import DatasetError
from engine.inspector.load_tokenizer import load_tokenizer
from engine.inspector.session import RenderedSequence
from engine.models.folder import ModelPart, tokenizer_files_fingerprint
from engine.models.source import ModelSource, resolve_model
from engine.paths import LoratoryHome
from engine.processes.answering import Request, Steps
from engine.processes.json_lines import CancelledRequestError, JsonObject


class DatasetHandlers:
    """Answers questions about data.

    Args:
        home: Holds models and caches.
        access: Which files may be read.
    """

    def __init__(self, home: LoratoryHome, access: DataAccess) -> None:
        self._home = home
        self._options = SourceOptions(access=access, home=home)
        streamed = replace(self._options, streaming=True)
        self._previews = OpenReaders(lambda dataset: DatasetReader(dataset, streamed))
        self._renderers = lru_cache(maxsize=4)(_load_renderer)  # a changed file is another key

    def preview(self, params: JsonObject, request: Request) -> Steps:
        wanted = PageRequest.model_validate(params["page"])
        # Chosen rows come from a pass over all of them, for which a dataset of the Hub was fetched.
        reader = self._reader(params, request, streaming=wanted.rows is None)
        return (yield from _watched(read_page(reader, wanted), request))

    def columns(self, params: JsonObject, _request: Request) -> JsonObject:
        dataset = DatasetConfig.model_validate(params["dataset"])
        return read_columns(dataset, replace(self._options, streaming=True)).model_dump(mode="json")

    def find(self, params: JsonObject, request: Request) -> Steps:
        reader = self._reader(params, request, streaming=True)
        steps = search_rows(reader, params["text"], params["after_row"])
        return (yield from _watched(steps, request, tell=_teller(request)))

    def check(self, params: JsonObject, request: Request) -> Steps:
        dataset, renderer = self._asked(params, request)
        steps = check_steps(dataset, self._options, seed=params["seed"], renderer=renderer)
        return (yield from _watched(steps, request, tell=_teller(request)))

    def held_out(self, params: JsonObject, request: Request) -> Steps:
        dataset, renderer = self._asked(params, request)
        if renderer is None:
            raise ValueError("held-out rows need a model")
        steps = held_out_steps(dataset, self._options, seed=params["seed"], renderer=renderer, count=params["count"])
        return (yield from _watched(steps, request))

    def fetch(self, params: JsonObject, _request: Request) -> JsonObject:
        """Make a model of the Hub available on this machine; nothing but its configuration is read."""
        resolve_model(ModelConfig.model_validate(params["model"]), self._home, part=ModelPart[params["part"]])
        return {}

    def render(self, params: JsonObject, request: Request) -> JsonObject:
        examined = find_row(self._reader(params, request, streaming=True), params["row"])
        if examined.rendering is None:
            raise DatasetError(
                f"Row {params['row']:,} is left out: {examined.problem}.", "Choose another row, or correct this one."
            )
        return {"sequences": [_sequence(rendered) for rendered in examined.rendering.rows]}

    def _reader(self, params: JsonObject, request: Request, *, streaming: bool) -> DatasetReader:
        dataset, renderer = self._asked(params, request)
        if streaming:
            return self._previews.get(dataset, renderer)
        return DatasetReader(dataset, self._options, renderer)

    def _asked(self, params: JsonObject, request: Request) -> tuple[DatasetConfig, Renderer | None]:
        dataset = DatasetConfig.model_validate(params["dataset"])
        if params["model"] is None:
            return dataset, None
        source = resolve_model(ModelConfig.model_validate(params["model"]), self._home, part=ModelPart.TOKENIZER)
        files = tokenizer_files_fingerprint(Path(source.location))
        request.work_with(files)
        return dataset, replace(self._renderers(source, files), max_length=params["max_length"])


def _load_renderer(source: ModelSource, _files: str) -> Renderer:
    tokenizer, frozen = load_tokenizer(source)
    return Renderer(tokenizer, max_length=0, model=source.name, notes=frozen.notes)


def _teller(request: Request) -> Callable[[BaseModel], None]:
    return lambda progress: request.progress(progress.model_dump(mode="json"))


def _sequence(rendered: RenderedRow) -> JsonObject:
    return RenderedSequence(
        row=rendered.row,
        part=rendered.part,
        text=rendered.text,
        input_ids=tuple(rendered.input_ids),
        labels=tuple(rendered.labels),
        tokens=tuple(rendered.tokens),
        pieces=tuple(rendered.pieces),
        uncut_tokens=rendered.uncut_tokens,
    ).model_dump(mode="json")


def _watched(
    steps: Generator[Any, None, BaseModel], request: Request, tell: Callable[[Any], None] = lambda _: None
) -> Steps:
    """Go through long work step by step, so that others are answered between; ends early when nobody wants the answer."""
    while True:
        try:
            progress = next(steps)
        except StopIteration as end:
            result: JsonObject = end.value.model_dump(mode="json")
            return result
        if request.is_cancelled():
            raise CancelledRequestError
        if progress is not None:
            tell(progress)
        yield
