"""The tokenizer `bpe:N`, which is learnt from the shipped novel and needs no file."""

from __future__ import annotations

import pytest

from limbeck.data.text.token_bytes import TokenBytes
from limbeck.data.text.tokenizer import load_tokenizer
from limbeck.errors import DataError

TEXT = "She had been forced into prudence in her youth; naïve, and 38 °C.\n"


def test_it_has_so_many_tokens_and_gives_any_text_back() -> None:
    tokenizer = load_tokenizer("bpe:400")
    assert tokenizer.vocabulary == 400
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    assert len(ids) < len(TEXT.encode())
    assert tokenizer.eos_id not in ids


def test_more_tokens_make_text_shorter() -> None:
    assert len(load_tokenizer("bpe:600").encode(TEXT)) < len(load_tokenizer("bpe:400").encode(TEXT))


def test_its_tokens_say_their_bytes() -> None:
    tokenizer = load_tokenizer("bpe:400")
    pieces = TokenBytes(tokenizer).pieces
    assert b"".join(pieces[i] or b"" for i in tokenizer.encode(TEXT)) == TEXT.encode()


@pytest.mark.parametrize("name", ["bpe:257", "bpe:", "bpe:many"])
def test_too_few_tokens_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="bpe:512"):
        load_tokenizer(name)
