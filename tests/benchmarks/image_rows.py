"""Rows with images, ours against TRL's vision collator: `python -m tests.benchmarks.image_rows`.

For each family 200 rows in prompt-completion and conversation form, over the demo model's vocabulary with the family's tokens and
its own chat template. A second table cuts each row in the middle of an image: what TRL makes of it, and what we do.
"""

import argparse
import collections
import random
import time
from dataclasses import astuple
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from loratory.engine.data.records import RowProblemError
from loratory.engine.inspector.worker.load_tokenizer import load_tokenizer
from loratory.engine.models.prepared import demo_folder, prepare_demo
from loratory.engine.models.source import ModelSource
from loratory.engine.paths import LoratoryHome
from tests.image_rows import FORMS, Comparison, ImageRow, batches, compare, image_rows, render, rows_of, trl_batch
from tests.tiny_vision import MEMBERS, VisionMember, make_vision_folder, trl_processor

_BATCH = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--families", nargs="*", default=[member.model_type for member in MEMBERS])
    arguments = parser.parse_args()
    home = LoratoryHome.from_environment()
    prepare_demo(home)
    rows = image_rows(arguments.rows)
    print(
        f"{arguments.rows} rows, {sum(len(row.images) for row in rows)} images, {sum(not row.images for row in rows)} of text"
    )
    print("family           form                         equal  apart  white  images  refusals  seconds")
    cuts: list[str] = []
    with TemporaryDirectory() as root:
        for member in MEMBERS:
            if member.model_type not in arguments.families:
                continue
            folder = make_vision_folder(Path(root) / member.model_type, member, demo_folder(home) / "tokenizer.json")
            tokenizer, _ = load_tokenizer(ModelSource(str(folder), member.model_type))
            processor = trl_processor(folder, member)
            for form, train_on in FORMS:
                print(_line(rows, tokenizer, processor, member, (form, train_on)), flush=True)
            cuts += _cuts(rows, tokenizer, processor, member)
    print(
        "equal: ids, labels and tensors; apart: rows whose earlier answers follow the chat's prompt in a sequence of their own;"
    )
    print(
        "white, images: tokens that TRL trains and we do not, after the end of a turn and of images; refusals: batches of TRL's"
    )
    print()
    print("rows cut in the middle of an image: family, form, TRL, ours, count")
    print("\n".join(cuts))


def _line(rows: list[ImageRow], tokenizer: Any, processor: Any, member: VisionMember, form: tuple[str, Any]) -> str:
    start, refusals = time.monotonic(), 0
    total = collections.Counter[str]()
    for batch in batches(rows, _BATCH):
        try:
            trl_batch(batch, processor, member, form[0], train_on=form[1])
            parts = [batch]
        except (ValueError, TypeError):  # Idefics3's processor, for some batches with marks of answers
            refusals += 1
            parts = [[row] for row in batch]
        for part in parts:
            comparison = compare(part, tokenizer, processor, member, *form)
            total.update(dict(zip(Comparison.__dataclass_fields__, astuple(comparison), strict=True)))
    name = f"{form[0]}, {form[1]}"
    counts = f"{total['rows']:5}  {total['sequences_apart']:5}  {total['white_space']:5}  {total['image_labels']:6}"
    return f"{member.model_type:16} {name:28} {counts}  {refusals:8}  {time.monotonic() - start:7.1f}"


def _cuts(rows: list[ImageRow], tokenizer: Any, processor: Any, member: VisionMember) -> list[str]:
    draw, counts = random.Random(0), collections.Counter[tuple[str, str, str]]()
    token = tokenizer.image_text.image_token_id
    for row in rows:
        if not row.images:
            continue
        whole = rows_of(row, tokenizer)[-1]
        first, after = draw.choice(whole.image_spans)
        of_image = [index for index in range(first, after) if whole.input_ids[index] == token]
        limit = draw.randint(of_image[0] + 1, of_image[-1])
        for form, train_on in (FORMS[0], FORMS[1]):
            try:
                ids = trl_batch([row], processor, member, form, train_on=train_on, max_length=limit)["input_ids"][
                    0
                ].tolist()
                share = ids.count(token) / whole.input_ids.count(token)
                theirs = "cuts within an image" if share < 1 else "cuts after the images"
            except (ValueError, TypeError, IndexError) as error:
                theirs = f"ends the run ({type(error).__name__})"
            rendering = render(row, tokenizer, train_on, max_length=limit)
            ours = (
                f"row is left out ({rendering.kind})"
                if isinstance(rendering, RowProblemError)
                else "cuts before the image"
            )
            if not isinstance(rendering, RowProblemError):
                assert all(len(part.input_ids) <= limit for part in rendering.rows)
                assert all(after <= len(part.input_ids) for part in rendering.rows for _, after in part.image_spans)
            counts[form, theirs, ours] += 1
    return [
        f"{member.model_type:16} {form:18} {theirs:30} {ours:28} {count:4}"
        for (form, theirs, ours), count in counts.items()
    ]


if __name__ == "__main__":
    main()
