"""The inspector process: previews, checks and renders rows, and reads the modules of models. Holds no weights, no GPU."""

from collections.abc import Generator
from dataclasses import asdict
from functools import lru_cache
from itertools import islice
from typing import Any

from engine.config.dataset import DatasetConfig
from engine.config.model import ModelConfig
from engine.data.check import check_steps
from engine.data.examine import DatasetReader, Examined, Rendered
from engine.data.page import DatasetPage, PageRow, page_row, sequence_view
from engine.data.problems import shortened
from engine.data.tokenize import RenderOptions
from engine.errors import DatasetError
from engine.models.folder import ModelPart
from engine.models.source import resolve_model
from engine.paths import LoratoryHome
from engine.processes.json_lines import CancelledRequestError, JsonObject, Request, Steps, serve


class DatasetHandlers:
    """Answers questions about data."""

    def __init__(self, home: LoratoryHome) -> None:
        self._home = home
        self._load = lru_cache(maxsize=4)(self._load_uncached)

    def preview(self, params: JsonObject, _request: Request) -> JsonObject:
        dataset, rendered = self._asked(params)
        reader = DatasetReader(dataset, rendered)
        first_row, count = params["first_row"], params["count"]
        if params["rows"] is not None:
            wanted = set(params["rows"])
            chosen = [examined for examined in reader.rows() if examined.record.row in wanted]
        elif params["search"]:
            needle = params["search"].casefold()
            matching = (
                examined
                for examined in reader.rows()
                if examined.record.row >= first_row and needle in str(examined.record.value).casefold()
            )
            chosen = list(islice(matching, count))
        else:
            chosen = list(islice(reader.rows(), first_row, first_row + count))
        page = DatasetPage(
            rows=tuple(_shown(examined) for examined in chosen),
            first_row=first_row,
            total_rows=None,
            format=reader.detection.format,
            format_reason=reader.detection.reason,
            format_sure=reader.detection.sure,
            columns=reader.columns,
            column_map=dict(reader.detection.columns),
        )
        return page.model_dump(mode="json")

    def check(self, params: JsonObject, request: Request) -> Steps:
        return self._check(params, request)

    def _check(self, params: JsonObject, request: Request) -> Generator[None, None, JsonObject]:
        dataset, rendered = self._asked(params)
        model = params["model"]["id"] if params["model"] is not None else None
        steps = check_steps(dataset, params["seed"], rendered, model)
        while True:
            try:
                progress = next(steps)
            except StopIteration as end:
                report: JsonObject = end.value.model_dump(mode="json")
                return report
            if request.is_cancelled():
                raise CancelledRequestError
            request.progress(progress.model_dump(mode="json"))
            yield

    def render(self, params: JsonObject, _request: Request) -> JsonObject:
        dataset, rendered = self._asked(params)
        row = params["row"]
        reader = DatasetReader(dataset, rendered)
        examined = next((examined for examined in reader.rows() if examined.record.row == row), None)
        if examined is None:
            raise DatasetError(f"{dataset.source} has no row {row}.", "Rows count from 0.")
        if examined.rendering is None:
            raise DatasetError(f"Row {row} of {dataset.source} is left out: {examined.problem}.", "Choose another row.")
        return {"sequences": [asdict(sequence) for sequence in examined.rendering.rows]}

    def _asked(self, params: JsonObject) -> tuple[DatasetConfig, Rendered | None]:
        dataset = DatasetConfig.model_validate(params["dataset"])
        if params["model"] is None:
            return dataset, None
        tokenizer = self._load(ModelConfig.model_validate(params["model"]))
        return dataset, Rendered(tokenizer, RenderOptions(params["max_length"], dataset.train_on))

    def _load_uncached(self, model: ModelConfig) -> Any:
        from engine.inspector.load_tokenizer import load_tokenizer

        return load_tokenizer(resolve_model(model, self._home, part=ModelPart.TOKENIZER))[0]


def _shown(examined: Examined) -> PageRow:
    record = examined.record
    raw = shortened(str(record.value), 400)
    if examined.example is None:
        return PageRow(row=record.row, line=record.line, raw=raw, problem=examined.problem)
    shown = page_row(record.row, record.line, examined.example, raw)
    if examined.rendering is None:
        return shown
    return shown.model_copy(
        update={
            "sequences": tuple(sequence_view(sequence) for sequence in examined.rendering.rows),
            "notices": tuple(notice for _, notice in examined.rendering.notices),
        }
    )


def main() -> None:
    """Answer until stdin closes."""
    home = LoratoryHome.from_environment()
    data = DatasetHandlers(home)
    serve(
        {
            "preview": data.preview,
            "check": data.check,
            "render": data.render,
            "module_inventory": lambda params, _request: _inventory(params, home),
            "model_details": lambda params, _request: _details(params, home),
        }
    )


def _inventory(params: JsonObject, home: LoratoryHome) -> JsonObject:
    from engine.inspector.inventory import module_inventory

    return module_inventory(ModelConfig.model_validate(params["model"]), home).model_dump(mode="json")


def _details(params: JsonObject, home: LoratoryHome) -> JsonObject:
    from engine.inspector.details import model_details

    return model_details(ModelConfig.model_validate(params["model"]), home).model_dump(mode="json")


if __name__ == "__main__":
    main()
