"""Properties of robust distillation that no battery knows: balances, who sees what."""

from __future__ import annotations

import copy

import pytest
import torch

from limbeck.engine.combine import combine, term_means
from limbeck.errors import NeedsError
from limbeck.functional.balancing import relative_share, soft_divergence
from limbeck.functional.divergences import kl
from limbeck.methods.base import Setup, build_method
from limbeck.schedules import Progress, weight_at
from limbeck.signals import Batch, Signals
from methods.workbench import Bench, bench


def weights(built: Bench, progress: Progress) -> tuple[float, float]:
    found = built.method.weights
    return weight_at(found["robust"], progress), weight_at(found["clean"], progress)


def test_shares_start_equal_and_stay_a_division_of_one() -> None:
    built = bench("mtard", {"weight_rate": 0.5})
    now = Progress(0, 2, 12)
    built.terms()
    assert weights(built, now) == (0.5, 0.5)
    for step in range(6):
        built.terms(built.bench_batch(step))
        robust, clean = weights(built, Progress(step, 2, 12))
        assert 0 <= robust <= 1
        assert robust + clean == pytest.approx(1)
        built.method.after_step(Progress(step + 1, 2, 12))
        assert weights(built, Progress(step + 1, 2, 12)) == (robust, clean)
    assert robust != 0.5


def test_the_loss_that_shrinks_slower_gets_more_weight() -> None:
    assert relative_share(0.9, 0.1, 1.0, 1.0) == pytest.approx(0.9)
    assert relative_share(9.0, 1.0, 9.0, 1.0) == pytest.approx(0.5)
    assert relative_share(0.0, 0.0, 0.0, 0.0) == 0.5


def drive(config: dict, robust: torch.Tensor, clean: torch.Tensor, steps: int):
    method = build_method("mtard", **config).double().train()
    student = torch.zeros_like(robust).requires_grad_()
    batch = Batch(index=torch.arange(len(robust)))
    for step in range(steps):
        says = Signals(logits=student, views={"adversarial": Signals(logits=student)})
        method(batch, student=says, robust_teacher=Signals(logits=robust), clean_teacher=Signals(logits=clean))
        method.after_step(Progress(step + 1, 1, steps))
    return method


def test_temperatures_move_until_the_entropies_agree_and_stay_in_range() -> None:
    torch.manual_seed(0)
    sharp, soft = 5 * torch.randn(16, 5).double(), torch.randn(16, 5).double()
    method = drive({"temperature_rate": 0.02, "decay": False}, sharp, soft, 400)
    assert 3 < float(method.robust_temperature) < 10
    entropies = [
        float(soft_divergence(t, t, temperature=float(temperature))[1].mean())
        for t, temperature in ((sharp, method.robust_temperature), (soft, method.clean_temperature))
    ]
    assert entropies[0] == pytest.approx(entropies[1], abs=0.01)
    capped = drive({"temperature_rate": 1.0, "highest_temperature": 3.0}, sharp, soft, 20)
    assert float(capped.robust_temperature) == 3.0
    assert float(capped.clean_temperature) == 1.0
    fixed = drive({"temperature_rate": 0.0, "weight_rate": 0.0}, sharp, soft, 5)
    assert (float(fixed.robust_temperature), float(fixed.clean_temperature), float(fixed.share)) == (1.0, 1.0, 0.5)


def test_rates_fall_as_in_the_published_run() -> None:
    sharp, soft = torch.eye(4).double() * 9, torch.eye(4).double()
    method = drive({"temperature_rate": 0.01}, sharp, soft, 300)
    assert float(method.robust_temperature) == pytest.approx(1 + 2.15 + 0.45 * 0.1 + 0.25 * 0.01 + 0.15 * 0.001)


def test_identical_teachers_and_images_give_equal_losses() -> None:
    built = bench("mtard")
    clean, robust = (built.frozen[role].model for role in ("clean_teacher", "robust_teacher"))
    robust.load_state_dict(clean.state_dict())
    batch = built.batch()
    batch["adversarial_inputs"] = batch["inputs"]
    terms = built.terms(batch)
    torch.testing.assert_close(terms["robust"], terms["clean"])
    logits, other = torch.randn(2, 6, 5).double()
    torch.testing.assert_close(soft_divergence(logits, other)[0] * 5, kl(logits, other, reduction="none"))


def test_each_teacher_sees_its_own_images_only() -> None:
    built = bench("mtard")
    seen: dict[str, list[torch.Tensor]] = {}

    def watched(role):
        def observe(batch):
            seen.setdefault(role, []).append(batch.inputs_for(role))
            return built.observers[role](batch)

        return observe

    batch = built.batch()
    built.method.observe(batch, {role: watched(role) for role in built.observers})
    clean, attacked = batch["inputs"], batch["adversarial_inputs"]
    assert [torch.equal(x, attacked) for x in seen["robust_teacher"]] == [True]
    assert [torch.equal(x, clean) for x in seen["clean_teacher"]] == [True]
    assert [torch.equal(x, y) for x, y in zip(seen["student"], (clean, attacked))] == [True, True]


def test_a_trial_moves_nothing_and_a_cached_robust_teacher_is_refused() -> None:
    built = bench("mtard")
    before = copy.deepcopy(built.method.state_dict())
    with torch.no_grad():
        built.terms()
    assert all(torch.equal(t, before[n]) for n, t in built.method.state_dict().items())
    with pytest.raises(NeedsError, match="live model"):
        built.method.build(Setup(signals={}, models={"student": built.learners["student"]}))


@pytest.mark.parametrize("name", ["pgd_at", "trades", "mtard"])
def test_robust_losses_go_down_on_one_batch(name: str) -> None:
    built = bench(name)
    batch, student = built.batch(), built.learners["student"]

    def loss() -> torch.Tensor:
        return combine(term_means(built.terms(batch)), built.method.weights, Progress(0, 2, 12))

    before = loss()
    found = torch.autograd.grad(before, list(student.parameters()), allow_unused=True)
    with torch.no_grad():
        for parameter, gradient in zip(student.parameters(), found):
            if gradient is not None:
                parameter -= 1e-3 * gradient
    assert loss() < before


def test_robust_answers_are_those_to_clean_images_and_labels_only_where_asked_for() -> None:
    built = bench("ard")
    batch = built.batch()
    signals = built.signals(batch)
    learner, teacher = built.learners["student"], built.frozen["teacher"].model
    attacked, clean = learner(batch["adversarial_inputs"]), learner(batch["inputs"])
    theirs = teacher(batch["inputs"])
    terms = built.method(batch, **signals)
    assert set(terms) == {"kd"}
    torch.testing.assert_close(terms["kd"], kl(attacked, theirs, temperature=30.0, reduction="none"))
    both = bench("ard", {"alpha": 0.25})
    assert both.method.weights == {"kd": 0.25, "ce": 0.75}
    torch.testing.assert_close(
        both.terms()["ce"], torch.nn.functional.cross_entropy(clean, batch["labels"], reduction="none")
    )
    soft = bench("rslad")
    terms = soft.terms()
    torch.testing.assert_close(terms["robust"], kl(attacked, theirs, reduction="none"))
    torch.testing.assert_close(terms["clean"], kl(clean, theirs, reduction="none"))
    assert soft.method.weights["robust"] == pytest.approx(5 / 6)


@pytest.mark.parametrize("name", ["ard", "rslad"])
def test_an_unattacked_copy_of_a_robust_teacher_has_nothing_to_learn(name: str) -> None:
    built = bench(name)
    batch = built.batch()
    batch["adversarial_inputs"] = batch["inputs"]
    says = built.frozen["teacher"](batch)
    student = Signals(logits=says.logits, views={"adversarial": Signals(logits=says.logits)})
    terms = built.method(batch, student=student, teacher=says)
    assert all(abs(float(value.sum())) < 1e-12 for value in terms.values())
