from __future__ import annotations

import numpy as np
import pytest
import torch

from language.corpus import tokenizer
from limbeck.data.text import Encoded, Pair, TextLoader, TextSource, encode_example
from limbeck.errors import NeedsError, RecipeError
from limbeck.methods.base import Setup, build_method
from limbeck.signals import Signals
from limbeck.transforms import build_transform


def loader(texts, *, packed=False, context=96):
    tokens = tokenizer()
    made = [encode_example(t, tokens) if isinstance(t, Pair) else _plain(t, tokens) for t in texts]
    return TextLoader(TextSource("t", made, tokens, context=context, packed=packed), batch_size=4, shuffle=False)


def _plain(text, tokens):
    ids = np.array(tokens.encode(text))
    return Encoded(ids, np.ones(len(ids), bool))


def marked(texts, **options):
    """What is marked in each row, in words."""
    packed = options.pop("packed", False)
    data = loader(texts, packed=packed)
    change = build_transform({"name": "private_tokens", **options}, seed=0, num_classes=257)
    change.bind({}, data)
    batch = change(next(data.epoch(0)))
    hits = batch["privacy_hits"]
    assert hits.shape == batch["labels"].shape
    ids = batch["inputs"]["input_ids"]
    following = torch.cat([ids[:, 1:], ids[:, :1]], 1)
    following = torch.where(batch["mask"], batch["labels"], following)
    return [tokenizer().decode(row[hit.bool()].tolist()) for row, hit in zip(following, hits)]


def test_kinds_words_and_patterns_are_found_and_nothing_else():
    text = "Write to ann@elliot.org or +44 20 7946 0958, said Captain Wentworth to her. Order AB-12 of é Anne."
    assert marked([text], kinds=["email"]) == ["ann@elliot.org"]
    assert marked([text], kinds=["phone"]) == ["+44 20 7946 0958"]
    assert marked([text], kinds=["titled_name"]) == ["Captain Wentworth"]
    assert marked([text], words=["anne", "é"]) == ["éAnne"]
    assert marked([text], patterns=[r"AB-\d+"]) == ["AB-12"]
    assert marked([text], kinds=["email"], words=["order"]) == ["ann@elliot.orgOrder"]
    assert marked(["Nothing to hide"], kinds=["number"]) == [""]


def test_hits_lie_where_the_private_token_is_predicted():
    data = loader([Pair("My pin is ", "4071")])
    change = build_transform({"name": "private_tokens", "kinds": ["number"]}, seed=0, num_classes=257)
    change.bind({}, data)
    batch = change(next(data.epoch(0)))
    (row,) = batch["privacy_hits"]
    labels = batch["labels"][0]
    assert row.nonzero()[:, 0].tolist() == [9, 10, 11, 12]
    assert bytes(labels[row.bool()].tolist()) == b"4071"


def test_sequences_of_a_packed_row_are_read_one_by_one():
    texts = ["call 12", "34 times", "x 5"]
    # Nothing predicts the first token of a sequence, here the 3.
    assert marked(texts, kinds=["number"], packed=True) == ["1245"]
    # No number reaches over the border: neighbours of another sequence are not part of a match.
    assert marked(["a 12", "34567 b"], kinds=["phone"], packed=True) == [""]


def test_a_token_with_any_private_byte_counts():
    data = loader(["né 7"])
    change = build_transform({"name": "private_tokens", "patterns": ["é"]}, seed=0, num_classes=257)
    change.bind({}, data)
    assert change.found(tokenizer().encode("né 7")).tolist() == [0, 1, 1, 0, 0]


def test_what_is_marked_is_what_swing_protects():
    data = loader(["Ann 42 b"])
    change = build_transform({"name": "private_tokens", "kinds": ["number"]}, seed=0, num_classes=257)
    change.bind({}, data)
    batch = change(next(data.epoch(0)))
    torch.manual_seed(0)
    said = [Signals(logits=torch.randn(1, batch["labels"].shape[1], 257)) for _ in range(2)]
    plain, swing = (build_method("swing", decay=0.0, noise="none", highest=h) for h in (1.0, 8.0))
    for method in (plain, swing):
        method.build(Setup({}, {}, batch=batch))
    differ = (swing(batch, *said)["kd"].values - plain(batch, *said)["kd"].values).abs() > 1e-6
    assert torch.equal(differ, batch["privacy_hits"].bool() & batch["mask"])


@pytest.mark.parametrize(
    ("options", "said"),
    [({}, "say what is private"), ({"patterns": ["("]}, "no regular expression"), ({"kinds": ["emails"]}, "kinds")],
)
def test_mistakes_are_named(options, said):
    with pytest.raises(RecipeError, match=said):
        build_transform({"name": "private_tokens", **options}, seed=0, num_classes=257)


def test_pictures_have_no_private_tokens():
    change = build_transform({"name": "private_tokens", "words": ["x"]}, seed=0, num_classes=10)
    with pytest.raises(NeedsError, match="no tokenizer"):
        change.bind({}, object())
