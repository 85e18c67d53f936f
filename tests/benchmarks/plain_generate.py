"""The reference of the chat benchmark: a PEFT model and transformers' own `generate`, in a process of its own."""

import sys
import time

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer

from loratory.engine.processes.messages import JsonObject, Request, serve


class TokenTimes(BaseStreamer):
    """Notes when each token came; the first call carries the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is held back."""


class PlainModel:
    """Loads a base with or without an adapter, and generates greedily."""

    def __init__(self, base: str, adapter: str, dtype: str) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype)).eval()
        if adapter:
            self._model = PeftModel.from_pretrained(self._model, adapter).eval()

    def generate(self, params: JsonObject, _: Request) -> JsonObject:
        """Generate exactly so many tokens after a prompt."""
        ids = torch.tensor([params["ids"]])
        streamer = TokenTimes()
        start = time.perf_counter()
        with torch.inference_mode():
            self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=params["tokens"],
                max_new_tokens=params["tokens"],
                streamer=streamer,
            )
        first, last = streamer.times[1], streamer.times[-1]
        return {
            "first_token_seconds": first - start,
            "tokens_per_second": (len(streamer.times) - 2) / (last - first),
        }


if __name__ == "__main__":
    serve({"generate": PlainModel(*sys.argv[1:4]).generate})
