"""KD-AIF: weights by sample, what they find, and when they are set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from limbeck import distill
from limbeck.errors import NeedsError
from limbeck.functional import kl
from limbeck.functional.influence import influence_weights
from limbeck.methods.base import Setup, build_method
from limbeck.methods.logit.kd_aif import KDAIF
from limbeck.signals import as_term
from methods.workbench import SAMPLES, bench


def test_until_the_first_estimate_it_is_plain_kd() -> None:
    built = bench("kd_aif")
    signals = built.signals(built.batch())
    expected = kl(signals["student"].logits, signals["teacher"].logits, temperature=7.0, reduction="none")
    torch.testing.assert_close(as_term(built.terms()["kd"]).values, expected)


def test_weights_are_looked_up_by_sample() -> None:
    built = bench("kd_aif")
    plain = as_term(built.terms()["kd"]).values.detach()
    built.method.sample_weights.copy_(torch.arange(SAMPLES))
    torch.testing.assert_close(as_term(built.terms()["kd"]).values.detach(), torch.arange(6) * plain)


def test_estimates_come_every_so_many_epochs_and_are_in_the_state() -> None:
    for every, moved in ((1, True), (2, False)):
        built = bench("kd_aif", {"every": every})
        built.train(2)
        assert (built.method.sample_weights.std() > 0).item() == moved
    assert "sample_weights" in built.method.state_dict()
    built.train(4)
    assert built.method.sample_weights.std() > 0  # at the end of the second epoch


def test_an_estimate_is_that_of_the_classifiers_parameters() -> None:
    """Through autograd on the student's own classifier, with the dense damped Hessian."""
    built = bench("kd_aif", {"temperature": 3.0, "damping": 0.1})
    method, student = built.method, built.learners["student"]
    from limbeck.methods.base import Passes
    from limbeck.schedules import Progress

    method.refresh(Progress(2, 2, 12), Passes(built.observe_all, built.observe_holdout))
    train = [(b, s) for b, s in built.observe_all()]
    ((held_batch, held),) = built.observe_holdout()
    features = torch.cat([s["student"].feature("pooled") for _, s in train])
    teacher = torch.cat([s["teacher"].logits for _, s in train])
    shape = student.head.weight.shape

    def logits(theta: Tensor, read: Tensor) -> Tensor:
        return read @ theta[: shape.numel()].view(shape).T + theta[shape.numel() :]

    theta = torch.cat([student.head.weight.detach().flatten(), student.head.bias.detach()])
    rows = lambda t: kl(logits(t, features), teacher, temperature=3.0, reduction="none")  # noqa: E731
    held_loss = lambda t: nn.functional.cross_entropy(  # noqa: E731
        logits(t, held["student"].feature("pooled")), held_batch["labels"]
    )
    hessian = torch.func.hessian(lambda t: rows(t).mean())(theta) + 0.1 * torch.eye(len(theta), dtype=theta.dtype)
    direction = torch.linalg.solve(hessian, torch.func.grad(held_loss)(theta))
    expected = torch.func.jacrev(rows)(theta) @ direction
    index = torch.cat([b["index"] for b, _ in train])
    torch.testing.assert_close(method.helpfulness[index], expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(method.sample_weights, influence_weights(method.helpfulness))


class _Corrupted(nn.Module):
    """A linear teacher that says something else of samples whose last input is 1."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns logits."""
        logits = 4 * inputs[:, :-1] @ self.weight.T
        return torch.where(inputs[:, -1:] > 0, logits.roll(1, 1), logits)


class _Linear(nn.Module):
    """A linear student that does not see the last input."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns logits."""
        return self.fc(inputs[:, :-1])


def test_samples_with_wrong_teacher_outputs_lose_weight() -> None:
    torch.manual_seed(3)
    weight = torch.randn(4, 6)
    inputs = torch.randn(300, 7)
    inputs[:, -1] = (torch.rand(300) < 0.3).float()
    labels = (inputs[:, :-1] @ weight.T).argmax(1)
    method = build_method("kd_aif", temperature=2.0, form="sigmoid")
    assert isinstance(method, KDAIF)
    student, seen = _Linear(), []
    method.refresh, estimate = lambda *a: (seen.append(a), estimate(*a)), method.refresh  # type: ignore[method-assign]
    # Held-out samples are judged by their labels alone, so wrong teacher outputs do no harm there.
    distill(_Corrupted(weight), student, (inputs, labels), method=method, holdout=0.3, epochs=3, lr=0.05, batch_size=32)
    from limbeck.data import as_source
    from limbeck.data.subsets import hold_out

    rest = hold_out(as_source((inputs, labels)), 0.3, "rest", purpose="holdout")
    wrong = torch.stack([rest.fetch([i], 0)["inputs"][0, -1] for i in range(len(rest))]) > 0
    right_weights, wrong_weights = method.sample_weights[~wrong], method.sample_weights[wrong]
    assert len(seen) == 3
    auc = (right_weights[:, None] > wrong_weights[None]).float().mean()
    assert auc > 0.75
    assert right_weights.mean() > wrong_weights.mean() + 0.15


def test_what_it_cannot_work_with_is_refused() -> None:
    with pytest.raises(NeedsError, match="training data with labels"):
        build_method("kd_aif").build(Setup(signals={}, models={"student": nn.Linear(2, 2)}))
    with pytest.raises(NeedsError, match="linear classifier, which Conv2d does not have"):
        build_method("kd_aif").build(
            Setup(signals={}, models={"student": nn.Conv2d(1, 1, 1)}, labels=torch.zeros(3, dtype=torch.long))
        )
