"""Partial mixup: which samples stay, how the others are blended, and what the method makes of the logits."""

from __future__ import annotations

import pytest
import torch

from limbeck.errors import DataError
from limbeck.functional import cross_entropy, kl
from limbeck.methods.base import build_method
from limbeck.signals import Batch, Signals, as_term
from limbeck.transforms import build_transform

CLASSES, ROWS = 4, 40


def batch_of(rows: int = ROWS, first: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(first)
    images = torch.rand(rows, 1, 4, 4, generator=generator)
    return Batch(
        inputs=images, teacher_inputs=2 * images, views={"strong": images + 1},
        labels=torch.arange(rows) % CLASSES, index=torch.arange(first, first + rows), epoch=3,
    )  # fmt: skip


def mixed(batch: Batch, seed: int = 0, **options) -> Batch:
    return build_transform({"name": "partial_mixup", **options}, seed=seed, num_classes=CLASSES)(batch)


def untouched(batch: Batch, found: Batch) -> int:
    return int((found["inputs"] == batch["inputs"]).flatten(1).all(1).sum())


@pytest.mark.parametrize("unmixed", [0.0, 0.5, 0.9, 1.0])
def test_exactly_the_stated_part_of_a_batch_stays_as_it_is(unmixed: float) -> None:
    batch = batch_of()
    found = mixed(batch, unmixed=unmixed)
    # A sample may be its own partner.
    assert int(ROWS * unmixed) <= untouched(batch, found) <= int(ROWS * unmixed) + 3
    torch.testing.assert_close(found["labels"].sum(1), torch.ones(ROWS))


def test_drawing_with_replacement_leaves_fewer() -> None:
    kept = [untouched(b, mixed(b, with_replacement=True)) / ROWS for b in (batch_of(first=ROWS * n) for n in range(30))]
    assert sum(kept) / len(kept) == pytest.approx(1 - (1 - 1 / ROWS) ** (0.9 * ROWS), abs=0.04)


def test_inputs_views_and_labels_are_blended_with_one_share_a_sample() -> None:
    batch = batch_of()
    found = mixed(batch, unmixed=0.0)
    targets = torch.nn.functional.one_hot(batch["labels"], CLASSES).float()
    shares = set()
    for i in range(ROWS):
        for j in range(ROWS):
            direction = batch["inputs"][i] - batch["inputs"][j]
            share = float(((found["inputs"][i] - batch["inputs"][j]) * direction).sum() / direction.square().sum())
            explained = share * batch["inputs"][i] + (1 - share) * batch["inputs"][j]
            if i != j and torch.allclose(explained, found["inputs"][i], atol=1e-5):
                torch.testing.assert_close(
                    found["labels"][i], share * targets[i] + (1 - share) * targets[j], atol=1e-4, rtol=0
                )
                shares.add(round(share, 4))
                break
    assert len(shares) > ROWS * 0.8
    torch.testing.assert_close(found["teacher_inputs"], 2 * found["inputs"])
    torch.testing.assert_close(found["views"]["strong"], found["inputs"] + 1)


def test_randomness_depends_on_seed_epoch_and_samples_alone() -> None:
    first = mixed(batch_of(), unmixed=0.5)["inputs"]
    torch.manual_seed(9)
    assert torch.equal(mixed(batch_of(), unmixed=0.5)["inputs"], first)
    assert not torch.equal(mixed(batch_of(), seed=1, unmixed=0.5)["inputs"], first)
    assert not torch.equal(mixed(Batch(batch_of(), epoch=4), unmixed=0.5)["inputs"], first)


def test_without_labels_it_is_refused() -> None:
    with pytest.raises(DataError, match="mixes labels"):
        mixed(Batch((k, v) for k, v in batch_of().items() if k != "labels"))


def terms(student: torch.Tensor, teacher: torch.Tensor) -> dict[str, torch.Tensor]:
    method = build_method("mix_kd")
    batch = Batch(labels=torch.arange(len(student)) % student.shape[1], index=torch.arange(len(student)))
    found = method(batch, student=Signals(logits=student), teacher=Signals(logits=teacher))
    return {name: as_term(term).values for name, term in found.items()}


def test_the_loss_knows_neither_scale_nor_shift_of_the_logits() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 6, CLASSES).double()
    plain = terms(student, teacher)
    for changed in (terms(7 * student + 3, teacher), terms(student, 0.01 * teacher - 5)):
        for name, values in changed.items():
            torch.testing.assert_close(values, plain[name])


def test_against_the_definition_and_the_gradient_is_orthogonal_to_the_centred_logits() -> None:
    torch.manual_seed(1)
    student, teacher = torch.randn(2, 6, CLASSES).double()
    student.requires_grad_()
    found = terms(student, teacher)
    scaled = student / student.std(1, keepdim=True)
    labels = torch.arange(6) % CLASSES
    torch.testing.assert_close(found["ce"], cross_entropy(scaled, labels, reduction="none"))
    expected = kl(scaled, teacher / teacher.std(1, keepdim=True), reduction="none")
    torch.testing.assert_close(found["kd"], expected)
    (gradient,) = torch.autograd.grad((found["ce"] + found["kd"]).sum(), student)
    centred = student - student.mean(1, keepdim=True)
    torch.testing.assert_close((gradient * centred).sum(1), torch.zeros(6).double())
