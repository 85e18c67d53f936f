"""A conversation with one or more models: the loaded model, answers side by side, the prompt."""

import random
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from html import escape
from types import MappingProxyType

from loratory.engine.chat.contract import Branch, ChatState, FinishReason, JobProgress, LoadedModel, PromptView
from loratory.engine.data.conversation import ImageRef
from loratory.ui.backend.conversation import BRANCH_WORDS, Answer, RowPrompt, SavedConversation, Turn, as_markdown
from loratory.ui.views import html

LONGEST_SUMMARY = 220  # characters of a question
NO_ANSWER = "<em>(empty answer)</em>"
_SHOW_ALL = '<button type="button" class="inline more">Show all</button>'  # the script `newest` folds long answers
_MOST_PICTURES = 12  # of a question
Picture = Callable[[ImageRef], str]  # the address of an image's small copy; empty where it is missing
_FINISH_WORDS: dict[FinishReason, str] = {
    "eos": "stop token", "length": "token limit", "context": "context full", "stopped": "stopped",
}  # fmt: skip
_NOT_LOADED = html.empty(
    "No model loaded",
    "Choose a run above and load it. It uses memory until you unload it or a queued run needs the device.",
)


def render_transcript(
    turns: Sequence[Turn],
    names: Mapping[Branch, str] | None = None,
    context_tokens: int | None = None,
    *,
    can_edit: bool = False,
    ballots: Mapping[int, Mapping[Branch, bool]] = MappingProxyType({}),
    below: Mapping[int, str] = MappingProxyType({}),
    picture: Picture = lambda _: "",
) -> str:
    """Return the whole conversation; empty before the first question.

    Names may differ from `BRANCH_WORDS`, and each turn has its own of when it was asked. With `can_edit`, turns have actions, whose `data-pick` is
    `edit:N`, `retry:N`, `branch:N`, `prompt:N` or `version:N:VERSION`. `ballots` has the answers of each turn that can be voted for, with whether they
    were; their `data-pick` is `vote:N:BRANCH`. `below` has HTML to show below the answers of a turn.
    """
    if not turns:
        return ""
    labels = {**BRANCH_WORDS, **(names or {})}
    content = "".join(
        _turn(turns, number, labels, context_tokens, ballots.get(number, {}) if can_edit else None, picture)
        + below.get(number, "")
        for number in range(len(turns))
    )
    jump = '<button type="button" class="jump" hidden>Jump to newest</button>'
    return f'<div class="talk" role="log" aria-live="off">{content}{jump}</div>'


def _turn(
    turns: Sequence[Turn],
    number: int,
    labels: Mapping[Branch, str],
    context_tokens: int | None,
    ballot: Mapping[Branch, bool] | None,
    picture: Picture,
) -> str:
    """Return a turn; without a ballot, it has no actions."""
    turn = turns[number]
    answers, names, is_whole = "", turn.names(labels), all(answer.done for answer in turn.answers)
    for answer in turn.answers:
        name, is_voted = names[answer.branch], (ballot or {}).get(answer.branch)
        vote = "" if is_voted is None else _vote_button(f"vote:{number}:{answer.branch}", name, is_voted=is_voted)
        text = html.markdown(answer.text) if answer.text or not answer.done else NO_ANSWER
        css = f"{answer.branch} folds" if is_whole else answer.branch
        copy = f'<button type="button" class="inline" data-copy="{escape(answer.text, quote=True)}">Copy</button>'
        below = f'<div class="answer-actions">{_SHOW_ALL}{vote}{copy}</div>' if is_whole else ""
        answers += answer_box(css, name, text, _figures(answer, context_tokens), writing=not answer.done, below=below)
    if turn.reference:
        answers += answer_box("reference", "Reference", html.markdown(turn.reference), "reference answer")
    context, settings = "", turn.settings
    if settings is not None and (settings.is_alone or settings.left_out):
        left_out = html.plural(len(settings.left_out), "earlier question")
        context = html.small(f"Not in the context: {'other questions' if settings.is_alone else left_out}.")
    actions = _actions(turns, number) if ballot is not None else ""
    question = f'<div class="question"><div><h3>You</h3>{actions}</div>{render_pictures(turn.images, picture)}{escape(turn.text)}</div>'
    return f'{question}{context}<div class="answers">{answers}</div>'


def render_pictures(images: Sequence[ImageRef], picture: Picture, *, removable: bool = False) -> str:
    """Return images as small copies; `removable` adds buttons, whose `data-pick` is `remove:N`."""
    items = ""
    for number, image in enumerate(images[:_MOST_PICTURES]):
        source, alt = picture(image), f"Image {number + 1}, {image.width:,} × {image.height:,} pixels"
        item = f'<img src="{source}" alt="{alt}">' if source else f"<em>{alt}: not in the media store</em>"
        label = f"Remove image {number + 1}"
        items += item + (html.pick_button(f"remove:{number}", "Remove", css="inline", label=label) if removable else "")
    if len(images) > _MOST_PICTURES:
        items += html.small(f"and {len(images) - _MOST_PICTURES:,} more")
    return f'<div class="pictures">{items}</div>' if items else ""


def render_attached(images: Sequence[ImageRef], picture: Picture) -> str:
    """Return the images of the next question, and the button that adds some; the script `pictures` opens its dialog."""
    add = '<button type="button" class="inline add-picture">Add image</button>'
    return f"{render_pictures(images, picture, removable=True)}{add}"


def _actions(turns: Sequence[Turn], number: int) -> str:
    """Return what can be done with a turn, and the choice among its versions."""
    texts = {"edit": "Edit", "retry": "Retry", "branch": "Branch", "prompt": "Exact prompt"}
    if number == len(turns) - 1:
        del texts["branch"]  # nothing else continues it yet
    buttons = [html.pick_button(f"{pick}:{number}", text, css=f"inline {pick}") for pick, text in texts.items()]
    version, last = turns[number].version, len(turns[number].others)
    if last:
        steps = ((version - 1, "‹", "Earlier version"), (version + 1, "›", "Later version"))
        earlier, later = (
            html.pick_button(f"version:{number}:{to}", sign, css="inline version", label=label)
            if 0 <= to <= last
            else ""
            for to, sign, label in steps
        )
        buttons.append(f'{earlier}<span class="num">{version + 1} of {last + 1}</span>{later}')
    return html.toolbar(f"Question {number + 1}", "".join(buttons), "turn-actions")


def _vote_button(identifier: str, name: str, *, is_voted: bool) -> str:
    label = f"{name}: this answer is better"
    title = "Saved as a vote; press again to take it back" if is_voted else "Saves this answer as the better one"
    return (
        f'<button type="button" class="vote" data-pick="{identifier}" aria-pressed="{str(is_voted).lower()}" '
        f'aria-label="{escape(label, quote=True)}" title="{title}">{"✓ " if is_voted else ""}This is better</button>'
    )


def answer_box(css: str, name: str, content: str, figures: str = "", *, writing: bool = False, below: str = "") -> str:
    """Return one answer as HTML with its model's name and figures; `writing` while it streams."""
    under = f'<p class="figures">{figures}</p>' if figures else ""
    return (
        f'<div class="{f"answer {css}".strip()}"><h4>{escape(name)}</h4>'
        f'<div class="text{" writing" if writing else ""}">{content}</div>{under}{below}</div>'
    )


def answer_html(text: str) -> str:
    """Return an answer in Markdown as HTML."""
    return html.markdown(text) if text.strip() else NO_ANSWER


def _figures(answer: Answer, context_tokens: int | None) -> str:
    if not answer.tokens:
        reading = escape(answer.note) or "reading the question …"
        return reading if not answer.done else _FINISH_WORDS[answer.finish_reason or "stopped"]
    parts = [html.plural(answer.tokens, "token")]
    if answer.tokens_per_second:
        parts.append(f"{answer.tokens_per_second:,.1f} tokens/s")
    if answer.done and answer.finish_reason is not None:
        parts.append(_FINISH_WORDS[answer.finish_reason])
    if answer.done and answer.prompt_tokens:
        available = f" of {context_tokens:,}" if context_tokens else " tokens"
        parts.append(f"context {answer.prompt_tokens + answer.tokens:,}{available}")
    return " · ".join(parts)


def render_chat_state(state: ChatState, results: Sequence[str] = ()) -> str:
    """Return the loaded model with its `results`, device and memory, after the error of a failed load."""
    if state.phase == "loading":
        return render_loading(state.progress)
    failure = html.error_box(state.failure) if state.failure is not None else ""
    if state.model is None:
        return (html.notices([state.note]) if state.note else "") + (failure or _NOT_LOADED)
    line = f'<div class="loaded">{html.status(_loaded_line(state, state.model, results))}</div>'
    return failure + line + html.notices(state.model.notes)


def render_loading(progress: JobProgress | None) -> str:
    """Return the progress of loading."""
    if progress is None:
        return html.status("Starting a process for the model.")
    return html.status(escape(progress.message) + html.progress_bar("Loading", progress.fraction))


def loaded_words(model: LoadedModel) -> str:
    """Return a description of the loaded model, as plain text."""
    method_words = f" with its {model.method} result" if "tuned" in model.branches and model.method else ""
    return f"{html.short_name(model.name)}{method_words}, {model.dtype} on {model.device}"


def _loaded_line(state: ChatState, model: LoadedModel, results: Sequence[str]) -> str:
    precision = model.quantization if model.quantization != "none" else model.dtype
    weights = f"{model.weights_bytes / 2**30:.2f} GiB of weights"
    if model.adapter_bytes:
        weights += f", {html.size(model.adapter_bytes)} of adapter"
    parts = [
        f"<b>{escape(html.short_name(model.name))}</b>{_adapter_text(model, results)} is loaded",
        f"{escape(precision)} on {escape(model.device)}",
        weights,
    ]
    # Rounded, or the line would change at each poll.
    if state.process_bytes:
        parts.append(f"the process uses {state.process_bytes / 2**30:.1f} GiB")
    if model.context_length:
        parts.append(f"context of {model.context_length:,} tokens")
    if state.expires_after_seconds is not None:
        parts.append(f"unloads after {state.expires_after_seconds / 60:,.0f} idle minutes, after 1 where a run waits")
    return " · ".join(parts)


def _adapter_text(model: LoadedModel, results: Sequence[str]) -> str:
    method = escape(model.method or "base model")
    if not model.method or "tuned" not in model.branches:
        return f" ({method})"
    if not results:
        return f" with its {method} result"
    names = " and ".join(f"<b>{escape(name)}</b>" for name in results)
    return f" with the {method} {'results' if len(results) > 1 else 'result'} of {names}"


def render_prompt(view: PromptView, names: Sequence[str]) -> str:
    """Return the prompt of models as text with its control tokens, and as ids."""
    ids = " ".join(str(number) for number in view.ids)
    line = f"{' and '.join(names)}: {len(view.ids):,} tokens, exactly as read."
    return f"{html.small(line)}{html.log(view.text, 'Prompt text')}{html.small('As ids:')}{html.log(ids, 'Prompt ids')}"


def some_prompts(prompts: Sequence[RowPrompt], count: int, draw: random.Random | None = None) -> list[RowPrompt]:
    """Return a few short prompts, spread evenly, or random with `draw`."""
    unique: dict[str, RowPrompt] = {}
    for prompt in prompts:
        if len(prompt.question) <= 240:
            unique.setdefault(f"{prompt.question}{prompt.images}", prompt)
    short = list(unique.values())
    if draw is not None:
        return draw.sample(short, min(count, len(short)))
    return short[:: max(1, len(short) // count)][:count]


def render_suggestions(prompts: Sequence[RowPrompt], picture: Picture = lambda _: "") -> str:
    """Return suggested questions; a picked one is typed, and its reference shown with the answers."""
    if not prompts:
        return ""
    items = "".join(
        f"{render_pictures(prompt.images, picture)}{html.pick_button(str(number), prompt.text, css='')}"
        for number, prompt in enumerate(prompts)
    )
    where = "From the held-out set" if prompts[0].held_out else "From the training set"
    return (
        f'<p class="small">{where}; the reference is shown with the answers. '
        f"{html.pick_button('others', 'Show others', css='inline')}</p>"
        f"{html.toolbar('Suggested questions', items, 'suggested')}"
    )


def render_prompt_sets(names: Sequence[str], message: str = "") -> str:
    """Return the button that saves a set, a message, and the sets, which can be asked or deleted."""
    rows = ""
    for name in names:
        ask = html.pick_button(f"ask:{name}", f"Ask all of {name}")
        delete = html.pick_button(f"delete:{name}", "Delete permanently", label=f"Delete {name} permanently")
        rows += f"<li>{ask}<details><summary>Delete {escape(name)}</summary>{delete}</details></li>"
    return f"{html.pick_button('save', 'Save prompts')}{message}<ul>{rows}</ul>"


def render_links(conversation: SavedConversation) -> str:
    """Return the downloads of a conversation, which need no file on the server."""
    if not conversation.turns:
        return ""
    links = ""
    for title, ending, kind, text in (
        ("Markdown", "md", "text/markdown", as_markdown(conversation)),
        ("JSON", "json", "application/json", conversation.model_dump_json(indent=2)),
    ):
        data = b64encode(text.encode()).decode()
        name = escape(f"{conversation.file_name}.{ending}", quote=True)
        links += f'<a download="{name}" href="data:{kind};charset=utf-8;base64,{data}">{title}</a>'
    return f'<p class="links">Download {links}</p>'
