"""Resume a run that ended early: its button, the place, and the hardware and time limit of a new job."""

from typing import Any, get_args

import gradio as gr
from gradio.components.base import Component

from loratory.engine.config.run import RunConfig, WorkPlace
from loratory.engine.lab.rules import resume_run
from loratory.engine.places.huggingface_jobs.layout import JobRecord, JobRequest
from loratory.engine.places.run_place import ThisMachine
from loratory.engine.places.slurm.place import has_place
from loratory.engine.runs.control import request_target, with_requested_target
from loratory.engine.runs.run import Run
from loratory.ui.backend.run_reader import RunSnapshot
from loratory.ui.components import Updates, visible_if
from loratory.ui.form import number_of
from loratory.ui.services import Services
from loratory.ui.tabs.run_place import offers_cluster, work_place


class ResumePart:
    """Lays out the button below a run; `lay_out_settings` what it may resume with."""

    def __init__(self, services: Services, prefix: str) -> None:
        self._services = services
        self._prefix = prefix
        self.button = gr.Button("Resume", elem_id=f"{prefix}resume", min_width=150, visible=False, scale=0)

    def lay_out_settings(self) -> None:
        """Lay out hardware and time limit of a job, and the choice of the place."""
        prefix = self._prefix
        with gr.Row(visible=False) as self.next_job:
            self.flavor = gr.Textbox(
                label="New hardware", info="Flavor, such as a100-large. Empty keeps the previous one.",
                max_length=60, max_lines=1, elem_id=f"{prefix}next-flavor", min_width=240,
            )  # fmt: skip
            self.limit = gr.Textbox(
                label="New time limit, hours", info="Empty keeps the previous one.", max_length=8, max_lines=1,
                elem_id=f"{prefix}next-limit", min_width=240,
            )  # fmt: skip
        self.place = work_place(self._services, label="Resume on", elem_id=f"{prefix}next-where")
        self.place.visible = False
        self.inputs: list[Component] = [self.flavor, self.limit, self.place]
        self.outputs = [self.button, self.next_job, self.place]

    def resume(self, run_id: str, flavor: str, limit: str, where: str | None) -> None:
        """Resume a run in the chosen place; a job at Hugging Face with the given hardware and time limit."""
        run, hours = self._services.runs.get(run_id), number_of(limit)
        if _has_job(run) and (flavor or hours is not None):  # else they were typed for the run shown before
            JobRequest.with_changes(run.folder, flavor.strip(), hours).save(run.folder)
        place = self._place_of(run, run.folder.read_config())
        if place is not None and where and where != place:
            request_target(run, where)
        resume_run(self._services.home, run)
        self._services.log("run resumed", run.id)

    def draw(self, snapshot: RunSnapshot, is_another: bool) -> Updates:
        """Return what can be chosen for a run; `is_another` if it was not shown before, else the choice stays."""
        run, state = snapshot.run, snapshot.state
        resumes = state.state in ("stopped", "failed", "interrupted") and not snapshot.resume_requested
        place = self._place_of(run, snapshot.config)
        label = f"Resume from step {state.resumable_step:,}" if state.resumable_step else "Restart"
        choice: dict[str, Any] = visible_if(resumes and place is not None)
        return {
            self.button: gr.update(visible=resumes, value=label),
            self.next_job: visible_if(resumes and _has_job(run)),
            self.place: {**choice, "value": place or ThisMachine.name} if is_another else choice,
        }

    def _place_of(self, run: Run, config: RunConfig | None) -> str | None:
        """Return where a run would resume; None without a choice."""
        services = self._services
        if config is None or config.run.where not in get_args(WorkPlace) or not offers_cluster(services):
            return None
        place = with_requested_target(config, run.folder).run.where
        return place if place != ThisMachine.name or has_place(services.home) else None


def _has_job(run: Run) -> bool:
    """Whether a run has or had a job at Hugging Face."""
    return JobRecord.read(run.folder) is not None
