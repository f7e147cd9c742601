"""Two tokenizations of one text, aligned by bytes."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from language.corpus import CHATML
from limbeck.data.text import Chat, Tokenizer, encode_example, load_tokenizer
from limbeck.data.text.alignment import Aligner
from limbeck.data.text.readers import persuasion
from limbeck.data.text.token_bytes import TokenBytes, token_map
from limbeck.errors import DataError
from limbeck.functional.spans import common_spans

KINDS = ("bytes", "byte_level", "unigram", "byte_fallback")


def _backend(kind: str):
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    text = persuasion(split="train").examples[0].text[:20_000]
    if kind == "byte_level":
        made = Backend(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        letters = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=["<end>"], initial_alphabet=letters, show_progress=False
        )
        made.train_from_iterator([text], trainer)
        return made
    if kind == "unigram":
        made = Backend(models.Unigram())
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=300, special_tokens=["<s>", "<end>", "<unk>"], unk_token="<unk>", show_progress=False
        )
        made.train_from_iterator([text], trainer)
        return made
    # As Llama 2 has it: a normaliser puts a space before the text, and bytes stand in for unknown characters.
    made = Backend(models.BPE(unk_token="<unk>", byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "<end>"], max_token_length=8, show_progress=False
    )
    made.train_from_iterator(text.splitlines(), trainer)
    plain = json.loads(made.to_str())
    for number in range(256):
        plain["model"]["vocab"][f"<0x{number:02X}>"] = len(plain["model"]["vocab"])
    return Backend.from_str(json.dumps(plain))


@functools.cache
def tokens(kind: str) -> TokenBytes:
    """A tokenizer of every family, trained on the novel."""
    if kind == "bytes":
        return TokenBytes(load_tokenizer("bytes"))
    import transformers

    special = {} if kind == "byte_level" else {"unk_token": "<unk>", "bos_token": "<s>"}
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=_backend(kind), eos_token="<end>", **special)
    return TokenBytes(Tokenizer(made, kind))


def slow_spans(first: list[int], second: list[int]) -> tuple[list[int], list[int]]:
    """The oracle: walks along the text and closes a span wherever both sides have come to the same byte."""
    shared = [byte for byte in range(1, max([0, *first, *second]) + 1) if byte in first and byte in second]

    def side(ends: list[int]) -> list[int]:
        found = []
        for place in range(len(ends)):
            reached = ends[place - 1] if place else 0
            later = [end for end in ends[place:] if end > reached]
            goal = later[0] if later else ends[place]
            found.append(next((n for n, byte in enumerate(shared) if byte >= goal), -1))
        return found

    return side(first), side(second)


@settings(deadline=None)
@given(*[st.lists(st.integers(0, 3), max_size=8)] * 2)
def test_spans_are_those_of_the_oracle(first: list[int], second: list[int]) -> None:
    ends = [np.cumsum(widths, dtype=np.int64) for widths in (first, second)]
    found = common_spans(*ends)
    assert (found.first.tolist(), found.second.tolist()) == slow_spans(*[e.tolist() for e in ends])


def test_ends_that_decrease_are_refused() -> None:
    with pytest.raises(ValueError, match="never decrease"):
        common_spans(np.array([2, 1]), np.array([2]))


def _said(side: TokenBytes, ids: np.ndarray, chosen: np.ndarray) -> bytes:
    return b"".join(side.pieces[i] or b"" for i in ids[chosen])


@pytest.mark.parametrize("teacher", KINDS)
@pytest.mark.parametrize("student", KINDS)
@settings(max_examples=25, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\u2581"), min_size=1, max_size=24))
@example(text=" Anne  Elliot, née 漢字 \U0001f642\U0001f3fd\n\t was")
@example(text="\u0301 e\u0301 ﬁ\r\n")
def test_every_span_says_the_same_bytes_on_both_sides(student: str, teacher: str, text: str) -> None:
    ours, theirs = tokens(student), tokens(teacher)
    ids = np.array([*ours.tokenizer.encode(text), ours.tokenizer.eos_id])
    found = Aligner(ours, theirs).align(ids, np.ones(len(ids), bool))
    others, spans = np.array(found.teacher_ids), np.array(found.teacher_spans)
    for number in range(found.count):
        mine, other = (_said(ours, ids, found.spans == number), _said(theirs, others, spans == number))
        assert mine == other
        assert (found.spans == number).any()
        assert (spans == number).any()
    assert found.spans[0] == -1  # nothing predicts the first token
    assert spans[0] == -1
    assert found.spans[-1] >= 0 or len(others) == 1  # the ends correspond
    if student == teacher and "bytes" in student.replace("byte_level", "bytes"):
        assert (found.spans[1:] >= 0).all()


def test_characters_that_tokens_divide_are_one_span() -> None:
    ours, theirs = tokens("bytes"), tokens("byte_fallback")
    ids = np.array([*"a漢b".encode(), 256])
    found = Aligner(ours, theirs).align(ids, np.ones(5 + 1, bool))
    assert found.spans.tolist() == [-1, 0, 1, 2, 3, 4]  # the fallback cuts it into the same bytes
    assert len(found.teacher_ids) == 6
    unigram = Aligner(ours, tokens("unigram")).align(ids, np.ones(6, bool))
    assert unigram.spans[1:4].tolist() == [-1, -1, -1]  # a token for what it does not know stands for no bytes


@pytest.mark.parametrize("teacher", ["byte_level", "byte_fallback"])
def test_bytes_that_are_no_text_are_not_compared(teacher: str) -> None:
    said = b"\x82 Anne \xf0\x9f was \xe6"
    ids = np.array([*said, 256])
    found = Aligner(tokens("bytes"), tokens(teacher)).align(ids, np.ones(len(ids), bool))
    compared = bytes(int(i) for i, span in zip(ids[:-1], found.spans) if span >= 0)
    assert b"nn" in compared  # the teacher's first token is predicted by nothing
    assert b"wa" in compared
    assert not set(compared) & {0x82, 0xF0, 0x9F, 0xE6}


def test_a_normaliser_that_changes_text_is_never_compared() -> None:
    import transformers
    from tokenizers import normalizers

    made = _backend("byte_level")
    made.normalizer = normalizers.Lowercase()
    lower = TokenBytes(
        Tokenizer(transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>"), "lower")
    )
    text = "of Anne and Kellynch"
    ids = np.array([*text.encode(), 256])
    found = Aligner(tokens("bytes"), lower).align(ids, np.ones(len(ids), bool))
    compared = bytes(int(i) for i, span in zip(ids[:-1], found.spans) if span >= 0)
    assert b" and" in compared
    assert b"A" not in compared
    assert b"K" not in compared


def test_words_without_their_spaces_are_refused() -> None:
    import transformers
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    made = Backend(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2, "[SEP]": 3}, unk_token="[UNK]"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    words = transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", eos_token="[SEP]")
    with pytest.raises(DataError, match="do not say which bytes"):
        TokenBytes(Tokenizer(words, "words"))


def test_what_is_given_is_not_compared() -> None:
    ours, theirs = tokens("bytes"), tokens("byte_level")
    ids = np.array([*b"2 + 2 =", *b" four", 256])
    learn = np.arange(len(ids)) >= 7
    found = Aligner(ours, theirs).align(ids, learn)
    assert (found.spans[:7] == -1).all()
    assert (found.spans[7:] >= 0).all()
    learnt = np.array(found.teacher_ids)[np.array(found.teacher_learn)]
    assert _said(theirs, learnt, np.ones(len(learnt), bool)) == b" four"


def test_a_conversation_is_written_in_the_teachers_template() -> None:
    ours, theirs = tokens("byte_level"), tokens("bytes")
    ours.tokenizer.backend.chat_template = CHATML
    theirs.tokenizer.backend.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% if m['role'] == 'assistant' %}<|end|>{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    try:
        chat = Chat((("user", "Who is she?"), ("assistant", "Anne Elliot.")))
        mine = encode_example(chat, ours.tokenizer)
        found = Aligner(ours, theirs).align(mine.ids, mine.learn, chat=chat)
        assert bytes(found.teacher_ids[:6]) == b"[user]"
        spoken = b"".join(_said(ours, mine.ids, found.spans == n) for n in range(found.count))
        assert spoken.startswith(b"Anne Elliot.")
        sampled = np.array([*mine.ids[: mine.prompt], *ours.tokenizer.encode("Lady Russell"), ours.tokenizer.eos_id])
        own = Aligner(ours, theirs).align(sampled, np.arange(len(sampled)) >= mine.prompt, chat=chat, sampled=True)
        assert bytes(own.teacher_ids[:-1]).endswith(b"[assistant] Lady Russell")
        assert own.teacher_ids[-1] == 256
        assert own.spans[-1] >= 0
    finally:
        ours.tokenizer.backend.chat_template = theirs.tokenizer.backend.chat_template = None


def test_what_the_teacher_cannot_read_is_not_compared() -> None:
    ids = np.array([*b"Captain Wentworth", 256])
    found = Aligner(tokens("bytes"), tokens("bytes"), limit=5).align(ids, np.ones(len(ids), bool))
    assert len(found.teacher_ids) == 6
    assert (found.spans >= 0).sum() == 5


def test_tokens_are_mapped_by_their_bytes_and_none_twice() -> None:
    ours, theirs = tokens("byte_level"), tokens("byte_fallback")
    found = token_map(ours, theirs)
    partners = found[found >= 0]
    assert len(set(partners.tolist())) == len(partners)
    for other, mine in enumerate(found.tolist()):
        if mine >= 0 and other != theirs.tokenizer.eos_id:
            assert ours.pieces[mine] == theirs.pieces[other]
    assert found[theirs.tokenizer.eos_id] == ours.tokenizer.eos_id
    space = theirs.tokenizer.backend.convert_tokens_to_ids("\u2581")
    assert ours.pieces[found[space]] == b" "
