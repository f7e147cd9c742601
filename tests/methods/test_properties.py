"""What every method must do, whatever it computes. A new method is covered as soon as it is registered."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.engine.combine import check_weights
from limbeck.methods.base import methods
from limbeck.schedules import weight_at
from limbeck.signals import Batch, Signals, Term, Terms, as_term
from methods.workbench import MOMENTS, ROWS, Bench, Variant, bench, label, select, variants, weighted_totals

every_variant = pytest.mark.parametrize("variant", variants(), ids=label)


def _values(terms: Terms) -> dict[str, Tensor]:
    return {name: as_term(term).values.detach() for name, term in terms.items()}


def _sum_of_means(terms: dict[str, Any]) -> Tensor:
    return torch.stack([as_term(term).mean() for term in terms.values()]).sum()


@pytest.fixture
def built(variant: Variant) -> Bench:
    return bench(*variant)


@every_variant
def test_roles_and_needs_agree(built: Bench) -> None:
    method = built.method
    roles = set(method.roles())
    assert "student" in roles
    assert set(method.learners) <= roles
    assert "student" in method.learners
    assert set(method.needs.roles) == roles
    assert all(signals for signals in method.needs.roles.values())
    assert set(method.batch_statistics) <= roles - set(method.learners)


@every_variant
def test_terms_are_finite_and_named_by_the_weights(built: Bench) -> None:
    terms = built.terms()
    check_weights(built.method.weights, terms, "method")
    for name, term in terms.items():
        values = as_term(term).values
        assert values.is_floating_point()
        assert torch.isfinite(values).all(), name
        assert values.dim() == 0 or values.shape[0] == ROWS, name
        assert values.dim() > 0 or built.method.batch_coupled, f"{name} is one number for the batch"
    for name, weight in built.method.weights.items():
        over_time = [weight_at(weight, moment) for moment in MOMENTS]
        assert all(0 <= value < float("inf") for value in over_time), name
        assert any(value > 0 for value in over_time), f"{name} never counts"


@every_variant
def test_gradient_reaches_learners_and_own_parameters_and_nothing_else(built: Bench) -> None:
    batch = built.batch()
    signals = built.signals(batch)
    frozen = [role for role in signals if role not in built.method.learners]
    # As if the gradient could flow on into the frozen roles.
    asking = {
        role: signals[role].map(lambda t: t.clone().requires_grad_() if t.is_floating_point() else t) for role in frozen
    }
    terms = built.method(batch, **{**signals, **asking})
    mine = built.parameters()
    for name, term in terms.items():
        gradients = torch.autograd.grad(as_term(term).mean(), list(mine.values()), retain_graph=True, allow_unused=True)
        assert any(g is not None and g.abs().max() > 0 for g in gradients), f"{name} trains nothing"
    total = _sum_of_means(terms)
    named = dict(zip(mine, torch.autograd.grad(total, list(mine.values()), retain_graph=True, allow_unused=True)))
    for name, gradient in named.items():
        assert gradient is None or torch.isfinite(gradient).all(), name
        assert gradient is not None or not name.startswith("method."), f"{name} is not trained by any term"
    for role in built.learners:
        assert any(g is not None and g.abs().max() > 0 for n, g in named.items() if n.startswith(f"{role}.")), role
    leaves = [tensor for role in frozen for tensor in _tensors(asking[role])]
    if leaves:
        back = torch.autograd.grad(total, leaves, allow_unused=True)
        assert all(g is None or not g.any() for g in back), "a gradient flows into a frozen role"


def _tensors(signals: Signals) -> list[Tensor]:
    found: list[Tensor] = []
    signals.map(lambda tensor: found.append(tensor) or tensor)
    return [tensor for tensor in found if tensor.is_floating_point()]


@every_variant
def test_everything_that_trains_is_saved_and_has_a_player(built: Bench) -> None:
    """Parameters outside the module tree are not moved, saved or optimised."""
    total = _sum_of_means(built.terms())
    mine = {id(p): name for name, p in built.parameters().items()}
    reached = {id(leaf) for leaf in _leaves(total)}
    assert reached <= set(mine), "the loss depends on a parameter outside the module tree"
    state = built.method.state_dict()
    assert {name for name, _ in built.method.named_parameters()} <= set(state)
    players = built.method.players(built.learners)
    owned = [id(p) for parameters, _ in players.values() for p in parameters]
    assert len(owned) == len(set(owned)), "two players own one parameter"
    assert set(owned) == set(mine)
    terms = built.terms()
    assert all(only is None or only <= set(terms) for _, only in players.values())
    covered = set().union(*(set(terms) if only is None else only for _, only in players.values()))
    assert covered == set(terms), "a term that nobody minimises"


def _leaves(value: Tensor) -> list[Tensor]:
    """Leaves of the graph of ``value`` that collect gradients."""
    leaves, seen, stack = [], set(), [value.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        stack.extend(following for following, _ in node.next_functions)
    return leaves


@every_variant
def test_the_order_of_the_batch_does_not_matter(variant: Variant) -> None:
    built = bench(*variant)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    before, after = _values(built.terms()), _values(built.terms(select(built.batch(), order)))
    moved = []
    for name, values in before.items():
        expected = values if values.dim() == 0 else values[order]
        moved.append(not torch.allclose(after[name], expected, rtol=1e-9, atol=1e-12))
    assert any(moved) == built.method.order_dependent


@every_variant
def test_micro_batches_add_up_to_the_batch(built: Bench) -> None:
    """Or the method says that it is batch-coupled."""
    built.method.eval()  # batch normalisation in projectors apart
    whole = _values(built.terms())
    rows = torch.arange(ROWS)
    parts = [_values(built.terms(select(built.batch(), part))) for part in (rows[:2], rows[2:])]
    same = all(
        values.dim() > 0 and torch.allclose(values, torch.cat([p[name] for p in parts]), rtol=1e-9, atol=1e-12)
        for name, values in whole.items()
    )
    assert same or built.method.batch_coupled


_EXTREMES = {"dead": 0.0, "huge": 2e4}


@pytest.mark.parametrize("extreme", _EXTREMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@every_variant
def test_extreme_signals_stay_finite(variant: Variant, dtype: torch.dtype, extreme: str) -> None:
    built = bench(*variant)
    built.method.float()
    batch = built.batch()

    def distort(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        scaled = tensor.detach() / tensor.detach().abs().max() * _EXTREMES[extreme]
        return scaled.to(dtype).requires_grad_()

    signals = {role: s.map(distort) for role, s in built.signals(batch).items()}
    terms = built.method(batch, **signals)
    for name, term in terms.items():
        values = as_term(term).values
        assert torch.isfinite(values).all(), name
        assert values.dtype == torch.float32, f"{name} is computed in {values.dtype}"
    leaves = [tensor for role in built.method.learners for tensor in _tensors(signals[role])]
    # float16 cannot hold gradients of losses this large, which is what loss scaling is for.
    scale = 2.0**-40 if dtype == torch.float16 else 1.0
    for gradient in torch.autograd.grad(scale * _sum_of_means(terms), leaves, allow_unused=True):
        assert gradient is None or torch.isfinite(gradient).all()


@every_variant
def test_a_state_dict_brings_everything_back(variant: Variant) -> None:
    trained = bench(*variant, batch_norm=True)
    trained.train(2)
    file = io.BytesIO()
    torch.save(trained.method.state_dict(), file)
    file.seek(0)
    resumed = bench(*variant, init_seed=5, batch_norm=True)
    resumed.method.load_state_dict(torch.load(file, weights_only=True))
    for role, model in trained.learners.items():
        resumed.learners[role].load_state_dict(model.state_dict())
    expected, restored = _values(trained.terms()), _values(resumed.terms())
    assert expected.keys() == restored.keys()
    for name, values in expected.items():
        assert torch.equal(values, restored[name]), name


@every_variant
def test_a_copy_is_independent(built: Bench) -> None:
    """The engine tries the loss on a copy of the method, which must leave the original as it is."""
    before = {name: tensor.clone() for name, tensor in built.method.state_dict().items()}
    copied = copy.deepcopy(built.method)
    batch = built.batch()
    expected = _values(copied(batch, **built.signals(batch)))
    for name, tensor in built.method.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)
    assert all(torch.equal(values, expected[name]) for name, values in _values(built.terms()).items())


@every_variant
def test_training_leaves_frozen_roles_untouched_and_changes_learners(variant: Variant) -> None:
    built = bench(*variant, batch_norm=True)
    before = {role: copy.deepcopy(model.state_dict()) for role, model in built.learners.items()}
    built.train(2)  # compares the frozen models' tensors byte for byte
    for role, model in built.learners.items():
        assert any(not torch.equal(t, before[role][n]) for n, t in model.state_dict().items()), role
    assert torch.isfinite(torch.tensor(weighted_totals(built, built.terms()))).all()


@every_variant
def test_finish_returns_a_student_that_stands_alone(variant: Variant) -> None:
    built = bench(*variant, batch_norm=True)
    built.train(2)
    student = built.learners["student"].eval()
    inputs = built.batch()["inputs"]
    with torch.no_grad():
        expected = student(inputs)
        finished = built.method.finish(student).eval()
        given = finished(inputs)
        again = copy.deepcopy(finished)(inputs)
    assert given.shape == expected.shape
    assert torch.equal(given, again)
    if built.method.extends_student:
        assert _count(finished) != _count(student)
        _check_extended(built, student, finished, inputs)
    else:
        assert torch.equal(given, expected)
        assert _count(finished) == _count(student)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _check_extended(built: Bench, student: nn.Module, finished: nn.Module, inputs: Tensor) -> None:
    """An extended student is a snapshot: training goes on without it, and it without the training."""
    with torch.no_grad():
        expected = finished(inputs)
        state = copy.deepcopy(student.state_dict())
        finished(inputs.flip(0))
        assert all(torch.equal(t, state[n]) for n, t in student.state_dict().items())
        built.terms()  # the taps of the live student still work
        for parameter in (*student.parameters(), *built.method.parameters()):
            parameter.add_(1.0)
        assert torch.equal(finished(inputs), expected)


@pytest.mark.parametrize("name", list(methods))
def test_the_registry_and_the_docstring_say_what_the_method_is(name: str) -> None:
    entry = methods[name]
    about, doc = entry.about, entry.part.__doc__ or ""
    assert about["title"]
    assert about["family"]
    assert about["equation"].count("{") == about["equation"].count("}")
    assert about["family"] == "arm" or (about["paper"] and about["year"] > 2000)
    sections = {heading: doc.partition(f"{heading}:")[2] for heading in ("Terms", "Args")}
    for term in bench(name).method.weights:
        assert f"{term}: " in sections["Terms"], f"the docstring does not explain the term {term}"
    for hyperparameter in entry.part.hyperparameters():
        assert f"{hyperparameter}: " in sections["Args"], f"the docstring does not explain {hyperparameter}"


def test_a_masked_term_counts_its_positions_only() -> None:
    term = Term(torch.tensor([1.0, float("nan"), 3.0]), mask=torch.tensor([1, 0, 1]))
    assert as_term(term).mean() == 2.0


def test_select_keeps_what_is_no_tensor() -> None:
    batch = select(Batch(index=torch.arange(3), epoch=4), torch.tensor([2, 0]))
    assert batch["epoch"] == 4
    assert batch["index"].tolist() == [2, 0]
