"""A second copy of the model in vLLM, on the GPU that trains; it sleeps while the steps run.

Names of arguments and results are those of vLLM 0.11 and of TRL's colocated mode, `VLLMGeneration`.
"""

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from loratory.engine.generation.worker.batch import WrittenAnswer
from loratory.engine.generation.worker.sampling import Sampling

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM makes room for


class VllmCopy:
    """Answers prompts with the frozen base and an adapter that is read from a folder each time.

    Args:
        model: A PEFT model with LoRA, whose base was loaded from safetensors.
        positions: Of the longest prompt with the longest answer.
        memory_share: Of the GPU, which vLLM reserves while it answers.
    """

    def __init__(self, model: Any, positions: int, memory_share: float) -> None:
        base, lora = model.get_base_model(), model.active_peft_config
        rank = max([lora.r, *lora.rank_pattern.values()])
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process, on its GPU
        from vllm import LLM

        self._llm = LLM(
            model=base.config._name_or_path, dtype=base.dtype, load_format="safetensors", trust_remote_code=False, enable_sleep_mode=True,
            max_model_len=positions, gpu_memory_utilization=memory_share,
            enable_lora=True, max_loras=1, max_lora_rank=next(each for each in _RANKS if each >= rank),
            logprobs_mode="processed_logprobs",  # at the temperature, as the trainer's passes compute them
        )  # fmt: skip
        self._llm.sleep(level=1)

    def answer(
        self, prompts: Sequence[Sequence[int]], adapter: Path, number: int, copies: int, most: int,
        end_ids: Collection[int], sampling: Sampling, seed: int,
    ) -> list[WrittenAnswer]:  # fmt: skip
        """Return `copies` answers to each prompt, in their order; `number` tells adapters apart."""
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        settings = SamplingParams(
            n=copies, temperature=sampling.temperature, max_tokens=most, seed=seed, logprobs=0,
            stop_token_ids=sorted(end_ids), detokenize=False,
        )  # fmt: skip
        request = LoRARequest(f"step-{number}", number + 1, str(adapter))
        self._llm.wake_up()
        try:
            outputs = self._llm.generate(
                [{"prompt_token_ids": list(prompt)} for prompt in prompts],
                settings,
                use_tqdm=False,
                lora_request=request,
            )
        finally:
            self._llm.sleep(level=1)
        answers = []
        for completion in (each for output in outputs for each in output.outputs):
            tokens = list(completion.token_ids)
            values = [step[token].logprob for token, step in zip(tokens, completion.logprobs, strict=True)]
            end = tokens.pop() if tokens and tokens[-1] in end_ids else None
            answers.append(WrittenAnswer(tokens, end, values if sampling.temperature else []))
        return answers
