"""Small deterministic language models and batches of tokens, for methods that work on sequences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.signals import Batch

VOCABULARY = 11
TOKEN_MAP = torch.tensor([3, -1, 0, 1, -1, 5, 9, -1, 2, 10, -1])
"""For each token of another tokenizer our token of the same bytes, -1 where there is none."""
LENGTH = 7


class LanguageModel(nn.Module):
    """Embedding, a causal mean over the tokens so far, and a linear head.

    Args:
        width: of the hidden states.
        seed: of the initial weights.
    """

    def __init__(self, width: int, *, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(VOCABULARY, width)
            self.mixing = nn.Linear(width, width)
            self.lm_head = nn.Linear(width, VOCABULARY, bias=False)
            nn.init.normal_(self.lm_head.weight, 0.0, 0.7)

    def get_output_embeddings(self) -> nn.Module:
        """Returns the head, as models of transformers do."""
        return self.lm_head

    def get_input_embeddings(self) -> nn.Module:
        """Returns the embedding, as models of transformers do."""
        return self.embedding

    def forward(self, input_ids: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Returns logits ``[B, T, V]``."""
        tokens = input_ids if isinstance(input_ids, Tensor) else input_ids["input_ids"]
        seen = self.embedding(tokens)
        steps = torch.arange(1, tokens.shape[1] + 1, dtype=seen.dtype).unsqueeze(-1)
        return self.lm_head(torch.tanh(self.mixing(seen + seen.cumsum(1) / steps)))


def _inputs(tokens: Tensor) -> dict[str, Tensor]:
    return {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "position_ids": torch.arange(tokens.shape[1]).expand_as(tokens).clone(),
    }


def _targets(tokens: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    mask = torch.rand(tokens.shape, generator=generator) > 0.35
    mask[:, 1:3] = True
    mask[:, -1] = False
    return {"labels": tokens.roll(-1, 1).masked_fill(~mask, -100), "mask": mask}


def _other_tokens(samples: int, generator: torch.Generator, mask: Tensor) -> dict[str, Any]:
    """The same text as another tokenizer cuts it: spans of one or two of our tokens and of one or two of its own."""
    tokens = torch.randint(0, VOCABULARY, (samples, LENGTH + 2), generator=generator)
    widths = torch.randint(1, 3, (2, samples, LENGTH), generator=generator)
    numbers = torch.arange(LENGTH).expand(samples, -1)
    sides = [
        torch.stack([torch.repeat_interleave(row, width)[:LENGTH] for row, width in zip(numbers, side)])
        for side in widths
    ]
    ours, theirs = sides
    # Our tokens that do not count belong to no span, nor do the others of their span.
    dropped = [set(row[~flags].tolist()) for row, flags in zip(ours, mask)]
    dropped = [gone | (set(row.tolist()) ^ set(other.tolist())) for gone, row, other in zip(dropped, ours, theirs)]
    found = [
        torch.tensor([[-1 if n in gone else n for n in row.tolist()] for gone, row in zip(dropped, side)])
        for side in sides
    ]
    teacher_spans = torch.nn.functional.pad(found[1], (1, 1), value=-1)
    learnt = teacher_spans >= 0
    return {
        "teacher_inputs": _inputs(tokens),
        "teacher_labels": tokens.roll(-1, 1).masked_fill(~learnt, -100),
        "teacher_mask": learnt,
        "spans": found[0],
        "teacher_spans": teacher_spans,
    }


def sequence_batch(samples: int, chosen: slice, *, views: tuple[str, ...] = (), two_tokenizers: bool = False) -> Batch:
    """Rows of a fixed data set of token sequences, with every entry that a source of rollouts may add.

    Args:
        samples: rows of the whole data set.
        chosen: those to return.
        views: names of further views.
        two_tokenizers: whether the teacher reads the text in tokens of its own.
    """
    generator = torch.Generator().manual_seed(11)

    def tokens() -> Tensor:
        return torch.randint(0, VOCABULARY, (samples, LENGTH), generator=generator)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    own = tokens()
    entries: dict[str, Any] = {"inputs": _inputs(own), **_targets(own, generator), "index": torch.arange(samples)}
    entries["completion"] = entries["mask"]
    entries["sampler_logprobs"] = -numbers(samples, LENGTH).abs() - 1
    entries["reference_logprobs"] = -numbers(samples, LENGTH).abs() - 1
    entries["advantage"] = numbers(samples)
    entries["reward"] = (torch.arange(samples) % 3 == 0).double()
    entries["group_best"] = (torch.arange(samples) % 3 != 2).double()
    entries["privacy_hits"] = (torch.rand(samples, LENGTH, generator=generator) > 0.7).double()
    if two_tokenizers:
        entries |= _other_tokens(samples, generator, entries["mask"])
    found: dict[str, Any] = {}
    for view in views:
        other = tokens()
        found[view] = _inputs(other)
        entries.update({f"{view}_{key}": value for key, value in _targets(other, generator).items()})
    batch = Batch(entries, epoch=0).map(lambda tensor: tensor[chosen])
    if views:
        batch["views"] = Batch(found).map(lambda tensor: tensor[chosen])
    return batch
