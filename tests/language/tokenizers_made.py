"""Small tokenizers of the kinds that real models have, trained in a second on the text at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from limbeck.data.text import Tokenizer

WORDS = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune must be in want of a "
    "wife. However little known the feelings of such a man may be on his first entering a neighbourhood, this truth "
    "is so well fixed in the minds of the surrounding families that he is considered the rightful property of some "
    "one or other of their daughters. def add(a, b): return a + b. Zwölf Boxkämpfer, naïve café, 東京タワー. "
) * 3
_SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def byte_level(*, size: int = 420, text: str = WORDS, **special: str | None) -> Any:
    """A byte-level byte-pair encoding, as GPT-2, Llama 3, Qwen and SmolLM have."""
    names = {"eos_token": "<|end|>", "pad_token": "<|pad|>", "bos_token": "<|begin|>", **special}
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        special_tokens=sorted({name for name in names.values() if name}),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator([text], trainer)
    return wrapped(backend, **{key: value for key, value in names.items() if value})


def sentencepiece_bpe(*, size: int = 500, text: str = WORDS) -> Any:
    """A byte-pair encoding of words that begin with a mark, with bytes for what is unknown, as Llama 2 has."""
    backend = Backend(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    by_bytes = [f"<0x{n:02X}>" for n in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=size, show_progress=False, special_tokens=["<unk>", "<s>", "</s>", "<pad>", *by_bytes],
        max_token_length=12,
    )  # fmt: skip
    backend.train_from_iterator([text], trainer)
    whole = backend.to_str()
    backend = Backend.from_str(_bytes_as_plain_tokens(whole))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return wrapped(backend, **_SPECIAL)


def _bytes_as_plain_tokens(whole: str) -> str:
    import json

    read = json.loads(whole)
    read["added_tokens"] = [e for e in read["added_tokens"] if not e["content"].startswith("<0x")]
    return json.dumps(read)


def unigram(*, size: int = 200, text: str = WORDS) -> Any:
    """A unigram model of pieces, as T5 has."""
    backend = Backend(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size, show_progress=False, special_tokens=["<pad>", "</s>", "<unk>", "<s>"], unk_token="<unk>"
    )
    backend.train_from_iterator([text], trainer)
    return wrapped(backend, **_SPECIAL)


def wrapped(backend: Backend, template: str = "", **special: str) -> Any:
    """A tokenizer of transformers around one of the library ``tokenizers``."""
    from transformers import PreTrainedTokenizerFast

    made = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)
    if template:
        made.chat_template = template
    return made


def saved(made: Any, folder: Path, template: str = "") -> str:
    """The folder that a tokenizer is saved in."""
    if template:
        made.chat_template = template
    made.save_pretrained(str(folder))
    return str(folder)


def ours(made: Any, name: str = "made") -> Tokenizer:
    """The same as limbeck's."""
    return Tokenizer(made, name)
