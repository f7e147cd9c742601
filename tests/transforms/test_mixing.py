"""Mixup and CutMix: the mixing itself, its randomness, and by name."""

import math

import numpy as np
import pytest
import torch

from limbeck.errors import DataError, RecipeError, UnknownNameError
from limbeck.signals import UNLABELLED, Batch
from limbeck.transforms import Transform, build_transform, transforms
from limbeck.transforms.mixing import beta


def batch_of(count=8, first=0, epoch=2, classes=4):
    generator = torch.Generator().manual_seed(first)
    return Batch(
        inputs=torch.rand(count, 3, 8, 6, generator=generator),
        labels=torch.arange(count) % classes,
        index=torch.arange(first, first + count),
        epoch=epoch,
        views={"strong": torch.rand(count, 3, 8, 6, generator=generator)},
        teacher_inputs=torch.rand(count, 3, 16, 12, generator=generator),
    )


def build(name="mixup", seed=0, classes=4, **options):
    return build_transform({"name": name, **options}, seed=seed, num_classes=classes)


def kept_share(batch, mixed):
    """Share of a sample whose label is told apart from its partner's, by its label."""
    own = mixed["labels"][torch.arange(len(batch["labels"])), batch["labels"]]
    return own[own < 1].unique()


def test_mixup_blends_inputs_and_labels_alike():
    batch = batch_of()
    mixed = build(alpha=1.0)(batch)
    (share,) = kept_share(batch, mixed).tolist()
    targets = torch.nn.functional.one_hot(batch["labels"], 4).float()
    # Every sample has exactly one partner that explains its inputs, every view and its label.
    for i in range(8):
        fits = [
            j
            for j in range(8)
            if torch.allclose(
                mixed["inputs"][i], share * batch["inputs"][i] + (1 - share) * batch["inputs"][j], atol=1e-6
            )
        ]
        assert len(fits) == 1
        j = fits[0]
        torch.testing.assert_close(mixed["labels"][i], share * targets[i] + (1 - share) * targets[j])
        larger = batch["teacher_inputs"]
        torch.testing.assert_close(mixed["teacher_inputs"][i], share * larger[i] + (1 - share) * larger[j])
        strong = batch["views"]["strong"]
        torch.testing.assert_close(mixed["views"]["strong"][i], share * strong[i] + (1 - share) * strong[j])


def test_cutmix_pastes_one_rectangle_and_counts_its_area():
    for first in range(0, 80, 8):
        batch = batch_of(first=first)
        mixed = build("cutmix")(batch)
        changed = (mixed["inputs"] != batch["inputs"]).any(1).any(0)
        rows, columns = changed.any(1).sum(), changed.any(0).sum()
        assert int(changed.sum()) == int(rows * columns)
        share = 1 - float(rows * columns) / 48
        own = mixed["labels"][torch.arange(8), batch["labels"]]
        assert float(own.min()) == pytest.approx(share, abs=1e-6)
        torch.testing.assert_close(mixed["labels"].sum(1), torch.ones(8))


def test_the_given_batch_stays_as_it_was():
    batch = batch_of()
    before = batch.map(torch.clone)
    for name in ("mixup", "cutmix"):
        mixed = build(name)(batch)
        assert mixed["epoch"] == 2
        assert torch.equal(mixed["index"], batch["index"])
    assert torch.equal(batch["inputs"], before["inputs"])
    assert torch.equal(batch["labels"], before["labels"])
    assert torch.equal(batch["views"]["strong"], before["views"]["strong"])


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_randomness_depends_on_seed_epoch_and_samples_alone(name):
    transform = build(name, alpha=1.0)
    first = transform(batch_of())
    torch.manual_seed(7)
    assert torch.equal(build(name, alpha=1.0)(batch_of())["inputs"], first["inputs"])
    for other in (build(name, seed=1, alpha=1.0)(batch_of()), transform(batch_of(epoch=3))):
        assert not torch.equal(other["inputs"], first["inputs"])
    shares = {
        float(kept_share(b, transform(b))[0])
        for b in (batch_of(first=n) for n in range(0, 64, 8))
        if len(kept_share(b, transform(b)))
    }
    assert len(shares) > 4
    before = torch.get_rng_state()
    transform(batch_of())
    assert torch.equal(torch.get_rng_state(), before)


def test_probability():
    mixed = [
        not torch.equal(build(p=0.3)(b)["inputs"], b["inputs"]) for b in (batch_of(first=n) for n in range(0, 800, 8))
    ]
    assert 15 < sum(mixed) < 45
    assert torch.equal(build(p=0.0)(batch_of())["labels"].argmax(1), batch_of()["labels"])


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 3.0])
def test_beta_against_scipy(alpha):
    from scipy import stats

    draws = np.array([beta(alpha, 0, f"test/{i}", 0) for i in range(1500)])
    for place in (1e-9, 0.01, 0.1, 0.3, 0.5, 0.9):
        expected = stats.beta(alpha, alpha).cdf(place)
        assert (draws < place).mean() == pytest.approx(
            expected, abs=4 * math.sqrt(expected * (1 - expected) / 1500) + 1e-3
        )
    assert draws.mean() == pytest.approx(0.5, abs=0.05)
    assert draws.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.12)


def test_soft_labels_are_mixed_again():
    batch = batch_of()
    twice = build("cutmix", seed=3)(build()(batch))
    torch.testing.assert_close(twice["labels"].sum(1), torch.ones(8))


def test_every_transform_says_what_it_changes():
    for entry in transforms.entries():
        built = build(entry.name, **({"words": ["Anne"]} if entry.name == "private_tokens" else {}))
        assert isinstance(built, Transform)
        assert built.changes
        assert entry.about["paper"]


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        ("mixpu", UnknownNameError, "Did you mean 'mixup'"),
        ({"name": "mixup", "alhpa": 1}, RecipeError, "transform 'mixup': unknown key 'alhpa'. Did you mean 'alpha'"),
        ({"name": "mixup", "alpha": 0}, RecipeError, "'alpha' = 0"),
        ({"name": "cutmix", "p": 2}, RecipeError, "'p' = 2"),
        ({"name": "mixup", "seed": 2}, RecipeError, "'seed' is set by the run"),
        ({"alpha": 2}, RecipeError, "a transform is written"),
    ],
)
def test_errors_name_cause_and_fix(entry, error, message):
    with pytest.raises(error, match=message):
        build_transform(entry, seed=0, num_classes=4)


def test_what_cannot_be_mixed():
    batch = batch_of()
    unlabelled = Batch({k: v for k, v in batch.items() if k != "labels"})
    with pytest.raises(DataError, match="mixup mixes labels"):
        build()(unlabelled)
    vectors = Batch(inputs=torch.rand(4, 7), labels=torch.arange(4), index=torch.arange(4), epoch=0)
    with pytest.raises(DataError, match="cutmix needs images"):
        build("cutmix")(vectors)
    assert build()(vectors)["inputs"].shape == (4, 7)


@pytest.mark.parametrize("name", ["mixup", "cutmix", "partial_mixup", "pair_mix"])
def test_labels_of_which_some_are_missing_are_not_mixed(name):
    batch = Batch(
        index=torch.arange(4),
        inputs=torch.rand(4, 1, 8, 8),
        labels=torch.tensor([0, UNLABELLED, 2, UNLABELLED]),
        labelled_mask=torch.tensor([True, False, True, False]),
    )
    with pytest.raises(DataError, match=f"{name} mixes labels, but the data is labelled in part"):
        build_transform(name, seed=0, num_classes=3)(batch)
