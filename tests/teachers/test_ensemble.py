from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, logsumexp, softmax
from teacher_models import Restless

from limbeck.errors import NeedsError, RecipeError, TeacherChangedError
from limbeck.schedules import Progress
from limbeck.signals import Batch, Signals
from limbeck.tasks.classification import Classification
from limbeck.teachers.ema import EMATeacher
from limbeck.teachers.ensemble import Ensemble
from limbeck.teachers.live import FrozenTeacher

TASK = Classification()


class Says:
    """A provider that always says the same."""

    def __init__(self, signals: Signals) -> None:
        self.signals = signals
        self.log: list[str] = []

    def __call__(self, batch: Batch) -> Signals:
        return self.signals

    def start(self) -> None:
        self.log.append("start")

    def finish(self) -> None:
        self.log.append("finish")


def batch_of(size: int = 4) -> Batch:
    return Batch(inputs=torch.randn(size, 3, 8, 8), index=torch.arange(size))


@pytest.mark.parametrize("weights", [None, (1.0, 3.0), (0.0, 1.0)])
def test_mixture_is_the_mean_probability(weights) -> None:
    logits = [torch.randn(4, 5).double() * scale for scale in (1, 30)]
    mixed = Ensemble([Says(Signals(logits=x)) for x in logits], weights)(batch_of()).logits.numpy()
    w = np.array(weights or (1, 1), dtype=float)
    w = w / w.sum()
    expected = sum(a * softmax(x.numpy(), -1) for a, x in zip(w, logits))
    np.testing.assert_allclose(softmax(mixed, -1), expected, rtol=1e-12, atol=1e-300)
    with np.errstate(divide="ignore"):
        exact = logsumexp([np.log(a) + log_softmax(x.numpy(), -1) for a, x in zip(w, logits)], axis=0)
    np.testing.assert_allclose(mixed, exact, rtol=1e-12, atol=1e-12)


def test_extreme_logits_stay_finite() -> None:
    low, high = torch.tensor([[-1e4, 1e4, 0.0]]), torch.tensor([[1e4, -1e4, 0.0]])
    mixed = Ensemble([Says(Signals(logits=low)), Says(Signals(logits=high))])(batch_of()).logits
    torch.testing.assert_close(mixed.softmax(-1), torch.tensor([[0.5, 0.5, 0.0]]))
    assert torch.isfinite(mixed).all()


def test_mean_of_logits() -> None:
    logits = [torch.randn(4, 5), torch.randn(4, 5)]
    mixed = Ensemble([Says(Signals(logits=x)) for x in logits], (1, 3), "logits")(batch_of()).logits
    torch.testing.assert_close(mixed, 0.25 * logits[0] + 0.75 * logits[1])


def test_half_precision_members_are_averaged_in_full() -> None:
    logits = [torch.randn(4, 5).bfloat16(), torch.randn(4, 5)]
    mixed = Ensemble([Says(Signals(logits=x)) for x in logits])(batch_of()).logits
    assert mixed.dtype == torch.float32


def test_live_members_with_taps_and_views() -> None:
    tapped = FrozenTeacher("teacher", Restless(), TASK, {"stem": ["stem"]}, ["strong"])
    plain = FrozenTeacher("teacher", Restless(), TASK, views=["strong"])
    batch = batch_of()
    batch["views"] = {"strong": torch.randn(4, 3, 8, 8)}
    signals = Ensemble([tapped, plain])(batch)
    assert torch.equal(signals.features["stem"][0], tapped(batch).features["stem"][0])
    expected = sum(m(batch).views["strong"].logits.softmax(-1) for m in (tapped, plain)) / 2
    torch.testing.assert_close(signals.views["strong"].logits.softmax(-1), expected)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (Signals(logits=torch.zeros(4, 5), features={"stem": (torch.zeros(4, 2),)}), "all give features"),
        (Signals(logits=torch.zeros(4, 6)), r"\[5, 6\]"),
        (Signals(), "member 1 of the ensemble gives no logits"),
    ],
)
def test_what_cannot_be_averaged_is_refused(second: Signals, words: str) -> None:
    first = Signals(logits=torch.zeros(4, 5), features={"pooled": (torch.zeros(4, 2),)})
    with pytest.raises(NeedsError, match=words):
        Ensemble([Says(first), Says(second)])(batch_of())


@pytest.mark.parametrize("weights", [(1.0,), (-1.0, 2.0), (0.0, 0.0), (float("nan"), 1.0), (float("inf"), 1.0)])
def test_weights_that_are_none(weights) -> None:
    with pytest.raises(RecipeError, match="weights"):
        Ensemble([Says(Signals())] * 2, weights)


def test_empty_and_unknown_average() -> None:
    with pytest.raises(RecipeError, match="at least one"):
        Ensemble([])
    with pytest.raises(RecipeError, match="'median'"):
        Ensemble([Says(Signals())], average="median")


def test_every_member_is_finished_though_one_broke_its_contract() -> None:
    model = Restless().train()
    broken, quiet = FrozenTeacher("teacher", model, TASK), Says(Signals())
    ensemble = Ensemble([broken, quiet])
    ensemble.start()
    with torch.no_grad():
        model.head.bias.add_(1)
    with pytest.raises(TeacherChangedError, match=r"head\.bias"):
        ensemble.finish()
    assert quiet.log == ["start", "finish"]


def test_fingerprint_depends_on_members_weights_and_average() -> None:
    a, b = (FrozenTeacher("teacher", Restless(), TASK) for _ in range(2))
    prints = {
        Ensemble([a, b]).fingerprint(),
        Ensemble([b, a]).fingerprint(),
        Ensemble([a, b], (1, 2)).fingerprint(),
        Ensemble([a, b], average="logits").fingerprint(),
        Ensemble([a]).fingerprint(),
    }
    assert len(prints) == 5
    assert Ensemble([a, b], (1, 1)).fingerprint() == Ensemble([a, b], (2, 2)).fingerprint()
    with pytest.raises(NeedsError, match="member 1"):
        Ensemble([a, Says(Signals())]).fingerprint()


def test_a_moving_member_moves_and_resumes() -> None:
    student = Restless()
    ensemble = Ensemble([FrozenTeacher("teacher", Restless(), TASK), EMATeacher("teacher", student, TASK, decay=0.5)])
    with torch.no_grad():
        student.head.weight.add_(1)
    ensemble.after_step(Progress(1, 1, 1))
    saved = copy.deepcopy(ensemble.state_dict())
    expected = ensemble.members[1].model.head.weight.clone()
    ensemble.after_step(Progress(2, 1, 1))
    assert not torch.equal(ensemble.members[1].model.head.weight, expected)
    ensemble.load_state_dict(saved)
    assert torch.equal(ensemble.members[1].model.head.weight, expected)
