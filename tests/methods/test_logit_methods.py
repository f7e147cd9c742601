from __future__ import annotations

import pytest
import torch
from torch import Tensor

from limbeck.errors import RecipeError, UnknownNameError
from limbeck.functional import batch_correlation, class_correlation, decoupled_kl, kl, standardize
from limbeck.methods.base import LogitMethod, build_method
from limbeck.schedules import Progress, weight_at
from limbeck.signals import Batch, Signals, as_term


def _pair(rows: int = 6, classes: int = 5) -> tuple[Batch, Tensor, Tensor]:
    batch = Batch(index=torch.arange(rows), labels=torch.randint(classes, (rows,)))
    return batch, 3 * torch.randn(rows, classes), 3 * torch.randn(rows, classes)


def _run(name: str, batch: Batch, student: Tensor, teacher: Tensor, **options: object) -> dict[str, Tensor]:
    method = build_method(name, **options)
    roles = {"student": Signals(logits=student), "teacher": Signals(logits=teacher)}
    terms = method(batch, **{role: roles[role] for role in method.roles()})
    return {key: as_term(term).mean() for key, term in terms.items()}


def test_arms_without_teacher_are_cross_entropies() -> None:
    batch, student, teacher = _pair()
    cross_entropy = torch.nn.functional.cross_entropy
    assert build_method("none").roles() == build_method("label_smoothing").roles() == ("student",)
    plain = _run("none", batch, student, teacher)["ce"]
    torch.testing.assert_close(plain, cross_entropy(student, batch["labels"]))
    smooth = _run("label_smoothing", batch, student, teacher, smoothing=0.2)["ce"]
    torch.testing.assert_close(smooth, cross_entropy(student, batch["labels"], label_smoothing=0.2))


@pytest.mark.parametrize("name", ["kd", "dkd", "dist"])
def test_transform_is_for_the_distillation_loss_alone(name: str) -> None:
    batch, student, teacher = _pair()
    roles = {"student": Signals(logits=student), "teacher": Signals(logits=teacher)}
    method = build_method(name)
    assert isinstance(method, LogitMethod)
    plain = method(batch, **roles)
    method.logit_transform = standardize
    changed = method(batch, **roles)
    ready = {role: Signals(logits=standardize(s.logits)) for role, s in roles.items() if s.logits is not None}
    by_hand = build_method(name)(batch, **ready)
    for term in plain:
        expected = plain[term] if term == "ce" else by_hand[term]
        torch.testing.assert_close(as_term(changed[term]).values, as_term(expected).values)
    assert any(not torch.allclose(as_term(changed[t]).mean(), as_term(plain[t]).mean()) for t in plain)


def test_dkd_warms_up_over_a_twelfth_of_the_run_or_given_epochs() -> None:
    early, later = Progress(0, 10, 240), Progress(200 * 10, 10, 240)
    default, given = build_method("dkd", beta=8.0), build_method("dkd", beta=8.0, warmup_epochs=4)
    assert weight_at(default.weights["nckd"], early) == pytest.approx(8 / 20)
    assert weight_at(given.weights["nckd"], early) == pytest.approx(8 / 4)
    assert weight_at(default.weights["nckd"], later) == weight_at(given.weights["nckd"], later) == 8.0
    assert weight_at(build_method("dkd", warmup_epochs=0).weights["tckd"], early) == 1.0


def test_dkd_terms_are_unweighted() -> None:
    batch, student, teacher = _pair()
    terms = _run("dkd", batch, student, teacher, alpha=5.0, beta=7.0, temperature=2.0)
    parts = decoupled_kl(student, teacher, batch["labels"], temperature=2.0)
    torch.testing.assert_close((terms["tckd"], terms["nckd"]), tuple(parts))


def test_mlkd_masks_single_samples_and_classes_on_the_weak_view() -> None:
    batch, weak_s, weak_t = _pair()
    _, strong_s, strong_t = _pair()
    method = build_method("mlkd", temperature=2.0, extra_temperatures=(5.0,))
    student = Signals(logits=weak_s, views={"strong": Signals(logits=strong_s)})
    teacher = Signals(logits=weak_t, views={"strong": Signals(logits=strong_t)})
    terms = {name: as_term(term) for name, term in method(batch, student=student, teacher=teacher).items()}
    probabilities = torch.softmax(weak_t, 1)
    samples = probabilities.amax(1) <= probabilities.amax(1).median(dim=0).values + 1e-7
    assert samples.sum() == 3
    kept, classes = method.masks(weak_t)
    assert kept.tolist() == samples.tolist()
    assert classes.sum() == 3
    expected = sum(
        kl(weak_s, weak_t, temperature=t, reduction="none") * samples
        + kl(strong_s, strong_t, temperature=t, reduction="none")
        for t in (2.0, 5.0)
    )
    torch.testing.assert_close(terms["kd"].values, expected)
    for name, distance, mask in (("bc", batch_correlation, samples), ("cc", class_correlation, classes)):
        total = sum(
            distance(weak_s, weak_t, temperature=t, mask=mask, reduction="batchmean")
            + distance(strong_s, strong_t, temperature=t)
            for t in (2.0, 5.0)
        )
        torch.testing.assert_close(terms[name].mean(), total)


def test_mlkd_transforms_the_divergence_only() -> None:
    batch, weak_s, weak_t = _pair()
    student = Signals(logits=weak_s, views={"strong": Signals(logits=weak_s)})
    teacher = Signals(logits=weak_t, views={"strong": Signals(logits=weak_t)})
    plain, standardised = build_method("mlkd"), build_method("mlkd")
    standardised.logit_transform = standardize
    before, after = (m(batch, student=student, teacher=teacher) for m in (plain, standardised))
    equal = {name: torch.equal(as_term(before[name]).values, as_term(after[name]).values) for name in before}
    assert equal == {"ce": True, "kd": False, "bc": True, "cc": True}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("kd", {"temperature": 0}, "temperature"),
        ("kd", {"temprature": 4}, "temprature"),
        ("dkd", {"beta": -1}, "beta"),
        ("dist", {"eps": -1e-8}, "eps"),
        ("mlkd", {"percentile": 101}, "percentile"),
        ("mlkd", {"extra_temperatures": [2.0, 0.0]}, "extra_temperatures"),
        ("label_smoothing", {"smoothing": 1.5}, "smoothing"),
        ("crd", {"negatives": 0}, "negatives"),
        ("cc", {"kernel": "linear"}, "kernel"),
        ("born_again", {"variant": "bann"}, "variant"),
    ],
)
def test_hyperparameters_out_of_range_are_named(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build_method(name, **options)


def test_unknown_method_is_suggested() -> None:
    with pytest.raises(UnknownNameError, match="'dkd'"):
        build_method("dkdd")
