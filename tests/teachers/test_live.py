from __future__ import annotations

import copy

import pytest
import torch
from teacher_models import Restless
from torch import nn
from torch.nn.functional import mse_loss

from limbeck.errors import TeacherChangedError
from limbeck.signals import Batch
from limbeck.tasks.classification import Classification
from limbeck.teachers.fingerprint import fingerprint
from limbeck.teachers.live import FrozenTeacher

TASK = Classification()


def batch_of(size: int = 6) -> Batch:
    return Batch(
        inputs=torch.randn(size, 3, 8, 8) + 1, labels=torch.arange(size) % 5, index=torch.arange(size), epoch=0
    )


def content(model: nn.Module) -> dict[str, bytes]:
    return {k: v.contiguous().numpy().tobytes() for k, v in model.state_dict().items()}


def train_student_against(teacher: FrozenTeacher, steps: int, disturb: bool = False) -> None:
    student = Restless()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    teacher.start()
    for step in range(steps):
        if disturb and step % 3 == 0:
            teacher.model.train()
        batch = batch_of()
        target = teacher(batch).logits
        loss = mse_loss(student(batch["inputs"]), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    teacher.finish()


@pytest.mark.parametrize("disturb", [False, True])
@pytest.mark.parametrize("batch_statistics", [False, True])
def test_parameters_and_buffers_are_byte_identical_after_training(disturb: bool, batch_statistics: bool) -> None:
    model = Restless().train()
    before = content(model)
    train_student_against(FrozenTeacher("teacher", model, TASK, batch_statistics=batch_statistics), 20, disturb)
    assert content(model) == before


def test_a_model_left_in_train_mode_would_have_moved() -> None:
    model = Restless().train()
    before = content(model)
    model(batch_of()["inputs"])
    assert content(model) != before


@pytest.mark.parametrize("when", ["before start", "between calls"])
def test_somebody_calls_train(when: str) -> None:
    model = Restless()
    batch = batch_of()
    expected = copy.deepcopy(model).eval()(batch["inputs"])
    teacher = FrozenTeacher("teacher", model, TASK)
    if when == "between calls":
        teacher.start()
        teacher(batch)
    model.train()
    for _ in range(3):
        assert torch.equal(teacher(batch).logits, expected)
    model.branch.train()
    assert torch.equal(teacher(batch).logits, expected)


def test_no_graph_and_no_gradient_for_parameters() -> None:
    model = Restless()
    teacher = FrozenTeacher("teacher", model, TASK)
    teacher.start()
    assert not teacher(batch_of()).logits.requires_grad
    assert not any(p.requires_grad for p in model.parameters())


def test_differentiable_gradient_reaches_the_inputs_and_no_parameter() -> None:
    model = Restless()
    batch = batch_of()
    batch["inputs"].requires_grad_()
    teacher = FrozenTeacher("teacher", model, TASK, differentiable=True)
    teacher.start()
    teacher(batch).logits.sum().backward()
    expected = torch.autograd.grad(copy.deepcopy(model).eval()(batch["inputs"]).sum(), batch["inputs"])[0]
    torch.testing.assert_close(batch["inputs"].grad, expected)
    assert all(p.grad is None for p in model.parameters())
    teacher.finish()


def test_flags_are_restored() -> None:
    model = Restless().train()
    model.branch.eval()
    model.head.bias.requires_grad_(False)
    flags = [m.training for m in model.modules()]
    wants = [p.requires_grad for p in model.parameters()]
    teacher = FrozenTeacher("teacher", model, TASK)
    teacher(batch_of())
    assert ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]) == (flags, wants)
    teacher.start()
    teacher.start()
    teacher(batch_of())
    assert not any(m.training for m in model.modules())
    teacher.finish()
    teacher.finish()
    assert ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]) == (flags, wants)


def test_flags_are_restored_after_an_error() -> None:
    model = Restless().train()
    teacher = FrozenTeacher("teacher", model, TASK, batch_statistics=True)
    with pytest.raises(RuntimeError):
        teacher(Batch(inputs=torch.randn(2, 7, 8, 8), index=torch.arange(2)))
    assert model.training
    assert model.stem[1].running_mean is not None


@pytest.mark.parametrize("name", ["head.weight", "stem.1.running_mean", "branch.1.num_batches_tracked"])
def test_a_change_is_named(name: str) -> None:
    model = Restless().train()
    teacher = FrozenTeacher("mentor", model, TASK)
    teacher.start()
    with torch.no_grad():
        tensor = model.state_dict()[name]
        tensor.view(-1)[0] += 1
    with pytest.raises(TeacherChangedError, match=rf"mentor \(Restless\) changed.*: {name}\."):
        teacher.finish()
    assert model.training
    assert model.head.weight.requires_grad


def test_every_changed_tensor_is_counted() -> None:
    model = Restless()
    teacher = FrozenTeacher("teacher", model, TASK)
    teacher.start()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    with pytest.raises(TeacherChangedError, match=r"stem\.0\.weight.* and 5 more"):
        teacher.finish()


def test_batch_statistics_normalise_by_the_batch_only() -> None:
    model = Restless()
    batch = batch_of(8)
    reference = copy.deepcopy(model).eval()
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    expected = reference(batch["inputs"])
    teacher = FrozenTeacher("teacher", model, TASK, batch_statistics=True)
    teacher.start()
    torch.testing.assert_close(teacher(batch).logits, expected)
    assert not torch.allclose(expected, copy.deepcopy(model).eval()(batch["inputs"]))
    teacher.finish()


def test_taps_and_role_inputs() -> None:
    model = Restless()
    teacher = FrozenTeacher("teacher", model, TASK, {"stem": ["stem"], "pooled": ["head@in"]}, ["strong"])
    batch = batch_of(4)
    batch["teacher_inputs"] = torch.zeros(4, 3, 8, 8)
    batch["views"] = {"strong": batch["inputs"]}
    signals = teacher(batch)
    plain = copy.deepcopy(model).eval()
    assert signals.features["stem"][0].shape == (4, 8, 8, 8)
    assert torch.equal(signals.logits, plain(batch["teacher_inputs"]))
    assert torch.equal(signals.views["strong"].logits, plain(batch["inputs"]))
    teacher.close()
    model(batch["inputs"])


def test_compiled_after_the_dry_run() -> None:
    model = Restless()
    teacher = FrozenTeacher("teacher", model, TASK)
    batch = batch_of()
    expected = teacher(batch).logits
    teacher.model = torch.compile(model, backend="eager")
    teacher.start()
    assert torch.equal(teacher(batch).logits, expected)
    teacher.finish()


def test_fingerprint_tells_content_and_architecture_apart() -> None:
    model = Restless()
    same = copy.deepcopy(model).train().to(memory_format=torch.channels_last)
    assert fingerprint(model) == fingerprint(same)
    same.stem[1].running_mean[0] += 1e-3
    assert fingerprint(model) != fingerprint(same)
    relu, gelu = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Sequential(nn.Linear(2, 2), nn.GELU())
    gelu.load_state_dict(relu.state_dict())
    assert fingerprint(relu) != fingerprint(gelu)
    swapped = nn.Linear(2, 2)
    with torch.no_grad():
        swapped.weight.copy_(torch.eye(2))
    before = fingerprint(swapped)
    with torch.no_grad():
        swapped.weight.copy_(torch.eye(2).flip(0))
    assert fingerprint(swapped) != before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.bool, torch.int64, torch.complex64])
def test_fingerprint_of_any_type(dtype: torch.dtype) -> None:
    def model_with(value: float) -> nn.Module:
        model = nn.Identity()
        model.register_buffer("kept", torch.tensor([value, 0.0]).to(dtype))
        model.register_buffer("scalar", torch.tensor(1).to(dtype), persistent=False)
        model.register_buffer("empty", torch.zeros(0).to(dtype))
        return model

    assert fingerprint(model_with(1.0)) == fingerprint(model_with(1.0))
    assert fingerprint(model_with(1.0)) != fingerprint(model_with(0.0))
