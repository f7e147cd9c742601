"""One of two processes: ``torchrun --nproc_per_node 2 worker.py FOLDER``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from adapters.loops import LOOPS, METHODS, SAMPLES

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for loop, train in LOOPS.items():
        for method in METHODS:
            state = train(method, folder, SAMPLES // 2)
            save_file(state, folder / f"{loop}-{method}.{os.environ['RANK']}.safetensors")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
