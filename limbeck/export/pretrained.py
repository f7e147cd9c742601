"""A language model as a folder that transformers loads."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn

from limbeck.data.text import Tokenizer
from limbeck.engine.checkpoint import write_atomically
from limbeck.errors import CheckpointError
from limbeck.export.card import ModelCard


def merged(student: Any) -> nn.Module:
    """Returns a copy of a student with its adapters merged into its weights; the student itself where it has none."""
    if not hasattr(student, "merge_and_unload"):
        return student
    return copy.deepcopy(student).merge_and_unload()


def save_pretrained(
    student: nn.Module,
    tokenizer: Tokenizer,
    folder: str | Path,
    *,
    merge: bool = False,
    card: ModelCard | None = None,
) -> bool:
    """Writes configuration, safetensors weights and tokenizer into a folder, where the model is one of transformers.

    ``AutoModelForCausalLM.from_pretrained(folder)`` loads it. The generation configuration stops at the token that ends
    a sequence of the training data, where it named none.

    Args:
        student: the student.
        tokenizer: its tokenizer.
        folder: where to; made when absent.
        merge: write adapters merged into the weights; otherwise only the adapters are written.
        card: what is known of the student, for the folder's ``README.md``.

    Returns:
        Whether anything was written: a module of another library has no such form.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    model: Any = merged(student) if merge else student
    if getattr(model, "save_pretrained", None) is None:
        return False
    generation = getattr(model, "generation_config", None)
    if generation is not None and generation.eos_token_id is None:
        generation.eos_token_id = tokenizer.backend.eos_token_id
    try:
        model.save_pretrained(str(folder))
        tokenizer.backend.save_pretrained(str(folder))
    except OSError as error:
        raise CheckpointError(f"the model cannot be written to '{folder}': {error}") from None
    if card is not None:
        write_atomically(Path(folder) / "README.md", card.to_hub().encode())
    return True
