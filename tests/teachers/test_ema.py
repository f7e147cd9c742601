from __future__ import annotations

import copy

import pytest
import torch
from teacher_models import Restless
from torch import nn

from limbeck.errors import CheckpointError, RecipeError
from limbeck.schedules import Progress
from limbeck.signals import Batch
from limbeck.tasks.classification import Classification
from limbeck.teachers.ema import EMATeacher
from limbeck.teachers.provider import Observer

TASK = Classification()


def step_of(student: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    student.train()
    student(torch.randn(8, 3, 8, 8)).pow(2).mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def run(student: nn.Module, teacher: EMATeacher, steps: int, start: int = 0) -> list[dict[str, torch.Tensor]]:
    """Trains and returns the student's state after every step."""
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    states = []
    for step in range(start, start + steps):
        step_of(student, optimizer)
        teacher.after_step(Progress(step + 1, 10, 2))
        states.append({k: v.clone() for k, v in student.state_dict().items()})
    return states


@pytest.mark.parametrize(("warmup", "decays"), [(0.0, [0.9, 0.9, 0.9]), (10.0, [1 / 10, 2 / 11, 3 / 12])])
def test_average_is_the_recursion(warmup: float, decays: list[float]) -> None:
    student = Restless()
    expected = {k: v.clone().double() for k, v in student.state_dict().items()}
    teacher = EMATeacher("teacher", student, TASK, decay=0.9, warmup=warmup)
    for decay, state in zip(decays, run(student, teacher, 3)):
        expected = {k: decay * v + (1 - decay) * state[k] for k, v in expected.items()}
    for name, parameter in teacher.model.named_parameters():
        torch.testing.assert_close(parameter.double(), expected[name], atol=1e-6, rtol=1e-5)
    for name, buffer in teacher.model.named_buffers():
        assert torch.equal(buffer, student.state_dict()[name])


def test_averaged_buffers() -> None:
    student = Restless()
    expected = student.stem[1].running_mean.clone()
    teacher = EMATeacher("teacher", student, TASK, decay=0.5, buffers="average")
    for state in run(student, teacher, 3):
        expected = 0.5 * expected + 0.5 * state["stem.1.running_mean"]
    torch.testing.assert_close(teacher.model.stem[1].running_mean, expected)
    assert int(teacher.model.stem[1].num_batches_tracked) == 3


def test_decay_may_follow_the_progress() -> None:
    student = Restless()
    initial = student.head.weight.detach().clone()
    teacher = EMATeacher("teacher", student, TASK, decay=lambda progress: 1.0 if progress.step < 3 else 0.0)
    run(student, teacher, 2)
    assert torch.equal(teacher.model.head.weight, initial)
    run(student, teacher, 1, start=2)
    assert torch.equal(teacher.model.head.weight, student.head.weight)


def test_signals_are_those_of_the_average_in_eval_mode() -> None:
    student = Restless()
    teacher = EMATeacher("teacher", student, TASK, {"stem": ["stem"]}, decay=0.5)
    run(student, teacher, 2)
    batch = Batch(inputs=torch.randn(4, 3, 8, 8), index=torch.arange(4))
    signals = teacher(batch)
    assert torch.equal(signals.logits, copy.deepcopy(teacher.model).eval()(batch["inputs"]))
    assert not signals.logits.requires_grad
    assert signals.features["stem"][0].shape == (4, 8, 8, 8)
    assert student.training
    assert all(p.requires_grad for p in student.parameters())


def test_copy_of_a_tapped_student_leaves_its_taps_alone() -> None:
    student = Restless()
    observer = Observer("student", student, TASK, {"pooled": ["head@in"], "stem": ["stem"]})
    calls = []
    student.stem.register_forward_hook(lambda *_: calls.append(1))
    teacher = EMATeacher("teacher", student, TASK, {"stem": ["stem"]})
    batch = Batch(inputs=torch.randn(4, 3, 8, 8), index=torch.arange(4))
    observer.taps.listen()
    student.eval()(batch["inputs"])
    teacher(batch)
    own = observer.taps.collect()
    assert len(calls) == 2, "the user's own hook belongs to the copy as well"
    assert own["stem"][0].requires_grad


def test_resume_is_exact() -> None:
    torch.manual_seed(1)
    student = Restless()
    teacher = EMATeacher("teacher", student, TASK, decay=0.9, warmup=10, buffers="average")
    run(student, teacher, 3)
    saved = copy.deepcopy(
        {"student": student.state_dict(), "teacher": teacher.state_dict(), "random": torch.get_rng_state()}
    )
    run(student, teacher, 4, start=3)

    resumed = Restless()
    resumed_teacher = EMATeacher("teacher", resumed, TASK, decay=0.9, warmup=10, buffers="average")
    resumed.load_state_dict(saved["student"])
    resumed_teacher.load_state_dict(saved["teacher"])
    torch.set_rng_state(saved["random"])
    run(resumed, resumed_teacher, 4, start=3)
    for name, tensor in teacher.model.state_dict().items():
        assert torch.equal(tensor, resumed_teacher.model.state_dict()[name]), name


def test_state_survives_a_safe_load(tmp_path) -> None:
    teacher = EMATeacher("teacher", Restless(), TASK)
    torch.save(teacher.state_dict(), tmp_path / "state.pt")
    teacher.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))


@pytest.mark.parametrize(
    "state", [{}, {"model": {}, "updates": 1}, {"model": Restless(classes=7).state_dict(), "updates": 1}]
)
def test_foreign_state_is_refused(state: dict) -> None:
    with pytest.raises(CheckpointError, match="role 'teacher'"):
        EMATeacher("teacher", Restless(), TASK).load_state_dict(state)


@pytest.mark.parametrize("wrong", [{"decay": 1.5}, {"decay": -0.1}, {"warmup": -1}, {"buffers": "keep"}])
def test_out_of_range(wrong: dict) -> None:
    with pytest.raises(RecipeError):
        EMATeacher("teacher", Restless(), TASK, **wrong)


def test_tied_weights_stay_tied() -> None:
    student = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    student[1].weight = student[0].weight
    teacher = EMATeacher("teacher", student, TASK, decay=0.5)
    with torch.no_grad():
        student[0].weight.add_(1)
    before = teacher.model[0].weight.clone()
    teacher.after_step(Progress(1, 1, 1))
    assert teacher.model[0].weight is teacher.model[1].weight
    torch.testing.assert_close(teacher.model[0].weight, before + 0.5)


def test_follows_a_student_in_shards(tmp_path) -> None:
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        student = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
        teacher = EMATeacher("teacher", student, TASK, decay=0.5)
        before = student[0].weight.detach().clone()
        fully_shard(student, mesh=init_device_mesh("cpu", (1,)))
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        student(torch.randn(8, 4)).pow(2).sum().backward()
        optimizer.step()
        teacher.after_step(Progress(1, 1, 1))
        after = student[0].weight.full_tensor()
        assert not torch.equal(after, before)
        torch.testing.assert_close(teacher.model[0].weight, 0.5 * before + 0.5 * after)
    finally:
        distributed.destroy_process_group()
