"""How far a student is from teacher and oracle, on sequences that these wrote once for held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limbeck.data.text import Encoded, TextLoader, TextSource, Tokenizer
from limbeck.evaluate.teacher_hacking import BLOCKS, GOLDEN, PROXY, in_blocks
from limbeck.functional.teacher_hacking import sequence_divergence
from limbeck.generation import Draws
from limbeck.modes import evaluation_mode
from limbeck.recipes.hacking.samples import Tokens, written
from limbeck.signals import Batch
from limbeck.tasks.base import Task

_ROWS = 64
_WANTED = frozenset({"logits"})


class Reference:
    """A model whose distance to others is measured, with the sequences it wrote: the same for every student.

    Args:
        model: the model that writes.
        prompts: held-out prompts.
        tokenizer: its tokenizer.
        task: how models are run.
        tokens: most tokens of a completion.
        seed: seed of what is drawn.
        name: name of the stream of random numbers.
    """

    def __init__(
        self,
        model: nn.Module,
        prompts: Sequence[Tokens],
        tokenizer: Tokenizer,
        task: Task,
        *,
        tokens: int,
        seed: int,
        name: str,
    ) -> None:
        draws = Draws(seed, f"held-out/{name}", index=range(len(prompts)))
        sequences: list[Encoded] = written(model, prompts, tokenizer, tokens=tokens, draws=draws)
        source = TextSource(name, sequences, tokenizer, context=len(prompts[0]) + tokens)
        self._task = task
        self._batches = list(TextLoader(source, batch_size=_ROWS, shuffle=False, fixed_length=True).epoch(0))
        self._logits = [self._said(model, batch) for batch in self._batches]
        self.tokens = sum(int(batch["mask"].sum()) for batch in self._batches)

    def _said(self, model: nn.Module, batch: Batch) -> Tensor:
        with evaluation_mode(model):
            logits = self._task.run(model, batch["inputs"], _WANTED).logits
        assert logits is not None
        return logits

    def divergences(self, model: nn.Module) -> Tensor:
        """Returns the forward KL from this reference to ``model`` on each sequence ``[N]``, in nats."""
        pairs = zip(self._batches, self._logits)
        return torch.cat([sequence_divergence(p, self._said(model, b), mask=b["mask"]) for b, p in pairs])

    def per_token(self, divergences: Tensor) -> float:
        """Returns nats a token instead of a sequence."""
        return float(divergences.sum()) / self.tokens


class Distances:
    """What is logged of a student after every epoch of the lab.

    Args:
        oracle: reference of the golden curve.
        teacher: reference of the proxy.
    """

    def __init__(self, oracle: Reference, teacher: Reference) -> None:
        self._oracle, self._teacher = oracle, teacher

    def __call__(self, student: nn.Module) -> dict[str, float | list[float]]:
        """Returns the distances to oracle and teacher, under the names of real runs, a sequence and a token."""
        golden, proxy = self._oracle.divergences(student), self._teacher.divergences(student)
        return {
            GOLDEN: golden.double().mean().item(),
            PROXY: proxy.double().mean().item(),
            BLOCKS: in_blocks(golden, torch.arange(len(golden))),
            "golden_per_token": self._oracle.per_token(golden),
            "proxy_per_token": self._teacher.per_token(proxy),
        }
