"""What one of two processes does in the tests: ``torchrun --nproc_per_node 2 worker.py FOLDER``.

Each check leaves ``<check>.<rank>.safetensors`` (tensors) or ``.json`` (words) in the folder; the tests compare them.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

import torch
from safetensors.torch import save_file

from distributed.checks import CHECKS
from limbeck.engine import distributed


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with distributed.session():
        for name, check in CHECKS.items():
            try:
                found = check(folder)
            except Exception:
                print(f"check {name} on rank {distributed.rank()}", traceback.format_exc(), file=sys.stderr, flush=True)
                raise
            place = folder / f"{name}.{distributed.rank()}"
            tensors = {key: value.contiguous() for key, value in found.items() if isinstance(value, torch.Tensor)}
            save_file(tensors, f"{place}.safetensors")
            words = {key: value for key, value in found.items() if key not in tensors}
            Path(f"{place}.json").write_text(json.dumps(words))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
