from __future__ import annotations

import numpy as np
import pytest
import torch

from limbeck.errors import DataError
from limbeck.signals import Batch
from limbeck.transforms import build_transform
from limbeck.transforms.pair_mixing import PairMix, PairMixing, draw_pair_mix, mix_pairs


def _batch(index: list[int], epoch: int = 0) -> Batch:
    numbers = torch.tensor(index)
    inputs = numbers.float().view(-1, 1, 1, 1).expand(-1, 1, 8, 8).clone()
    return Batch(inputs=inputs, labels=numbers % 3, index=numbers, epoch=epoch)


def _built(**options: object) -> PairMixing:
    built = build_transform({"name": "pair_mix", **options}, seed=5, num_classes=3)
    assert isinstance(built, PairMixing)
    return built


def test_a_pair_is_mixed_the_same_whatever_else_is_in_its_batch() -> None:
    change = _built()
    whole = change(_batch([4, 9, 1, 7, 3, 8]))
    parts = [change(_batch(pair)) for pair in ([4, 9], [1, 7], [3, 8])]
    assert torch.equal(whole["inputs"], torch.cat([p["inputs"] for p in parts]))
    torch.testing.assert_close(whole["labels"], torch.cat([p["labels"] for p in parts]))
    assert not torch.equal(change(_batch([4, 9], epoch=1))["inputs"], parts[0]["inputs"])


def test_labels_are_mixed_by_the_share_of_the_pixels() -> None:
    batch = _built()(_batch(list(range(40))))
    for i in range(0, 40, 2):
        own = torch.zeros(3)
        share = float((batch["inputs"][i].mean() - (i + 1)) / (i - (i + 1)))
        own[i % 3], own[(i + 1) % 3] = share, 1 - share
        torch.testing.assert_close(batch["labels"][i], own, atol=1e-4, rtol=0)
        torch.testing.assert_close(batch["inputs"][i].mean() + batch["inputs"][i + 1].mean(), torch.tensor(2.0 * i + 1))


def test_the_last_of_an_odd_batch_and_unlucky_pairs_stay() -> None:
    odd = _built()(_batch([1, 2, 3]))
    assert torch.equal(odd["inputs"][2], _batch([3])["inputs"][0])
    assert odd["labels"][2].tolist() == [1, 0, 0]
    same = _built(p=0.0)(_batch([1, 2]))
    assert torch.equal(same["inputs"], _batch([1, 2])["inputs"])


def test_the_order_of_the_two_seeds_does_not_matter() -> None:
    for seed in range(20):
        draws = [draw_pair_mix(*pair, (9, 7), mixup_alpha=0.8, cutmix_alpha=1.0) for pair in ((seed, 77), (77, seed))]
        assert draws[0] == draws[1]


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_either_kind_alone(mixup: float, cutmix: float) -> None:
    draws = [draw_pair_mix(s, 3, (16, 16), mixup_alpha=mixup, cutmix_alpha=cutmix) for s in range(200)]
    assert all((d.box is not None) == (cutmix > 0) for d in draws)
    shares = np.asarray([d.share for d in draws])
    if mixup or cutmix:
        assert abs(shares.mean() - 0.5) < 0.08
    else:
        assert (shares == 1).all()


def test_a_rectangle_is_exchanged() -> None:
    pair = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    mixed = PairMix(0.5, (1, 3, 0, 2)).apply(pair)
    assert mixed[0].sum() == 4
    assert torch.equal(mixed[0] + mixed[1], torch.ones(1, 4, 4))
    assert PairMix(0.5, (1, 3, 0, 2)).kept((4, 4)) == 0.75
    assert torch.equal(mix_pairs(pair, []), pair)


def test_vectors_are_refused() -> None:
    with pytest.raises(DataError, match="images"):
        _built()(Batch(inputs=torch.zeros(2, 5), labels=torch.zeros(2).long(), index=torch.arange(2)))
