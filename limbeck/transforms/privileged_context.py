"""A prompt of its own for the teacher, which says more than the student's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from limbeck.data.text.encoding import Encoded
from limbeck.data.text.loader import collate
from limbeck.errors import DataError, NeedsError, RecipeError, suggest
from limbeck.signals import Batch, Signals
from limbeck.transforms.base import ModelTransform, transform
from limbeck.transforms.rollout_rows import Row, rows_of

_FIELD = re.compile(r"\{(\w+)\}")
_MULTIPLE = 8


@transform(
    "privileged_context",
    title="Self-Distilled Reasoner: On-Policy Self-Distillation for Large Language Models",
    authors="Siyan Zhao and Zhihui Xie and Mengchen Liu and Jing Huang and Guan Pang and Feiyu Chen and Aditya Grover",
    paper="2601.18734",
    year=2026,
)
class PrivilegedContext(ModelTransform):
    """Gives the teacher another prompt before the same completion: a reference solution, demonstrations, instructions.

    Adds ``teacher_inputs`` (the privileged prompt and the completion, ``[B, T']``) and ``teacher_mask`` ``[B, T']``,
    where the teacher predicts the tokens that ``mask`` counts for the student, in the same order. The student's inputs
    stay as they are, so nothing of the context reaches it but through the teacher's distributions. It stands after
    ``rollout`` where the student writes.

    A prompt of text becomes ``template``; of a conversation the last turn before the answer does, and ``system``
    becomes its system message.

    Args:
        template: the prompt, in which ``{prompt}`` stands for the student's and ``{solution}`` for the column
            ``solution`` of the data, or any other.
        system: system message of conversations; the data's own when None.
        seed: seed of the run.
        num_classes: number of tokens.

    Raises:
        RecipeError: the template does not hold the prompt.
    """

    changes: ClassVar[frozenset[str]] = frozenset({"teacher_inputs", "teacher_mask"})
    runs = ()

    def __init__(self, *, template: str = "{prompt}", system: str | None = None, seed: int, num_classes: int) -> None:
        super().__init__(seed=seed, num_classes=num_classes)
        self.template, self.system = template, system
        self._columns = dict.fromkeys(_FIELD.findall(template))
        self._source: Any = None
        self._known: dict[int, np.ndarray] = {}
        if "prompt" not in self._columns:
            raise RecipeError(f"transform 'privileged_context': the template {template!r} has no {{prompt}} in it")

    def bind(self, observers: Mapping[str, Callable[[Batch], Signals]], loader: Any = None) -> None:
        """Takes the loader, whose data has the columns.

        Raises:
            NeedsError: it has no text data of limbeck.
            DataError: a record lacks a column that the template names.
        """
        super().bind(observers, loader)
        self._source = getattr(loader, "source", None)
        if not hasattr(self._source, "records"):
            raise NeedsError("privileged_context reads columns of the data, but the loader has no text data of limbeck")
        for number, record in enumerate(self._source.records):
            missing = [name for name in self._columns if name not in record and name != "prompt"]
            if missing:
                raise DataError(
                    f"the template of privileged_context names the column '{missing[0]}', which sample {number} does "
                    f"not have. {suggest(missing[0], record)}"
                )

    def __call__(self, batch: Batch) -> Batch:
        """Returns the batch with the teacher's own inputs.

        Raises:
            DataError: a row is longer than the context with its privileged prompt, or has several answers.
        """
        rows = [self._informed(row) for row in rows_of(batch)]
        width = -(-max(len(row) - 1 for row in rows) // _MULTIPLE) * _MULTIPLE
        made = collate([[row] for row in rows], width, pad_id=self._source.tokenizer.pad_id)
        beside = Batch(teacher_inputs=made["inputs"], teacher_mask=made["mask"]).to(batch["labels"].device)
        return Batch({**batch, **beside})

    def _informed(self, row: Row) -> Encoded:
        """Returns the privileged prompt and the completion of a row."""
        tokens = row.tokens
        if tokens.learn[: tokens.prompt].any():
            raise DataError(f"sample {row.index} has several answers to learn, so no single prompt comes before them")
        if row.index not in self._known:
            self._known[row.index] = np.array(self._prompt(row), np.int64)
        prompt = self._known[row.index]
        ids = np.concatenate([prompt, tokens.ids[tokens.prompt :]])
        learn = np.concatenate([np.zeros(len(prompt), bool), tokens.learn[tokens.prompt :]])
        if len(ids) > self._source.context + 1:
            raise DataError(
                f"sample {row.index} has {len(ids)} tokens with its privileged prompt, but the context is "
                f"{self._source.context}; raise data.options.context, or shorten the template"
            )
        return Encoded(ids, learn, len(prompt))

    def _prompt(self, row: Row) -> list[int]:
        tokenizer, record = self._source.tokenizer, self._source.records[row.index]
        if "messages" in record:
            return list(tokenizer.encode(tokenizer.render(self._turns(record), ask=True)))
        given = row.tokens.ids[: row.tokens.prompt].tolist()
        # A document's beginning is prompt enough where the data has none.
        start = given[:1] if given[:1] == [tokenizer.bos_id] else []
        prompt = record.get("prompt", tokenizer.decode(given[len(start) :]))
        return [*start, *tokenizer.encode(self._filled(record, str(prompt)))]

    def _turns(self, record: Mapping[str, Any]) -> list[dict[str, str]]:
        turns = [dict(turn) for turn in record["messages"]]
        last = max(n for n, turn in enumerate(turns) if turn["role"] == "assistant")
        turns = turns[:last]
        if turns:
            turns[-1]["content"] = self._filled(record, turns[-1]["content"])
        if self.system is not None:
            turns = [{"role": "system", "content": self.system}, *(t for t in turns if t["role"] != "system")]
        return turns

    def _filled(self, record: Mapping[str, Any], prompt: str) -> str:
        """Returns the template with its fields filled; nothing in a column is taken for a field again."""
        return _FIELD.sub(lambda found: str({**record, "prompt": prompt}[found[1]]), self.template)
