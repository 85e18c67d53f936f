"""`python -m tests.benchmarks.hostile_inputs`: what files written to stop this program do to it.

Attacks one inspector with each template, tokenizer and configuration of `tests/faults/hostile`, in turn, while previews of a
good model are asked for without a pause. Prints for each the seconds until it was answered (wanted: 10), the peak of the
inspector's largest process (wanted: 2 GB), the longest wait for a good preview (wanted: 2 s), and the answer.

Then a media store takes each hostile image, and the largest that are allowed: seconds and peak of its decoder, to the same limits.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from loratory.engine.config.run import ModelConfig
from loratory.engine.data.media.store import MediaStore
from loratory.engine.data.records import RowProblemError
from tests.data.media.test_store import HOSTILE, LARGE, peak_bytes
from tests.data.pictures import picture
from tests.faults.hostile.templates import TEMPLATES
from tests.faults.hostile.test_hostile_files import CONFIGS, TOKENIZERS
from tests.faults.hostile.watched import PEAK_BYTES, HostileFile, Target, attack, attacked_inspector, make_hostile_model

_ANSWERED_WITHIN_SECONDS = 10.0
_OTHERS_WAIT_AT_MOST_SECONDS = 2.0

Question = Callable[[Target, ModelConfig], str]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="attacks whose name holds this text")
    only = parser.parse_args().only
    beyond = 0
    with (
        tempfile.TemporaryDirectory(prefix="loratory-benchmark-", ignore_cleanup_errors=True) as folder,
        attacked_inspector(Path(folder)) as target,
    ):
        for name, (files, ask) in attacks().items():
            if only in name:
                beyond += _measure(target, name, Path(folder, name.replace(" ", "-")), files, ask)
        makers = {**{name: make for name, (make, _) in HOSTILE.items()}, **LARGE}
        for number, (name, make) in enumerate(makers.items()):
            if only in (name := f"image {name}"):
                beyond += _measure_image(name, MediaStore(Path(folder, f"media-{number}")), make())
    print(f"{beyond} beyond what is wanted")


def attacks() -> dict[str, tuple[dict[str, HostileFile], Question]]:
    """Return the files of each attack, and the question that reads them."""
    preview: Question = lambda target, model: target.preview(model)  # noqa: E731
    list_modules: Question = lambda target, model: str(target.inspector.module_inventory(model).num_parameters)  # noqa: E731
    return {
        **{f"template {name}": ({"chat_template_jinja": text}, preview) for name, (text, _) in TEMPLATES.items()},
        **{f"tokenizer {name}": (files, preview) for name, (files, _) in TOKENIZERS.items()},
        **{f"configuration {name}": ({"config_json": file}, list_modules) for name, (file, _) in CONFIGS.items()},
    }


def _measure(target: Target, name: str, folder: Path, files: dict[str, HostileFile], ask: Question) -> bool:
    folder.mkdir()
    model = make_hostile_model(target.good_model, folder, **files)
    target.wait_until_calm()
    came = attack(target.inspector, lambda: ask(target, model), target.good_page)
    beyond = (
        came.seconds > _ANSWERED_WITHIN_SECONDS
        or came.peak_bytes > PEAK_BYTES
        or came.waited_seconds > _OTHERS_WAIT_AT_MOST_SECONDS
    )
    print(
        f"{name:<42}{came.seconds:6.2f} s {came.peak_bytes / 1e9:6.2f} GB {came.waited_seconds:6.2f} s"
        f"{' BEYOND ' if beyond else '   '}{came.message[:90]}",
        flush=True,
    )
    return beyond


def _measure_image(name: str, store: MediaStore, data: bytes) -> bool:
    store.add(picture("green"))  # its decoder has started
    decoder, began = store._decoder.pid, time.monotonic()
    try:
        ref = store.add(data)
        answer = f"taken: {ref.width:,} × {ref.height:,} pixels"
    except RowProblemError as error:
        answer = error.problem
    seconds, peak = time.monotonic() - began, peak_bytes(decoder)
    beyond = seconds > _ANSWERED_WITHIN_SECONDS or peak > PEAK_BYTES
    print(f"{name:<50}{seconds:6.2f} s {peak / 1e9:6.2f} GB{' BEYOND ' if beyond else '   '}{answer[:90]}", flush=True)
    return beyond


if __name__ == "__main__":
    main()
