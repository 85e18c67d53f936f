"""A worker for tests: counts aloud, one number a turn."""

from loratory.engine.errors import DatasetError
from loratory.engine.processes.messages import JsonObject, Request, Steps, serve


def count(params: JsonObject, request: Request) -> Steps:
    for number in range(params["to"]):
        if request.is_cancelled():
            return {"reached": number, "cancelled": True}
        request.progress({"name": params["name"], "number": number})
        yield
    return {"reached": params["to"], "cancelled": False}


def fail_later(params: JsonObject, request: Request) -> Steps:
    yield
    raise DatasetError("The third row is empty.", "Delete it.")


def ping(params: JsonObject, request: Request) -> JsonObject:
    return {"pong": True}


if __name__ == "__main__":
    serve({"count": count, "fail_later": fail_later, "ping": ping})
