"""Small sequences, tiny models and loaders for tests of language models."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from limbeck.data.text import Encoded, TextLoader, TextSource, Tokenizer, load_tokenizer
from limbeck.students.language import build_language_model

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(template: str = "") -> Tokenizer:
    """The tokenizer of bytes, with a chat template where one is given."""
    found = load_tokenizer("bytes")
    if template:
        found.backend.chat_template = template
    return found


def sequences(count: int = 6, *, vocabulary: int = 257, seed: int = 0, low: int = 5, high: int = 14) -> list[Encoded]:
    """Random sequences of different lengths, whose first two tokens are the prompt."""
    numbers = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        length = int(numbers.integers(low, high))
        ids = numbers.integers(0, vocabulary, length)
        made.append(Encoded(ids, np.arange(length) >= 2, 2))
    return made


def source(*, packed: bool = False, context: int = 32, count: int = 6, **options: Any) -> TextSource:
    """Random sequences as rows."""
    return TextSource("random", sequences(count, **options), tokenizer(), context=context, packed=packed)


def loader(*, batch_size: int = 6, packed: bool = False, shuffle: bool = False, **options: Any) -> TextLoader:
    """Batches of random sequences."""
    return TextLoader(source(packed=packed, **options), batch_size=batch_size, shuffle=shuffle)


def tiny(seed: int = 0, *, vocabulary: int = 257, **options: Any) -> nn.Module:
    """A Llama with random weights, in eval mode."""
    torch.manual_seed(seed)
    shape = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "context": 64, **options}
    context = shape.pop("context")
    model = build_language_model({"name": "llama", **shape}, vocabulary=vocabulary, context=context)
    # Larger weights than at initialisation, so that what a token sees matters.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    return model.eval()
