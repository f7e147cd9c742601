"""What NKD, USKD, PLD, DHKD, SinKD, LELP and DHO say of themselves; and logit transforms before each of them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.errors import NeedsError, RecipeError
from limbeck.functional import cross_entropy, kl, normalized_kd, sinkhorn_distance, standardize
from limbeck.methods.base import LogitMethod, Method, Setup, build_method
from limbeck.methods.logit.sinkd import SinKD
from limbeck.recipes.method_section import make_method
from limbeck.signals import Batch, Signals, Term, as_term
from methods.workbench import Bench, bench

LOGIT = ("nkd", "pld", "sinkd", "dhkd", "dho")


def _values(method: Method, batch: Batch, **roles: Signals) -> dict[str, Tensor]:
    return {name: as_term(term).values for name, term in method(batch, **roles).items()}


def _pair(rows: int = 6, classes: int = 5) -> tuple[Batch, Signals, Signals]:
    batch = Batch(index=torch.arange(rows), labels=torch.randint(classes, (rows,)), epoch=0)
    student, teacher = (Signals(logits=3 * torch.randn(rows, classes)) for _ in range(2))
    return batch, student, teacher


class _Moved(nn.Module):
    """A classifier whose logits are three times another one's, minus five."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        return 3 * self.head(features) - 5


@pytest.mark.parametrize("name", LOGIT)
def test_standardised_logits_are_compared_up_to_scale_and_shift(name: str) -> None:
    built = bench(name)
    method, batch = built.method, built.batch()
    assert isinstance(method, LogitMethod)
    signals = built.method.observe(batch, built.observers)
    moved = {role: Signals(logits=3 * s.logits - 5, features=s.features) for role, s in signals.items()}
    method.logit_transform = standardize
    before = _values(method, batch, **signals)
    method_head = getattr(method, "head", None)
    if method_head is not None:
        method.head = _Moved(method_head)
    after = _values(method, batch, **moved)
    if method_head is not None:
        method.head = method_head
    method.logit_transform = lambda logits: logits
    plain = _values(method, batch, **signals)
    compared = [n for n in before if n != "ce"]
    for n in compared:
        torch.testing.assert_close(after[n], before[n], rtol=1e-9, atol=1e-9)
    assert any(not torch.allclose(plain[n], before[n]) for n in compared)
    assert "ce" not in before or torch.equal(plain["ce"], before["ce"])


@pytest.mark.parametrize("transform", ["standardize", {"name": "standardize", "eps": 1e-7}])
def test_a_recipe_names_a_transform_with_or_without_options(transform: Any) -> None:
    method, _ = make_method({"name": "nkd", "logit_transform": transform})
    assert isinstance(method, LogitMethod)
    logits = torch.randn(3, 5)
    expected = standardize(logits, eps=transform["eps"] if isinstance(transform, dict) else 0.0)
    assert torch.equal(method.logit_transform(logits), expected)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "kd", "logit_transform": {"name": "standardize", "epsilon": 1.0}}, "known: eps"),
        ({"name": "kd", "logit_transform": {"eps": 1.0}}, "unknown logit transform"),
        ({"name": "uskd", "logit_transform": "standardize"}, "compares no logits"),
        ({"name": "lelp", "logit_transform": "standardize"}, "compares no logits"),
    ],
)
def test_transforms_that_do_not_fit_are_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_method(spec)


def test_nkd_terms_are_unweighted() -> None:
    batch, student, teacher = _pair()
    values = _values(build_method("nkd", gamma=7.0, temperature=2.0), batch, student=student, teacher=teacher)
    parts = normalized_kd(student.logits, teacher.logits, batch["labels"], temperature=2.0, reduction="none")
    assert torch.equal(values["target"], parts.target)
    assert torch.equal(values["nontarget"], parts.nontarget)


def test_pld_is_the_whole_loss() -> None:
    batch, student, teacher = _pair()
    method = build_method("pld")
    assert set(method.weights) == set(method(batch, student=student, teacher=teacher)) == {"pld"}
    assert teacher.logits is not None
    sure = Signals(logits=teacher.logits.scatter(1, batch["labels"][:, None], 500.0))
    values = _values(method, batch, student=student, teacher=sure)["pld"]
    torch.testing.assert_close(values, cross_entropy(student.logits, batch["labels"], reduction="none"))


def test_sinkd_cools_its_soft_labels_and_not_its_transport() -> None:
    batch, student, teacher = _pair()
    method = build_method("sinkd", kd_temperature=4.0, anneal_epochs=5)
    assert isinstance(method, SinKD)
    assert [method.temperature_in(epoch) for epoch in (0, 2, 4, 9)] == [4.0, 2.5, 1.0, 1.0]
    first, last = (
        _values(method, Batch({**batch, "epoch": epoch}), student=student, teacher=teacher) for epoch in (0, 4)
    )
    assert torch.equal(first["sinkhorn"], last["sinkhorn"])
    soft = torch.softmax(teacher.logits, 1)  # type: ignore[arg-type]
    torch.testing.assert_close(last["kd"], cross_entropy(student.logits, soft, reduction="none"))
    expected = sinkhorn_distance(student.logits, teacher.logits, reduction="none")
    assert torch.equal(first["sinkhorn"], expected)


def test_uskd_has_no_teacher_and_leaves_no_weak_classifier() -> None:
    built = bench("uskd")
    assert built.method.roles() == ("student",)
    finished = built.method.finish(built.learners["student"])
    assert finished is built.learners["student"]
    batch = built.batch()
    said = built.method.observe(batch, built.observers)["student"]
    one_stage = Signals(logits=said.logits, features={"stages": said.features["stages"][-1:]})
    with pytest.raises(NeedsError, match="one stage only"):
        built.method(batch, student=one_stage)


def test_uskds_weak_classifier_reads_maps_class_tokens_or_all_tokens() -> None:
    batch, student, _ = _pair()
    seen: list[Tensor] = []
    tokens = torch.randn(6, 17, 3)
    expected = {
        tokens: tokens[:, 0],
        tokens[:, :16]: tokens[:, :16].mean(1),
        tokens[:, :16].transpose(1, 2).unflatten(2, (4, 4)): tokens[:, :16].mean(1),
        tokens[:, 0]: tokens[:, 0],
    }
    for features, read in expected.items():
        said = Signals(logits=student.logits, features={"stages": (features, features)})
        method = build_method("uskd")
        method.build(Setup({"student": said}, {}))
        method.get_submodule("weak").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        method(batch, student=said)
        torch.testing.assert_close(seen[-1], read)
    odd = Signals(logits=student.logits, features={"stages": (tokens[:, :14], tokens)})
    with pytest.raises(NeedsError, match="no square grid"):
        build_method("uskd").build(Setup({"student": odd}, {}))


def _students_of(name: str, **config: Any) -> tuple[Bench, Tensor]:
    built = bench(name, config)
    return built, built.batch()["inputs"]


def test_lelp_answers_with_classes_that_sum_their_subclasses() -> None:
    built, inputs = _students_of("lelp", subclasses=3)
    finished = built.method.finish(built.learners["student"]).eval()
    said = built.method.observe(built.batch(), built.observers)["student"]
    with torch.no_grad():
        scores = built.method.get_submodule("head")(said.feature("pooled"))
        expected = torch.softmax(scores, 1).unflatten(1, (5, -1)).sum(-1)
        torch.testing.assert_close(finished(inputs).exp(), expected)
    weight = finished.get_submodule("head.scores").weight
    assert weight.shape[0] == 15


def test_lelp_directions_are_not_read_by_the_teachers_classifier() -> None:
    built = bench("lelp", {"subclasses": 3})
    weight = built.frozen["teacher"].model.get_submodule("head").weight.detach()
    differences = weight - weight.mean(0)
    directions = built.method.get_buffer("directions")
    torch.testing.assert_close(
        differences @ directions.transpose(1, 2), torch.zeros(5, 5, 3).double(), atol=1e-6, rtol=0
    )
    read = bench("lelp", {"null_space": False}).method.get_buffer("directions")
    assert (differences @ read.transpose(1, 2)).abs().max() > 1e-3


def test_one_subclass_of_lelp_is_plain_distillation() -> None:
    built = bench("lelp", {"subclasses": 1, "temperature": 3.0})
    batch = built.batch()
    signals = built.method.observe(batch, built.observers)
    scores = built.method.get_submodule("head")(signals["student"].feature("pooled"))
    expected = kl(scores, signals["teacher"].logits, temperature=3.0, reduction="none")
    torch.testing.assert_close(_values(built.method, batch, **signals)["lelp"], expected)


@pytest.mark.parametrize("name", ["lelp", "dho"])
def test_students_whose_classifier_cannot_be_exchanged_are_refused(name: str) -> None:
    built = bench(name)
    signals = {role: s.detach() for role, s in built.method.observe(built.batch(), built.observers).items()}
    models = {role: observer.model for role, observer in built.observers.items()}
    other = {"student": {"pooled": ["stages.2"]}}
    method = partial(build_method, name)
    with pytest.raises(NeedsError, match="must read that classifier's input"):
        method().build(Setup(signals, models, other))
    scaled = {**signals, "student": Signals(logits=2 * signals["student"].logits, features=signals["student"].features)}
    with pytest.raises(NeedsError, match="not the output of its module 'head'"):
        method().build(Setup(scaled, models))


def test_lelp_names_what_a_cached_teacher_lacks() -> None:
    built = bench("lelp")
    signals = {role: s.detach() for role, s in built.method.observe(built.batch(), built.observers).items()}
    alone = {"student": built.learners["student"]}
    with pytest.raises(NeedsError, match="null_space"):
        build_method("lelp").build(Setup(signals, alone))
    build_method("lelp", null_space=False).build(Setup(signals, alone))


def test_losses_of_single_samples_are_one_value_a_sample() -> None:
    batch, student, teacher = _pair()
    for name in ("nkd", "pld", "sinkd"):
        for term in build_method(name)(batch, student=student, teacher=teacher).values():
            assert as_term(term).values.shape == (6,)
            assert not isinstance(term, Term)
