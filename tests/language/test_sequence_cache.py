from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch

from language.corpus import loader, sequences, source, tiny, tokenizer
from limbeck.cli import main
from limbeck.data.text import TextLoader, TextSource
from limbeck.errors import CacheError
from limbeck.tasks.causal_lm import CausalLM
from limbeck.teachers.cache.codecs.gaps import pack_counts, unpack_counts
from limbeck.teachers.cache.header import UNSIGNED, sealed
from limbeck.teachers.cache.sequences import (
    CachedSequences,
    build_sequence_codec,
    describe_sequences,
    verify_sequences,
    write_sequences,
)
from limbeck.teachers.cache.sequences.header import entries_path, shard_path
from limbeck.teachers.cache.sequences.inspection import bytes_per_token
from limbeck.teachers.live import FrozenTeacher

CODECS = ["topk", "full", "hidden", "sampled"]
EITHER = frozenset({"hidden|logits"})


def teacher(model=None, wanted=EITHER):
    return FrozenTeacher("teacher", model or tiny(3), CausalLM(vocabulary=257), wanted=wanted)


def write(folder, codec="topk", **options):
    settings = {"source": source(), "teacher": teacher(), "tokens_per_shard": 12, "batch_size": 2, **options}
    return write_sequences(folder, codec=codec, **settings)


def exact(data, batch):
    return teacher()(batch).hidden.logits().log_softmax(-1)[batch["mask"]]


@pytest.mark.parametrize("packed", [False, True])
def test_cached_and_live_signals_agree_whatever_the_packing_and_the_order(tmp_path, packed):
    for codec in ({"name": "topk", "k": 257}, {"name": "full", "dtype": "float32"}, "hidden"):
        folder = tmp_path / str(codec)
        write(folder, codec)
        rows = TextLoader(source(packed=packed), batch_size=2, seed=5)
        cached = CachedSequences(folder, rows, teacher=tiny(3))
        for batch in rows.epoch(1):
            said = cached(batch)
            live = exact(source(), batch)
            if said.topk is not None:
                found = said.topk.dense()[batch["mask"]]
            else:
                logits = said.logits if said.logits is not None else said.hidden.logits()
                found = logits.log_softmax(-1)[batch["mask"]]
            assert (found.exp() - live.exp()).abs().max() < 3e-3


def test_the_tail_is_exact_and_logits_come_back(tmp_path):
    write(tmp_path / "c", {"name": "topk", "k": 8})
    batch = next(loader().epoch(0))
    said = CachedSequences(tmp_path / "c", loader())(batch).topk
    live = teacher()(batch).hidden.logits()
    log_p = live.log_softmax(-1)
    listed = log_p.gather(-1, said.indices)[batch["mask"]]
    torch.testing.assert_close(said.logprobs[batch["mask"]], listed, rtol=2e-3, atol=2e-3)
    rest = torch.log1p(-listed.exp().sum(-1))
    torch.testing.assert_close(said.tail[batch["mask"]], rest, rtol=5e-3, atol=5e-3)
    lse = live.logsumexp(-1)[batch["mask"]]
    torch.testing.assert_close(said.logsumexp[batch["mask"]], lse, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("independent", [True, False])
def test_drawn_targets_average_to_the_distribution(independent):
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(0)) * 2
    codec = build_sequence_codec({"name": "sampled", "draws": 50, "independent": independent, "temperature": 1.5})
    count = 2000
    rows = codec.encode(logits.expand(count, 40), np.arange(count, dtype=np.uint64))
    found = codec.decode(rows, 40, None).sampled
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(count))
    mean = found.dense().mean(0)
    p = (logits[0] / 1.5).softmax(-1)
    spread = (p * (1 - p) / (50 * count)).sqrt()
    assert ((mean - p).abs() < 5 * spread + 1e-6).all()
    if not independent:
        # A comb draws every token as often as its share, rounded down or up: far less spread.
        assert ((found.dense() * 50 - 50 * p).abs() < 1 + 1e-3).all()


def test_draws_are_packed_without_loss_in_fewer_bytes_than_their_ids():
    numbers = np.random.default_rng(0)
    for classes in (300, 49_152, 200_064):
        drawn = np.minimum((numbers.pareto(0.6, (400, 50)) * 3).astype(np.int64), classes - 1)
        drawn[0], drawn[1] = np.arange(50) * (classes // 50), classes - 1
        rows = [np.unique(row, return_counts=True) for row in drawn]
        ids, counts = (np.concatenate(parts) for parts in zip(*rows))
        classes_of = np.array([len(found) for found, _ in rows])
        packed, lengths = pack_counts(ids, counts, classes_of)
        again = unpack_counts(packed, lengths, 50)
        assert all(np.array_equal(a, b) for a, b in zip(again, (ids, counts, classes_of)))
        assert lengths.max() < 256
        if classes > 300:
            # Sixteen bits of an id and six of a count are what a plain list would take.
            assert len(packed) < 14 / 8 * len(ids)
    with pytest.raises(ValueError, match="sum"):
        unpack_counts(packed, lengths, 49)


def test_draws_that_were_packed_in_another_way_are_refused(tmp_path):
    header = write(tmp_path / "c", "sampled")
    assert header.revision == 2
    older = header.model_copy(update={"revision": 1, "limbeck": "0.0.9"})
    (tmp_path / "c" / "cache.json").write_bytes(sealed(older))
    with pytest.raises(CacheError, match=r"by limbeck 0\.0\.9 with revision 1 of the codec 'sampled'.*write the cache"):
        CachedSequences(tmp_path / "c", loader())
    with pytest.raises(CacheError, match="another revision of the codec: it holds 1, now asked for is 2"):
        write(tmp_path / "c", "sampled")
    # A header of before there were revisions has none, and the other codecs pack as they did.
    before = write(tmp_path / "d", "topk").model_dump(exclude={"revision"})
    text = json.dumps({**before, "checksum": UNSIGNED}, indent=1).encode()
    digest = hashlib.blake2b(text, digest_size=16).hexdigest()
    (tmp_path / "d" / "cache.json").write_bytes(text.replace(UNSIGNED.encode(), digest.encode()))
    CachedSequences(tmp_path / "d", loader())


def test_draws_that_take_too_many_bytes_are_refused():
    codec = build_sequence_codec({"name": "sampled", "draws": 127})
    with pytest.raises(CacheError, match="at most 255 can be told; lower draws"):
        codec.encode(torch.zeros(1, 4_000_000), np.zeros(1, np.uint64))


@pytest.mark.parametrize("codec", CODECS)
def test_interrupted_writing_continues_and_ends_with_the_same_bytes(tmp_path, codec):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = {"name": codec, "k": 8} if codec == "topk" else codec
    write(whole, options)

    class KilledError(Exception):
        pass

    calls = []

    def kill(done, total):
        calls.append(done)
        if len(calls) == 3:
            raise KilledError

    with pytest.raises(KilledError):
        write(broken, options, progress=kill)
    with pytest.raises(CacheError, match="unfinished"):
        CachedSequences(broken, loader())
    write(broken, options)
    files = {p.relative_to(whole) for p in whole.rglob("*") if p.is_file()}
    assert files == {p.relative_to(broken) for p in broken.rglob("*") if p.is_file()}
    assert all((whole / f).read_bytes() == (broken / f).read_bytes() for f in files)
    assert verify_sequences(broken) == sum(s.targets for s in sequences())


@pytest.mark.parametrize("codec", ["topk", "sampled"])
def test_a_broken_shard_is_refused_named_and_repaired(tmp_path, codec):
    folder = tmp_path / "c"
    write(folder, codec)
    path = shard_path(folder, 1) if codec == "topk" else entries_path(folder, 1)
    before = path.read_bytes()
    path.write_bytes(before[:-300] + bytes(b ^ 255 for b in before[-300:]))
    with pytest.raises(CacheError, match=path.name):
        verify_sequences(folder)
    with pytest.raises(CacheError, match=path.name):
        CachedSequences(folder, loader())(next(loader().epoch(0)))
    with pytest.raises(SystemExit, match="2"):
        main(["verify", str(folder)])
    write(folder, codec)
    assert path.read_bytes() == before
    with pytest.raises(SystemExit, match="0"):
        main(["verify", str(folder)])


def test_a_cache_of_another_tokenizer_template_teacher_or_text_is_refused(tmp_path):
    """Row 24: rows are found by content, never by position."""
    folder = tmp_path / "c"
    write(folder)
    chat = TextSource("random", sequences(6), tokenizer("{{ messages }}"), context=32)
    with pytest.raises(CacheError, match="chat template"):
        CachedSequences(folder, TextLoader(chat, batch_size=2))
    other = tokenizer()
    other.backend.add_tokens(["<extra>"])
    with pytest.raises(CacheError, match="another tokenizer"):
        CachedSequences(folder, TextLoader(TextSource("r", sequences(6), other, context=32), batch_size=2))
    with pytest.raises(CacheError, match="another teacher"):
        CachedSequences(folder, loader(), teacher=tiny(4))
    with pytest.raises(CacheError, match="lacks 6 of the 6 sequences"):
        CachedSequences(folder, loader(seed=9))
    with pytest.raises(CacheError, match="another codec"):
        write(folder, "hidden")
    with pytest.raises(CacheError, match="another teacher"):
        write(folder, teacher=teacher(tiny(4)))


def test_a_changed_batch_is_not_answered_from_the_cache(tmp_path):
    write(tmp_path / "c")
    batch = next(loader().epoch(0))
    place = batch["mask"].nonzero()[0]
    batch["labels"][place[0], place[1]] += 1
    with pytest.raises(CacheError, match="changed the text"):
        CachedSequences(tmp_path / "c", loader())(batch)


def test_equal_sequences_are_stored_once(tmp_path):
    twice = TextSource("twice", sequences(3) * 2, tokenizer(), context=32)
    header = write(tmp_path / "c", source=twice)
    assert header.sequences == 3
    rows = TextLoader(twice, batch_size=6, shuffle=False)
    said = CachedSequences(tmp_path / "c", rows)(next(rows.epoch(0))).topk
    assert torch.equal(said.logprobs[:3], said.logprobs[3:])


def test_a_teacher_that_says_nan_is_refused_with_the_text(tmp_path):
    model = tiny(3)
    with torch.no_grad():
        model.lm_head.weight[5] = torch.nan
    with pytest.raises(CacheError, match="NaN"):
        write(tmp_path / "c", teacher=teacher(model))


def test_the_description_tells_bytes_a_token(tmp_path):
    write(tmp_path / "c", {"name": "topk", "k": 8})
    said = describe_sequences(tmp_path / "c")
    assert f"{bytes_per_token(tmp_path / 'c'):.1f} bytes a token" in said
    # Eight half-precision numbers, eight ids of nine bits, the tail and the logsumexp; checksums come on top.
    assert bytes_per_token(tmp_path / "c") > 2 * 8 + 9 + 2 + 4
