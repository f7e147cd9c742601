"""One training phase. The loop knows no method, task, data set or model by name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from limbeck import streams
from limbeck.engine import distributed, sharding, stage_checkpoint
from limbeck.engine.epoch_metrics import EpochMetrics
from limbeck.engine.gradients import Gradients
from limbeck.engine.holdout import holdout_for
from limbeck.engine.interruption import Interrupted, StopRequest
from limbeck.engine.optimization import build_optimizer, learning_rate, player_settings
from limbeck.engine.preflight import check_settings, dry_run, fit
from limbeck.engine.reporter import Reporter
from limbeck.engine.roles import Role, learners_of, make_observers, standing_in
from limbeck.engine.run_folder import RunFolder
from limbeck.engine.settings import TrainSettings
from limbeck.engine.step import Step, Transform, apply_transforms
from limbeck.engine.term_gradients import watch_for
from limbeck.engine.transform_reports import rates, tell, write
from limbeck.errors import DataError, RecipeError
from limbeck.methods.base import Method, Observed, Passes, Setup
from limbeck.schedules import Progress
from limbeck.signals import Batch, Signals, Terms
from limbeck.tasks.base import Task
from limbeck.teachers.provider import Observer
from limbeck.transforms.base import ModelTransform


class BatchLoader(Protocol):
    """What a stage asks of its data."""

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches an epoch."""

    def epoch(self, epoch: int, start_step: int = 0) -> Any:
        """Yields the batches of an epoch from ``start_step`` on."""


class Stage:
    """Trains the learners of a method.

    Args:
        method: the method.
        roles: where each role's signals come from; learners are live models.
        task: how models are run.
        loader: batches in a reproducible order.
        settings: how to train.
        weights: weights of single terms that take precedence over the method's own.
        transforms: batch -> batch, in order.
        labels: label of every training sample, for methods that sample by class.
        num_classes: number of classes, against which labels are checked.
        evaluate: judges the deployable student after an epoch; its numbers are logged.
        folder: where metrics and checkpoints go; nothing is written when None.
        name: name of the stage, and of its checkpoints.
        seed: seed of the run.
        reporter: shows progress.
        holdout: batches that are not trained on, for methods that judge learners on them.
        token_map: for each token of a teacher with another tokenizer the student's of the same bytes, see
            :class:`~limbeck.methods.base.Setup`.

    Raises:
        LimbeckError: the parts do not fit; the message says which and how to mend it.
    """

    def __init__(
        self,
        *,
        method: Method,
        roles: Mapping[str, Role],
        task: Task,
        loader: BatchLoader,
        settings: TrainSettings,
        weights: Mapping[str, Any] | None = None,
        transforms: Sequence[Transform] = (),
        labels: Tensor | None = None,
        num_classes: int | None = None,
        evaluate: Callable[[nn.Module], dict[str, Any]] | None = None,
        folder: RunFolder | None = None,
        name: str = "train",
        seed: int = 0,
        reporter: Reporter | None = None,
        holdout: BatchLoader | None = None,
        token_map: Tensor | None = None,
    ) -> None:
        if loader.steps_per_epoch < 1:
            raise DataError("the training data gives no batch; check the data set and train.batch_size")
        check_settings(method, settings)
        self.method, self.task, self.loader, self.settings = method, task, loader, settings
        self.name, self.seed, self.step = name, seed, 0
        self._blueprint: sharding.Blueprint | None = None
        self._holdout = holdout_for(method, holdout)
        self._transforms, self._evaluate = tuple(transforms), evaluate
        self._folder = folder if distributed.rank() == 0 else None
        self._reporter = reporter if reporter is not None and distributed.rank() == 0 else Reporter()
        self.learners = learners_of(method, roles)
        # FSDP2 takes only parameters in the usual memory format.
        sharded = settings.sharding == "fsdp" and distributed.world_size() > 1
        self.observers = make_observers(
            roles,
            method,
            task,
            precision=settings.precision,
            channels_last=False if sharded else settings.channels_last,
            beside=[role for transform in self._transforms for role in getattr(transform, "runs", ())],
        )
        for transform in self._transforms:
            _call(transform, "bind", self.observers, loader)
        self._build(roles, labels, num_classes, weights or {}, token_map)
        if settings.compile:
            for observer in self.observers.values():
                if isinstance(getattr(observer, "model", None), nn.Module):
                    observer.model = torch.compile(observer.model)  # type: ignore[attr-defined]
        loss = torch.compile(method.forward) if settings.compile_loss else None
        self._plain_step = Step(method, self.learners, self.observers, loss)
        self.watch = watch_for(settings, method, self.learners, sharded=sharded)
        self._make_players(self._plain_step)
        self.metrics = EpochMetrics()

    def _build(
        self,
        roles: Mapping[str, Role],
        labels: Tensor | None,
        num_classes: int | None,
        weights: Mapping[str, Any],
        token_map: Tensor | None,
    ) -> None:
        """Fits the method to the shapes of a dry run and refuses what cannot work."""
        batch, signals = self._gathered(*distributed.together(lambda: self._observe_first(num_classes)))
        live = {name: role.model for name, role in roles.items() if role.model is not None and name in self.observers}
        taps = {name: o.taps.groups for name, o in self.observers.items() if isinstance(o, Observer)}
        setup = Setup(
            signals,
            live,
            taps,
            num_classes=num_classes,
            labels=labels,
            seed=self.seed,
            batch=batch,
            token_map=token_map,
        )
        fit(self.method, setup, weights, self._observe_all)

    def _observe_first(self, num_classes: int | None) -> tuple[Batch, dict[str, Signals]]:
        batch = self.first_batch()
        self.task.check(batch, num_classes)
        return batch, dry_run(self.method, batch, self.observers)

    def _gathered(self, batch: Batch, signals: dict[str, Signals]) -> tuple[Batch, dict[str, Signals]]:
        """Returns what all processes saw: a method is built from the same samples whatever their number."""
        if distributed.world_size() == 1:
            return batch, signals
        return distributed.gather_batch(batch, self.method.needs.batch), distributed.gather_signals(signals)

    def _observe_all(self) -> Any:
        """Yields every batch of one epoch with its signals, without gradients and with models in eval mode."""
        for batch in self.loader.epoch(0):
            batch = self._prepared(batch)
            yield self._gathered(batch, dry_run(self.method, batch, self.observers))

    def _prepared(self, batch: Batch, *, training: bool = False) -> Batch:
        for transform in self._transforms:
            _call(transform, "at", self.progress, training=training)
        with self._lent():
            batch = apply_transforms(self._transforms, batch)
        beside = self._holdout is not None and self.method.needs.holdout == "batches"
        return self._holdout.beside(batch, self.step) if beside else batch  # type: ignore[union-attr]

    @contextmanager
    def _lent(self) -> Iterator[None]:
        """Gives transforms in which a sharded learner writes a whole copy of it, for as long as they run.

        All processes make it at once. What each then writes exchanges nothing, so sequences may be of any length.
        """
        transforms = [t for t in self._transforms if isinstance(t, ModelTransform)]
        writers = {role for t in transforms for role in t.writers()} & set(self.learners)
        if self._blueprint is None or not writers:
            yield
            return
        _, learners = self._whole()
        with standing_in(self.observers, {role: learners[role] for role in writers}):
            yield

    def _refresh(self) -> None:
        """Lets the method recompute, at the end of an epoch, what depends on the models as they are now."""
        if not self.method.refreshes:
            return
        holdout, learners = self._holdout, self.method.learners

        def held_out() -> Observed:
            for seen in () if holdout is None else holdout.observed(self.observers, learners):
                yield self._gathered(*seen)

        self.method.refresh(self.progress, Passes(self._observe_all, held_out))

    def _make_players(self, step: nn.Module) -> None:
        """Gives each player its optimizer, for a step that may be wrapped for several processes."""
        players = self.method.players(self.learners)
        self._settings_of = player_settings(players, self.settings, self.method.optimizers)
        self.optimizers = {
            who: build_optimizer(own, self._settings_of[who]) for who, (own, _) in players.items() if own
        }
        if not self.optimizers:
            raise RecipeError("nothing trains: no learner has a parameter that requires a gradient")
        self._players = players
        self._gradients = Gradients(step, self.method, players, self.settings.micro_batches, self.watch)

    def _distribute(self) -> None:
        """Divides the work over the processes, when there are several."""
        count, kind = distributed.world_size(), self.settings.sharding
        if count == 1:
            return
        if kind == "fsdp":
            self._blueprint = sharding.Blueprint(_as_one(self.method, self.learners))
        # DDP follows one backward pass, so with several players, or terms apart, gradients are averaged by hand.
        alone = (len(self._players) > 1 or bool(self.method.yielding())) and kind == "ddp"
        taps = {
            role: [p for paths in observer.taps.groups.values() for p in paths]
            for role, observer in self.observers.items()
            if role in self.learners and isinstance(observer, Observer)
        }
        self._make_players(sharding.wrap(self._plain_step, "none" if alone else kind, taps))
        torch.manual_seed(streams.torch_seed(self.seed, f"process/{self.name}", 0, distributed.rank()))
        seen = (
            "the loss couples samples, so each sees the signals of all"
            if self.method.batch_coupled
            else "gradients are those of one process"
        )
        self._reporter.note(f"{count} processes share each batch ({kind}); {seen}")

    def _unite(self) -> None:
        """Makes plain modules of sharded ones at the end of the stage."""
        self.method, self.learners = self._whole()
        self._blueprint = None

    def _whole(self) -> tuple[Method, dict[str, nn.Module]]:
        """Returns the method and its learners as plain modules: copies, when they are sharded."""
        if self._blueprint is None:
            return self.method, self.learners
        united: Any = self._blueprint.build(_as_one(self.method, self.learners))
        return united["method"], dict(united["learners"].items())

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """What changes a batch before the roles see it, in order."""
        return self._transforms

    @property
    def progress(self) -> Progress:
        """Where the stage stands."""
        return Progress(self.step, self.loader.steps_per_epoch, self.settings.epochs)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole stage."""
        return self.loader.steps_per_epoch * self.settings.epochs

    def student(self) -> nn.Module:
        """Returns the deployable student."""
        method, learners = self._whole()
        return method.finish(learners["student"])

    def parameters(self) -> list[nn.Parameter]:
        """Everything that trains."""
        return [p for parameters, _ in self._players.values() for p in parameters]

    def first_batch(self) -> Batch:
        """Returns the first training batch after the transforms."""
        return self._prepared(next(iter(self.loader.epoch(0))))

    def terms(self, batch: Batch) -> Terms:
        """Returns the loss terms of a batch, on a copy of the method so that no bank moves."""
        method = copy.deepcopy(self.method)
        return method(batch, **method.observe(batch, self.observers))

    def rehearse(self, batch: Batch) -> None:
        """Takes one optimizer step for a measurement; a stage that has rehearsed is not to be run."""
        self._set_training()
        self._train_step(batch)

    def run(self) -> None:
        """Trains to the end of the stage, from where its last checkpoint left it.

        Raises:
            Interrupted: SIGINT or SIGTERM came; the state is saved.
            NonFiniteLossError: a loss is NaN or infinite.
            TeacherChangedError: a frozen role's parameters or buffers moved.
        """
        self._distribute()
        stage_checkpoint.resume(self, self._folder)
        _call(self.loader, "start", self.student, self.observers)
        for observer in self.observers.values():
            _call(observer, "start")
        self._reporter.stage_started(self.name, self.progress)
        with StopRequest() as stop:
            while self.step < self.total_steps:
                self._run_epoch(stop)
        for observer in self.observers.values():
            _call(observer, "finish")
        self._unite()
        self.settle()
        self._reporter.stage_done(self.name)

    def settle(self) -> None:
        """Puts models into eval mode and their usual memory format, in which a finished stage leaves them.

        A stage that is taken back from what it left is to do so as well: outputs differ between formats in their last
        bits.
        """
        for model in self.learners.values():
            model.eval()
        for observer in self.observers.values():
            _call(observer, "restore")

    def _run_epoch(self, stop: StopRequest) -> None:
        steps = self.loader.steps_per_epoch
        epoch, done = divmod(self.step, steps)
        self._set_training()
        for batch in self.loader.epoch(epoch, done):
            loss = self._train_step(self._prepared(batch, training=True))
            self._reporter.measured(rates(self._transforms))
            self._reporter.step_done(self.progress, loss)
            at_end = self.step % steps == 0
            every = self.settings.checkpoint_every
            if at_end:
                self._refresh()
                self._log_epoch(epoch)
            stopping = distributed.any_rank(stop.requested)
            if stopping or (self.step % every == 0 if every else at_end):
                stage_checkpoint.save(self, self._folder)
            if stopping and self.step < self.total_steps:
                raise Interrupted(
                    f"stopped after step {self.step} of {self.total_steps}; run the same command to continue"
                )

    def _set_training(self) -> None:
        for model in self.learners.values():
            model.train()
        self.method.train()

    def _train_step(self, batch: Batch) -> float:
        """Takes one optimizer step and returns the loss."""
        progress = self.progress
        for who, optimizer in self.optimizers.items():
            optimizer.zero_grad(set_to_none=True)
            rate = learning_rate(self._settings_of[who], progress)
            for group in optimizer.param_groups:
                group["lr"] = rate
        means = self._gradients(batch, progress)
        for who, optimizer in self.optimizers.items():
            if self.settings.clip_norm is not None:
                nn.utils.clip_grad_norm_(self._players[who][0], self.settings.clip_norm)
            optimizer.step()
        distributed.share_buffers([self._plain_step.learners])
        self.step += 1
        # Until now a method's buffers may hold what this process alone has seen.
        self.method.after_step(self.progress)
        distributed.share_buffers(self._plain_step.own_buffers())
        for observer in self.observers.values():
            _call(observer, "after_step", self.progress)
        return self.metrics.add(means, self._gradients.weights, progress)

    def _log_epoch(self, epoch: int) -> None:
        """Writes one line of metrics: means over the epoch, and the evaluation when it is due."""
        steps = self.loader.steps_per_epoch
        rate = learning_rate(self.settings, Progress(self.step - 1, steps, self.settings.epochs))
        record: dict[str, Any] = {
            "stage": self.name,
            "epoch": epoch,
            "step": self.step,
            "lr": rate,
            **self.metrics.summary(steps),
        }
        if self.watch is not None and (gradients := self.watch.summary()):
            record["gradients"] = gradients
        last = self.step >= self.total_steps
        every = self.settings.evaluate_every
        if self._evaluate is not None and (last or (every and (epoch + 1) % every == 0)):
            record["evaluation"] = self._evaluate(self.student())
        told = tell(self._transforms, record)
        folder = self._folder
        distributed.on_first(lambda: write(folder, record, told) if folder is not None else None)
        self._reporter.epoch_done(record)


def _as_one(method: Method, learners: Mapping[str, nn.Module]) -> nn.ModuleDict:
    return nn.ModuleDict({"method": method, "learners": nn.ModuleDict(dict(learners))})


def _call(observer: Any, hook: str, *args: Any, **options: Any) -> None:
    function = getattr(observer, hook, None)
    if function is not None:
        function(*args, **options)
