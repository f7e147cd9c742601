"""What a server computes: log-probabilities of given tokens, and tokens that a model writes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.data.text import Tokenizer
from limbeck.errors import RecipeError
from limbeck.tasks.causal_lm import CausalLM

_ROWS = 256


@dataclass(frozen=True)
class Scored:
    """Log-probabilities of the tokens of one sequence, in nats.

    Attributes:
        ids: the tokens.
        logprobs: of each token given those before it; None for a first token, which nothing predicts.
        top: the most likely tokens at each place, ``(id, log-probability)`` from the likeliest on; None likewise.
        ended: whether the sequence ends with a token that ends it.
    """

    ids: list[int]
    logprobs: list[float | None]
    top: list[list[tuple[int, float]] | None]
    ended: bool = False


class Scorer:
    """A model and its tokenizer, used by one request at a time.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        most: log-probabilities a place that may be asked for.
        precision: ``fp32`` or ``bf16``.
    """

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, *, most: int = 1000, precision: str = "fp32") -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.most = min(most, tokenizer.vocabulary)
        self._task = CausalLM(vocabulary=tokenizer.vocabulary)
        self._autocast = precision == "bf16"
        self._device = next(model.parameters()).device
        self._turn = threading.Lock()
        config: Any = getattr(model, "config", None)
        self.context = int(getattr(config, "max_position_embeddings", None) or 1 << 20)
        self.ends = _ends(model, tokenizer)

    def score(self, ids: Sequence[int], *, top: int, temperature: float = 1.0) -> Scored:
        """Returns the log-probabilities of ``softmax(logits / temperature)`` for every token of a text.

        Args:
            ids: the text.
            top: how many of the most likely tokens are given beside.
            temperature: divides the logits; 0 is taken as 1, since greedy decoding has no log-probabilities.

        Raises:
            RecipeError: the text is empty or longer than the model's context.
        """
        self._check(ids, 0)
        if len(ids) == 1:
            return Scored(list(ids), [None], [None])
        with self._turn, torch.inference_mode():
            states, head = self._states(torch.tensor([list(ids[:-1])], device=self._device))
            logprobs: list[float | None] = [None]
            places: list[list[tuple[int, float]] | None] = [None]
            for start in range(0, len(ids) - 1, _ROWS):
                logits = head(states[0, start : start + _ROWS])
                found, best = _tops(logits, ids[1 + start : 1 + start + len(logits)], top, temperature)
                logprobs += found
                places += best
        return Scored(list(ids), logprobs, places)

    def write(
        self,
        ids: Sequence[int],
        *,
        count: int,
        top: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Scored:
        """Returns up to ``count`` tokens that the model writes after ``ids``; greedily at temperature 0.

        Raises:
            RecipeError: the prompt and what is to be written do not fit the model's context.
        """
        self._check(ids, count)
        start = torch.tensor([list(ids)], device=self._device)
        with self._turn, torch.inference_mode():
            if seed is not None:
                torch.manual_seed(seed)
            warm = temperature > 0
            found: Any = self.model.generate(  # type: ignore[operator]
                input_ids=start, attention_mask=torch.ones_like(start), max_new_tokens=count, do_sample=warm,
                temperature=temperature if warm else None, top_p=top_p if warm else None, top_k=0 if warm else None,
                eos_token_id=self.ends, pad_token_id=self.tokenizer.pad_id, return_dict_in_generate=True,
                output_logits=True,
            )  # fmt: skip
        new = found.sequences[0, len(ids) :].tolist()
        logits = torch.cat(list(found.logits))[: len(new), : self.tokenizer.vocabulary]
        logprobs, places = _tops(logits, new, top, temperature)
        return Scored(new, list(logprobs), list(places), bool(new) and new[-1] in self.ends)

    def _states(self, ids: Tensor) -> tuple[Tensor, Any]:
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "position_ids": torch.arange(ids.shape[1], device=ids.device).unsqueeze(0),
        }
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self._autocast):
            hidden = self._task.run(self.model, inputs, frozenset({"hidden"})).hidden
        assert hidden is not None
        return hidden.states.float(), hidden.head

    def _check(self, ids: Sequence[int], count: int) -> None:
        if not len(ids):
            raise RecipeError("the prompt is empty; give at least one token")
        outside = [i for i in ids if not 0 <= i < self.tokenizer.vocabulary]
        if outside:
            raise RecipeError(f"token {outside[0]} is outside 0..{self.tokenizer.vocabulary - 1}")
        if len(ids) + count > self.context:
            raise RecipeError(
                f"{len(ids)} tokens of prompt and {count} to write are more than the model's context of {self.context}"
            )


def _tops(
    logits: Tensor, tokens: Sequence[int], top: int, temperature: float
) -> tuple[list[float | None], list[list[tuple[int, float]] | None]]:
    log_p = (logits.float() / (temperature if temperature > 0 else 1.0)).log_softmax(-1)
    chosen = torch.tensor(list(tokens), device=log_p.device, dtype=torch.long)
    own = log_p.gather(-1, chosen.unsqueeze(-1)).squeeze(-1).tolist()
    if not top:
        return own, [[] for _ in own]
    best = log_p.topk(top, dim=-1)
    return own, [list(zip(i, v)) for i, v in zip(best.indices.tolist(), best.values.tolist())]


def _ends(model: nn.Module, tokenizer: Tokenizer) -> list[int]:
    """Returns the tokens that end what a model writes: its generation configuration's and the tokenizer's."""
    config: Any = getattr(model, "generation_config", None)
    named = getattr(config, "eos_token_id", None)
    found = [] if named is None else [named] if isinstance(named, int) else list(named)
    own = tokenizer.backend.eos_token_id
    return sorted({int(i) for i in [*found, *([] if own is None else [own])]})
