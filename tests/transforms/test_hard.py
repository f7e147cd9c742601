"""The learnt augmentor: what it trains, what it leaves alone, its phases and its state."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from limbeck import distill
from limbeck.errors import NeedsError, RecipeError, UnknownNameError
from limbeck.functional.affine_warp import reparameterised, warp, warp_matrices
from limbeck.signals import Batch
from limbeck.tasks.classification import Classification
from limbeck.teachers.live import FrozenTeacher
from limbeck.teachers.provider import Observer
from limbeck.transforms import build_transform
from limbeck.transforms.hard import HardAugmentation
from limbeck.transforms.hard_mix import OPERATIONS, HardMix, mixed_operations
from limbeck.transforms.hard_vae import HardVAE
from limbeck.transforms.learnt_augmentation import LearntAugmentation, augmentor_is_next, augmentor_loss
from methods.networks import CHANNELS, CLASSES, SIZE, large_teacher, small_student


def batch_of(rows: int = 8, epoch: int = 0) -> Batch:
    images = torch.rand(rows, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    return Batch(inputs=images, labels=torch.arange(rows) % CLASSES, index=torch.arange(rows), epoch=epoch)


def augmentor(student=None, teacher=None, *, differentiable: bool = True, **options) -> HardAugmentation:
    made = build_transform({"name": "hard", **options}, seed=0, num_classes=CLASSES)
    assert isinstance(made, HardAugmentation)
    task = Classification()
    made.bind(
        {
            "student": Observer("student", student or small_student(batch_norm=True), task),
            "teacher": FrozenTeacher(
                "teacher", teacher or large_teacher(batch_norm=True), task, differentiable=differentiable
            ),
        }
    )
    return made


def test_no_noise_and_no_shift_leave_the_image_as_it_is() -> None:
    images = batch_of()["inputs"]
    still = reparameterised(torch.zeros(5), torch.full((5,), -80.0), torch.randn(len(images), 5))
    torch.testing.assert_close(warp(images, warp_matrices(still)), images, atol=1e-5, rtol=0)


def test_warps_move_and_turn_as_they_say() -> None:
    image = torch.zeros(1, 1, 6, 6)
    image[0, 0, 2, 4] = 1.0
    shifted = warp(image, warp_matrices(torch.tensor([[0.0, 2 / 6, 0.0, 0.0, 0.0]])))
    assert shifted[0, 0, 2, 3].item() == pytest.approx(1, abs=1e-5)
    turned = warp(image, warp_matrices(torch.tensor([[torch.pi / 2, 0, 0, 0, 0]])))
    torch.testing.assert_close(turned[0, 0], image[0, 0].rot90(1), atol=1e-5, rtol=0)
    outside = warp(image, warp_matrices(torch.tensor([[0.0, 4.0, 0.0, 0.0, 0.0]])), outside=-2.0)
    assert (outside == -2).all()


def test_models_stay_as_they_are_and_the_augmentor_learns() -> None:
    student, teacher = small_student(batch_norm=True).train(), large_teacher(batch_norm=True)
    made = augmentor(student, teacher)
    before = copy.deepcopy((student.state_dict(), teacher.state_dict()))
    found = made(batch_of())
    assert not torch.equal(made.mean, torch.zeros(5))
    assert found["hard_inputs"].shape == found["inputs"].shape
    assert not found["hard_inputs"].requires_grad
    assert found["hard_inputs"].min() >= 0
    assert found["hard_inputs"].max() <= 1
    for model, state in zip((student, teacher), before):
        assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())
    assert student.training


def test_steps_of_the_augmentor_raise_what_it_seeks() -> None:
    made = augmentor(lr=1e-3)
    batch = batch_of()
    clean = made.observers["teacher"](batch).logits

    def sought() -> float:
        made.steps = 0  # the same noise before and after
        with torch.no_grad():
            return -float(made._judge(batch, clean)[0])

    made.observers["student"].model.eval()
    before = sought()
    for _ in range(8):
        made.steps = 0
        made._step(batch, clean)
    assert sought() > before


def test_a_student_that_equals_the_teacher_leaves_the_drift_only() -> None:
    torch.manual_seed(0)
    logits, clean = torch.randn(2, 6, 5).double()
    logits.requires_grad_()
    loss, apart, drift = augmentor_loss(logits, logits, clean, temperature=2.0, disagreement=1.0, drift=0.3)
    assert float(apart.detach()) == pytest.approx(0, abs=1e-12)
    assert float(loss.detach()) == pytest.approx(0.3 * float(drift.detach()))
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (alone,) = torch.autograd.grad(0.3 * drift, logits)
    torch.testing.assert_close(gradient, alone)


def test_phases_have_hysteresis() -> None:
    training, seen = True, []
    for disagreement in (0.1, 0.8, 1.2, 0.8, 0.4, 0.2, 0.4, 1.2):
        seen.append(training)
        training = augmentor_is_next(training, disagreement, 0.3, 1.0)
    assert seen == [True, True, True, False, False, False, True, True]


def test_thresholds_let_it_rest() -> None:
    batch = batch_of()
    eager = augmentor(lowest=1e3, highest=1e6)
    eager(batch)
    assert eager.steps == eager.most_steps
    idle = augmentor(lowest=0.0, highest=0.0)
    idle(batch)
    assert idle.steps == 0
    assert not idle.training_augmentor
    with pytest.raises(RecipeError, match="together"):
        augmentor(lowest=1.0)


def test_what_it_learnt_comes_back_with_the_same_bits() -> None:
    first = augmentor()
    first(batch_of())
    second = augmentor()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for epoch in (1, 2):
        assert torch.equal(first(batch_of(epoch=epoch))["hard_inputs"], second(batch_of(epoch=epoch))["hard_inputs"])
    assert torch.equal(first.raw_deviation, second.raw_deviation)


def test_a_teacher_without_gradients_is_refused_with_the_fix() -> None:
    with pytest.raises(NeedsError, match="differentiable: true"):
        augmentor(differentiable=False)(batch_of())


def bound(name: str, **options) -> LearntAugmentation:
    made = build_transform({"name": name, **options}, seed=0, num_classes=CLASSES)
    assert isinstance(made, LearntAugmentation)
    task = Classification()
    models = {
        "student": Observer("student", small_student(batch_norm=True), task),
        "teacher": FrozenTeacher("teacher", large_teacher(batch_norm=True), task, differentiable=True),
    }
    made.bind(models, SimpleNamespace(epoch=lambda epoch: [batch_of(epoch=epoch)]))
    return made


def test_without_magnitudes_or_with_the_image_alone_a_mixture_is_the_image() -> None:
    images, count = batch_of()["inputs"], len(OPERATIONS)
    box = {"low": torch.tensor(0.0), "high": torch.tensor(1.0)}
    some = torch.full((count + 1,), 1 / (count + 1))
    torch.testing.assert_close(mixed_operations(images, torch.zeros(8, count), some, **box), images, atol=1e-5, rtol=0)
    alone = torch.eye(count + 1)[0]
    assert torch.equal(mixed_operations(images, torch.randn(8, count), alone, **box), images)
    brighter = mixed_operations(images, torch.full((8, count), 0.2), torch.eye(count + 1)[count - 1], **box)
    torch.testing.assert_close(brighter, (images + 0.2).clamp(max=1))


@pytest.mark.parametrize(("name", "options"), [("hard_mix", {}), ("hard_vae", {"pretraining_steps": 5})])
def test_every_augmentor_learns_to_make_the_models_disagree(name: str, options: dict) -> None:
    made, batch = bound(name, lr=1e-3, **options), batch_of()
    before = {key: leaf.detach().clone() for key, leaf in made.leaves.items()}
    models = [made.observers[role].model for role in ("student", "teacher")]
    for model in models:
        model.eval()
    state = copy.deepcopy([m.state_dict() for m in models])
    clean = models[1](batch["inputs"]).detach()

    def sought() -> float:
        made.steps = 0  # the same noise before and after
        with torch.no_grad():
            return -float(made._judge(batch, clean)[0])

    at_first = sought()
    for _ in range(8):
        made.steps = 0
        made._step(batch, clean)
    assert sought() > at_first
    assert all(not torch.equal(leaf, before[key]) for key, leaf in made.leaves.items())
    found = made(batch)["hard_inputs"]
    assert not found.requires_grad
    assert found.shape == batch["inputs"].shape
    assert 0 <= found.min() <= found.max() <= 1
    for model, kept in zip(models, state):
        assert all(p.grad is None for p in model.parameters())
        assert all(torch.equal(t, kept[n]) for n, t in model.state_dict().items())
    other = bound(name, **options)
    other.load_state_dict(made.state_dict())
    assert torch.equal(other.augment(batch), made.augment(batch))


def test_the_autoencoder_learns_its_images() -> None:
    short, long = (bound("hard_vae", pretraining_steps=steps) for steps in (1, 120))
    batch = batch_of()
    errors = []
    for made in (short, long):
        assert isinstance(made, HardVAE)
        for raw in made.raw_deviations:
            raw.data.fill_(-60.0)
        errors.append((made.augment(batch) - batch["inputs"]).square().mean().item())
    assert errors[1] < 0.7 * errors[0]
    assert not any(p.requires_grad for p in long.autoencoder.parameters())


def test_shares_prefer_what_the_models_disagree_on() -> None:
    made = bound("hard_mix", lr=0.05, drift=0.0)
    assert isinstance(made, HardMix)
    for _ in range(5):
        made(batch_of())
    shares = torch.softmax(made.preference, 0)
    assert shares.std() > 0
    assert shares.sum().item() == pytest.approx(1)


def test_distill_takes_transforms_and_lets_gradients_through_the_teacher() -> None:
    generator = torch.Generator().manual_seed(0)
    data = torch.rand(32, 1, 8, 8, generator=generator), torch.arange(32) % CLASSES

    def network(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, CLASSES))

    def student(**options: Any) -> torch.Tensor:
        model = network(1)
        distill(network(0), model, data, epochs=2, batch_size=16, lr=0.1, **options)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    plain, mixed = student(), student(transforms=["mixup"])
    assert not torch.equal(plain, mixed)
    assert torch.equal(mixed, student(transforms=[{"name": "mixup"}]))
    assert torch.isfinite(student(method="hard", transforms=["hard"])).all()
    with pytest.raises(UnknownNameError, match="mixup"):
        student(transforms=["mixpu"])
