"""Tokenizers, with what decides whether two of them are the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

from limbeck.data.text.examples import Document
from limbeck.data.text.pretrained import locate, transformers_module
from limbeck.errors import CheckpointError, DataError

Messages = Sequence[Mapping[str, Any]]
_PAIRS, _END, _BYTES = "bpe:", "<|end|>", 257


class Tokenizer:
    """A fast tokenizer of transformers and what limbeck asks of it.

    Args:
        backend: a ``PreTrainedTokenizerFast``.
        name: what it was asked for.
        origin: the tokenizer of which this one is a part; None where it is whole.
        kept: the ids that its tokens have in ``origin``, in order.

    Raises:
        DataError: the tokenizer is a slow one, which cannot tell where in the text a token lies.
    """

    def __init__(
        self, backend: Any, name: str = "", *, origin: Tokenizer | None = None, kept: Sequence[int] = ()
    ) -> None:
        if not getattr(backend, "is_fast", False):
            raise DataError(f"the tokenizer '{name}' is a slow one; use its fast version (tokenizer.json)")
        self.backend = backend
        self.name = name
        self.origin = origin
        self.kept = tuple(kept)

    @cached_property
    def vocabulary(self) -> int:
        """Number of true tokens: one more than the largest id. A model's head may have more rows."""
        return max(self.backend.get_vocab().values()) + 1

    @property
    def bos_id(self) -> int | None:
        """Id of the token that begins a document; None where there is none."""
        return self.backend.bos_token_id

    @property
    def eos_id(self) -> int:
        """Id of the token that ends a document.

        Raises:
            DataError: the tokenizer names none.
        """
        if self.backend.eos_token_id is None:
            raise DataError(f"the tokenizer '{self.name}' names no end-of-sequence token; set its eos_token")
        return int(self.backend.eos_token_id)

    @property
    def pad_id(self) -> int:
        """Id that fills rows; masks, never ids, say what is padding, so it may equal the end of a document."""
        pad = self.backend.pad_token_id
        return int(pad if pad is not None else self.backend.eos_token_id or 0)

    @property
    def template(self) -> str:
        """The chat template; empty where there is none."""
        return str(self.backend.chat_template or "")

    def encode(self, text: str) -> list[int]:
        """Returns the ids of ``text`` without any token that the text does not hold."""
        return list(self.backend(text, add_special_tokens=False, verbose=False)["input_ids"])

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns the ids of ``text`` and for each the characters ``[start, stop)`` that it stands for."""
        found = self.backend(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return list(found["input_ids"]), [(int(a), int(b)) for a, b in found["offset_mapping"]]

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Returns the text of ``ids``, special tokens left out unless ``special``."""
        text = self.backend.decode(list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False)
        return str(text)

    def render(self, messages: Messages, *, ask: bool = False) -> str:
        """Returns a conversation as the chat template writes it.

        Args:
            messages: dicts with ``role`` and ``content``.
            ask: end where the assistant is to answer.

        Raises:
            DataError: there is no template, or it refuses these messages.
        """
        if not self.template:
            raise DataError(
                f"the tokenizer '{self.name}' has no chat template, so it cannot render messages; give prompt and "
                "completion, or another tokenizer"
            )
        try:
            rendered = self.backend.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask)
        except Exception as error:  # A template is a program; it may fail in any way.
            reason = str(error).splitlines()[0] if str(error) else repr(error)
            raise DataError(f"the chat template of '{self.name}' refuses this conversation: {reason}") from None
        return str(rendered)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that decides which ids a text gets; the chat template has its own."""
        whole = json.loads(self.backend.backend_tokenizer.to_str())
        # Truncation and padding are settings of a call that the library keeps in the same place.
        whole.pop("truncation", None)
        whole.pop("padding", None)
        text = json.dumps([whole, self.backend.eos_token, self.backend.bos_token], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @cached_property
    def template_fingerprint(self) -> str:
        """A hash of the chat template."""
        return hashlib.blake2b(self.template.encode(), digest_size=16).hexdigest()


def load_tokenizer(name: str) -> Tokenizer:
    """Returns a tokenizer.

    Args:
        name: ``hf:NAME_OR_FOLDER``, ``gguf:FILE``, a folder, a packaged model. Two kinds need no file: ``bytes``, one
            token a byte and one for the end; and ``bpe:N``, N tokens by byte-pair encoding of the novel that limbeck
            ships.

    Raises:
        MissingExtraError: transformers is not installed.
        CheckpointError: the tokenizer is not there, or cannot be read.
        DataError: so few tokens cannot hold all bytes.

    Example:
        >>> tokenizer = load_tokenizer("bytes")
        >>> tokenizer.encode("hé"), tokenizer.vocabulary, tokenizer.decode([104, 195, 169])
        ([104, 195, 169], 257, 'hé')
    """
    transformers = transformers_module("text data")
    if name == "bytes":
        return Tokenizer(_bytes_tokenizer(transformers), name)
    if name.startswith(_PAIRS):
        return Tokenizer(_pairs_tokenizer(transformers, name), name)
    found = locate(name)
    try:
        backend = transformers.AutoTokenizer.from_pretrained(found.place, **found.keywords())
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise CheckpointError(f"the tokenizer '{name}' cannot be loaded: {reason}") from None
    return Tokenizer(backend, name)


def _bytes_tokenizer(transformers: Any) -> Any:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    # The byte-level alphabet stands for byte b by one character; this is the table of GPT-2 in order of bytes.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in printable]
    characters = {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(rest)}
    vocabulary = {characters[b]: b for b in range(256)}
    backend = Backend(models.BPE(vocab={**vocabulary, _END: 256}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=_END)


@lru_cache(maxsize=4)
def _pairs_of_novel(size: int) -> str:
    """Returns byte-pair encoding, learnt from the shipped novel, as the text that the library reads."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    from limbeck.data.text.readers import persuasion

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    novel = [example.text for example in persuasion(split="train").examples if isinstance(example, Document)]
    backend.train_from_iterator(novel, trainer)
    return str(backend.to_str())


def _pairs_tokenizer(transformers: Any, name: str) -> Any:
    from tokenizers import Tokenizer as Backend

    size = name.removeprefix(_PAIRS)
    if not size.isdecimal() or int(size) <= _BYTES:
        raise DataError(
            f"the tokenizer '{name}' should name a number of tokens above {_BYTES}, all bytes and an end, for example "
            f"{_PAIRS}512"
        )
    backend = Backend.from_str(_pairs_of_novel(int(size)))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=_END)
