"""The Python way in: any two modules, any data set, one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from limbeck.engine import distributed
from limbeck.engine.reporter import Reporter
from limbeck.engine.roles import Role
from limbeck.engine.run_folder import RunFolder
from limbeck.engine.settings import TrainSettings
from limbeck.engine.stage import Stage
from limbeck.evaluate import evaluate
from limbeck.hyperparameters import validated_model
from limbeck.tasks.base import tasks

if TYPE_CHECKING:
    from limbeck.recipes.method_section import MethodLike


@dataclass(frozen=True)
class Distilled:
    """What :func:`distill` returns.

    Attributes:
        student: the deployable student, in eval mode.
        results: what the evaluations said, by name; empty without ``evaluate_on``.
    """

    student: nn.Module
    results: dict[str, Any]


@distributed.session()
def distill(
    teacher: nn.Module | None,
    student: nn.Module,
    train_set: Any,
    *,
    method: MethodLike = "kd",
    evaluate_on: Any = None,
    holdout: float = 0.0,
    labelled_per_batch: int | None = None,
    evaluations: Sequence[str] = ("accuracy", "agreement", "calibration"),
    task: str = "classification",
    augment: Sequence[Mapping[str, Any]] = (),
    views: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    transforms: Sequence[str | Mapping[str, Any]] = (),
    taps: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    roles: Mapping[str, Role] | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    reporter: Reporter | None = None,
    **train: Any,
) -> Distilled:
    """Trains ``student`` on ``train_set`` to do what ``teacher`` does.

    Args:
        teacher: the large model, frozen throughout: parameters and buffers are byte-identical afterwards. None for
            methods without one.
        student: the small model, trained in place; under ``sharding="fsdp"`` use the one that is returned.
        train_set: a name (``"fashion-mnist"``), a pair of tensors ``(inputs, labels)``, or any torch ``Dataset`` of
            such pairs.
        method: a name, a mapping with a name and hyperparameters, a list of those that are used at once, or a
            :class:`~limbeck.methods.base.Method` of your own.
        evaluate_on: test data, in the forms of ``train_set``.
        holdout: part of ``train_set`` kept out of training, for methods that judge the student while it trains.
        labelled_per_batch: how many samples of every batch have a label, where those of some samples are
            :data:`~limbeck.signals.UNLABELLED`; as it happens when None.
        evaluations: what to measure on it.
        task: how models are run.
        augment: augmentation of the training data, as in a recipe; none by default.
        views: further views of each sample, by name, for methods that need them.
        transforms: what changes a batch before the models see it, as in a recipe: ``["mixup"]``.
        taps: by role and tap group, the modules whose outputs are features (``{"student": {"stages": ["layer1",
            "layer2"]}}``).
        roles: further roles, for methods with more than a student and a teacher.
        seed: seed of the order of samples, augmentation and of what the method draws.
        out: a folder for metrics and checkpoints; with it, an interrupted call continues when it is made again.
        reporter: shows progress, for example ``limbeck.report.progress.ConsoleReporter()``.
        **train: entries of a recipe's ``train`` section: ``epochs``, ``batch_size``, ``lr``, ``optimizer`` ...

    Raises:
        LimbeckError: something is unknown or does not fit; the message says what and how to mend it.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> x, y = torch.randn(64, 8), torch.randint(0, 3, (64,))
        >>> teacher, student = nn.Linear(8, 3), nn.Linear(8, 3)
        >>> done = distill(teacher, student, (x, y), method="kd", evaluate_on=(x, y), epochs=1, batch_size=32)
        >>> sorted(done.results)
        ['accuracy', 'agreement', 'calibration']
    """
    from limbeck.data import as_source
    from limbeck.data.loader import Loader
    from limbeck.data.subsets import hold_out
    from limbeck.evaluate.accuracy import accuracy_on
    from limbeck.recipes.method_section import as_method
    from limbeck.transforms import build_transforms

    settings = validated_model(TrainSettings, train, "train")
    built, weights = as_method(method)
    how = tasks[task].part()
    source = as_source(train_set, split="train")
    ranks: dict[str, Any] = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    apart = None
    if holdout:
        kept_out = hold_out(source, holdout, "held", purpose="holdout")
        source = hold_out(source, holdout, "rest", purpose="holdout")
        size = min(settings.batch_size, len(kept_out))
        apart = Loader(kept_out, (), batch_size=size, seed=seed, **ranks)
    loader = Loader(
        source,
        augment,
        batch_size=settings.batch_size,
        seed=seed,
        views=views or {},
        workers=settings.workers,
        labelled_per_batch=labelled_per_batch,
        **ranks,
    )
    held = None
    if evaluate_on is not None:
        held = Loader(
            as_source(evaluate_on, split="test", like=source),
            (),
            batch_size=max(256, settings.batch_size),
            seed=seed,
            shuffle=False,
        )
    changes = build_transforms(transforms, loader, seed=seed, num_classes=source.info.num_classes)
    tapped = taps or {}
    all_roles = {"student": Role(model=student, taps=tapped.get("student")), **(roles or {})}
    if teacher is not None:
        # Attacks and learnt augmentation may send gradients through it, to the inputs.
        seen_through = any("teacher" in getattr(change, "runs", ()) for change in changes)
        all_roles["teacher"] = Role(model=teacher, taps=tapped.get("teacher"), differentiable=seen_through)
    identity = {"method": str(method), "seed": seed, "train": settings.model_dump(mode="json")}
    if transforms:
        identity["transforms"] = [str(entry) for entry in transforms]
    folder = None if out is None else RunFolder.open(out, identity)
    try:
        stage = Stage(
            method=built,
            roles=all_roles,
            task=how,
            loader=loader,
            settings=settings,
            weights=weights,
            transforms=changes,
            labels=source.labels(),
            num_classes=source.info.num_classes or None,
            evaluate=None if held is None else lambda model: {"accuracy": accuracy_on(model, held, how)},
            folder=folder,
            seed=seed,
            reporter=reporter,
            holdout=apart,
        )
        stage.run()
    finally:
        if folder is not None:
            folder.close()
    finished = stage.student().eval()
    results = {} if held is None else evaluate(finished, loader=held, task=how, teacher=teacher, names=evaluations)
    return Distilled(finished, results)
