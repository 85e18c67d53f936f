"""Export a run as a compressed model: merge, have llm-compressor compress, and add tokenizer and stop tokens."""

import json
import shutil
import time

from loratory.engine.chat.worker.answer import DecodingTokenizer, load_chat_tokenizer
from loratory.engine.evaluation.general_text import general_rows
from loratory.engine.export.compressed import GROUP_SIZES, SCHEMES, compress, require_device
from loratory.engine.export.kinds import KINDS
from loratory.engine.export.worker.verify import trained_rows
from loratory.engine.export.worker.write import ExportTask, write_merged

_MOST_ROWS = 256  # of the run, next to general text: what it has learned counts, and what it knew before


def write_compressed(export: ExportTask) -> DecodingTokenizer:
    """Fill the folder of the order, with the merged model in a folder of its own in it.

    Raises:
        ModelError: If it cannot be merged or compressed.
    """
    order = export.order
    KINDS[order.settings.kind].require(None, export.family, order.settings, None)  # the base is here by now
    require_device(order.settings.compression, order.device)
    merged, target = order.folder / "merged", order.folder / "compressed"
    merged.mkdir()
    write_merged(export, merged)
    tokenizer, scheme = load_chat_tokenizer([merged], merged, export.trained.name), SCHEMES[order.settings.compression]
    rows = [row.input_ids for row in trained_rows(export, tokenizer, _MOST_ROWS)] if scheme.reads_rows else []
    if scheme.reads_rows:
        rows += [row.input_ids for row in general_rows(tokenizer)]
        export.notes.append(f"Rounded with {len(rows):,} rows: of the run where they could be read, and general text.")
    values = {
        "model": str(merged), "target": str(target), "preset": scheme.preset, "modifier": scheme.modifier, "rows": rows,
        "group_sizes": GROUP_SIZES, "max_shard_bytes": int(order.settings.max_shard_gb * 1e9),
    }  # fmt: skip
    path, started = order.folder / "order.json", time.monotonic()
    path.write_text(json.dumps(values), encoding="utf-8")
    name = order.settings.compression
    try:
        compress(
            path,
            export.trained.name,
            lambda: export.report("writing", f"Compressing to {name}, for {time.monotonic() - started:.0f} s."),
        )
    finally:
        path.unlink()
    for file in target.iterdir():
        if file.name.startswith("model") or file.name == "config.json":
            file.rename(order.folder / file.name)
    shutil.rmtree(target)
    for file in merged.iterdir():
        if not file.name.startswith("model") and file.name != "config.json":
            shutil.copyfile(file, order.folder / file.name) if file.is_file() else shutil.copytree(
                file, order.folder / file.name
            )
    return tokenizer
