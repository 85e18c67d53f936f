"""The blind test: two anonymous answers, a choice, which begins the next pair, and the tally of all choices."""

import random
import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, get_args

import gradio as gr
from gradio.events import Dependency

from loratory.engine.chat.contract import Branch, ChatRequest, ChatState, ChatTarget, FinishReason
from loratory.engine.data.conversation import Message
from loratory.engine.errors import EngineError, RunError
from loratory.engine.evaluation import blind_test
from loratory.engine.evaluation.blind_test import Judgement, Pair, Verdict
from loratory.engine.evaluation.votes import Vote, VotedAnswer, Votes, turns_of
from loratory.ui import components as ui
from loratory.ui.backend.conversation import AnswerStream, HeldOutPrompts, RowPrompt
from loratory.ui.backend.run_reader import FINAL
from loratory.ui.gradio_internals import Radio
from loratory.ui.page import Page
from loratory.ui.tabs.chat_choice import ChatChoice
from loratory.ui.tabs.conversation import TalkPart
from loratory.ui.tabs.question_settings import read_sampling, with_seed
from loratory.ui.views import evaluation as view
from loratory.ui.views.html import empty, error_box, fold, pick_button, toolbar

HELD_OUT, OWN = "From the held-out set", "My own"
# With the keys of the script `vote_keys`.
_VERDICTS: dict[str, str] = {
    "left": "1 · Left is better", "equal": "0 · Equally good", "neither": "Neither is good", "right": "2 · Right is better",
}  # fmt: skip
_SIDES: dict[str, tuple[Branch, Branch]] = {
    "runs": ("tuned", "second"), "tuned": ("base", "tuned"), "second": ("base", "second"),
}  # fmt: skip
_NOT_LOADED = empty("Load a run to judge it", "Its answers are shown with those of its base model, or of another run.")
_ONE_ALONE = empty("Nothing to compare", "A base model has no second answer. Load a run, or a folder with an adapter.")


@dataclass(frozen=True)
class Judging:
    """A page's judgements about one target; they outlast a load of another one."""

    target: ChatTarget | None = None  # None before the first pair
    pair: Pair | None = None  # which waits for a verdict
    deck: tuple[RowPrompt, ...] = ()  # held-out questions not asked yet
    vote: Vote | None = None  # on the pair, as a tie until it is judged
    sides: str = ""  # which two of `_SIDES` answer; by default those of `sides_to_compare`
    judgements: tuple[Judgement, ...] = ()  # for folders without a run, which have no file

    def about(self, target: ChatTarget) -> Self:
        """Return itself if it is about this target, else an empty one."""
        return self if self.target == target else type(self)(target)

    def is_about_another(self, target: ChatTarget | None) -> bool:
        """Return whether another target is loaded now; no model does not count."""
        return self.target is not None and target is not None and self.target != target


class BlindTestPart:
    """Lays out the blind test; `wire` connects it."""

    def __init__(self, page: Page, choice: ChatChoice, prompts: HeldOutPrompts) -> None:
        self.page = page
        self._choice = choice
        self._prompts = prompts
        self._stream = AnswerStream(page.services.chat)
        self._votes = Votes(page.services.home)
        self._random = random.SystemRandom()
        self.absent = gr.HTML(_NOT_LOADED, elem_id="blind-absent")
        with gr.Column(visible=False, elem_id="blind") as self.panel:
            with gr.Row(elem_id="blind-settings"):
                self.source = Radio(
                    [HELD_OUT, OWN], value=HELD_OUT, label="Questions", elem_id="blind-source", container=False
                )
                self.sides = Radio([], label="Between", visible=False, elem_id="blind-sides", container=False)
            self.question = gr.Textbox(
                label="Your question", lines=1, max_lines=6, visible=False, elem_id="blind-question"
            )
            self.trouble = gr.HTML(elem_id="blind-trouble")
            self.pair = gr.HTML(elem_id="blind-pair", js_on_load=ui.script("newest"))
            with gr.Row(elem_id="blind-buttons", elem_classes="stays"):
                verdicts = "".join(pick_button(verdict, text, css="verdict") for verdict, text in _VERDICTS.items())
                buttons = toolbar("Verdict", verdicts, "verdicts")
                self.choosing = ui.pick_list(buttons, more=("vote_keys",), visible=False, elem_id="blind-verdict")
                self.next = gr.Button("Next pair", variant="primary", scale=0, min_width=130, elem_id="blind-next")
                self.stop = gr.Button("Stop", scale=0, min_width=100, visible=False, elem_id="blind-stop")
            self.tally = gr.HTML(elem_id="blind-tally")
        # Kept on the server: nothing in the page reveals the sides.
        self.judging = gr.State(Judging())
        # What `clear_outdated` changes.
        self.clear_outputs = [self.judging, self.pair, self.choosing, self.trouble, self.tally]

    def wire(self, talk: TalkPart) -> None:
        """Connect the events; system prompt and sampling are shared with the chat."""
        self.source.input(lambda source: ui.visible_if(source == OWN), self.source, self.question, **ui.QUICK)
        inputs = [self.source, self.question, self.judging, talk.sampling.system, *talk.sampling.inputs]
        outputs = [self.pair, self.judging, self.trouble, self.next, self.stop, self.choosing]
        pairing = {"inputs": inputs, "outputs": outputs, "concurrency_limit": None, **ui.ONCE}
        judge_outputs = [self.pair, self.judging, self.choosing, self.trouble]
        judge_event = self.choosing.click(self.judge, self.judging, judge_outputs, **ui.QUICK)
        self.show_tally_after(judge_event)
        for pair_event in (
            gr.on([self.next.click, self.question.submit], self.generate_pair, **pairing),
            judge_event.then(self.generate_next_pair, **pairing),
        ):
            # Not with the pair itself: Gradio ignores a click until the event is over, and shows the last answer again then.
            ready = pair_event.then(_ready, [self.pair, self.judging], [self.next, self.choosing], **ui.QUICK)
            self.show_tally_after(ready)
        ui.clear_error_after(self.trouble, [self.source, self.question, talk.sampling.system, *talk.sampling.inputs])
        self.stop.click(self.stop_answers, None, None, **ui.QUICK)
        self.show_tally_after(self.sides.input(self.choose_sides, [self.sides, self.judging], self.judging, **ui.QUICK))

    def show_tally_after(self, event: Dependency) -> None:
        """Show after an event how the pairs of the loaded target were judged."""
        event.then(self.show_tally, self.judging, self.tally, **ui.QUICK)

    def clear_outdated(self, judging: Judging) -> ui.Updates:
        """Return the updates that clear the page once another target is loaded."""
        target = self.page.services.chat.state.target
        if target is None or not judging.is_about_another(target):
            return {}
        judging = judging.about(target)
        empty_texts = {self.pair: "", self.trouble: "", self.tally: self.show_tally(judging)}
        return {**empty_texts, self.choosing: ui.HIDDEN, self.judging: judging}

    def sides_to_choose(self, target: ChatTarget | None, branches: Sequence[Branch]) -> Any:
        """Return the pairs of sides to choose from if more than two are loaded."""
        if len(branches) < len(_SIDES):
            return ui.HIDDEN
        names = self._choice.names(target)
        choices = [(" and ".join(names[side] for side in sides), value) for value, sides in _SIDES.items()]
        return gr.update(choices=choices, value=choices[0][1], visible=True)

    def choose_sides(self, sides: str, judging: Judging) -> ui.Updates:
        target = self.page.services.chat.state.target
        judging = judging.about(target) if target is not None else judging
        return {self.judging: replace(judging, sides=sides if sides in _SIDES else "")}

    @staticmethod
    def why_absent(branches: Sequence[Branch]) -> str:
        """Return the empty state for fewer than two branches."""
        if len(branches) > 1:
            return ""
        return _ONE_ALONE if branches else _NOT_LOADED

    def generate_next_pair(
        self, source: str, question: str, judging: Judging, system: str, request: gr.Request, *sampling: Any
    ) -> Iterator[ui.Updates]:
        """Generate the pair after one that was judged; a question of the person's own is asked once."""
        if source == OWN or judging.pair is not None or not judging.judgements:
            yield ui.UNCHANGED
        else:
            yield from self.generate_pair(source, question, judging, system, request, *sampling)

    def generate_pair(
        self, source: str, question: str, judging: Judging, system: str, request: gr.Request, *sampling: Any
    ) -> Iterator[ui.Updates]:
        """Generate both answers to one question, and show them together."""
        chat = self.page.services.chat
        end_updates: ui.Updates = {self.stop: ui.HIDDEN, self.choosing: ui.HIDDEN}
        try:
            target, sides = sides_to_compare(chat.state, judging.sides)
            prompt, judging = self._question(source, question, judging.about(target))
            system = prompt.system or (system or "").strip()
            messages = (*((Message("system", system),) if system else ()), Message("user", prompt.question))
            settings, models = with_seed(read_sampling(sampling)), self._choice.answer_models()
            most = settings.max_new_tokens * len(sides)
            chat_request = ChatRequest(messages=messages, branches=sides, sampling=settings, id=uuid.uuid4().hex)
            texts, counts, redrawn = dict.fromkeys(sides, ""), dict.fromkeys(sides, 0), 0
            finishes: dict[Branch, FinishReason | None] = dict.fromkeys(sides)
            with self._stream.chunks([chat_request], request.session_hash or "", request.headers) as chunks:
                yield {
                    self.pair: view.render_generating(prompt.question, 0, most),
                    self.judging: judging,
                    self.next: gr.update(interactive=False),
                    self.stop: gr.update(visible=True),
                    self.choosing: ui.HIDDEN,
                    self.trouble: "",
                }
                for chunk in chunks:
                    texts[chunk.branch] += chunk.text
                    counts[chunk.branch] = chunk.tokens
                    finishes[chunk.branch] = chunk.finish_reason
                    if sum(counts.values()) >= redrawn + 12:
                        redrawn = sum(counts.values())
                        yield {self.pair: view.render_generating(prompt.question, redrawn, most)}
            if judging.is_about_another(chat.state.target):
                raise RunError("Something else was loaded meanwhile.", "Ask for the next pair.")
            if "stopped" in finishes.values():
                yield {**end_updates, self.pair: ""}
                return
            pair = blind_test.draw_pair(prompt.question, prompt.reference, texts, self._random)
            if pair.same_words:
                judging = self._with_judgement(judging, pair, "equal")
                yield {**end_updates, self.pair: view.render_identical_answers(pair), self.judging: judging}
                return
            turns = {side: turns_of([Message("assistant", texts[side])]) for side in sides}
            left, right = (
                VotedAnswer(turns=turns[side], finish_reason=finishes[side], model=models[side])
                for side in (pair.left, pair.right)
            )
            vote = Vote.new(
                turns_of(messages), left, right, verdict="equal", time=datetime.now(UTC),
                by=self.page.services.runs.owner, source="blind test", sampling=settings,
            )  # fmt: skip
            waiting = replace(judging, pair=pair, vote=vote)
            yield {**end_updates, self.pair: view.render_pair(pair), self.judging: waiting}
        except EngineError as error:
            yield {**end_updates, self.pair: "", self.trouble: error_box(error)}

    def judge(self, event: gr.EventData, judging: Judging) -> ui.Updates:
        """Save a verdict with the models that answered, and reveal their names."""
        verdict = next((verdict for verdict in get_args(Verdict) if verdict == ui.picked_value(event)), None)
        if judging.pair is None or verdict is None:
            return ui.UNCHANGED
        vote = judging.vote
        try:
            judging = self._with_judgement(judging, judging.pair, verdict)
        except EngineError as error:
            return {self.trouble: error_box(error)}
        trouble = ""
        try:
            if vote is not None and self._votes.may_save:
                self._votes.save(vote.model_copy(update={"verdict": verdict, "time": datetime.now(UTC)}))
        except EngineError as error:  # counted in the tally
            trouble = error_box(error)
        reveal = view.render_revealed(judging.judgements[-1], self._names(judging.target))
        return {self.pair: reveal, self.judging: judging, self.choosing: ui.HIDDEN, self.trouble: trouble}

    def _names(self, target: ChatTarget | None) -> dict[Branch, str]:
        names = self._choice.names(target)
        if target is not None and target.second is not None:
            return names
        return names | {"base": "the base model", "tuned": "the tuned model"}

    def _question(self, source: str, text: str, judging: Judging) -> tuple[RowPrompt, Judging]:
        judging = replace(judging, pair=None, vote=None)
        if source == OWN:
            question = (text or "").strip()
            if not question:
                raise RunError("The question is empty.", "Type one, or use the held-out set.")
            return RowPrompt(-1, question, ""), judging
        assert judging.target is not None
        deck = judging.deck or tuple(self._shuffle(judging.target))
        return deck[0], replace(judging, deck=deck[1:])

    def _shuffle(self, target: ChatTarget) -> list[RowPrompt]:
        config = self._choice.config_of(target)
        if config is None:
            raise RunError("A folder has no held-out set.", "Type the questions yourself.")
        deck = [prompt for prompt in self._prompts.of_run(config) if not prompt.images]  # judgements have texts alone
        if not deck or not deck[0].held_out:
            raise RunError("The held-out set of this run has no questions.", "Type the questions yourself.")
        self._random.shuffle(deck)
        return deck

    def stop_answers(self, request: gr.Request) -> None:
        self._stream.stop(request.session_hash or "")

    def _file(self, target: ChatTarget | None, sides: Collection[Branch]) -> Path | None:
        """Return the judgements file for two sides of a target; None unless it is the user's own run."""
        if target is None or target.tuned is None or not self.page.reader.exists(target.tuned.folder.name):
            return None
        second = target.second if "second" in sides else None
        against = f"{second.folder.name}-{second.checkpoint or FINAL}" if second is not None else None
        return blind_test.judgements_file(target.tuned.folder, target.tuned.checkpoint, against)

    def _with_judgement(self, judging: Judging, pair: Pair, verdict: Verdict) -> Judging:
        judgement = Judgement(pair=pair, verdict=verdict, time=datetime.now(UTC), by=self.page.services.runs.owner)
        file = self._file(judging.target, (pair.left, pair.right))
        if file is not None:
            blind_test.save_judgement(file, judgement)
        return replace(judging, pair=None, vote=None, judgements=(*judging.judgements, judgement))

    def show_tally(self, judging: Judging) -> str:
        """Return how the pairs of the loaded target were judged, and the last of them."""
        state = self.page.services.chat.state
        judging = judging.about(state.target) if state.target is not None else judging
        try:
            target, sides = sides_to_compare(state, judging.sides)
        except EngineError:
            return ""
        file = self._file(target, sides)
        judgements = blind_test.read_judgements(file) if file is not None else judging.judgements
        tally, names = blind_test.count_judgements(judgements, *sides), self._names(target)
        html = view.render_tally(tally, names, len(self._votes.read()))
        for last in judging.judgements[-1:]:
            html += fold("Last pair", view.choice_words(last, names), view.render_revealed(last, names))
        return html


def _ready(pair_html: str, judging: Judging) -> tuple[Any, Any]:
    """Return that the next pair can be asked for, and this one judged, if it is shown."""
    return gr.update(interactive=True), ui.visible_if(bool(pair_html) and judging.pair is not None)


def sides_to_compare(state: ChatState, choice: str = "") -> tuple[ChatTarget, tuple[Branch, Branch]]:
    """Return the loaded target and two sides: the requested ones, else two runs, else base and tuned.

    Raises:
        RunError: If no model is loaded, or it has a single branch.
    """
    if state.model is None or state.target is None:
        raise RunError("No model is loaded.", "Load a run first.")
    for sides in (_SIDES.get(choice), *_SIDES.values()):
        if sides is not None and set(sides) <= set(state.model.branches):
            return state.target, sides
    raise RunError("A base model has no second answer.", "Load a run.")
