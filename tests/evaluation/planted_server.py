"""An OpenAI-compatible server on transformers alone, sound or with a planted fault."""

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

OTHER_TEMPLATE = "{% for m in messages %}### {{ m['role'] }}:\n{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}### assistant:\n{% endif %}"


@dataclass
class Planted:
    """What is served, and how it is wrong."""

    model: Any
    tokenizer: Any
    template: str | None = None  # in place of the tokenizer's
    system: str = ""  # put before every conversation
    bos: int = 0  # copies to add to a chat prompt, or to remove from it
    stops: bool = True
    temperature: float = 0.0
    completes: bool = True
    counts: bool = True
    log_probabilities: bool = True
    bodies: list[dict[str, Any]] = field(default_factory=list)  # what was asked

    def answer(self, ids: list[int], most: int) -> dict[str, Any]:
        tokens, values, reason, unread, cache = [], [], "length", list(ids), None
        ends = {self.tokenizer.eos_token_id} if self.stops else set()
        with torch.inference_mode():
            for _ in range(most):
                output = self.model(torch.tensor([unread]), past_key_values=cache, use_cache=True)
                logits, cache = output.logits[0, -1].float(), output.past_key_values
                chosen = int(logits.argmax())
                if self.temperature:
                    chosen = int(torch.multinomial(torch.softmax(logits / self.temperature, -1), 1))
                if chosen in ends:
                    reason = "stop"
                    break
                tokens.append(chosen)
                values.append(float(torch.log_softmax(logits, -1)[chosen]))
                unread = [chosen]
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(tokens)} if self.counts else None
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return {"text": text, "values": values, "reason": reason, "usage": usage}

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        turns = ([{"role": "system", "content": self.system}] if self.system else []) + body["messages"]
        how = {"add_generation_prompt": True, "return_dict": False}
        ids = self.tokenizer.apply_chat_template(turns, chat_template=self.template, **how)
        bos = self.tokenizer.bos_token_id
        answer = self.answer([bos] * self.bos + ids if self.bos >= 0 else ids[-self.bos :], body["max_tokens"])
        content = [{"token": "", "logprob": value} for value in answer["values"]]
        choice = {"message": {"role": "assistant", "content": answer["text"]}, "finish_reason": answer["reason"]}
        if self.log_probabilities and body.get("logprobs"):
            choice["logprobs"] = {"content": content}
        return {"choices": [choice], "usage": answer["usage"]}

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["prompt"]
        ids = prompt if isinstance(prompt, list) else self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        answer = self.answer(ids, body["max_tokens"])
        choice = {"text": answer["text"], "finish_reason": answer["reason"]}
        if self.log_probabilities and body.get("logprobs"):
            choice["logprobs"] = {"token_logprobs": answer["values"]}
        return {"choices": [choice], "usage": answer["usage"]}


@contextlib.contextmanager
def serving(faulty: Planted) -> Iterator[str]:
    """Serve at a free port of this machine; yields the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply(200, {"data": [{"id": "planted", "owned_by": "vllm"}]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            faulty.bodies.append(body)
            if self.path == "/v1/chat/completions":
                self.reply(200, faulty.chat(body))
            elif self.path == "/v1/completions" and faulty.completes:
                self.reply(200, faulty.complete(body))
            else:
                self.reply(404, {"error": "no such route"})

        def reply(self, status, value):
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
