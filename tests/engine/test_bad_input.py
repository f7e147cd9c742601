"""What goes wrong in a run: the cause and the fix are named, and nothing that was good is lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

import limbeck
from limbeck.engine.run_folder import RunFolder
from limbeck.errors import (
    CheckpointError,
    DataError,
    LimbeckError,
    NeedsError,
    NonFiniteLossError,
    RecipeError,
    RunFolderError,
    TeacherChangedError,
    UnknownNameError,
)
from limbeck.methods.base import Method
from limbeck.recipes.load import load_recipe
from limbeck.recipes.run import run_recipe
from limbeck.signals import Batch, Signals, Terms

X, Y = torch.randn(48, 8, generator=torch.Generator().manual_seed(0)), torch.arange(48) % 3
RECIPE: dict[str, Any] = {
    "data": {"name": "fashion-mnist-small", "limit": {"train": 96, "test": 32}},
    "roles": {"teacher": {"model": "small_cnn"}, "student": {"model": "small_cnn"}},
    "method": "kd",
    "train": {"epochs": 2, "batch_size": 32, "checkpoint_every": 1},
    "evaluate": ["accuracy"],
}


def distil(teacher: nn.Module | None, student: nn.Module, data: Any = (X, Y), **more: Any) -> Any:
    return limbeck.distill(teacher, student, data, **{"epochs": 1, "batch_size": 16, **more})


class BadAfter(Method):
    """A loss that becomes NaN for one sample."""

    def __init__(self, sample: int) -> None:
        super().__init__()
        self.sample = sample
        self.weights = {"bad": 1.0}

    def forward(self, batch: Batch, student: Signals) -> Terms:
        assert student.logits is not None
        values = student.logits.square().mean(1)
        return {"bad": torch.where(batch["index"] == self.sample, torch.nan, values)}


def test_loss_that_is_no_number_names_term_step_and_sample() -> None:
    with pytest.raises(NonFiniteLossError, match=r"term 'bad' is nan at step \d+: samples \[7\]"):
        distil(None, nn.Linear(8, 3), method=BadAfter(7))


def test_loss_that_is_no_number_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    student = nn.Linear(8, 3)
    with pytest.raises(NonFiniteLossError, match="the last good checkpoint is kept"):
        distil(None, student, method=BadAfter(40), out=tmp_path / "run", batch_size=4, checkpoint_every=1, seed=2)
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


def test_different_numbers_of_classes() -> None:
    with pytest.raises(NeedsError, match="different numbers of classes"):
        distil(nn.Linear(8, 4), nn.Linear(8, 3))


def test_different_input_sizes() -> None:
    with pytest.raises(NeedsError, match=r"role 'teacher' \(Linear\) cannot run on samples of shape \(8,\)"):
        distil(nn.Linear(9, 3), nn.Linear(8, 3))


@pytest.mark.parametrize(("batch_size", "micro_batches"), [(47, 1), (16, 16)])
def test_a_single_sample_that_batch_normalisation_cannot_train_on(batch_size: int, micro_batches: int) -> None:
    student = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    with pytest.raises(NeedsError, match=r"cannot train on a single sample.* train\.batch_size"):
        distil(nn.Linear(8, 3), student, batch_size=batch_size, micro_batches=micro_batches)


def test_no_teacher_where_one_is_needed() -> None:
    with pytest.raises(NeedsError, match="needs the role 'teacher'"):
        distil(None, nn.Linear(8, 3))


def test_features_that_nobody_can_give() -> None:
    with pytest.raises(NeedsError, match="does not say where they are"):
        distil(nn.Linear(8, 3), nn.Linear(8, 3), method="at")


def test_unknown_method_and_tap() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'dkd'"):
        distil(nn.Linear(8, 3), nn.Linear(8, 3), method="ddkd")
    teacher, student = (nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)) for _ in range(2))
    with pytest.raises(LimbeckError, match="no module of Sequential matches the tap '3@in'"):
        distil(teacher, student, method="rkd", taps={"student": {"pooled": ["3@in"]}})


def test_labels_out_of_range_or_missing() -> None:
    with pytest.raises(LimbeckError, match="labels"):
        distil(nn.Linear(8, 3), nn.Linear(8, 3), (X, Y - 1))
    with pytest.raises(LimbeckError, match="labels"):
        distil(nn.Linear(8, 3), nn.Linear(8, 3), (X, None))


def test_empty_data() -> None:
    with pytest.raises(DataError, match="empty"):
        distil(nn.Linear(8, 3), nn.Linear(8, 3), (X[:0], Y[:0]))


def test_batch_too_small_for_a_loss_between_samples() -> None:
    teacher, student = (nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)) for _ in range(2))
    with pytest.raises(LimbeckError, match=r"batch|samples"):
        distil(teacher, student, method="rkd", batch_size=1)


def test_micro_batches_of_a_loss_between_samples() -> None:
    with pytest.raises(RecipeError, match="micro_batches to 1"):
        distil(nn.Linear(8, 3), nn.Linear(8, 3), method="dist", micro_batches=2)


def test_teacher_that_shares_parameters_with_the_student() -> None:
    shared = nn.Linear(8, 3)
    with pytest.raises(NeedsError, match="share parameters"):
        distil(shared, shared, method="kd")


def test_teacher_that_is_changed_from_outside() -> None:
    teacher = nn.Linear(8, 3)

    class Meddling(Method):
        def __init__(self) -> None:
            super().__init__()
            self.weights = {"loss": 1.0}

        def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
            assert student.logits is not None
            return {"loss": student.logits.square().mean(1)}

        def after_step(self, progress: Any) -> None:
            with torch.no_grad():
                next(iter(touched.parameters())).add_(1e-3)

    touched = teacher
    with pytest.raises(TeacherChangedError, match="weight"):
        distil(teacher, nn.Linear(8, 3), method=Meddling())


class Noisy(nn.Module):
    """A teacher with everything that a wrong mode would set in motion."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def test_teacher_is_the_same_to_the_last_byte() -> None:
    teacher = Noisy()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    distil(teacher, nn.Linear(8, 3), epochs=2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())


class Watched(nn.Linear):
    """A student that remembers its mode at each forward pass."""

    def __init__(self) -> None:
        super().__init__(8, 3)
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append((self.training, torch.is_grad_enabled()))
        return super().forward(x)


def test_student_trains_in_train_mode_in_every_epoch() -> None:
    student = Watched()
    distil(nn.Linear(8, 3), student, epochs=3, evaluate_on=(X, Y))
    # With a gradient always in train mode, without one (dry run, evaluation) always in eval mode.
    assert {mode for mode, gradient in student.modes if gradient} == {True}
    assert {mode for mode, gradient in student.modes if not gradient} == {False}
    assert sum(gradient for _, gradient in student.modes) == 9


class Hostile:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.mark),))


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A run folder with a checkpoint, its last step not taken."""
    folder = tmp_path / "run"
    process = multiprocessing.get_context("fork").Process(target=_run_and_die, args=(folder,))
    process.start()
    process.join()
    assert process.exitcode == -9
    return folder


def _run_and_die(folder: Path) -> None:
    from limbeck.engine.reporter import Reporter

    class Dies(Reporter):
        def step_done(self, progress: Any, loss: float) -> None:
            if progress.step == 4:
                os.kill(os.getpid(), 9)

    run_recipe(RECIPE, out=folder, reporter=Dies())


def the_checkpoint(folder: Path) -> Path:
    (found,) = (folder / "checkpoints").iterdir()
    return found


def test_flipped_byte_in_a_checkpoint(stopped: Path) -> None:
    state = max(the_checkpoint(stopped).iterdir(), key=lambda p: p.stat().st_size)
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    with pytest.raises(CheckpointError, match="checksum does not match"):
        run_recipe(RECIPE, out=stopped)


def test_truncated_checkpoint(stopped: Path) -> None:
    state = max(the_checkpoint(stopped).iterdir(), key=lambda p: p.stat().st_size)
    os.truncate(state, state.stat().st_size // 2)
    with pytest.raises(CheckpointError, match="to start this stage again"):
        run_recipe(RECIPE, out=stopped)


def test_hostile_checkpoint_runs_nothing(stopped: Path, tmp_path: Path) -> None:
    import hashlib

    mark = tmp_path / "hacked"
    checkpoint = the_checkpoint(stopped)
    state = max(checkpoint.iterdir(), key=lambda p: p.stat().st_size)
    torch.save({"step": Hostile(mark)}, state)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    digest = hashlib.sha256(state.read_bytes()).hexdigest()
    text = json.dumps({k: digest if k == "sha256" else v for k, v in manifest.items()})
    (checkpoint / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError):
        run_recipe(RECIPE, out=stopped)
    assert not mark.exists()


def test_hostile_weights_run_nothing(tmp_path: Path) -> None:
    mark, weights = tmp_path / "hacked", tmp_path / "teacher.pt"
    weights.write_bytes(pickle.dumps(Hostile(mark)))
    roles = {**RECIPE["roles"], "teacher": {"model": "small_cnn", "weights": str(weights)}}
    with pytest.raises(CheckpointError):
        run_recipe({**RECIPE, "roles": roles}, out=tmp_path / "run")
    assert not mark.exists()


def test_another_recipe_in_the_folder(stopped: Path) -> None:
    with pytest.raises(RunFolderError, match=r"another recipe \(they differ in: seed\)"):
        run_recipe({**RECIPE, "seed": 9}, out=stopped)
    with pytest.raises(RunFolderError, match=r"differ in: stages\.0\.train\.lr\)"):
        run_recipe({**RECIPE, "train": {**RECIPE["train"], "lr": 0.123}}, out=stopped)


def test_a_recipe_from_before_an_entry_was_added_is_the_same_recipe(stopped: Path) -> None:
    stored = stopped / "recipe.yaml"
    before = yaml.safe_load(stored.read_text())
    for entry in ("clip_norm", "gradient_metrics", "channels_last"):
        before["stages"][0]["train"].pop(entry, None)
    stored.write_text(yaml.safe_dump(before))
    assert run_recipe(RECIPE, out=stopped).results["accuracy"]


def test_a_recipe_that_this_version_does_not_read(stopped: Path) -> None:
    stored = stopped / "recipe.yaml"
    before = yaml.safe_load(stored.read_text())
    before["stages"][0]["train"]["warp_drive"] = True
    stored.write_text(yaml.safe_dump(before))
    with pytest.raises(RunFolderError, match="another version of limbeck"):
        run_recipe(RECIPE, out=stopped)


def test_folder_of_another_version(stopped: Path) -> None:
    (stopped / "run.json").write_text('{"format": 99}')
    with pytest.raises(RunFolderError, match="another version"):
        run_recipe(RECIPE, out=stopped)


def test_folder_that_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("three years of work")
    with pytest.raises(RunFolderError, match=r"holds thesis\.tex"):
        run_recipe(RECIPE, out=tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "three years of work"


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    first = RunFolder(tmp_path / "run", {"a": 1})
    with pytest.raises(RunFolderError, match="another process is running"):
        RunFolder(tmp_path / "run", {"a": 1})
    first.close()
    RunFolder(tmp_path / "run", {"a": 1}).close()


def test_full_disk_while_logging(tmp_path: Path) -> None:
    # The kernel's own full disk: whatever is written to it fails like a device without space.
    (tmp_path / "run").mkdir()
    folder = RunFolder(tmp_path / "run", {})
    (tmp_path / "run" / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(RunFolderError, match="disk is full"):
        folder.log("metrics.jsonl", {"epoch": 0})
    folder.close()


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(RunFolderError, match="could not be written"):
        run_recipe(RECIPE, out=blocked / "run")


def test_mean_loss_does_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    losses = []
    for size in (16, 48):
        folder = tmp_path / str(size)
        torch.manual_seed(0)
        distil(nn.Linear(8, 3), nn.Linear(8, 3), batch_size=size, lr=1e-12, out=folder)
        losses.append(json.loads((folder / "metrics.jsonl").read_text())["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_two_runs_side_by_side_do_not_meet() -> None:
    from limbeck.engine.roles import Role
    from limbeck.engine.settings import TrainSettings
    from limbeck.engine.stage import Stage
    from limbeck.methods.base import build_method
    from limbeck.tasks.classification import Classification

    class Batches:
        steps_per_epoch = 3

        def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
            for step in range(start_step, 3):
                rows = slice(16 * step, 16 * step + 16)
                yield Batch(inputs=X[rows], labels=Y[rows], index=torch.arange(16) + 16 * step, epoch=epoch)

    def stage(seed: int) -> Stage:
        torch.manual_seed(seed)
        body = [nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)) for _ in range(2)]
        roles = {"student": Role(model=body[0]), "teacher": Role(model=body[1])}
        settings = TrainSettings(epochs=2, batch_size=16)
        return Stage(
            method=build_method("rkd"), roles=roles, task=Classification(), loader=Batches(), settings=settings
        )

    alone = [stage(seed) for seed in (0, 1)]
    for one in alone:
        one.run()
    together = [stage(seed) for seed in (0, 1)]
    for one in reversed(together):
        one.run()
    for one, other in zip(alone, together):
        ours, theirs = one.learners["student"].state_dict(), other.learners["student"].state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_recipe_that_would_run_code_says_so() -> None:
    roles = {**RECIPE["roles"], "student": {"model": "python:os:getcwd"}}
    with pytest.raises(RecipeError, match="--trust"):
        run_recipe(load_recipe({**RECIPE, "roles": roles}))
