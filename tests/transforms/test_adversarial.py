"""The transform that attacks the student, in a stage and alone."""

from __future__ import annotations

import copy

import pytest
import torch

from limbeck.data.pixel_scale import PixelScale
from limbeck.engine.roles import Role
from limbeck.engine.settings import TrainSettings
from limbeck.engine.stage import Stage
from limbeck.errors import DataError, NeedsError
from limbeck.functional import cross_entropy, kl
from limbeck.methods.base import build_method
from limbeck.signals import Batch
from limbeck.tasks.classification import Classification
from limbeck.teachers.provider import Observer
from limbeck.transforms import build_transform
from methods.networks import CHANNELS, CLASSES, SIZE, large_teacher, small_student

PLAIN = PixelScale()


def batch_of(rows: int = 8, scale: PixelScale = PLAIN) -> Batch:
    pixels = torch.rand(rows, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    low, high = scale.bounds(pixels)
    return Batch(
        inputs=low + pixels * (high - low), labels=torch.arange(rows) % CLASSES, index=torch.arange(rows), epoch=1
    )


def attack(student, scale: PixelScale = PLAIN, **options):
    made = build_transform({"name": "pgd", "eps": 0.1, "step_size": 0.03, **options}, seed=0, num_classes=CLASSES)
    made.pixel_scale = scale
    made.bind({"student": Observer("student", student, Classification())})
    return made


@pytest.mark.parametrize("start", ["gaussian", "uniform", "inputs"])
@pytest.mark.parametrize("objective", ["labels", "margin", "prediction"])
def test_the_students_loss_grows_and_the_student_stays_as_it_is(start: str, objective: str) -> None:
    student = small_student(batch_norm=True).train()
    student.stages[0][1].eval()
    before = copy.deepcopy(student.state_dict())
    modes = [m.training for m in student.modules()]
    batch = batch_of()
    found = attack(student, start=start, objective=objective, steps=3)(batch)
    assert [m.training for m in student.modules()] == modes
    assert all(torch.equal(t, before[n]) for n, t in student.state_dict().items())
    assert all(p.grad is None for p in student.parameters())
    changed = found["adversarial_inputs"]
    assert ((changed - batch["inputs"]).abs() <= 0.1 + 1e-6).all()
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert torch.equal(found["inputs"], batch["inputs"])
    student.eval()
    with torch.no_grad():
        clean, hard = (cross_entropy(student(x), batch["labels"]) for x in (batch["inputs"], changed))
    if objective == "labels":
        assert hard > clean


def test_the_box_is_in_pixels_whatever_the_normalisation() -> None:
    scale = PixelScale((0.4, 0.5, 0.6)[:CHANNELS], (0.2, 0.25, 0.5)[:CHANNELS])
    batch = batch_of(scale=scale)
    found = attack(small_student(), scale, steps=9)(batch)["adversarial_inputs"]
    std = torch.tensor(scale.std).view(1, -1, 1, 1)
    moved = ((found - batch["inputs"]) * std).abs().amax((0, 2, 3))
    torch.testing.assert_close(moved, torch.full_like(moved, 0.1), atol=1e-5, rtol=0)
    with pytest.raises(DataError, match=r"scale them to \[0, 1\]"):
        attack(small_student())(batch)


def test_noise_depends_on_the_sample_and_not_on_its_batch() -> None:
    student = small_student().eval()
    batch = batch_of()
    whole = attack(student, start="uniform", steps=2)(batch)["adversarial_inputs"]
    part = attack(student, start="uniform", steps=2)(batch.map(lambda t: t[2:5]))["adversarial_inputs"]
    torch.testing.assert_close(part, whole[2:5])


def test_a_role_that_is_not_there_is_named() -> None:
    made = build_transform("pgd", seed=0, num_classes=CLASSES)
    with pytest.raises(NeedsError, match="runs the role 'student'"):
        made.bind({"teacher": lambda batch: None})


class OneBatch:
    """A loader of the same batch."""

    steps_per_epoch = 2

    def epoch(self, epoch: int, start_step: int = 0):
        for _ in range(start_step, 2):
            yield Batch(batch_of(), epoch=epoch)


def stage_of(method: str, **changes) -> Stage:
    return Stage(
        method=build_method(method),
        roles={"student": Role(model=small_student(batch_norm=True))},
        task=Classification(),
        loader=OneBatch(),
        settings=TrainSettings(epochs=3, batch_size=8, lr=0.05),
        num_classes=CLASSES,
        **changes,
    )


@pytest.mark.parametrize("method", ["pgd_at", "trades"])
def test_adversarial_training_makes_the_training_samples_harder_to_attack(method: str) -> None:
    made = build_transform({"name": "pgd", "eps": 0.02, "step_size": 0.01, "steps": 3}, seed=0, num_classes=CLASSES)
    stage = stage_of(method, transforms=[made])
    student = stage.learners["student"]

    def attacked_loss() -> float:
        student.eval()
        with torch.no_grad():
            return float(cross_entropy(student(made(batch_of())["adversarial_inputs"]), batch_of()["labels"]))

    before = attacked_loss()
    stage.run()
    assert attacked_loss() < before


def test_without_the_transform_the_missing_entry_is_named() -> None:
    with pytest.raises(NeedsError, match=r"adversarial_inputs.*transforms: \[pgd\]"):
        stage_of("pgd_at")


def test_the_teachers_soft_labels_can_be_attacked() -> None:
    student, teacher, batch = small_student(1).eval(), large_teacher(2).eval(), batch_of()
    made = build_transform(
        {"name": "pgd", "eps": 0.1, "step_size": 0.03, "steps": 4, "objective": "teacher", "start": "inputs"},
        seed=0, num_classes=CLASSES,
    )  # fmt: skip
    with pytest.raises(NeedsError, match="runs the role 'teacher'"):
        made.bind({"student": Observer("student", student, Classification())})
    made.bind({role: Observer(role, m, Classification()) for role, m in (("student", student), ("teacher", teacher))})
    found = made(batch)["adversarial_inputs"]
    with torch.no_grad():
        soft = teacher(batch["inputs"])
        apart = [kl(student(inputs), soft, reduction="none") for inputs in (batch["inputs"], found)]
    assert (apart[1] > apart[0]).all()
    assert ((found - batch["inputs"]).abs() <= 0.1 + 1e-6).all()
