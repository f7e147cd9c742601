from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from limbeck.data import as_source
from limbeck.data.loader import Loader
from limbeck.engine.roles import Role
from limbeck.engine.settings import TrainSettings
from limbeck.engine.stage import Stage
from limbeck.errors import RecipeError
from limbeck.methods.base import build_method
from limbeck.students.cost import count_macs
from limbeck.students.loading import build_model
from limbeck.students.mamba import MambaClassifier
from limbeck.students.progressive import ProgressiveEnsemble
from limbeck.tasks.classification import Classification

SHAPE = (1, 8, 8)


def _ensemble(**options: object) -> ProgressiveEnsemble:
    spec = {"name": "mamba_ensemble", "dims": [4, 6, 8], "patch_size": 2, **options}
    built = build_model(spec, num_classes=3, input_shape=SHAPE)
    assert isinstance(built, ProgressiveEnsemble)
    with torch.no_grad():
        for member in built.members:
            nn.init.normal_(member.head.weight)  # type: ignore[union-attr, arg-type]
    return built


def test_only_the_newest_member_learns_and_the_others_rest() -> None:
    model, x = _ensemble(), torch.randn(4, *SHAPE)
    model.train()
    model.grow(2)
    assert [m.training for m in model.members] == [False, True, True]
    model(x).sum().backward()
    trained = [any(p.grad is not None for p in m.parameters()) for m in model.members]
    assert trained == [False, True, False]
    expected = model.members[0].eval()(x) + model.members[1](x)
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("combine", ["sum", "mean"])
def test_any_first_part_is_a_model(combine: str) -> None:
    model, x = _ensemble(combine=combine).eval(), torch.randn(4, *SHAPE)
    logits = torch.stack([m(x) for m in model.members])
    for count in (1, 2, 3):
        expected = logits[:count].sum(0) / (count if combine == "mean" else 1)
        part = model.prefix(count)
        torch.testing.assert_close(part(x), expected)
        model.grow(count)
        torch.testing.assert_close(model(x), expected)
        macs = sum(count_macs(m, SHAPE) for m in model.members[:count])
        assert count_macs(part, SHAPE) == macs
    for wrong in (0, 4):
        with pytest.raises(RecipeError, match="3 members"):
            model.grow(wrong)
        with pytest.raises(RecipeError, match="3 members"):
            model.prefix(wrong)


def test_how_far_it_has_grown_is_saved() -> None:
    model = _ensemble()
    model.grow(2)
    other = _ensemble()
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, *SHAPE)
    torch.testing.assert_close(other.eval()(x), model.eval()(x))
    assert [m.training for m in other.train().members] == [False, True, True]
    copied = copy.deepcopy(model)
    torch.testing.assert_close(copied(x), model(x))


def test_a_member_that_joins_changes_nothing_before_it_has_learnt() -> None:
    model = build_model({"name": "mamba_ensemble", "dims": [4, 6]}, num_classes=3, input_shape=(1, 8, 8))
    assert not model.eval()(torch.randn(2, *SHAPE)).any()


def test_blocks_are_causal() -> None:
    model = build_model({"name": "mamba", "dim": 8, "patch_size": 2}, num_classes=3, input_shape=SHAPE)
    assert isinstance(model, MambaClassifier)
    tokens = torch.randn(1, 16, 8)
    changed = tokens.clone()
    changed[:, 9:] += 1
    with torch.no_grad():
        before, after = (model.stages[0](t) for t in (tokens, changed))
    torch.testing.assert_close(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


@pytest.mark.parametrize(("options", "named"), [({"patch_size": 3}, "patch_size"), ({"depth": 1}, "depth = 1")])
def test_sizes_that_do_not_fit_are_named(options: dict[str, int], named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        build_model({"name": "mamba", **options}, num_classes=3, input_shape=SHAPE)


def test_a_run_trains_one_member_after_the_other_and_its_loss_falls_with_each() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 3
    images = torch.rand((96, *SHAPE), generator=generator) * 0.3
    for i, label in enumerate(labels):
        images[i, 0, 2 * label : 2 * label + 2] += 0.5
    torch.manual_seed(0)
    student = _ensemble()
    for member in student.members:
        nn.init.zeros_(member.head.weight)  # type: ignore[union-attr, arg-type]
    loader = Loader(as_source((images, labels)), batch_size=32)
    teacher = build_model("mlp", num_classes=3, input_shape=SHAPE)
    method = build_method("mamba_pkd", alpha=1.0)
    settings = TrainSettings(epochs=36, optimizer="adam", lr=0.02, weight_decay=0.0, schedule="constant")
    seen: list[tuple[int, float]] = []

    stage = Stage(
        method=method, roles={"student": Role(model=student), "teacher": Role(model=teacher)}, task=Classification(),
        loader=loader, settings=settings, num_classes=3,
    )  # fmt: skip
    assert student._active == 1
    first = copy.deepcopy(student.members[0].state_dict())
    batch = next(iter(loader.epoch(0)))
    for epoch in range(36):
        for each in loader.epoch(epoch):
            stage._train_step(each)
        with torch.no_grad():
            loss = nn.functional.cross_entropy(student(batch["inputs"]), batch["labels"])
            seen.append((student._active, loss.item()))
        if epoch == 11:
            first_done = copy.deepcopy(student.members[0].state_dict())
    assert [active for active, _ in seen] == [1] * 11 + [2] * 12 + [3] * 13
    losses = [loss for _, loss in seen]
    assert losses[35] < losses[22] < losses[10] < 1.0
    ended = student.members[0].state_dict()
    assert any(not torch.equal(first[n], t) for n, t in first_done.items())
    assert all(torch.equal(ended[n], t) for n, t in first_done.items())
