"""A method with its student and teachers as one module, whose output is the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.engine.combine import combine, term_means
from limbeck.engine.preflight import dry_run, fit
from limbeck.engine.roles import Role, make_observers
from limbeck.engine.step import Step
from limbeck.errors import NeedsError, RecipeError
from limbeck.methods.base import Method, Setup
from limbeck.recipes.method_section import MethodLike, as_method
from limbeck.schedules import Progress, Weight
from limbeck.signals import Batch, Signals, Term
from limbeck.tasks.base import tasks
from limbeck.teachers.provider import Observer


class LossAndTerms(NamedTuple):
    """What :class:`Distillation` returns.

    Attributes:
        loss: the weighted sum, a scalar to call ``backward`` on.
        terms: the mean of each term, unweighted and without a graph.
    """

    loss: Tensor
    terms: dict[str, Tensor]


class Distillation(nn.Module):
    """The loss of a method as a module: give it to the loop that you have in place of the student.

    The student and the method's own layers are its only submodules, so an optimizer over ``parameters()`` trains what
    is to be trained, a checkpoint holds what is to be kept, and wrapping *this* module in DDP (as Accelerate, Trainer
    and Lightning do) averages all gradients. Frozen models stay outside the module tree; they follow the batch to its
    device, run in eval mode without gradients, and :meth:`finish` checks that no byte of theirs moved.

    A method that couples the samples of a batch sees those of all processes. Losses of the others are means over a
    process's own samples, which frameworks average: give all processes equally many.

    Args:
        method: a name, a mapping with a name and hyperparameters, a list of those, or a method of your own.
        student: the model to train.
        example: a batch as the loop will give it, ``inputs`` and whatever else the method needs; fits projectors to
            the models' shapes.
        teacher: the frozen model, where the method has one.
        roles: further roles.
        task: how models are run.
        taps: by role and tap group, the modules whose outputs are features.
        labels: ``[N]`` label of every training sample, for methods that draw samples by class.
        num_classes: number of classes, where the method asks for it.
        batches: gives an iterable over the training batches, for methods that gather statistics before training.
        steps_per_epoch: optimizer steps an epoch, for weights that change over the run.
        epochs: epochs of the run, likewise.
        seed: seed of what the method draws.

    Raises:
        LimbeckError: something is unknown or does not fit; the message says what and how to mend it.

    Example:
        >>> teacher, student = nn.Linear(8, 3), nn.Linear(8, 3)
        >>> batch = {"inputs": torch.randn(4, 8), "labels": torch.tensor([0, 1, 2, 0])}
        >>> distillation = Distillation("kd", student, batch, teacher=teacher)
        >>> optimizer = torch.optim.SGD(distillation.parameters(), lr=0.1)
        >>> loss, terms = distillation(batch)
        >>> loss.backward()
        >>> optimizer.step()
        >>> distillation.advance()
        >>> sorted(terms), distillation.finish() is student
        (['ce', 'kd'], True)
    """

    steps: Tensor

    def __init__(
        self,
        method: MethodLike,
        student: nn.Module,
        example: Mapping[str, Any],
        *,
        teacher: nn.Module | None = None,
        roles: Mapping[str, Role] | None = None,
        task: str = "classification",
        taps: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
        labels: Tensor | None = None,
        num_classes: int | None = None,
        batches: Callable[[], Iterable[Mapping[str, Any]]] | None = None,
        steps_per_epoch: int = 1,
        epochs: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        built, weights = as_method(method)
        self._steps_per_epoch, self._epochs = steps_per_epoch, epochs
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        everyone = _roles_of(student, teacher, roles or {}, taps or {})
        learners = {role: _learner(role, everyone) for role in built.learners}
        self._needs = built.needs
        self._check(built, everyone, learners)
        self._observers = make_observers(everyone, built, tasks[task].part(), precision="fp32", channels_last=False)
        self._fit(built, everyone, example, weights, batches, labels=labels, num_classes=num_classes, seed=seed)
        self._step = Step(built, learners, self._observers)
        self._frozen = [
            o.model for name, o in self._observers.items() if name not in learners and isinstance(o, Observer)
        ]
        self._started = False
        self._waiting = False

    def _check(self, method: Method, roles: Mapping[str, Role], learners: Mapping[str, nn.Module]) -> None:
        if len(method.players(learners)) > 1:
            raise RecipeError(
                f"{method.called} trains several models with an optimizer each, which other loops do not; use "
                "limbeck.distill"
            )
        if method.refreshes or method.needs.holdout:
            raise RecipeError(
                f"{method.called} looks at data between epochs or at held-out samples, which other loops do "
                "not give; use limbeck.distill"
            )
        averages = [name for name, role in roles.items() if role.ema_of is not None]
        if averages:
            raise RecipeError(
                f"the role '{averages[0]}' is a moving average, whose state other loops would not save; use "
                "limbeck.distill"
            )

    def _fit(
        self,
        method: Method,
        roles: Mapping[str, Role],
        example: Mapping[str, Any],
        weights: Mapping[str, Weight],
        batches: Callable[[], Iterable[Mapping[str, Any]]] | None,
        **about: Any,
    ) -> None:
        def observe_all() -> Iterator[tuple[Batch, dict[str, Signals]]]:
            if batches is None:
                raise NeedsError(
                    f"{method.called} gathers statistics before training; give `batches`, a function that "
                    "returns an iterable over the training batches"
                )
            for values in batches():
                whole = self._batch(values)
                yield whole, dry_run(method, whole, self._observers)

        batch = self._batch(example)
        signals = dry_run(method, batch, self._observers)
        live = {name: role.model for name, role in roles.items() if role.model is not None and name in signals}
        taps = {name: o.taps.groups for name, o in self._observers.items() if isinstance(o, Observer)}
        fit(method, Setup(signals, live, taps, batch=batch, **about), weights, observe_all)

    @property
    def student(self) -> nn.Module:
        """The student, as it is trained."""
        return self._step.learners["student"]

    @property
    def progress(self) -> Progress:
        """Where the run stands, by the number of calls of :meth:`advance`."""
        return Progress(int(self.steps), self._steps_per_epoch, self._epochs)

    def forward(self, batch: Mapping[str, Any]) -> LossAndTerms:
        """Returns the loss of a batch and its terms.

        Args:
            batch: ``inputs``, and what the method needs beside them (``labels``; ``index``, the samples' numbers in
                the data set, for methods with a memory).

        Raises:
            NeedsError: the method has a memory of samples and the batch says not which they are.
            RecipeError: a method that couples the samples of a batch was called twice for one step.
        """
        whole = self._batch(batch)
        self._start(whole["index"].device)
        if self.training and torch.is_grad_enabled():
            self._expect_step()
        terms: dict[str, Term | Tensor] = {
            name: Term(values, mask) for name, (values, mask) in self._step(whole).items()
        }
        means = term_means(terms)
        loss = combine(means, self._step.method.weights, self.progress)
        return LossAndTerms(loss, {name: mean.detach() for name, mean in means.items()})

    def advance(self) -> None:
        """Tells the method that an optimizer step was taken: memories move, weights change over the run."""
        self._waiting = False
        self.steps += 1
        self._step.method.after_step(self.progress)

    def finish(self) -> nn.Module:
        """Returns the deployable student, after making sure that no frozen model has changed.

        Raises:
            TeacherChangedError: a parameter or buffer of a frozen model differs from what it was at the first step.
        """
        for observer in self._observers.values():
            finish = getattr(observer, "finish", None)
            if finish is not None:
                finish()
        self._started = False
        return self._step.method.finish(self.student)

    def _start(self, device: torch.device) -> None:
        """Brings frozen models to the batch, and freezes them at the first step."""
        for model in self._frozen:
            first = next(model.parameters(), None)
            if first is not None and first.device != device:
                model.to(device)
        if not self._started:
            for observer in self._observers.values():
                start = getattr(observer, "start", None)
                if start is not None:
                    start()
            self._started = True

    def _expect_step(self) -> None:
        if self._waiting and self._step.method.batch_coupled:
            raise RecipeError(
                f"the loss of {type(self._step.method).__name__} couples the samples of a batch, so gradients cannot "
                "be accumulated over several: step the optimizer after each batch, then call advance()"
            )
        self._waiting = True

    def _batch(self, values: Mapping[str, Any]) -> Batch:
        batch = Batch(values)
        if "index" not in batch:
            if "index" in self._needs.batch:
                raise NeedsError(
                    "the method remembers samples, so a batch must say which they are; add 'index', their numbers in "
                    "the data set"
                )
            inputs = batch.get("inputs")
            if not isinstance(inputs, Tensor):
                raise NeedsError(f"a batch needs 'inputs', a tensor, but has only {sorted(batch)}")
            batch["index"] = torch.arange(len(inputs), device=inputs.device)
        batch.setdefault("epoch", self.progress.epoch)
        return batch


def _roles_of(
    student: nn.Module,
    teacher: nn.Module | None,
    others: Mapping[str, Role],
    taps: Mapping[str, Mapping[str, Sequence[str]]],
) -> dict[str, Role]:
    roles = {"student": Role(model=student, taps=taps.get("student"))}
    if teacher is not None:
        roles["teacher"] = Role(model=teacher, taps=taps.get("teacher"))
    return {**roles, **others}


def _learner(role: str, roles: Mapping[str, Role]) -> nn.Module:
    model = roles[role].model if role in roles else None
    if model is None:
        raise RecipeError(f"the method trains the role '{role}', which needs a model")
    return model
