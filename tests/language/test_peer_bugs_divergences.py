"""Mistakes that other tools made in divergences and in the layer that makes logits: none of them here."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from scipy.special import rel_entr
from torch import Tensor

from language.corpus import loader, tiny
from language.spoken import LENGTH, ROWS, Largest, V, loss_of, numbers, projected, ragged, said, spoken, tokens
from limbeck.functional.divergence_registry import divergence_names
from limbeck.functional.loss_head import projected_token_losses
from limbeck.functional.token_losses import LabelLoss
from limbeck.methods.base import build_method
from limbeck.signals import Batch, Head, Hidden, Signals, as_term
from limbeck.students.language import add_lora
from limbeck.tasks.causal_lm import CausalLM

DENSE: list[tuple[str, dict[str, Any]]] = [
    ("sft", {}),
    *(("word_kd", {"divergence": name, "kd_ratio": 0.7}) for name in divergence_names() if name != "test_cubic"),
    ("word_kd", {"temperature": 2.0, "scale_by_t2": True}),
    ("word_kd", {"average": "sequence_mean"}),
    ("word_kd", {"tokens": "surer_teacher"}),
    ("word_kd", {"tokens": {"name": "uncertain_tokens", "fraction": 0.5}}),
    *(("gkd", {"beta": beta}) for beta in (0.0, 0.3, 1.0)),
    ("gkd", {"beta": 0.5, "temperature": 3.0, "normalized": True}),
    ("distillm", {}),
    ("taid", {}),
    ("tsd_kd", {}),
    ("ddk", {}),
    ("opsd", {}),
    ("opsd", {"top_k": 4, "clip": 0.2}),
    ("first", {}),
    ("imitkd", {}),
]


def roles_of(method: Any, student: Signals, teacher: Tensor) -> dict[str, Signals]:
    every = {"student": student, "teacher": spoken(teacher)}
    return {role: every[role] for role in method.roles()}


def test_bug_04_the_divergence_of_gkd_can_be_asked_not_to_jump_at_its_ends() -> None:
    """Elsewhere beta 0 is forward KL and beta 0.001 a thousandth of it, without a word and without a way out."""
    student, teacher = said(0), said(1)

    def value(beta: float, normalized: bool) -> float:
        method = build_method("gkd", beta=beta, normalized=normalized)
        return float(loss_of(method, tokens(), student=spoken(student), teacher=spoken(teacher)))

    assert value(1e-3, False) < 0.01 * value(0.0, False)
    for end, near in ((0.0, 1e-4), (1.0, 1 - 1e-4)):
        assert value(near, True) == pytest.approx(value(end, True), rel=5e-3)
        assert value(end, True) == pytest.approx(value(end, False))


@pytest.mark.parametrize("beta", [0.2, 0.9])
def test_bug_05_weights_of_mixtures_are_the_teachers_whatever_the_method(beta: float) -> None:
    """Elsewhere the same name weighs the teacher in one tool and the student in the next."""
    student, teacher = said(0), said(1)
    q, p = student.softmax(-1).numpy(), teacher.softmax(-1).numpy()
    mixture, mask = beta * p + (1 - beta) * q, ragged().numpy()
    jsd = beta * rel_entr(p, mixture).sum(-1) + (1 - beta) * rel_entr(q, mixture).sum(-1)
    skew = {"skew_kl": rel_entr(p, mixture).sum(-1), "skew_rkl": rel_entr(q, (1 - beta) * p + beta * q).sum(-1)}
    roles = {"student": spoken(student), "teacher": spoken(teacher)}
    assert float(loss_of(build_method("gkd", beta=beta), tokens(), **roles)) == pytest.approx(jsd[mask].mean())
    for name, expected in skew.items():
        method = build_method("word_kd", divergence={"name": name, "alpha": beta})
        assert float(loss_of(method, tokens(), "kd", **roles)) == pytest.approx(expected[mask].mean()), name


@pytest.mark.parametrize(("name", "options"), DENSE, ids=str)
def test_bug_06_hidden_states_give_what_logits_give_for_every_option(name: str, options: dict[str, Any]) -> None:
    """Elsewhere a fused path mixed in another loss at another temperature."""
    lean, logits, leaves = projected()
    teacher = said(1)
    values, gradients = [], []
    for student in (lean, spoken(logits)):
        method = build_method(name, **options)
        loss = loss_of(method, tokens(), **roles_of(method, student, teacher))
        values.append(loss)
        gradients.append(torch.autograd.grad(loss, leaves, retain_graph=True))
    torch.testing.assert_close(values[0], values[1])
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("options", [{"softcap": 3.0}, {"scale": 0.25}, {"softcap": 2.0, "scale": 4.0}], ids=str)
def test_bug_07_softcap_and_scale_of_the_output_layer_are_in_every_loss(options: dict[str, float]) -> None:
    """Elsewhere fused losses multiply states with weights and leave out what Gemma, Cohere and Granite do then."""
    lean, logits, leaves = projected(**options)
    bare = projected()[1]
    assert not torch.allclose(logits, bare)
    for name in ("sft", "word_kd", "gkd"):
        method = build_method(name)
        found = [loss_of(method, tokens(), **roles_of(method, s, said(1))) for s in (lean, spoken(logits))]
        torch.testing.assert_close(found[0], found[1])
        for one, other in zip(*(torch.autograd.grad(x, leaves, retain_graph=True) for x in found)):
            torch.testing.assert_close(one, other)
        own = loss_of(method, tokens(), **roles_of(method, spoken(bare), said(1)))
        assert not torch.isclose(found[0], own)


def test_bug_08_an_adapter_on_the_output_layer_learns_through_the_lean_loss() -> None:
    """Elsewhere the fused path reads the base weight alone, and the adapter gets no gradient."""
    model = add_lora(tiny(tied=False), rank=2, targets=["lm_head"])
    layer = next(m for n, m in model.named_modules() if n.endswith("lm_head"))
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
    batch = next(loader().epoch(0))
    teacher = CausalLM().run(tiny(3), batch["inputs"], frozenset({"hidden"}))
    found = []
    for wanted in ("hidden", "logits"):
        model.zero_grad()
        student = CausalLM().run(model, batch["inputs"], frozenset({wanted}))
        loss = loss_of("word_kd", batch, student=student, teacher=teacher)
        loss.backward()
        found.append([loss.detach(), *(getattr(layer, f"lora_{x}")["default"].weight.grad.clone() for x in "AB")])
    for lean, dense in zip(*found):
        assert lean.abs().sum() > 0
        torch.testing.assert_close(lean, dense, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize(("name", "options"), DENSE, ids=str)
def test_bug_09_what_stands_at_masked_positions_moves_nothing(name: str, options: dict[str, Any]) -> None:
    """Elsewhere an ignore index is accepted and never read."""
    method = build_method(name, **options)
    mask = ragged().unsqueeze(-1)
    results = []
    for filling in (None, 7.0, float("nan")):
        student, teacher = said(0), said(1)
        if filling is not None:
            student, teacher = (x.masked_fill(~mask, filling) for x in (student, teacher))
        student.requires_grad_()
        loss = loss_of(copy.deepcopy(method), tokens(), **roles_of(method, spoken(student), teacher))
        results.append((loss.detach(), *torch.autograd.grad(loss, student)))
    for loss, gradient in results[1:]:
        torch.testing.assert_close(loss, results[0][0])
        torch.testing.assert_close(gradient, results[0][1])
    assert (results[2][1].masked_select(~mask) == 0).all()


_INFINITE = "pearson_chi2"
"""Divides by the student's probability, so that what it does not expect at all costs infinitely much."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "options"), DENSE, ids=str)
def test_bug_10_logits_that_are_sure_of_different_tokens_give_no_nan(
    name: str, options: dict[str, Any], dtype: torch.dtype
) -> None:
    """Elsewhere the logarithm of a mixture is taken of probabilities that have underflowed."""
    method = build_method(name, **options)
    for gap in (200.0, 3e4):
        student, teacher = (gap * torch.nn.functional.one_hot(torch.full((ROWS, LENGTH), t), V) for t in (1, 4))
        student = student.to(dtype).requires_grad_()
        roles = roles_of(method, spoken(student), teacher.to(dtype))
        loss = loss_of(copy.deepcopy(method), tokens(), **roles)
        assert not loss.isnan()
        if loss.isfinite():
            (gradient,) = torch.autograd.grad(loss, student)
            assert gradient.isfinite().all()
        else:
            assert options.get("divergence") == _INFINITE


def padded(vocabulary: int, extra: float) -> torch.nn.Module:
    """A model whose head has more rows than there are tokens."""
    model = tiny(1, vocabulary=vocabulary)
    with torch.no_grad():
        model.get_output_embeddings().weight[257:] = extra
    return model


@pytest.mark.parametrize("wanted", ["hidden", "logits"])
def test_bug_11_a_model_with_padded_rows_in_its_head_is_at_no_distance_from_itself(wanted: str) -> None:
    """Elsewhere the shorter side is filled with logits of zero, which take part in the softmax."""
    batch = next(loader().epoch(0))
    narrow, wide = tiny(1, vocabulary=257), padded(264, 0.0)
    with torch.no_grad():
        for name, parameter in narrow.named_parameters():
            parameter.copy_(wide.get_parameter(name)[:257] if parameter.shape[0] == 257 else wide.get_parameter(name))
    seen = {n: CausalLM(vocabulary=257).run(m, batch["inputs"], frozenset({wanted})) for n, m in
            (("student", wide), ("teacher", narrow))}  # fmt: skip
    for method in ("word_kd", "gkd"):
        only = "kd" if method == "word_kd" else None
        for student, teacher in (("student", "teacher"), ("teacher", "student")):
            found = loss_of(method, batch, only, student=seen[student], teacher=seen[teacher])
            assert float(found.detach()) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("wanted", ["hidden", "logits"])
def test_bug_12_rows_beyond_the_vocabulary_change_no_loss_on_either_side(wanted: str) -> None:
    """Elsewhere one side's padding is copied into the other's slots."""
    batch = next(loader().epoch(0))
    found = []
    for ours, theirs in ((0.0, 0.0), (3.0, 0.0), (0.0, 3.0), (3.0, 3.0)):
        models = {"student": padded(264, ours), "teacher": padded(272, theirs)}
        with torch.no_grad():
            models["teacher"].model.norm.weight.mul_(1.5)
        roles = {n: CausalLM(vocabulary=257).run(m, batch["inputs"], frozenset({wanted})) for n, m in models.items()}
        found.append(float(loss_of("word_kd", batch, **roles).detach()))
    assert found[0] > 0.1
    assert found == pytest.approx([found[0]] * 4, rel=1e-6)


@pytest.mark.parametrize("name", divergence_names())
def test_bug_29_a_divergence_is_zero_where_the_student_says_what_the_teacher_says(name: str) -> None:
    """Elsewhere "KL" is the cross-entropy, whose value at the optimum is the teacher's entropy, and mixes suffer."""
    teacher = said(1)
    method = build_method("word_kd", divergence=name)
    shifted = teacher.clone().requires_grad_()
    loss = loss_of(method, tokens(), "kd", student=spoken(shifted), teacher=spoken(teacher))
    entropy = -(teacher.softmax(-1) * teacher.log_softmax(-1)).sum(-1)[ragged()].mean()
    if name == "cross_entropy":
        torch.testing.assert_close(loss, entropy)
        return
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-12)
    assert torch.autograd.grad(loss, shifted)[0].abs().max() < 1e-9


def test_bug_29_the_symmetric_mix_is_the_sum_of_both_kl() -> None:
    """Elsewhere it adds a cross-entropy to a KL, so one side weighs by the teacher's entropy more."""
    student, teacher = said(0), said(1)
    q, p, mask = student.softmax(-1).numpy(), teacher.softmax(-1).numpy(), ragged().numpy()
    method = build_method("word_kd", divergence={"name": "jeffreys", "forward": 0.5})
    found = loss_of(method, tokens(), "kd", student=spoken(student), teacher=spoken(teacher))
    both = 0.5 * (rel_entr(p, q).sum(-1) + rel_entr(q, p).sum(-1))
    assert float(found) == pytest.approx(both[mask].mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bug_41_the_number_of_chunks_moves_neither_loss_nor_gradient(dtype: torch.dtype) -> None:
    """Elsewhere each chunk's part of the head's gradient is rounded to half precision before the next is added."""
    rows, width, classes = 96, 8, 40
    values, gradients = [], []
    for chunk_bytes in (1, 10**9):
        states = numbers(1, rows, width, seed=1, scale=1.0).to(dtype).requires_grad_()
        weight = numbers(classes, width, seed=2, scale=1.0).to(dtype).requires_grad_()
        labels = torch.arange(rows).remainder(classes).unsqueeze(0)
        found = projected_token_losses(
            states, Head(weight), {"ce": LabelLoss(labels)}, mask=labels >= 0, chunk_bytes=chunk_bytes, compiled=False
        )["ce"]
        found.mean().backward()
        values.append(found.mean().double())
        gradients.append(weight.grad.double())
    torch.testing.assert_close(values[0], values[1], rtol=1e-6, atol=0)
    # In half precision one rounding at the end is left, of 8 bits; sums that are rounded 96 times are far off that.
    limit = 1e-6 if dtype == torch.float32 else 2**-8
    assert (gradients[0] - gradients[1]).norm() <= limit * gradients[1].norm()
    exact = numbers(1, rows, width, seed=1, scale=1.0).to(dtype).double(), numbers(classes, width, seed=2, scale=1.0)
    weight = exact[1].to(dtype).double().requires_grad_()
    torch.nn.functional.cross_entropy((exact[0] @ weight.T)[0], labels[0]).backward()
    assert (gradients[0] - weight.grad).norm() <= (1e-5 if dtype == torch.float32 else 2**-8) * weight.grad.norm()


def test_bug_44_whether_the_squared_temperature_multiplies_is_a_flag_that_says_so() -> None:
    """Elsewhere some tools multiply and some do not, so the same recipe trains a hundred times stronger or weaker."""
    teacher = said(1)

    def gradient(temperature: float, scaled: bool) -> float:
        student = said(0).requires_grad_()
        method = build_method("word_kd", kd_ratio=1.0, temperature=temperature, scale_by_t2=scaled)
        loss = loss_of(method, tokens(), "kd", student=spoken(student), teacher=spoken(teacher))
        return float(torch.autograd.grad(loss, student)[0].norm())

    for temperature in (2.0, 10.0, 40.0):
        assert gradient(temperature, True) == pytest.approx(temperature**2 * gradient(temperature, False))
    assert gradient(40.0, True) == pytest.approx(gradient(80.0, True), rel=0.1)
    assert gradient(80.0, False) == pytest.approx(gradient(40.0, False) / 4, rel=0.1)
    assert gradient(1.0, True) == gradient(1.0, False)


def test_bug_42_no_chunk_is_widened_before_it_is_cut() -> None:
    """Elsewhere all logits are made in full precision and then divided, so chunks save nothing."""
    tokens_, classes, width = 256, 512, 4
    sizes = []
    for chunk_bytes in (2**15, 2**16):
        states = torch.randn(1, tokens_, width, dtype=torch.bfloat16, requires_grad=True)
        weight = torch.randn(classes, width, dtype=torch.bfloat16, requires_grad=True)
        theirs = Signals(hidden=Hidden(torch.randn(1, tokens_, width, dtype=torch.bfloat16), Head(weight.detach())))
        mask = torch.ones(1, tokens_, dtype=torch.bool)
        batch = Batch(index=torch.zeros(1), labels=torch.zeros(1, tokens_, dtype=torch.long), mask=mask)
        method = build_method("word_kd", kd_ratio=1.0)
        with pytest.MonkeyPatch.context() as patch, Largest() as seen:
            small = functools.partial(projected_token_losses, chunk_bytes=chunk_bytes, compiled=False)
            patch.setattr("limbeck.methods.sequence.base.projected_token_losses", small)
            terms = method(batch, student=Signals(hidden=Hidden(states, Head(weight))), teacher=theirs)
            as_term(terms["kd"]).mean().backward()
        sizes.append(seen.numel)
    assert sizes[1] == 2 * sizes[0]
    assert sizes[1] < tokens_ * classes / 4
