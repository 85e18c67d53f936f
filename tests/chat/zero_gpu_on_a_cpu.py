"""The worker for ZeroGPU on a machine without a GPU to lend: for `spaces`, torch is one that was built without CUDA."""

import runpy

import torch

MODULE = "tests.chat.zero_gpu_on_a_cpu"

if __name__ == "__main__":
    torch.version.cuda = None
    runpy.run_module("loratory.engine.chat.worker.zero_gpu", run_name="__main__", alter_sys=True)
