from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.errors import NeedsError
from limbeck.methods import Setup
from limbeck.methods.base import build_method
from limbeck.methods.relation.contrast_sampling import ContrastSampler
from limbeck.methods.relation.crd import CRD
from limbeck.schedules import Progress
from limbeck.signals import Batch, Signals, Term

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 1, 1])
NOW = Progress(1, 1, 1)


def _signals(features: Tensor) -> Signals:
    return Signals(logits=torch.zeros(len(features), 3), features={"pooled": (features,)})


def _crd(seed: int = 0, **options: object) -> CRD:
    method = build_method("crd", embedding=4, negatives=6, **options)
    method.build(
        Setup(
            signals={"student": _signals(torch.zeros(2, 3)), "teacher": _signals(torch.zeros(2, 5))},
            models={},
            labels=LABELS,
            seed=seed,
        )
    )
    assert isinstance(method, CRD)
    return method


def _step(method: CRD, index: list[int], epoch: int = 0, **entries: object) -> dict[str, Tensor]:
    torch.manual_seed(sum(index))
    student, teacher = torch.randn(len(index), 3), torch.randn(len(index), 5)
    batch = Batch(index=torch.tensor(index), labels=LABELS[index], epoch=epoch, **entries)
    terms = method(batch, student=_signals(student), teacher=_signals(teacher))
    return {name: term.values if isinstance(term, Term) else term for name, term in terms.items()}


def test_negatives_are_of_other_classes_and_all_of_them_occur() -> None:
    sampler = ContrastSampler(LABELS.numpy(), seed=0)
    index = np.arange(10)
    drawn = sampler.negatives(0, index, 400)
    for row in index:
        others = set(np.flatnonzero(LABELS.numpy() != LABELS[row].item()))
        assert set(drawn[row]) == others
        counts = np.array([(drawn[row] == other).sum() for other in others])
        assert (np.abs(counts - 400 / len(others)) < 5 * np.sqrt(400 / len(others))).all()


def test_positives_are_of_the_same_class() -> None:
    sampler = ContrastSampler(LABELS.numpy(), seed=0)
    drawn = np.stack([sampler.positives(epoch, np.arange(10)) for epoch in range(60)])
    for row in range(10):
        assert set(drawn[:, row]) == set(np.flatnonzero(LABELS.numpy() == LABELS[row].item()))


def test_draws_depend_on_seed_epoch_and_sample_only() -> None:
    labels = np.arange(5000) % 7
    sampler = ContrastSampler(labels, seed=3)
    together = sampler.negatives(2, np.array([5, 9, 4]), 20_000)
    alone = ContrastSampler(labels, seed=3).negatives(2, np.array([9]), 20_000)
    assert (together[1] == alone[0]).all()
    assert not (sampler.negatives(3, np.array([9]), 20_000) == alone).all()
    assert not (ContrastSampler(labels, seed=4).negatives(2, np.array([9]), 20_000) == alone).all()
    assert not (together[0] == together[1]).all()


def test_labels_need_not_be_consecutive() -> None:
    sampler = ContrastSampler(np.array([7, -3, 7, 100]), seed=0)
    assert set(sampler.negatives(0, np.array([0]), 50)[0]) == {1, 3}


def test_a_single_class_or_no_labels_are_refused() -> None:
    with pytest.raises(NeedsError, match="two classes"):
        ContrastSampler(np.zeros(4, dtype=np.int64), seed=0)
    signals = {role: _signals(torch.zeros(2, 3)) for role in ("student", "teacher")}
    with pytest.raises(NeedsError, match="labels"):
        build_method("crd").build(Setup(signals=signals, models={}))


def test_the_positive_is_the_sample_itself_or_one_of_its_class() -> None:
    batch = Batch(index=torch.arange(10), labels=LABELS, epoch=0)
    assert (_crd()._contrast(batch)[:, 0] == torch.arange(10)).all()
    relaxed = _crd(positive="relax")._contrast(batch)
    assert (LABELS[relaxed[:, 0]] == LABELS).all()
    assert (relaxed[:, 0] != torch.arange(10)).any()
    assert (LABELS[relaxed[:, 1:]] != LABELS[:, None]).all()


def test_nothing_moves_before_the_optimizer_has_stepped() -> None:
    method = _crd()
    before = copy.deepcopy(method.state_dict())
    first, again = _step(method, [0, 4]), _step(method, [0, 4])
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(before[k], v) or before[k].isnan().all() for k, v in method.state_dict().items())


def test_after_a_step_rows_of_the_batch_move_and_normalisers_stay() -> None:
    method = _crd()
    before = method.memory_student.clone()
    _step(method, [0, 4])
    method.after_step(NOW)
    moved = (method.memory_student != before).any(1)
    assert moved.nonzero().flatten().tolist() == [0, 4]
    torch.testing.assert_close(method.memory_student[[0, 4]].norm(dim=1), torch.ones(2))
    fixed = method.log_z.clone()
    assert fixed.isfinite().all()
    _step(method, [1, 2])
    method.after_step(NOW)
    assert torch.equal(method.log_z, fixed)
    again = method.memory_student.clone()
    method.after_step(NOW)
    assert torch.equal(method.memory_student, again)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_momentum_is_the_part_of_the_old_entry(momentum: float) -> None:
    method = _crd(momentum=momentum)
    before = method.memory_teacher.clone()
    _step(method, [3])
    new = method._pending[2] if method._pending else None
    method.after_step(NOW)
    assert new is not None
    expected = before[3] / before[3].norm() if momentum else new[0]
    torch.testing.assert_close(method.memory_teacher[3], expected)


def test_a_restored_method_continues_exactly() -> None:
    whole = _crd(seed=5)
    for step in range(3):
        _step(whole, [step, step + 4])
        whole.after_step(NOW)
    restored = _crd(seed=5)
    restored.load_state_dict(whole.state_dict())
    for method in (whole, restored):
        method.last = _step(method, [8, 2], epoch=1)
    assert all(torch.equal(whole.last[name], restored.last[name]) for name in whole.last)


def test_memories_come_from_the_seed_and_lie_in_the_published_range() -> None:
    torch.manual_seed(1)
    first = _crd(seed=5)
    torch.manual_seed(2)
    second = _crd(seed=5)
    assert torch.equal(first.memory_student, second.memory_student)
    assert not torch.equal(first.memory_student, _crd(seed=6).memory_student)
    assert not torch.equal(first.memory_student, first.memory_teacher)
    assert first.memory_student.abs().max() <= (3 / 4) ** 0.5


def test_given_contrast_replaces_the_drawn_one() -> None:
    method = _crd()
    given = torch.tensor([[0, 1, 2, 4], [1, 0, 3, 6]])
    chosen = _step(method, [0, 1], contrast_index=given)
    assert not torch.equal(chosen["crd_student"], _step(method, [0, 1])["crd_student"])
