"""The blind test: two answers without names, a choice, then whose they were; in the end what all choices say."""

import random
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import gradio as gr
from gradio.events import Dependency

from engine.chat.contract import Branch, ChatRequest, ChatTarget
from engine.data.conversation import Message
from engine.errors import EngineError, RunError
from engine.evaluation.blind_test import (
    Judgement,
    Pair,
    Verdict,
    count_judgements,
    draw_pair,
    judgements_file,
    keep_judgement,
    read_judgements,
)
from ui.answering import Answering
from ui.errors import trouble
from ui.held_out import HeldOutPrompts, RowPrompt
from ui.page import Page
from ui.tabs.chat_choice import FINAL, ChatChoice
from ui.tabs.sampling import read_sampling
from ui.tabs.talk import TalkPart
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
            self.source = gr.Radio(
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
        # All three stay on the server: nothing in the page tells whose answer stands where.
        self._pair = gr.State(None)
        self._deck = gr.State([])
        self._judged = gr.State([])  # on this page; what a folder without a run has instead of a file

    @property
    def _drawn(self) -> list[Any]:
        return [
            self.shown,
            self._pair,
            self._deck,
            self._judged,
            self.trouble,
            self.next,
            self.stop,
            self.choosing,
            self.tally,
        ]

    def wire(self, talk: TalkPart) -> None:
        """Connect the events; system prompt and sampling are Talk's."""
        quick: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        self.source.input(lambda source: gr.update(visible=source == OWN), self.source, self.question, **quick)
        drawn = gr.on(
            [self.next.click, self.question.submit],
            self.draw,
            [self.source, self.question, self._deck, self._judged, talk.sampling.system, *talk.sampling.inputs],
            self._drawn,
            trigger_mode="once",
            concurrency_limit=None,
            show_progress="hidden",
            api_visibility="private",
        )
        drawn.then(self._counted, self._judged, self.count, **quick)
        self.stop.click(self._stop, None, None, **quick)
        for verdict, button in self.verdicts:
            judged = button.click(
                _choosing(self, verdict),
                [self._pair, self._judged],
                [self.shown, self._pair, self._judged, self.choosing, self.trouble],
                **quick,
            )
            judged.then(self._counted, self._judged, self.count, **quick)
        self.end.click(self._tally, self._judged, self.tally, **quick)

    def show_tally_after(self, event: Dependency) -> None:
        """What was judged before is counted when the test is opened."""
        event.then(
            self._counted, self._judged, self.count, show_progress="hidden", queue=False, api_visibility="private"
        )

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
        deck: list[RowPrompt],
        judged: list[Judgement],
        system: str,
        request: gr.Request,
        *sampling: Any,
    ) -> Iterator[tuple[Any, ...]]:
        """Let both branches answer one question, and show the answers together."""
        skip, gone = gr.skip(), gr.update(visible=False)
        ready = gr.update(interactive=True)
        try:
            target, sides = self._sides()
            prompt, deck = self._question(source, typed, deck, target)
            words = prompt.system or (system or "").strip()
            messages = (*((Message("system", words),) if words else ()), Message("user", prompt.question))
            asked = ChatRequest(
                messages=messages, branches=sides, sampling=read_sampling(sampling), id=uuid.uuid4().hex
            )
            busy = gr.update(interactive=False)
            yield render_writing(prompt.question, 0), None, deck, skip, "", busy, gr.update(visible=True), gone, ""
            texts, stopped, told = dict.fromkeys(sides, ""), False, 0
            counts = dict.fromkeys(sides, 0)
            for chunk in self._answering.chunks([asked], request.session_hash or ""):
                texts[chunk.branch] += chunk.text
                counts[chunk.branch] = chunk.tokens
                stopped = stopped or chunk.finish_reason == "stopped"
                if sum(counts.values()) >= told + _TOKENS_BETWEEN_REDRAWS:
                    told = sum(counts.values())
                    yield render_writing(prompt.question, told), *(skip,) * 8
            if stopped:
                yield "", None, skip, skip, "", ready, gone, gone, skip
                return
            pair = draw_pair(prompt.question, prompt.reference, texts, self._draw)
            if pair.same_words:
                judged = self._keep(Judgement(pair=pair, verdict="equal", time=_now(), by=self._person), judged)
                yield render_same_words(pair), None, skip, judged, "", ready, gone, gone, skip
                return
            yield render_pair(pair), pair, skip, skip, "", ready, gone, gr.update(visible=True), skip
        except EngineError as error:
            yield "", None, skip, skip, trouble(error), ready, gone, gone, skip

    def judge(self, verdict: Verdict, pair: Pair | None, judged: list[Judgement]) -> tuple[Any, ...]:
        """Keep a choice, and reveal."""
        if pair is None or verdict not in get_args(Verdict):
            return (gr.skip(),) * 5
        gone = gr.update(visible=False)
        try:
            judgement = Judgement(pair=pair, verdict=verdict, time=_now(), by=self._person)
            judged = self._keep(judgement, judged)
        except EngineError as error:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip(), trouble(error)
        return render_revealed(judgement, self._names()), None, judged, gone, ""

    @property
    def _person(self) -> str:
        return self._page.services.runs.owner

    def _names(self) -> dict[Branch, str]:
        target = self._page.services.chat.state.target
        names = self._choice.names(target)
        if target is not None and target.second is not None:
            return names
        return names | {"base": "the base model", "tuned": "the tuned model"}

    def _sides(self) -> tuple[ChatTarget, tuple[Branch, Branch]]:
        """The two that are compared: two runs where two are loaded, else base and tuned."""
        state = self._page.services.chat.state
        if state.model is None or state.target is None:
            raise RunError("No model is loaded.", "Load a run first.")
        branches = state.model.branches
        if "second" in branches and "tuned" in branches:
            return state.target, ("tuned", "second")
        if "tuned" in branches:
            return state.target, ("base", "tuned")
        raise RunError("A model alone has no second answer.", "Load a run.")

    def _question(
        self, source: str, typed: str, deck: list[RowPrompt], target: ChatTarget
    ) -> tuple[RowPrompt, list[RowPrompt]]:
        if source == OWN:
            question = (typed or "").strip()
            if not question:
                raise RunError("No question is typed.", "Type one, or take those of held-out rows.")
            return RowPrompt(-1, question, ""), deck
        if not deck:
            deck = self._shuffled(target)
        return deck[0], deck[1:]

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

    def _file(self) -> Path | None:
        """Where judgements about what is loaded are kept; None where it is no run of this person's."""
        target = self._page.services.chat.state.target
        if target is None or target.tuned is None or not self._page.reader.exists(target.tuned.folder.name):
            return None
        against = None
        if target.second is not None:
            against = f"{target.second.folder.name}-{target.second.checkpoint or FINAL}"
        return judgements_file(target.tuned.folder, target.tuned.checkpoint, against)

    def _keep(self, judgement: Judgement, judged: list[Judgement]) -> list[Judgement]:
        file = self._file()
        if file is not None:
            keep_judgement(file, judgement)
        return [*judged, judgement]

    def _all(self, judged: list[Judgement]) -> Sequence[Judgement]:
        file = self._file()
        return read_judgements(file) if file is not None else judged

    def _counted(self, judged: list[Judgement]) -> str:
        """How many were judged; which way they went is for the end."""
        try:
            _, (first, second) = self._sides()
        except EngineError:
            return ""
        count = count_judgements(self._all(judged), first, second).judged
        return f'<p class="small num">{plural(count, "pair")} judged</p>' if count else ""

    def _tally(self, judged: list[Judgement]) -> str:
        try:
            _, (first, second) = self._sides()
        except EngineError as error:
            return trouble(error)
        return render_tally(count_judgements(self._all(judged), first, second), self._names())


def _choosing(part: BlindTestPart, verdict: Verdict) -> Any:
    def choose(pair: Pair | None, judged: list[Judgement]) -> tuple[Any, ...]:
        return part.judge(verdict, pair, judged)

    return choose


def _now() -> datetime:
    return datetime.now(UTC)
