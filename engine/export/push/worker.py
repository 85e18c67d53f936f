"""The process that talks to the Hub: `python -P -m engine.export.push.worker`, JSON lines on stdio; has no torch.

A process of its own can be ended in the middle of a large file. The token comes from the environment
or the login, is found here, and goes nowhere but to the Hub.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from huggingface_hub import HfApi

from engine.config.results import PushConfig
from engine.export.contract import PushProgress, UploadOrder
from engine.export.push.files import intended_files, refuse_private_content
from engine.export.push.hub_answers import hub_client, no_token
from engine.export.push.upload import HubPush
from engine.processes.messages import CancelledRequestError, JsonObject, Request, serve

_LOOK_SECONDS = 0.2


class PushWorker:
    """Answers the questions of `engine.export.push.job`."""

    def check(self, params: JsonObject, request: Request) -> JsonObject:
        """Whose token it is, the repository's full name, and whether something speaks against the push."""
        settings = PushConfig.model_validate(params["settings"])
        with _pushing(request) as push:
            account = push.account()
            name = str(params["repository"])
            repository = name if "/" in name else f"{account.name}/{name}"
            push.check(account, repository, settings)
        return {"account": account.model_dump(mode="json"), "repository": repository}

    def upload(self, params: JsonObject, request: Request) -> JsonObject:
        """Send a folder; what must not leave this machine is looked for first."""
        order = UploadOrder.model_validate(params["order"])
        places = [Path(place) for place in params["places"]]
        intended = intended_files(order.folder, order.settings.kind)
        with _pushing(request) as push:
            names = [file.name for file in intended.files]
            refuse_private_content(order.folder, names, places, _token())
            result = push.upload(order)
        notes = [f"{name} is not part of the result and was not sent." for name in intended.left_out]
        return result.model_copy(update={"notes": (*result.notes, *notes)}).model_dump(mode="json")


@contextmanager
def _pushing(request: Request) -> Iterator[HubPush]:
    def report(progress: PushProgress) -> None:
        if request.is_cancelled():
            raise CancelledRequestError()
        request.progress(progress.model_dump(mode="json"))

    def sleep(seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if request.is_cancelled():
                raise CancelledRequestError()
            time.sleep(min(_LOOK_SECONDS, left))

    with hub_client() as traffic:
        yield HubPush(HfApi(token=_token()), report, traffic, sleep=sleep)


def _token() -> str:
    token = huggingface_hub.get_token()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise no_token()
    return token


def main() -> None:
    """Serve until stdin closes."""
    worker = PushWorker()
    serve({"check": worker.check, "upload": worker.upload})


if __name__ == "__main__":
    main()
