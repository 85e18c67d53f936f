"""From documents, below the sets: rows that a model makes of passages in the background, and their review."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from loratory.engine.data.records import one_line
from loratory.engine.data.workshop.documents import read_passages
from loratory.engine.data.workshop.generation import RECIPES, Job
from loratory.engine.endpoint import Endpoint
from loratory.engine.errors import DatasetError
from loratory.engine.paths import REFUSAL, local_owner
from loratory.engine.runs.disk import require_disk_space
from loratory.engine.runs.webhook import allows_private_hosts, resolve
from loratory.ui.backend.background import FunctionJob, WorkProgress
from loratory.ui.services import Services
from loratory.ui.views.html import plural, small, work_status

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
