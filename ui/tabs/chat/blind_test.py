"""The blind test: two answers without names, a choice, then whose they were; in the end what all choices say."""

import random
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import gradio as gr
from gradio.events import Dependency

from engine.chat.contract import Branch, ChatRequest, ChatTarget
from engine.data.conversation import Message
from engine.errors import EngineError, RunError
from engine.evaluation.blind_test import (
    BlindTally,
    Judgement,
    Pair,
    Verdict,
    count_judgements,
    draw_pair,
    judgements_file,
    keep_judgement,
    read_judgements,
)
from ui.backend.answering import Answering
from ui.backend.held_out import HeldOutPrompts, RowPrompt
from ui.components import Radio
from ui.errors import trouble
from ui.page import Page
from ui.tabs.chat.choice import FINAL, ChatChoice
from ui.tabs.chat.judging import Judging, compared
from ui.tabs.chat.sampling import read_sampling
from ui.tabs.chat.talk import TalkPart
from ui.views.blind_test import render_pair, render_revealed, render_same_words, render_tally, render_writing
from ui.views.quantities import plural

HELD_OUT, OWN = "from rows that were held out", "that I type"
_VERDICTS: tuple[tuple[Verdict, str], ...] = (
    ("left", "Left is better"),
    ("equal", "Equally good"),
    ("neither", "Neither is good"),
    ("right", "Right is better"),
)
_LEAD = (
    '<p class="lead">You see two answers and not whose they are; the order is drawn anew for every question. Choose, and it '
    "is revealed. The tally is kept with the run. System prompt and sampling are those of Talk.</p>"
)
_NOT_LOADED = (
    '<div class="empty"><b>Load a run to judge it</b>Its answers are then shown beside those of its base, or of the run '
    "that you chose beside it.</div>"
)
_ONE_ALONE = (
    '<div class="empty"><b>There is nothing to compare</b>A model alone has no second answer. Load a run, or a folder with '
    "an adapter.</div>"
)
_TOKENS_BETWEEN_REDRAWS = 12


class BlindTestPart:
    """Lays out the blind test; `wire` connects it."""

    def __init__(self, page: Page, choice: ChatChoice, prompts: HeldOutPrompts) -> None:
        self._page = page
        self._choice = choice
        self._prompts = prompts
        self._answering = Answering(page.services.chat)
        self._draw = random.SystemRandom()
        gr.HTML(_LEAD)
        self.absent = gr.HTML(_NOT_LOADED, elem_id="blind-absent")
        with gr.Column(visible=False, elem_id="blind") as self.panel:
            self.source = Radio(
                [HELD_OUT, OWN], value=HELD_OUT, label="Questions", elem_id="blind-source", container=False
            )
            self.question = gr.Textbox(
                label="Your question", lines=1, max_lines=6, visible=False, elem_id="blind-question"
            )
            with gr.Row(elem_id="blind-buttons"):
                self.next = gr.Button("Next pair", variant="primary", scale=0, min_width=130, elem_id="blind-next")
                self.stop = gr.Button("Stop", scale=0, min_width=100, visible=False, elem_id="blind-stop")
            self.trouble = gr.HTML(elem_id="blind-trouble")
            self.shown = gr.HTML(elem_id="blind-pair")
            with gr.Row(visible=False, elem_id="blind-verdict") as self.choosing:
                self.verdicts = [
                    (verdict, gr.Button(words, min_width=120, elem_id=f"blind-{verdict}"))
                    for verdict, words in _VERDICTS
                ]
            with gr.Row(elem_id="blind-end"):
                self.count = gr.HTML(elem_id="blind-count")
                self.end = gr.Button("Show the tally", size="sm", scale=0, min_width=150, elem_id="blind-tally-show")
            self.tally = gr.HTML(elem_id="blind-tally")
        # It stays on the server: nothing in the page tells whose answer stands where.
        self.judging = gr.State(Judging())

    @property
    def _drawn(self) -> list[Any]:
        return [self.shown, self.judging, self.trouble, self.next, self.stop, self.choosing, self.tally]

    @property
    def kept(self) -> list[Any]:
        """What `keep` is for."""
        return [self.judging, self.shown, self.choosing, self.trouble, self.tally, self.count]

    def wire(self, talk: TalkPart) -> None:
        """Connect the events; system prompt and sampling are Talk's."""
        quick: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        self.source.input(lambda source: gr.update(visible=source == OWN), self.source, self.question, **quick)
        drawn = gr.on(
            [self.next.click, self.question.submit],
            self.draw,
            [self.source, self.question, self.judging, talk.sampling.system, *talk.sampling.inputs],
            self._drawn,
            trigger_mode="once",
            concurrency_limit=None,
            show_progress="hidden",
            api_visibility="private",
        )
        self.show_count_after(drawn)
        self.stop.click(self._stop, None, None, **quick)
        for verdict, button in self.verdicts:
            judged = button.click(
                _choosing(self, verdict),
                self.judging,
                [self.shown, self.judging, self.choosing, self.trouble],
                **quick,
            )
            self.show_count_after(judged)
        self.end.click(self._tally, self.judging, [self.tally, self.judging], **quick)

    def show_count_after(self, event: Dependency) -> None:
        """How many pairs were judged of what is loaded, also in earlier hours."""
        event.then(
            self._counted,
            self.judging,
            [self.count, self.judging],
            show_progress="hidden",
            queue=False,
            api_visibility="private",
        )

    def keep(self, judging: Judging) -> tuple[Any, ...]:
        """What may stay on the page, in the order of `kept`: nothing of it once something else is loaded."""
        target = self._page.services.chat.state.target
        if target is None or not judging.is_about_another(target):
            return (gr.skip(),) * len(self.kept)
        count, anew = self._counted(judging)
        return anew, "", gr.update(visible=False), "", "", count

    @staticmethod
    def why_absent(branches: Sequence[Branch]) -> str:
        """What stands in the place of the test while there are no two answers."""
        if len(branches) > 1:
            return ""
        return _ONE_ALONE if branches else _NOT_LOADED

    def draw(
        self,
        source: str,
        typed: str,
        judging: Judging,
        system: str,
        request: gr.Request,
        *sampling: Any,
    ) -> Iterator[tuple[Any, ...]]:
        """Let both branches answer one question, and show the answers together."""
        skip, gone = gr.skip(), gr.update(visible=False)
        ready = gr.update(interactive=True)
        try:
            target, sides = compared(self._page.services.chat.state)
            prompt, judging = self._question(source, typed, judging.of(target))
            words = prompt.system or (system or "").strip()
            messages = (*((Message("system", words),) if words else ()), Message("user", prompt.question))
            asked = ChatRequest(
                messages=messages, branches=sides, sampling=read_sampling(sampling), id=uuid.uuid4().hex
            )
            busy = gr.update(interactive=False)
            yield render_writing(prompt.question, 0), judging, "", busy, gr.update(visible=True), gone, ""
            texts, stopped, told = dict.fromkeys(sides, ""), False, 0
            counts = dict.fromkeys(sides, 0)
            for chunk in self._answering.chunks([asked], request.session_hash or ""):
                texts[chunk.branch] += chunk.text
                counts[chunk.branch] = chunk.tokens
                stopped = stopped or chunk.finish_reason == "stopped"
                if sum(counts.values()) >= told + _TOKENS_BETWEEN_REDRAWS:
                    told = sum(counts.values())
                    yield render_writing(prompt.question, told), *(skip,) * (len(self._drawn) - 1)
            if judging.is_about_another(self._page.services.chat.state.target):
                raise RunError("Something else was loaded meanwhile.", "Draw the next pair.")
            if stopped:
                yield "", skip, "", ready, gone, gone, skip
                return
            pair = draw_pair(prompt.question, prompt.reference, texts, self._draw)
            if pair.same_words:
                judging = self._judged(judging, pair, "equal")
                yield render_same_words(pair), judging, "", ready, gone, gone, skip
                return
            yield render_pair(pair), judging.drawn(pair), "", ready, gone, gr.update(visible=True), skip
        except EngineError as error:
            yield "", skip, trouble(error), ready, gone, gone, skip

    def judge(self, verdict: Verdict, judging: Judging) -> tuple[Any, ...]:
        """Keep a choice with what answered, whatever is loaded by now, and reveal."""
        if judging.pair is None or verdict not in get_args(Verdict):
            return (gr.skip(),) * 4
        try:
            judging = self._judged(judging, judging.pair, verdict)
        except EngineError as error:
            return gr.skip(), gr.skip(), gr.skip(), trouble(error)
        revealed = render_revealed(judging.judged[-1], self._names(judging.target))
        return revealed, judging, gr.update(visible=False), ""

    @property
    def _person(self) -> str:
        return self._page.services.runs.owner

    def _names(self, target: ChatTarget | None) -> dict[Branch, str]:
        names = self._choice.names(target)
        if target is not None and target.second is not None:
            return names
        return names | {"base": "the base model", "tuned": "the tuned model"}

    def _question(self, source: str, typed: str, judging: Judging) -> tuple[RowPrompt, Judging]:
        judging = replace(judging, pair=None)
        if source == OWN:
            question = (typed or "").strip()
            if not question:
                raise RunError("No question is typed.", "Type one, or take those of held-out rows.")
            return RowPrompt(-1, question, ""), judging
        assert judging.target is not None
        deck = judging.deck or tuple(self._shuffled(judging.target))
        return deck[0], replace(judging, deck=deck[1:])

    def _shuffled(self, target: ChatTarget) -> list[RowPrompt]:
        run_id = target.tuned.folder.name if target.tuned is not None else ""
        config = self._page.reader.observe(run_id).config if self._page.reader.exists(run_id) else None
        if config is None:
            raise RunError("A folder has no data of its own.", "Type the questions yourself.")
        deck = list(self._prompts.of_run(config))
        if not deck or not deck[0].held_out:
            raise RunError("This run held no rows out that begin with a question.", "Type the questions yourself.")
        self._draw.shuffle(deck)
        return deck

    def _stop(self, request: gr.Request) -> None:
        self._answering.stop(request.session_hash or "")

    def _file(self, target: ChatTarget | None) -> Path | None:
        """Where judgements about a target are kept; None where it is no run of this person's."""
        if target is None or target.tuned is None or not self._page.reader.exists(target.tuned.folder.name):
            return None
        against = None
        if target.second is not None:
            against = f"{target.second.folder.name}-{target.second.checkpoint or FINAL}"
        return judgements_file(target.tuned.folder, target.tuned.checkpoint, against)

    def _judged(self, judging: Judging, pair: Pair, verdict: Verdict) -> Judging:
        judgement = Judgement(pair=pair, verdict=verdict, time=_now(), by=self._person)
        file = self._file(judging.target)
        if file is not None:
            keep_judgement(file, judgement)
        return judging.with_judgement(judgement)

    def _tallied(self, judging: Judging) -> tuple[BlindTally, Judging]:
        """All judgements of what is loaded now."""
        target, sides = compared(self._page.services.chat.state)
        judging, file = judging.of(target), self._file(target)
        return count_judgements(read_judgements(file) if file is not None else judging.judged, *sides), judging

    def _counted(self, judging: Judging) -> tuple[str, Any]:
        """How many were judged; which way they went is for the end."""
        try:
            tally, judging = self._tallied(judging)
        except EngineError:
            return "", gr.skip()
        return f'<p class="small num">{plural(tally.judged, "pair")} judged</p>' if tally.judged else "", judging

    def _tally(self, judging: Judging) -> tuple[str, Any]:
        try:
            tally, judging = self._tallied(judging)
        except EngineError as error:
            return trouble(error), gr.skip()
        return render_tally(tally, self._names(judging.target)), judging


def _choosing(part: BlindTestPart, verdict: Verdict) -> Any:
    def choose(judging: Judging) -> tuple[Any, ...]:
        return part.judge(verdict, judging)

    return choose


def _now() -> datetime:
    return datetime.now(UTC)
