"""Agents over the Model Context Protocol: a scripted client, with the SDK's own transport, in its newest and its older protocol."""

import json
import os
import sys

import anyio
import pytest
from mcp import Client, StdioServerParameters
from mcp.types import ElicitResult, TextContent

from loratory.engine.accounts.people import Person
from loratory.engine.interface.agents import AgentAccess, AgentServer
from loratory.engine.interface.workspace import Workspace
from loratory.engine.runs.store import RunStore
from loratory.engine.supervision.supervisor import Supervisor
from tests.supervision.fake_runs import config_for, fake_settings

CHANGES = {"training.max_steps": 2, "training.max_length": 64}


class Script:
    """Calls tools one after another, as an agent does; what is refused is text."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def __call__(self, name: str, **arguments: object) -> dict | list | str:
        answer = await self.client.call_tool(name, arguments)
        if answer.is_error:
            return "".join(part.text for part in answer.content if isinstance(part, TextContent))
        content = answer.structured_content
        return content["result"] if set(content) == {"result"} else content


def talk(server, script, *, confirms: bool | None = None, mode: str = "auto"):
    """Run a script against a server; the person confirms or refuses, or by None cannot be asked."""
    questions = []

    async def elicit(_context, parameters):
        questions.append(parameters.message)
        return ElicitResult(action="accept", content={"confirm": confirms}) if confirms is not None else None

    async def run():
        async with Client(server, mode=mode, elicitation_callback=elicit if confirms is not None else None) as client:
            return await script(Script(client))

    return anyio.run(run), questions


@pytest.fixture
def workspace(home, tiny_model_folder):
    with Workspace(home) as workspace:
        yield workspace


@pytest.fixture
def settings(workspace, tiny_model_folder, tmp_path):
    file = workspace.home.presets / "tiny.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(
        f"model: {{id: {tiny_model_folder}}}\ndataset: {{source: 'sample:loratory-faq', eval_fraction: 0.1}}\n"
    )
    return "tiny"


def server_of(workspace, *scopes, person=None):
    access = AgentAccess(workspace, frozenset(scopes or ("read", "run")), person)
    return AgentServer(lambda _: access)


def test_each_tool_says_what_it_does_and_whether_it_changes_anything(workspace):
    async def script(call):
        return (await call.client.list_tools()).tools, (await call.client.list_resource_templates()).resource_templates

    (tools, resources), _ = talk(server_of(workspace), script)

    changing = {tool.name for tool in tools if not tool.annotations.read_only_hint}
    assert changing == {"start_run", "stop_run", "resume_run", "evaluate_run", "chat", "export_run"}
    assert all(tool.description.endswith(".") for tool in tools)
    assert not [tool.name for tool in tools if tool.annotations.destructive_hint]
    assert [resource.uri_template for resource in resources] == [
        "loratory://runs/{run_id}", "loratory://runs/{run_id}/curve", "loratory://runs/{run_id}/report",
    ]  # fmt: skip


def test_what_a_person_looks_up_before_a_run(workspace, settings):
    async def script(call):
        return {
            "models": await call("list_models", query="smollm2"),
            "presets": await call("list_my_presets"),
            "report": await call("inspect_dataset", settings=settings),
            "row": await call("render_row", settings=settings, row=1),
            "here": await call("estimate", settings=settings, changes=CHANGES),
            "there": await call("estimate", settings=settings, changes=CHANGES, device="RTX-4090"),
            "unknown": await call("estimate", settings="nothing"),
            "wrong": await call("estimate", settings=settings, changes={"adapter.r": 0}),
        }

    answers, _ = talk(server_of(workspace, "read"), script)

    assert "smollm2-135m-instruct" in [model["id"] for model in answers["models"]]
    assert "tiny" in [preset["name"] for preset in answers["presets"]]
    assert answers["report"]["train_rows"] == 319
    assert answers["row"]["trained_text"] in answers["row"]["text"]
    assert (answers["here"]["verdict"], answers["here"]["plan"]["steps"]) == ("fits", 2)
    assert "4090" in answers["there"]["device"]["name"]
    assert "no file, preset or run is called 'nothing'" in answers["unknown"]
    assert "adapter.r" in answers["wrong"]


def test_a_start_that_is_not_confirmed_takes_a_code_for_these_settings_alone(workspace, settings):
    async def script(call):
        first = await call("start_run", settings=settings, changes=CHANGES)
        refusals = [
            await call("start_run", settings=settings, changes={}, confirmation=first["confirmation"]),
            await call("start_run", settings=settings, changes=CHANGES, confirmation="0" * 16),
        ]
        starts = [
            await call("start_run", settings=settings, changes=CHANGES, confirmation=first["confirmation"])
            for _ in "12"
        ]
        return first, refusals, starts

    (first, refusals, starts), questions = talk(server_of(workspace), script)

    assert first["confirmed"] is False
    assert "267 rows in 2 steps" in first["question"]
    assert "GiB of memory" in first["question"]
    assert all("confirms nothing, or something else" in refusal for refusal in refusals)
    assert starts[0]["run_id"] == starts[1]["run_id"], "a call that was repeated starts nothing"
    assert [run.id for run in workspace.store.list()] == [starts[0]["run_id"]]
    assert not questions


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_where_the_program_can_put_a_question_the_answer_counts(workspace, settings, mode):
    async def script(call):
        return await call("start_run", settings=settings, changes=CHANGES)

    refusal, questions = talk(server_of(workspace), script, confirms=False, mode=mode)
    assert "did not confirm" in refusal
    assert workspace.store.list() == []

    starts, _ = talk(server_of(workspace), script, confirms=True, mode=mode)
    assert starts["confirmed"] is True
    assert "267 rows in 2 steps" in questions[0]
    assert len(workspace.store.list()) == 1


def test_an_access_to_read_starts_stops_and_loads_nothing(workspace, settings):
    run = workspace.store.create(config_for("steps=4"))

    async def script(call):
        of_run = ("stop_run", "resume_run", "evaluate_run", "export_run")
        return [
            await call("start_run", settings=settings),
            await call("chat", run_id=run.id, prompt="Hello?"),
            *[await call(name, run_id=run.id) for name in of_run],
        ]

    for confirms in (None, True):
        answers, questions = talk(server_of(workspace, "read"), script, confirms=confirms)
        assert all("This access is not for" in answer for answer in answers), answers
        assert not questions
    assert [run.id for run in workspace.store.list()] == [run.id]
    assert run.folder.read_state().state == "queued"


def test_a_guest_of_a_lab_has_the_rights_of_a_guest(home, settings):
    guest = Person("gil", "guest", 0.0)
    with Workspace(home.for_person("gil", "guest")) as workspace:

        async def script(call):
            return [
                await call("estimate", settings="quickstart-cpu", changes={"dataset.source": "/etc/passwd"}),
                await call("estimate", settings="/etc/passwd"),
                await call("run_status", run_id="20200101-000000-000-0000"),
            ]

        answers, _ = talk(server_of(workspace, person=guest), script)
    assert "dataset.source" in answers[0]
    assert "no file, preset or run" in answers[1]
    assert "was not found" in answers[2]


def test_a_run_is_seen_stopped_compared_and_read(home):
    store = RunStore(home, "ann")
    workspace = Workspace(home)
    ids = [workspace.store.create(config_for(text)).id for text in ("steps=6", "steps=100000 slow", "steps=4 fail@3")]
    server = Supervisor(home, fake_settings())
    server.start()

    async def script(call):
        async def until(run_id, *states):
            while (status := await call("run_status", run_id=run_id))["state"] not in states:
                await anyio.sleep(0.1)
            return status

        done = await until(ids[0], "completed")
        while not (await call("run_status", run_id=ids[1]))["steps"]:
            await anyio.sleep(0.1)
        await call("stop_run", run_id=ids[1])
        stopped = await until(ids[1], "stopped")
        failed = await until(ids[2], "failed")
        texts = [
            (await call.client.read_resource(f"loratory://runs/{ids[0]}{part}")).contents[0].text
            for part in ("", "/curve", "/report")
        ]
        with pytest.raises(Exception, match="was not found"):
            await call.client.read_resource("loratory://runs/2020/curve")
        return (
            done,
            stopped,
            failed,
            await call("compare_runs", run_ids=ids[:2]),
            await call("list_runs"),
            await call("stop_run", run_id=ids[0]),
            texts,
        )

    try:
        (done, stopped, failed, comparison, listing, too_late, texts), _ = talk(server_of(workspace), script)
    finally:
        server.stop()
    assert done["steps"] == 6
    assert stopped["state"] == "stopped"
    assert failed["cause"] == "The loss is not a number."
    assert [figures["id"] for figures in comparison] == ids[:2]
    assert "run.name" in comparison[0]["settings"] or comparison[0]["settings"]
    assert {run["id"] for run in listing} == set(ids)
    assert "already completed" in too_late
    assert json.loads(texts[0])["id"] == ids[0]
    assert texts[1].splitlines()[0].startswith("step,")
    assert len(texts[1].splitlines()) == 7
    assert texts[2].startswith("# ")
    assert store.owner == "ann"


@pytest.mark.e2e
def test_an_agent_estimates_trains_evaluates_and_compares_over_stdio(workspace, settings):
    """`loratory mcp` as an agent's program starts it, a real run, and what came out."""
    variables = {"LORATORY_HOME": str(workspace.home.root), "PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1"}
    command = StdioServerParameters(
        command=sys.executable, args=["-P", "-m", "loratory.engine.cli", "mcp"], env=variables
    )

    async def script(call):
        changes = {**CHANGES, "training.learning_rate": 1e-3, "run.devices": "cpu"}
        estimate = await call("estimate", settings=settings, changes=changes)
        ids = []
        for rank in (4, 8):
            of_rank = {**changes, "adapter.r": rank}
            first = await call("start_run", settings=settings, changes=of_rank)
            ids.append(
                (await call("start_run", settings=settings, changes=of_rank, confirmation=first["confirmation"]))[
                    "run_id"
                ]
            )
        for run_id in ids:
            while (status := await call("run_status", run_id=run_id))["state"] not in (
                "completed",
                "failed",
                "interrupted",
            ):
                await anyio.sleep(0.3)
            assert status["state"] == "completed", status
        evaluated = await call("evaluate_run", run_id=ids[0], max_rows=4)
        answers = [
            await call("chat", run_id=ids[0], prompt="What is LoRA?", branch=branch, max_new_tokens=8)
            for branch in ("base", "tuned")
        ]
        export = await call("export_run", run_id=ids[0])
        return estimate, await call("compare_runs", run_ids=ids), evaluated, answers, export

    (estimate, comparison, evaluated, answers, export), _ = talk(command, script)

    assert estimate["verdict"] == "fits"
    assert [run["settings"]["adapter.r"] for run in comparison] == [4, 8]
    assert evaluated["rows"] == 4
    assert {"base", "tuned"} <= evaluated["losses"].keys()
    assert all(answer["branches"] == ["base", "tuned"] for answer in answers)
    assert export["verified"]["passed"]
