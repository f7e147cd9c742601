"""Held-out samples beside training, and what is recomputed between epochs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck import distill
from limbeck.adapters import Distillation
from limbeck.data import as_source
from limbeck.data.loader import Loader
from limbeck.engine.roles import Role
from limbeck.engine.run_folder import RunFolder
from limbeck.engine.settings import TrainSettings
from limbeck.engine.stage import Stage
from limbeck.errors import NeedsError, RecipeError
from limbeck.functional import cross_entropy
from limbeck.methods.base import Method, Needs, Passes
from limbeck.methods.combined import Combined
from limbeck.recipes.build import build_stage
from limbeck.recipes.load import load_recipe
from limbeck.schedules import Progress
from limbeck.signals import Batch, Signals, Terms
from limbeck.tasks.classification import Classification


class Guided(Method):
    """Weighs its loss by a number that it looks up in held-out data after each epoch."""

    needs = Needs(student={"logits"}, batch={"labels"}, holdout="batches")
    refreshes = True
    factor: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weights = {"ce": 1.0}
        self.register_buffer("factor", torch.ones(()))
        self.beside: list[list[int]] = []
        self.looked: list[tuple[int, list[int], list[int]]] = []

    def forward(self, batch: Batch, student: Signals) -> Terms:
        """Returns ``ce``."""
        assert student.logits is not None
        if student.logits.requires_grad:
            self.beside.append(batch["holdout"]["inputs"][:, 0].int().tolist())
        return {"ce": self.factor * cross_entropy(student.logits, batch["labels"], reduction="none")}

    def refresh(self, progress: Progress, passes: Passes) -> None:
        """Notes what it sees."""
        held = [(batch, signals) for batch, signals in passes.holdout()]
        assert all(not s["student"].logits.requires_grad for _, s in held)  # type: ignore[union-attr]
        self.factor.fill_(1 + torch.cat([s["student"].logits for _, s in held]).abs().mean())  # type: ignore[misc]
        rows = lambda seen: sorted(i for b, _ in seen for i in b["inputs"][:, 0].int().tolist())  # noqa: E731
        self.looked.append((progress.epoch, rows(passes.training()), rows(held)))


def _loader(start: int, stop: int, size: int) -> Loader:
    inputs = torch.randn(stop - start, 4)
    inputs[:, 0] = torch.arange(start, stop)
    return Loader(as_source((inputs, torch.arange(start, stop) % 3)), batch_size=size, normalize=False)


def _stage(method: Method, holdout: Any, **options: Any) -> Stage:
    torch.manual_seed(0)
    folder = options.pop("folder", None)
    return Stage(
        method=method, roles={"student": Role(model=nn.Linear(4, 3))}, task=Classification(),
        loader=_loader(0, 12, 4), settings=TrainSettings(epochs=2, lr=1e-4, **options), holdout=holdout, folder=folder,
    )  # fmt: skip


def test_every_step_has_its_held_out_batch_and_every_epoch_its_look() -> None:
    method = Guided()
    _stage(method, _loader(100, 106, 3)).run()
    seen = [sorted(rows) for rows in method.beside]
    assert len(seen) == 6
    assert all(set(rows) <= set(range(100, 106)) and len(rows) == 3 for rows in seen)
    assert sorted(seen[0] + seen[1]) == list(range(100, 106))  # each sample once in two steps
    assert [(epoch, train, held) for epoch, train, held in method.looked] == [
        (epoch, list(range(12)), list(range(100, 106))) for epoch in (1, 2)
    ]
    assert method.factor > 1


def test_a_resumed_run_sees_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    held, whole = _loader(100, 106, 3), Guided()
    stage = _stage(whole, held)
    stage.run()
    torn, again = _stage(Guided(), held), _stage(Guided(), held)
    folder = RunFolder.open(tmp_path / "run", {})
    torn._folder = again._folder = folder
    epochs = torn.loader.epoch

    def cut(epoch: int, start_step: int = 0) -> Iterator[Batch]:
        if epoch == 1:
            raise KeyboardInterrupt
        yield from epochs(epoch, start_step)

    torn.loader.epoch = cut  # type: ignore[method-assign]
    try:
        with pytest.raises(KeyboardInterrupt):
            torn.run()
        again.run()
    finally:
        folder.close()
    assert torch.equal(stage.learners["student"].weight, again.learners["student"].weight)
    assert torch.equal(whole.factor, again.method.factor)


def test_held_out_data_is_asked_for_where_it_is_missing() -> None:
    with pytest.raises(NeedsError, match=r"Guided judges the student .* `data: \{holdout: 0.1\}`"):
        _stage(Guided(), None)


def test_other_loops_refuse_methods_that_look_between_epochs() -> None:
    with pytest.raises(RecipeError, match="between epochs or at held-out samples"):
        Distillation(Guided(), student=nn.Linear(4, 3), teacher=None, example=next(iter(_loader(0, 4, 4).epoch(0))))


def test_members_of_a_combination_get_both() -> None:
    method = Guided()
    combined = Combined({"guided": method})
    assert combined.needs.holdout == "batches"
    _stage(combined, _loader(100, 106, 3)).run()
    assert len(method.looked) == 2
    assert len(method.beside) == 6


def test_a_recipe_keeps_samples_out_of_training() -> None:
    recipe = load_recipe("fashion_mnist_none", ["data.limit={train: 60, test: 20}", "data.holdout=0.25"])
    data = build_stage(recipe, recipe.stages[0]).data
    assert data.holdout_loader is not None
    assert (len(data.train), len(data.holdout_loader.source)) == (len(data.train), 60 - len(data.train))
    assert 40 <= len(data.train) <= 50
    hashes = [set(source.content_hashes().tolist()) for source in (data.train, data.holdout_loader.source)]
    assert not hashes[0] & hashes[1]


def test_distill_keeps_samples_out_of_training() -> None:
    method = Guided()
    inputs = torch.randn(40, 4)
    inputs[:, 0] = torch.arange(40)
    distill(
        None,
        nn.Linear(4, 3),
        (inputs, torch.arange(40) % 3),
        method=method,
        holdout=0.2,
        epochs=1,
        batch_size=8,
        lr=1e-4,
    )
    ((_, training, held),) = method.looked
    assert len(held) > 0
    assert sorted(training + held) == list(range(40))


class Duel(Guided):
    """Two players, one with an optimizer of its own."""

    optimizers = {"scale": {"optimizer": "adam", "lr": 0.5}}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))
        self.weights = {"ce": 1.0, "pull": 1.0}

    def forward(self, batch: Batch, student: Signals) -> Terms:
        """Returns ``ce`` and ``pull``."""
        return {**super().forward(batch, student), "pull": (self.scale - 1).square().expand(batch.size)}

    def players(self, learners: Any) -> Any:
        """Returns two players."""
        return {
            "student": (list(learners["student"].parameters()), frozenset({"ce"})),
            "scale": ([self.scale], frozenset({"pull"})),
        }


def test_a_player_may_have_its_own_optimizer() -> None:
    stage = _stage(Duel(), _loader(100, 106, 3), players={"scale": {"weight_decay": 0.25}}, schedule="constant")
    assert isinstance(stage.optimizers["scale"], torch.optim.Adam)
    assert isinstance(stage.optimizers["student"], torch.optim.SGD)
    stage.run()
    rates = {who: optimizer.param_groups[0]["lr"] for who, optimizer in stage.optimizers.items()}
    assert rates == {"student": 1e-4, "scale": 0.5}
    assert stage.optimizers["scale"].param_groups[0]["weight_decay"] == 0.25


@pytest.mark.parametrize(("players", "words"), [
    ({"scales": {"lr": 1.0}}, "no player 'scales'. Did you mean 'scale'"),
    ({"scale": {"rate": 1.0}}, "train.players.scale: unknown key 'rate'"),
    ({"scale": {"lr": -1.0}}, "train.players.scale: 'lr' = -1.0"),
    ({"scale": {"epochs": 3}}, "unknown key 'epochs'"),
])  # fmt: skip
def test_misspelt_players_are_refused(players: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        _stage(Duel(), _loader(100, 106, 3), players=players)
