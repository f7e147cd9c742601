"""A language model as a folder that transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from limbeck.data.text import Tokenizer
from limbeck.errors import CheckpointError


def save_pretrained(student: nn.Module, tokenizer: Tokenizer, folder: str | Path) -> bool:
    """Writes configuration, safetensors weights and tokenizer into a folder, where the model is one of transformers.

    ``AutoModelForCausalLM.from_pretrained(folder)`` loads it; of a student with adapters only those are written.

    Args:
        student: the student.
        tokenizer: its tokenizer.
        folder: where to; made when absent.

    Returns:
        Whether anything was written: a module of another library has no such form.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    save: Any = getattr(student, "save_pretrained", None)
    if save is None:
        return False
    try:
        save(str(folder))
        tokenizer.backend.save_pretrained(str(folder))
    except OSError as error:
        raise CheckpointError(f"the model cannot be written to '{folder}': {error}") from None
    return True
