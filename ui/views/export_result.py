"""What was written or sent, and what its verification found, in plain words."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from engine.export.contract import ExportedFile, Verification
from engine.export.kinds import KINDS
from engine.export.records import ExportRecord
from ui.pick import pickable
from ui.views.adapter_files import render_copyable
from ui.views.notices import render_notices
from ui.views.quantities import plural, size

KIND_WORDS = {**{name: kind.title for name, kind in KINDS.items()}, "hub": "On the Hub"}
NOTHING_MADE = (
    '<div class="empty"><b>Nothing was taken away yet</b>What you write or push appears here with its files and what its '
    "verification found, and stays listed with the run.</div>"
)


class Verdict(NamedTuple):
    """The verification in one line."""

    mark: str  # a class of the page: yes, tight, no
    words: str


def verdict_of(verified: Verification | None) -> Verdict:
    """Whether it may be used."""
    if verified is None:
        return Verdict("tight", "not verified")
    return Verdict("yes", "verified") if verified.passed else Verdict("no", "differs from the run")


def render_record(record: ExportRecord) -> str:
    """One export: where it is, its files, and its verification."""
    place = (
        f'<p class="small"><a href="{escape(record.place, quote=True)}" target="_blank" rel="noopener">'
        f"{escape(record.place)}</a></p>"
        if record.place.startswith(("https://", "http://"))  # a Hub of one's own may have no certificate
        else render_copyable(record.place, "path")
    )
    notes = render_notices(record.notes)
    state = f" of {escape(record.checkpoint)}" if record.checkpoint else ""
    return (
        f"<h3>{KIND_WORDS.get(record.kind, escape(record.kind))}{state}</h3>{render_verification(record.verified)}{notes}"
        f'<p class="small num">{plural(len(record.files), "file")}, {size(record.size_bytes)}, in</p>{place}'
        f"{_files(record.files)}"
    )


def render_verification(verified: Verification | None) -> str:
    """What was compared, how far it is apart, and what that means."""
    if verified is None:
        return (
            '<p class="sentence"><span class="tight">Not verified.</span> Nobody has compared it with the run yet.</p>'
        )
    answers = f"{verified.equal_answers} of {verified.prompts}"
    if verified.passed and verified.equal_answers < verified.prompts:
        head = (
            f'<span class="yes">Verified within rounding.</span> {answers} greedy answers are the same; the others turn where '
            "two words were about equally likely."
        )
    elif verified.passed:
        head = f'<span class="yes">Verified.</span> It was loaded again and answers as the run does: {answers} greedy answers are the same.'
    else:
        head = (
            f'<span class="no">It differs from the run.</span> Only {answers} greedy answers are the same. Do not use it; '
            "export the adapter instead."
        )
    facts = [
        (f"{verified.largest_logit_difference:.3g}", "largest logit difference"),
        (f"{verified.allowed_logit_difference:.3g}", "explained by rounding"),
        (answers, "equal greedy answers"),
    ]
    if verified.equal_prompts is not None:
        facts.append((f"{verified.equal_prompts} of {verified.prompts}", "equal prompt ids"))
    drawn = "".join(f"<div><b>{figure}</b>{words}</div>" for figure, words in facts)
    needed = f" At least {verified.needed_answers} equal answers were needed." if verified.needed_answers else ""
    return (
        f'<p class="sentence">{head}</p><div class="facts">{drawn}</div><p class="small">Compared: '
        f"{escape(verified.compared)}, computed in {escape(verified.dtype)}, in {verified.seconds:.0f} s.{needed}</p>"
    )


def _files(files: Sequence[ExportedFile]) -> str:
    rows = "".join(
        f'<tr><td>{escape(file.name)}</td><td class="r" title="{file.size_bytes:,} bytes">{size(file.size_bytes)}</td></tr>'
        for file in files
    )
    return (
        '<div class="scroll tall"><table class="plain"><thead><tr><th>File</th><th class="r">Size</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def render_records(records: Sequence[ExportRecord], chosen: int) -> str:
    """Everything that was taken away from a run, newest first; a row can be picked."""
    if len(records) < 2:
        return ""
    rows = "".join(_record_row(number, record, number == chosen) for number, record in enumerate(records))
    return (
        '<h3>Taken away before</h3><div class="scroll"><table class="plain"><thead><tr><th>What</th><th>Where</th>'
        f'<th class="r">Size</th><th>Verification</th><th class="r">When</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _record_row(number: int, record: ExportRecord, chosen: bool) -> str:
    verdict = verdict_of(record.verified)
    what = KIND_WORDS.get(record.kind, record.kind) + (f" · {record.checkpoint}" if record.checkpoint else "")
    when = record.time.astimezone().strftime("%d %b, %H:%M")
    return (
        f'<tr {pickable(str(number), chosen=chosen)}><td>{escape(what)}</td><td class="soft where">{escape(record.place)}'
        f'</td><td class="r">{size(record.size_bytes)}</td><td class="tag"><span class="{verdict.mark}">{verdict.words}</span>'
        f'</td><td class="r soft">{when}</td></tr>'
    )
