"""A model here that writes after prompts given as text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from limbeck.data.text.examples import Chat, Pair
from limbeck.data.text.pairs import asked
from limbeck.data.text.tokenizer import Tokenizer
from limbeck.errors import DataError
from limbeck.generation.ends import end_tokens
from limbeck.generation.loop import Draws, Generated, Prompts, generate
from limbeck.generation.sampling import Sampling
from limbeck.generation.written import Completion

_PARTIAL = "�"


class ModelWriter:
    """Writes with a live model, many prompts at once.

    Random numbers belong to the prompt's number, so what is written does not depend on how prompts are divided (up to
    the rounding of the model).

    Args:
        model: the model.
        tokenizer: its tokenizer.
        sampling: how tokens are drawn.
        context: tokens of prompt and completion together, the one that ends it included.
        samples: completions a prompt.
        seed: seed of the random numbers.
        purpose: tells streams of random numbers apart, those of two writers for example.
        bos: begin prompts with the begin-of-sequence token.
        rows: sequences written at a time.
        autocast: run the model under autocast to this type.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        sampling: Sampling,
        *,
        context: int,
        samples: int = 1,
        seed: int = 0,
        purpose: str = "written",
        bos: bool = False,
        rows: int | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self._model, self._tokenizer, self._sampling = model, tokenizer, sampling
        self._context, self._samples, self._bos = context, samples, bos
        self._seed, self._purpose, self._rows, self._autocast = seed, purpose, rows, autocast
        self._ends = end_tokens(model, tokenizer)

    def write(self, prompts: Sequence[Pair | Chat], numbers: Sequence[int]) -> list[list[Completion]]:
        """Returns the completions of each prompt; see :class:`limbeck.generation.written.Writer`.

        Raises:
            DataError: a prompt is empty, or fills the context.
        """
        ids = [self._ids(prompt, number) for prompt, number in zip(prompts, numbers)]
        # Prompts of like length together: less padding.
        order = sorted(range(len(ids)), key=lambda n: len(ids[n]))
        step = len(ids) if self._rows is None else max(self._rows // self._samples, 1)
        found: dict[int, list[Completion]] = {}
        for start in range(0, len(order), step):
            chosen = order[start : start + step]
            written = self._generated([ids[n] for n in chosen], [numbers[n] for n in chosen])
            texts = self._completions(written)
            found |= {n: texts[k * self._samples : (k + 1) * self._samples] for k, n in enumerate(chosen)}
        return [found[n] for n in range(len(ids))]

    def _generated(self, ids: Sequence[list[int]], numbers: Sequence[int]) -> Generated:
        return generate(
            self._model,
            Prompts.of(ids, device=next(self._model.parameters()).device),
            self._sampling,
            draws=Draws(self._seed, self._purpose, 0, numbers),
            ends=self._ends,
            samples=self._samples,
            limits=torch.tensor([self._context - len(i) for i in ids]),
            vocabulary=self._tokenizer.vocabulary,
            autocast=self._autocast,
        )

    def _ids(self, prompt: Pair | Chat, number: int) -> list[int]:
        """Returns the tokens of a prompt, as they stand before the answer when a student learns it."""
        if isinstance(prompt, Pair):
            start = [self._tokenizer.bos_id] if self._bos and self._tokenizer.bos_id is not None else []
            ids = [*start, *self._tokenizer.encode(prompt.prompt)]
        else:
            messages = Chat(asked(prompt)).as_dicts()
            ids = self._tokenizer.encode(self._tokenizer.render(messages, ask=True))
        if not ids:
            raise DataError(f"the prompt of sample {number} is empty; a model writes after at least one token")
        if len(ids) >= self._context:
            raise DataError(
                f"the prompt of sample {number} has {len(ids)} tokens and leaves no room for an answer within "
                f"{self._context}; raise `context`, or leave such samples out (`too_long: drop`)"
            )
        return ids

    def _completions(self, written: Generated) -> list[Completion]:
        found = []
        for ids, ended in zip(written.texts(), written.ended.tolist()):
            text = self._tokenizer.decode(ids[:-1] if ended else ids)
            # What was cut off within a character is no character.
            found.append(Completion(text if ended else text.rstrip(_PARTIAL), bool(ended), len(ids)))
        return found
