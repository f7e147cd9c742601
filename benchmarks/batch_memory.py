"""Memory of losses whose value depends on which samples share a batch, and how it grows with the batch.

A method's loss is computed and differentiated on fixed signals of a ResNet-20 and a ResNet-8, its models left out; what
counts is the most that is alive at once beyond the signals themselves, by the sizes of the tensors that operations
make. ``grows`` is the power of the batch size by which it grew in the last doubling, which is at most what the method
states: 1 for linear and 2 for quadratic, less where a part that does not grow, or grows more slowly, still weighs more.

    python benchmarks/batch_memory.py [--quick] [--sizes 256 512 1024]
"""

from __future__ import annotations

import argparse
import math
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from turns import machine, settle
from workload import classification_methods, make_batches, make_stage, roles_of

from limbeck.engine.combine import combine, term_means
from limbeck.methods.base import methods

SLACK = 0.1
POWERS = {"linear": 1, "quadratic": 2}


class Peak(TorchDispatchMode):
    """The most memory, in bytes, of tensors that operations inside made and that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._enter(tensor.untyped_storage(), known)
        return made

    def _enter(self, storage: torch.UntypedStorage, known: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in known or key in self._alive:
            return
        self._alive[key] = size
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._leave, key)

    def _leave(self, key: int) -> None:
        self.now -= self._alive.pop(key, 0)


def peak_of(compute: Callable[[], Any]) -> int:
    """Returns the most bytes that were alive at once in what ``compute`` made."""
    with Peak() as peak:
        compute()
    return peak.most


def measure(name: str, size: int, side: int) -> int:
    """Returns the peak of a method's loss and its gradient for a batch of ``size`` samples."""
    needs = methods[name].part.needs
    batches = make_batches(2, size, (3, side, side), views=needs.views)
    for batch in batches:
        # Other pictures stand for what a transform would make of these, which is no part of a loss.
        batch.update({key: batch["inputs"].flip(2) for key in needs.batch if key.endswith("_inputs")})
    stage, _ = make_stage(name, roles_of(name, (3, side, side)), batches, transforms=())
    batch, method = stage.first_batch(), stage.method.train()
    with torch.no_grad():
        said = method.observe(batch, stage.observers)
    leaves: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        leaves.append(tensor.detach().clone().requires_grad_())
        return leaves[-1]

    signals = {role: s.map(leaf) if role in method.learners else s.detach() for role, s in said.items()}

    def once() -> None:
        loss = combine(term_means(method(batch, **signals)), method.weights, stage.progress)
        own = [p for p in method.parameters() if p.requires_grad]
        torch.autograd.grad(loss, [*leaves, *own], allow_unused=True)

    once()  # What is made once and kept is no part of a step.
    return peak_of(once)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small batches and pictures")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024])
    arguments = parser.parse_args()
    settle()
    sizes, side = ([128, 256], 8) if arguments.quick else (sorted(arguments.sizes), 32)
    print(f"resnet20 -> resnet8, 3x{side}x{side}, peak of the loss and its gradient\n{machine()}\n")
    heads = "".join(f"{f'{size} MiB':>12}" for size in sizes)
    print(f"{'method':<14}{heads} {'grows':>6} {'stated':>10} {'':>6}")
    for name in classification_methods():
        part = methods[name].part
        if not part.batch_coupled:
            continue
        peaks = [measure(name, size, side) for size in sizes]
        power = math.log(peaks[-1] / peaks[-2], sizes[-1] / sizes[-2])
        verdict = "met" if power <= POWERS[part.batch_memory] + SLACK else "missed"
        figures = "".join(f"{peak / 2**20:>12.2f}" for peak in peaks)
        print(f"{name:<14}{figures} {power:>6.2f} {part.batch_memory:>10} {verdict:>6}", flush=True)


if __name__ == "__main__":
    main()
