"""How text becomes rows of tokens, whatever the data set: the keys of ``data.options`` that all have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from limbeck.hyperparameters import Count, WholeNumber, validated

TooLong = Literal["cut", "drop", "error"]
SHARED = ("tokenizer", "teacher_tokenizer", "context", "packed", "bos", "too_long", "test", "canaries")
"""Keys of ``data.options`` that every text data set has."""


class Options:
    """How text becomes rows: the keys of ``data.options`` that are no option of the reader."""

    def __init__(
        self,
        *,
        tokenizer: str | None = None,
        teacher_tokenizer: str | None = None,
        context: Count = 512,
        packed: bool = False,
        bos: bool = False,
        too_long: TooLong = "cut",
        test: float = 0.05,
        canaries: dict[str, WholeNumber] | None = None,
    ) -> None:
        self.canaries = canaries
        self.tokenizer = tokenizer
        self.teacher_tokenizer = teacher_tokenizer
        self.rows: dict[str, Any] = {
            "context": context, "packed": packed, "bos": bos, "too_long": too_long, "test": test,
        }  # fmt: skip


Options.__init__ = validated("data.options", Options.__init__)  # type: ignore[method-assign]


def divide_options(options: Mapping[str, Any]) -> tuple[Options, dict[str, Any]]:
    """Returns how text becomes rows, and the options of the reader.

    Raises:
        RecipeError: a value is out of range.
    """
    own = {key: value for key, value in options.items() if key in SHARED}
    return Options(**own), {key: value for key, value in options.items() if key not in SHARED}
