"""OFA-KD: the boosted loss, exits for every kind of features, and pairs of unlike architectures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.engine.preflight import dry_run, tap_groups
from limbeck.errors import NeedsError, RecipeError
from limbeck.functional.boosted_targets import boosted_cross_entropy
from limbeck.methods.base import Method, Setup, build_method
from limbeck.methods.exit_heads import ConvolutionExit, TokenExit
from limbeck.signals import Batch, Signals, as_term
from limbeck.students.loading import build_model
from limbeck.tasks.classification import Classification
from limbeck.teachers.live import FrozenTeacher
from limbeck.teachers.provider import Observer


def _rows() -> tuple[Tensor, Tensor, Tensor]:
    student, teacher = (3 * torch.randn(6, 5, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(), teacher, torch.arange(6) % 5


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_an_exponent_of_one_is_the_soft_cross_entropy(temperature: float) -> None:
    student, teacher, labels = _rows()
    loss = boosted_cross_entropy(student, teacher, labels, temperature=temperature)
    p, q = (torch.softmax(logits / temperature, 1) for logits in (teacher, student))
    torch.testing.assert_close(loss, -(p * q.log()).sum(1).mean())
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0], (q - p).detach() / 6 / temperature)


def test_the_gradient_is_that_of_weights_that_need_not_sum_to_one() -> None:
    student, teacher, labels = _rows()
    p, one = torch.softmax(teacher, 1), torch.nn.functional.one_hot(labels, 5)
    weights = (p + one) ** 1.7 - one
    loss = boosted_cross_entropy(student, teacher, labels, exponent=1.7)
    expected = (weights.sum(1, keepdim=True) * torch.softmax(student, 1) - weights) / 6
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0], expected.detach())
    lifted = [
        boosted_cross_entropy(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]), exponent=e) for e in (1, 1.5, 2)
    ]
    assert lifted[0] < lifted[1] < lifted[2]


def test_a_constant_of_the_teacher_does_not_matter_and_extremes_are_finite() -> None:
    student, teacher, labels = _rows()
    losses = [boosted_cross_entropy(student, t, labels, exponent=1.5) for t in (teacher, teacher + 9)]
    torch.testing.assert_close(losses[0], losses[1])
    extreme = (1e4 * student.detach()).float().requires_grad_()
    loss = boosted_cross_entropy(extreme, 1e4 * teacher.float(), labels, exponent=0.7)
    assert torch.isfinite(loss)
    assert torch.isfinite(torch.autograd.grad(loss, extreme)[0]).all()


def _fitted(features: tuple[Tensor, ...], **config: Any) -> Method:
    said = Signals(logits=torch.zeros(2, 5), features={"stages": features})
    method = build_method("ofa_kd", **config)
    method.build(Setup(signals={"student": said, "teacher": Signals(logits=torch.zeros(2, 5))}, models={}))
    return method


MAPS = tuple(torch.zeros(2, 4 * 2**i, 16 // 2**i, 16 // 2**i) for i in range(3))
TOKENS = (torch.zeros(2, 197, 12),) * 4
VECTORS = (torch.zeros(2, 8),) * 3


@pytest.mark.parametrize(("features", "kind", "config"), [
    (MAPS, ConvolutionExit, {}),
    (VECTORS, ConvolutionExit, {}),
    (TOKENS, TokenExit, {}),
    ((torch.zeros(2, 12, 8, 8),) * 3, TokenExit, {}),
    (MAPS, TokenExit, {"exits": "tokens"}),
    (TOKENS, ConvolutionExit, {"exits": "convolution"}),
])  # fmt: skip
def test_exits_fit_the_features(features: tuple[Tensor, ...], kind: type[nn.Module], config: dict[str, Any]) -> None:
    method = _fitted(features, **config)
    assert len(method.exits) == len(features)
    for head, tensor in zip(method.exits, features):
        assert isinstance(head, kind)
        assert head(torch.randn_like(tensor)).shape == (2, 5)


def test_deeper_stages_have_shorter_exits() -> None:
    sizes = [sum(p.dim() == 4 for p in head.parameters()) for head in _fitted(MAPS).exits]
    assert sizes == [8, 4, 1]
    assert [len(head.blocks) for head in _fitted(TOKENS).exits] == [3, 2, 1, 1]


def test_a_class_token_is_read_where_there_is_one() -> None:
    (head, *_) = _fitted((torch.zeros(2, 17, 12),) * 2).exits
    tokens = torch.randn(2, 17, 12)
    swapped = tokens.clone()
    swapped[:, 1:] = tokens[:, 1:].flip(1)
    torch.testing.assert_close(head(tokens), head(swapped))  # blocks know no places
    assert not torch.allclose(head(tokens), head(tokens.roll(1, 1)))


def test_only_chosen_stages_get_an_exit() -> None:
    assert [len(head.layers) for head in _fitted(MAPS, stages=(1, 3)).exits] == [2, 1]
    for stages in ((), (4,), (2, 2)):
        with pytest.raises(RecipeError, match="choose different ones of the student's 3"):
            _fitted(MAPS, stages=stages)
    with pytest.raises(RecipeError, match="give one, or 4"):
        _fitted(MAPS, exponents=(1.0, 2.0))
    with pytest.raises(NeedsError, match="stage 1 of the student: 7 tokens"):
        _fitted((torch.zeros(2, 7, 4),))


@pytest.mark.parametrize(("student", "teacher"), [("resnet8", "vit"), ("vit", "resnet8"), ("mlp", "vit")])
def test_unlike_architectures_are_paired(student: str, teacher: str) -> None:
    """Through the taps of real models: gradients reach the student's parameters from every exit."""
    batch = Batch(inputs=torch.randn(4, 3, 16, 16), labels=torch.arange(4), index=torch.arange(4))
    shapes: dict[str, Any] = {"vit": {"name": "vit", "dim": 16, "depth": 3, "heads": 2}}
    models = {
        role: build_model(shapes.get(name, name), num_classes=5, input_shape=(3, 16, 16))
        for role, name in (("student", student), ("teacher", teacher))
    }
    method, task = build_method("ofa_kd"), Classification()
    taps = tap_groups("student", models["student"], method.needs.groups("student"))
    observers = {
        "student": Observer("student", models["student"], task, taps),
        "teacher": FrozenTeacher("teacher", models["teacher"], task),
    }
    signals = dry_run(method, batch, observers)
    method.build(Setup(signals=signals, models=models, num_classes=5))
    terms = method(batch, **method.observe(batch, observers))
    loss = as_term(terms["ofa"]).mean()
    loss.backward()
    stem = next(p for p in models["student"].parameters() if p.dim() > 1)
    assert stem.grad is not None
    assert stem.grad.abs().max() > 0
    assert all(p.grad is not None for p in method.parameters())
    assert all(p.grad is None for p in models["teacher"].parameters())
    assert method.finish(models["student"]) is models["student"]
