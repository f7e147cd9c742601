"""One training phase. The loop knows no method, task, data set or model by name."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from limbeck.engine import checkpoint, distributed
from limbeck.engine.combine import check_finite, combine, part_means, term_means
from limbeck.engine.interruption import Interrupted, StopRequest
from limbeck.engine.optimization import build_optimizer, learning_rate
from limbeck.engine.preflight import dry_run, trial
from limbeck.engine.roles import Role, make_observers
from limbeck.engine.run_folder import RunFolder
from limbeck.engine.settings import TrainSettings
from limbeck.engine.step import Step, Transform, apply_transforms
from limbeck.errors import CheckpointError, DataError, NonFiniteLossError, RecipeError
from limbeck.methods.base import Method, Setup
from limbeck.schedules import Progress
from limbeck.signals import Batch, Terms
from limbeck.tasks.base import Task


class BatchLoader(Protocol):
    """What a stage asks of its data."""

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches an epoch."""

    def epoch(self, epoch: int, start_step: int = 0) -> Any:
        """Yields the batches of an epoch from ``start_step`` on."""


class Reporter:
    """What a stage tells the outside. All methods do nothing; override what you show."""

    def stage_started(self, name: str, progress: Progress) -> None:
        """A stage begins, or goes on from ``progress``."""

    def step_done(self, progress: Progress, loss: float) -> None:
        """An optimizer step was taken."""

    def epoch_done(self, record: Mapping[str, Any]) -> None:
        """An epoch was logged."""

    def stage_done(self, name: str) -> None:
        """A stage has ended."""


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
        evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
        folder: RunFolder | None = None,
        name: str = "train",
        seed: int = 0,
        reporter: Reporter | None = None,
    ) -> None:
        if loader.steps_per_epoch < 1:
            raise DataError("the training data gives no batch; check the data set and train.batch_size")
        if settings.micro_batches > 1 and method.batch_coupled:
            raise RecipeError(
                f"the loss of {type(method).__name__} couples the samples of a batch, so micro-batches would change it; set train.micro_batches to 1"
            )
        self.method, self.task, self.loader, self.settings = method, task, loader, settings
        self.name, self.seed = name, seed
        self._transforms, self._evaluate = tuple(transforms), evaluate
        self._folder = folder if distributed.rank() == 0 else None
        self._reporter = reporter if reporter is not None and distributed.rank() == 0 else Reporter()
        self.learners: dict[str, nn.Module] = {}
        for role in method.learners:
            model = roles[role].model if role in roles else None
            if model is None:
                raise RecipeError(f"the method trains the role '{role}', which needs a model")
            self.learners[role] = model
        self.observers = make_observers(roles, method, task, precision=settings.precision, channels_last=settings.channels_last)
        self._build(roles, labels, num_classes, weights or {})
        if settings.compile:
            for observer in self.observers.values():
                if isinstance(getattr(observer, "model", None), nn.Module):
                    observer.model = torch.compile(observer.model)  # type: ignore[attr-defined]
        loss = torch.compile(method.forward) if settings.compile_loss else None
        self._plain_step = Step(method, self.learners, self.observers, loss)
        self._make_players()
        self.step = 0
        self._sums: dict[str, float] = {}

    def _build(self, roles: Mapping[str, Role], labels: Tensor | None, num_classes: int | None, weights: Mapping[str, Any]) -> None:
        """Fits the method to the shapes of a dry run and refuses what cannot work."""
        batch = self.first_batch()
        self.task.check(batch, num_classes)
        signals = dry_run(self.method, batch, self.observers)
        live = {name: role.model for name, role in roles.items() if role.model is not None and name in self.observers}
        taps = {name: o.taps.groups for name, o in self.observers.items() if hasattr(o, "taps")}
        self.method.build(
            Setup(signals=signals, models=live, taps=taps, num_classes=num_classes, labels=labels, seed=self.seed)
        )
        self.method.weights.update(weights)
        self.method.prepare(lambda: self._observe_all())
        trial(self.method, batch, signals)

    def _observe_all(self) -> Any:
        """Yields every batch of one epoch with its signals, without gradients and with models in eval mode."""
        for batch in self.loader.epoch(0):
            batch = self._prepared(batch)
            yield batch, dry_run(self.method, batch, self.observers)

    def _prepared(self, batch: Batch) -> Batch:
        return apply_transforms(self._transforms, batch)

    def _make_players(self) -> None:
        """Gives each player its optimizer, and the step its distributed wrapper."""
        manual = len(self.method.players(self.learners)) > 1
        if manual and distributed.world_size() > 1 and self.settings.sharding == "fsdp":
            raise RecipeError(f"{type(self.method).__name__} has several optimizers, which fsdp does not shard here; use train.sharding: ddp")
        self._average_by_hand = manual and distributed.world_size() > 1
        self._step = self._plain_step if manual else distributed.wrap(self._plain_step, self.settings.sharding)
        self._players = self.method.players(self.learners)
        self._optimizers = {who: build_optimizer(parameters, self.settings) for who, (parameters, _) in self._players.items() if parameters}
        if not self._optimizers:
            raise RecipeError("nothing trains: no learner has a parameter that requires a gradient")

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
        return self.method.finish(self.learners["student"])

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
        self._resume()
        for observer in self.observers.values():
            _call(observer, "start")
        self._reporter.stage_started(self.name, self.progress)
        with StopRequest() as stop:
            while self.step < self.total_steps:
                self._run_epoch(stop)
        for observer in self.observers.values():
            _call(observer, "finish")
        for model in self.learners.values():
            model.eval()
        self._reporter.stage_done(self.name)

    def _run_epoch(self, stop: StopRequest) -> None:
        steps = self.loader.steps_per_epoch
        epoch, done = divmod(self.step, steps)
        self._set_training()
        for batch in self.loader.epoch(epoch, done):
            loss = self._train_step(self._prepared(batch))
            self._reporter.step_done(self.progress, loss)
            at_end = self.step % steps == 0
            every = self.settings.checkpoint_every
            if at_end:
                self._log_epoch(epoch)
            stopping = distributed.any_rank(stop.requested)
            if stopping or (self.step % every == 0 if every else at_end):
                self._save()
            if stopping and self.step < self.total_steps:
                raise Interrupted(f"stopped after step {self.step} of {self.total_steps}; run the same command to continue")

    def _set_training(self) -> None:
        for model in self.learners.values():
            model.train()
        self.method.train()

    def _train_step(self, batch: Batch) -> float:
        """Takes one optimizer step and returns the loss."""
        progress = self.progress
        rate = learning_rate(self.settings, progress)
        for optimizer in self._optimizers.values():
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = rate
        if self.settings.micro_batches == 1 and distributed.world_size() == 1:
            means = self._backward(batch, batch, progress)
        else:
            means = self._backward_in_parts(batch, progress)
        for who, optimizer in self._optimizers.items():
            parameters = self._players[who][0]
            if self._average_by_hand:
                distributed.average_gradients(parameters)
            if self.settings.clip_norm is not None:
                nn.utils.clip_grad_norm_(parameters, self.settings.clip_norm)
            optimizer.step()
        self.step += 1
        self.method.after_step(self.progress)
        for observer in self.observers.values():
            _call(observer, "after_step", self.progress)
        loss = float(combine(means, self.method.weights, progress))
        for name, value in {**means, "loss": loss}.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)
        return loss

    def _backward(self, part: Batch, whole: Batch, progress: Progress) -> dict[str, Tensor]:
        """Adds the gradients of one part of a batch and returns its share of the terms' means."""
        terms: Terms = self._step(part)
        split = part is not whole or distributed.world_size() > 1
        gathered = self.method.batch_coupled and distributed.world_size() > 1
        means = part_means(terms, part, whole, distributed.total) if split and not gathered else term_means(terms)
        # DDP averages over processes; shares of a global mean must be added instead.
        scale = distributed.world_size() if split and not gathered else 1
        for index, (parameters, only) in enumerate(self._players.values()):
            loss = combine(means, self.method.weights, progress, only) * scale
            if index == 0 and not math.isfinite(loss.item()):
                check_finite(means, terms, part, self.step)
            if len(self._players) == 1:
                loss.backward()
            else:
                # Each player's gradient comes from its own terms only, whatever else its parameters touch.
                loss.backward(inputs=parameters, retain_graph=index < len(self._players) - 1)
        return {name: mean.detach() for name, mean in means.items()}

    def _backward_in_parts(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        parts = list(batch.split(self.settings.micro_batches)) if self.settings.micro_batches > 1 else [batch]
        for number, part in enumerate(parts):
            with distributed.synchronised(self._step, number == len(parts) - 1):
                for name, mean in self._backward(part, batch, progress).items():
                    sums[name] = sums[name] + mean if name in sums else mean
        if distributed.world_size() > 1 and not self.method.batch_coupled:
            sums = {name: distributed.total(mean) for name, mean in sums.items()}
        return sums

    def _log_epoch(self, epoch: int) -> None:
        """Writes one line of metrics: means over the epoch, and the evaluation when it is due."""
        steps = self.loader.steps_per_epoch
        means = {name: value / steps for name, value in self._sums.items()}
        rate = learning_rate(self.settings, Progress(self.step - 1, steps, self.settings.epochs))
        record: dict[str, Any] = {"stage": self.name, "epoch": epoch, "step": self.step, "lr": rate, "loss": means.pop("loss"), "terms": means}
        last = self.step >= self.total_steps
        every = self.settings.evaluate_every
        if self._evaluate is not None and (last or (every and (epoch + 1) % every == 0)):
            record["evaluation"] = self._evaluate(self.student())
        self._sums = {}
        if self._folder is not None:
            self._folder.log("metrics.jsonl", record)
        self._reporter.epoch_done(record)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bit-exact continuation needs."""
        providers = {role: o.state_dict() for role, o in self.observers.items() if hasattr(o, "state_dict")}
        return {
            "stage": self.name,
            "step": self.step,
            "sums": self._sums,
            "learners": {role: distributed.full_state(model) for role, model in self.learners.items()},
            "method": distributed.full_state(self.method),
            "optimizers": distributed.full_optimizer_states(self._plain_step, self._optimizers),
            "providers": providers,
            "random": checkpoint.random_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts the stage where ``state`` was taken.

        Raises:
            CheckpointError: the state is of other models, another method or another stage.
        """
        try:
            for role, model in self.learners.items():
                distributed.load_full_state(model, state["learners"][role])
            distributed.load_full_state(self.method, state["method"])
            distributed.load_full_optimizer_states(self._plain_step, self._optimizers, state["optimizers"])
            for role, provider_state in state["providers"].items():
                self.observers[role].load_state_dict(provider_state)  # type: ignore[attr-defined]
            self.step, self._sums = int(state["step"]), dict(state["sums"])
            checkpoint.restore_random_state(state["random"])
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"the checkpoint does not fit this recipe: {str(error).splitlines()[0]}") from error

    def _save(self) -> None:
        state = self.state_dict()
        if self._folder is None:
            return
        for role, model in state["learners"].items():
            for name, tensor in model.items():
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                    raise NonFiniteLossError(
                        f"the weights '{name}' of role '{role}' are not finite after step {self.step}; lower train.lr or set "
                        "train.clip_norm. The last good checkpoint is kept"
                    )
        state["metrics_length"] = self._folder.length("metrics.jsonl")
        checkpoint.save(self._folder.checkpoints, f"{self.name}-{self.step:09d}", state)

    def _resume(self) -> None:
        """Continues from the newest checkpoint of this stage, and forgets metrics written after it."""
        state = checkpoint.load_last(self._folder.checkpoints) if self._folder is not None else None
        state = distributed.broadcast_object(state)
        if state is None or state.get("stage") != self.name:
            return
        self.load_state_dict(state)
        if self._folder is not None:
            self._folder.truncate("metrics.jsonl", int(state["metrics_length"]))


def _call(observer: Any, hook: str, *args: Any) -> None:
    function = getattr(observer, hook, None)
    if function is not None:
        function(*args)
