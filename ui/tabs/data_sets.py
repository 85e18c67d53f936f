"""My datasets: sets on the Data tab, listed, made, edited and deleted; and rows that a model makes of documents."""

import base64
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from loratory.engine.config.load import section_from_mapping
from loratory.engine.config.run import SET_PREFIX, DatasetConfig
from loratory.engine.data.contract import CheckProgress, SetQuestion
from loratory.engine.data.hub import is_on_hub
from loratory.engine.data.records import one_line
from loratory.engine.data.source import SourceOptions, path_of
from loratory.engine.data.workshop.checks.settings import CheckSettings
from loratory.engine.data.workshop.documents import read_passages
from loratory.engine.data.workshop.generation import RECIPES, Job
from loratory.engine.data.workshop.sets import delete_set, set_folder
from loratory.engine.endpoint import Endpoint
from loratory.engine.errors import DatasetError
from loratory.engine.evaluation.used_datasets import VOTES, dataset_uses, list_datasets
from loratory.engine.evaluation.votes import Votes
from loratory.engine.lab.rules import with_allowed_scorers
from loratory.engine.paths import REFUSAL, local_owner
from loratory.engine.quantities import size
from loratory.engine.runs.disk import require_disk_space
from loratory.engine.runs.names import last_part
from loratory.engine.runs.webhook import allows_private_hosts, resolve
from loratory.ui.backend.background import BackgroundWork, FunctionJob, WorkProgress, as_engine_error
from loratory.ui.backend.dataset_checks import CheckQuestion, question_of
from loratory.ui.components import late_script
from loratory.ui.draft import Draft
from loratory.ui.page import Page
from loratory.ui.services import Services
from loratory.ui.views.html import error_box, plural, small, work_status
from loratory.ui.views.rewards import render_rewards
from loratory.ui.views.rows import render_row

_READ_AS = {"format", "column_map", "role_map", "subset", "split", "revision"}
_MOST_FILE_BYTES = 64_000_000  # of a download


class SetsPart:
    """Lays out the sets: one component, whose script asks. Its `click` chooses a set, `submit` follows a change of one."""

    def __init__(self, page: Page) -> None:
        self.services = page.services
        # Checks, by the name of their set.
        self.works = BackgroundWork[object](lambda p: WorkProgress(f"{p['rows']:,} rows", CheckProgress(**p).fraction))

        def query(values: list[Any]) -> str:
            return json.dumps(self.answer(str(values[0])))

        self.html = gr.HTML(
            "{}", elem_id="sets", visible=not page.services.home.is_guest, server_functions=[query],
            html_template="",
            js_on_load=late_script("sets", "set_list", "set_row", "cards", "set_checks", "set_versions", "documents", "pick"),
        )  # fmt: skip
        page.on_draft(self.html, render_form)

    def answer(self, text: str) -> dict[str, Any]:
        """Answer a question of the script, which a client can forge; an error is the box that shows it."""
        home = self.services.home
        try:
            question = json.loads(text)
            form, do, name = question.pop("form"), question["do"], str(question.get("name"))
            if do == "file":
                return self._file(str(question["source"]))
            if do == "documents":
                return answer_on_documents(self.services, question)
            if do == "tokens":
                return {"html": self._render_row(name, question, form)}
            if do == "scorers":
                return {"html": render_rewards(question["scorers"], "dataset.scorers")}
            if do == "check":
                return self._check(name, question, form)
            if do == "delete":
                delete_set(set_folder(home, name))
                return {}
            if do == "make":
                question["dataset"], path = form["dataset"], str(form["dataset"]["source"]).strip()
                bytes_ = path_of(path, SourceOptions(home=home).access).stat().st_size
                require_disk_space(home, home.owner, bytes_)
            elif do in ("apply", "rename"):
                require_disk_space(home, home.owner)
            answer = self.services.inspector.sets(SetQuestion.model_validate(question))
            if do == "apply" and (changed := question_of(form)) is not None:
                self.services.checks.forget(changed.dataset)
            if do == "list":
                return {"datasets": list_datasets(home, self.services.runs, answer["sets"])}
            if do == "log":
                answer["runs"] = dataset_uses(self.services.runs).get(f"{SET_PREFIX}{name}", {})
            return answer
        except Exception as error:
            return {"error": error_box(as_engine_error(error))}

    def settings_of(self, source: str) -> dict[str, Any]:
        """Return the settings to train on a dataset of the list, as its last run read it; checked like a typed path."""
        runs, source = self.services.runs, str(Votes(self.services.home).snapshot()[0]) if source == VOTES else source
        used = (runs.get(run).folder.read_config().dataset for run in dataset_uses(runs)[source][""][-1:])
        settings = (dataset.model_dump(mode="json", include=_READ_AS) for dataset in used if dataset.source == source)
        return {"source": source, **next(settings, {})}

    def _file(self, source: str) -> dict[str, Any]:
        """Return an upload, or the pairs of the votes, for a download."""
        path = self.services.home.uploads / Path(self.settings_of(source)["source"]).name
        if not path.is_file() or path.stat().st_size > _MOST_FILE_BYTES:
            what = f"{path.name} is not an upload, or has more than {size(_MOST_FILE_BYTES)}."
            raise DatasetError(what, "Make a set of it, and download that.")
        return {"name": path.name, "content": base64.b64encode(path.read_bytes()).decode()}

    def _check(self, name: str, question: Mapping[str, Any], form: Mapping[str, Any]) -> dict[str, Any]:
        """Start, stop or follow the row checks of a set; return how they are doing, and what the last ones found."""
        ask = self.services.inspector.sets
        if question.get("stop"):
            self.works.stop(name)
        elif "settings" in question:
            check = _question_of(name, form)
            facts = {"settings": section_from_mapping(CheckSettings, question["settings"]), "seed": check.seed}
            values = {**check.dataset.model_dump(mode="json"), "scorers": question.get("scorers", [])}
            dataset = with_allowed_scorers(section_from_mapping(DatasetConfig, values), self.services.home)
            if any(getattr(scorer, "key_variable", "") for scorer in dataset.scorers):
                what = "The process that reads rows has no keys, and this judge needs one."
                raise DatasetError(what, f"Use `loratory data check set:{name} --scorer`, or a judge without a key.")
            request = SetQuestion.model_validate({**question, **facts, "dataset": dataset})
            self.works.start(name, "A check of these rows", FunctionJob(lambda note: ask(request, note)))
        work = self.works.find(name)
        is_running = work is not None and work.is_under_way
        report = {} if is_running else ask(SetQuestion.model_validate({"do": "found", "name": name}))
        facts = {"is_running": is_running, "fields": CheckSettings.model_json_schema()["properties"]}
        return {**report, **facts, "html": work_status(work, "The checks were stopped.")}

    def _render_row(self, name: str, question: Mapping[str, Any], form: Mapping[str, Any]) -> str:
        """Return a row with what is typed, as training would read it."""
        check = self.services.tokenizers.answerable(_question_of(name, form))
        page = self.services.inspector.preview(
            check.dataset, check.model, check.max_length, first_row=int(question["row"]) - 1, edit=question["record"],
            vision=check.vision,
        )  # fmt: skip
        return render_row(page, as_tokens=True).replace('aria-label="', 'aria-label="Edited: ')


def _question_of(name: str, form: Mapping[str, Any]) -> CheckQuestion:
    """Return what the draft asks about a set, where it uses that, else what its defaults do."""
    source, chosen = f"{SET_PREFIX}{name}", form["dataset"]
    settings = chosen if str(chosen.get("source") or "").partition("@")[0] == source else {}
    mappings = {**form, "dataset": {**settings, "source": source}}, {"dataset": {"source": source}}
    return next(filter(None, map(question_of, mappings)))


def render_form(draft: Draft) -> str:
    """Return as JSON what the script sends with a question, and the name of the file that can become a set."""
    dataset = dict(draft.mapping.get("dataset", {}))
    source = str(dataset.get("source") or "").strip()
    is_file = bool(source) and not source.startswith(SET_PREFIX) and not is_on_hub(source) and not dataset.get("mix")
    form = {name: dict(draft.mapping.get(name, {})) for name in ("model", "training", "vision")}
    return json.dumps({**form, "dataset": dataset, "openable": last_part(source) if is_file else ""}, default=str)


_KEY = "documents"  # of the background work, one at a time
_STOPPED = "Stopped. Continue asks for the passages that are left."


def answer_on_documents(services: Services, question: dict[str, Any]) -> dict[str, Any]:
    """Answer a question of the script, which a client can forge; the key of an endpoint stays in memory."""
    home, works, key = services.home, services.documents, str(question.pop("key", "")).strip()
    verb, name, owner = question["verb"], str(question.get("job")), home.owner or local_owner()
    reviewer = home.owner or one_line(str(question.get("reviewer") or owner), 60)
    if home.is_guest:
        raise DatasetError(*REFUSAL)
    if verb == "list":
        jobs = [_describe(Job.find(home, file.parent.name), reviewer) for file in Job.files(home)]
        return {"jobs": jobs, "recipes": RECIPES, "reviewer": "" if home.owner else reviewer}
    if verb == "review":
        job = Job.find(home, name)
        job.judge([json.dumps(question).encode()] if question.get("verdict") else [], reviewer)
        return job.review(reviewer, question.get("show"))
    if verb == "make":
        Job.find(home, name).make_set(home, question["name"], owner, partial(require_disk_space, home, owner))
    elif verb == "delete":
        Job.find(home, name).delete()
    elif verb == "stop":
        works.stop(_KEY)
    elif verb != "progress":
        require_disk_space(home, owner)
        works.start(_KEY, "Work on documents", FunctionJob(partial(_generate, services, question, key)))
    work = works.find(_KEY)
    html = small(work.result) if work is not None and work.result else work_status(work, _STOPPED)
    return {"html": html, "active": work is not None and work.is_under_way}


def _describe(job: Job, reviewer: str) -> dict[str, Any]:
    files = one_line(", ".join(dict.fromkeys(passage.place.partition(", ")[0] for passage in job.passages)), 60)
    return {**job.review(reviewer), "name": job.folder.name, "files": files, "passages": len(job.passages)}


def _generate(services: Services, form: dict[str, Any], key: str, report: Callable[[WorkProgress], None]) -> str:
    """Read documents and ask for what is missing, unless only an estimate is wanted; return the result in words."""
    home, notes = services.home, list[str]()
    report(WorkProgress("Reading documents, then waiting for the first answer."))
    if form["verb"] == "continue":
        job = Job.find(home, str(form["job"]))
    else:
        paths = [services.transfers.require_uploaded(Path(str(path))) for path in form["documents"]]
        passages, notes = read_passages(paths, home, 2000, 200)
        settings = {name: str(form.get(name, "")).strip() for name in ("recipe", "detail", "endpoint", "model")}
        job = Job(home, {**settings, "answer_tokens": int(form["answer_tokens"])}, passages)
    text, (prompts, answers) = plural(len(job.passages), "passage"), job.most_tokens
    if form["verb"] == "estimate":
        cost = (prompts * float(form.get("prompt_price", 0)) + answers * float(form.get("answer_price", 0))) / 1e6
        costs = f"at most {prompts:,} prompt and {answers:,} answer tokens" + f", which cost {cost:,.4f}" * (cost > 0)
        return " ".join([f"{text}: {costs}.", *notes])
    resolver = None if allows_private_hosts(home) else partial(resolve, allows_private=False)
    endpoint = Endpoint(job.settings, key or None, float(form["timeout"]), resolver)
    job.run(endpoint, float(form.get("limit_tokens", "inf")), lambda *progress: report(WorkProgress(*progress)))
    return " ".join([f"{plural(len(job.rows()), 'candidate')} of {text} to review.", *notes])
