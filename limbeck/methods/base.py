"""The contract of a method: signals in, named loss terms out."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from limbeck.hyperparameters import validated
from limbeck.registry import Registry
from limbeck.schedules import Progress, Weight
from limbeck.signals import Batch, Signals, Term, Terms

methods: Registry[type[Method]] = Registry("method", "limbeck.methods")


class Needs:
    """What a method reads: signals by role, batch entries and views.

    Args:
        batch: keys of the batch, such as ``labels``.
        views: names of further views of the samples, such as ``strong``.
        roles: for each role the names of its signals; ``features.<group>`` for a tap group.
            Alternatives are joined by ``|``, the one that a live model should give first: ``logits|topk|sampled``.
        holdout: whether the method judges learners on samples that are kept out of training: ``batches`` for one
            held-out batch beside every training batch, as ``batch["holdout"]``; ``passes`` for passes over all of them
            in :meth:`Method.refresh`.

    Example:
        >>> Needs(student={"logits"}, teacher={"logits", "features.pooled"}, batch={"labels"}).groups("teacher")
        ['pooled']
    """

    def __init__(
        self,
        *,
        batch: Iterable[str] = (),
        views: Iterable[str] = (),
        holdout: Literal["batches", "passes"] | None = None,
        **roles: Iterable[str],
    ) -> None:
        self.batch = frozenset(batch) | ({"holdout"} if holdout == "batches" else frozenset())
        self.views = tuple(views)
        self.holdout = holdout
        self.roles = {role: frozenset(signals) for role, signals in roles.items()}

    def groups(self, role: str) -> list[str]:
        """Tap groups that ``role`` must provide."""
        return sorted(s.removeprefix("features.") for s in self.roles.get(role, ()) if s.startswith("features."))


@dataclass(frozen=True)
class Setup:
    """What a method may look at once, when a stage is built.

    Attributes:
        signals: what each role said about one batch of the training data (a dry run).
        batch: that batch.
        models: the live models by role; a role that comes from a cache or a server has none.
        taps: resolved tap paths by role and group.
        num_classes: number of classes, where the task has classes.
        labels: ``[N]`` label of every training sample in dataset order, where the data has labels.
        seed: seed of the run, for streams of random numbers.
        token_map: ``[V']`` for each token of a teacher with another tokenizer the student's token of the same bytes, -1
            where there is none; None where both read the same tokens.
    """

    signals: Mapping[str, Signals]
    models: Mapping[str, nn.Module]
    taps: Mapping[str, Mapping[str, list[str]]] = field(default_factory=dict)
    num_classes: int | None = None
    labels: Tensor | None = None
    seed: int = 0
    batch: Batch | None = None
    token_map: Tensor | None = None


Observers = Mapping[str, Callable[[Batch], Signals]]
Observed = Iterator[tuple[Batch, dict[str, Signals]]]


@dataclass(frozen=True)
class Passes:
    """Passes over data that a method may ask for between epochs: batches with signals, in eval mode, without gradients.

    Attributes:
        training: over the training data, with every role.
        holdout: over the held-out data, with the learners; empty where the method does not need it.
    """

    training: Callable[[], Observed]
    holdout: Callable[[], Observed] = lambda: iter(())


class Method(nn.Module):
    """Base of every method.

    A subclass names its roles as the arguments of :meth:`forward` after ``batch``, states what it reads in
    :attr:`needs`, sets ``self.weights`` to the published weight of each term, and returns unweighted terms. Parts with
    parameters (projectors, heads) are made in :meth:`build` and are trained, saved and moved with the method.

    Attributes:
        weights: weight of each term by name: a number or a function of the progress. A recipe may override single
            entries.
    """

    needs: Needs = Needs()
    """What the method reads. An instance may set its own, where what it reads depends on a hyperparameter."""
    learners: ClassVar[tuple[str, ...]] = ("student",)
    """Roles that are trained; all others are frozen."""
    batch_coupled: bool = False
    """Whether the loss depends on which samples share a batch: the engine gathers ranks and refuses micro-batches."""
    one_process: bool = False
    """Whether it runs in one process only: the engine refuses several."""
    selection: ClassVar[str | None] = None
    """Name of the selector that chooses the method's training data where a recipe names none."""
    batch_memory: ClassVar[Literal["linear", "quadratic"]] = "linear"
    """How the memory of the loss itself, beside that of the models, grows with the samples of a batch."""
    order_dependent: bool = False
    """Whether the loss depends on the order of the samples in a batch."""
    same_channels: ClassVar[bool] = False
    """Whether student and teacher must have the same channels at every tap."""
    semi_supervised: ClassVar[bool] = False
    """Whether samples without a label are of use; data that is labelled in part is refused otherwise."""
    extends_student: ClassVar[bool] = False
    """Whether :meth:`finish` returns more than the student: parts of the method or of the teacher beside it."""
    second_order: bool = False
    """Whether :meth:`observe` differentiates through a step of a learner, which is then neither compiled nor sharded.

    Its observer offers :meth:`~limbeck.teachers.provider.Observer.lookahead` for that."""
    refreshes: bool = False
    """Whether :meth:`refresh` does something; a loop without epochs refuses such a method."""
    optimizers: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """By player, the ``train`` settings (``optimizer``, ``lr`` ...) in which it differs from the stage's."""
    batch_statistics: ClassVar[tuple[str, ...]] = ()
    """Frozen roles whose batch normalisation uses the batch's statistics; running statistics still do not move."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: dict[str, Weight] = {}

    @property
    def called(self) -> str:
        """What messages call it."""
        return type(self).__name__

    @classmethod
    def roles(cls) -> tuple[str, ...]:
        """Roles in the order of ``forward``'s arguments."""
        return _arguments(cls.forward)

    @classmethod
    def hyperparameters(cls) -> dict[str, inspect.Parameter]:
        """Keyword arguments of the constructor, by name."""
        return {n: p for n, p in inspect.signature(cls.__init__).parameters.items() if n != "self"}

    def forward(self, *batch_and_signals: Any, **signals: Any) -> Terms:
        """Returns the unweighted terms of the loss. A subclass names its roles: ``forward(batch, student, ...)``."""
        raise TypeError(f"{type(self).__name__} does not define forward(batch, student, ...)")

    def build(self, setup: Setup) -> None:
        """Makes projectors, heads and banks from the shapes of a dry run."""

    def prepare(self, observe_all: Callable[[], Iterator[tuple[Batch, dict[str, Signals]]]]) -> None:
        """Computes statistics (class means, centroids, principal axes) of the training data before the first step."""

    def observe(self, batch: Batch, observers: Observers) -> dict[str, Signals]:
        """Runs the roles on a batch. Override only to run models in an unusual way.

        Frozen roles come first: what they compute on the way is freed before a learner's activations are kept for the
        backward pass, which saves memory, and the backward pass finds those activations still in the processor's cache.
        """
        roles = self.roles()
        said = {role: observers[role](batch) for role in sorted(roles, key=self.learners.__contains__)}
        return {role: said[role] for role in roles}

    def after_step(self, progress: Progress) -> None:
        """Updates schedules and banks after an optimizer step."""

    def refresh(self, progress: Progress, passes: Passes) -> None:
        """Recomputes after an epoch what depends on the models as they are now: weights of samples, class statistics.

        A method that does so sets :attr:`refreshes`.
        """

    def players(self, learners: Mapping[str, nn.Module]) -> dict[str, tuple[list[nn.Parameter], frozenset[str] | None]]:
        """Returns who is optimised for what: by name, parameters and the terms they minimise (None: all).

        The default is one player that owns every learner and the method's own parameters. More players get an optimizer
        each; their gradients come from their own terms only.
        """
        models: list[nn.Module] = [*learners.values(), self]
        unique = {id(p): p for m in models for p in m.parameters() if p.requires_grad}
        return {"student": (list(unique.values()), None)}

    def yielding(self) -> frozenset[str]:
        """Returns the names of terms whose gradient gives way to that of all others.

        Where the two point apart, over all parameters together, the gradient of these terms loses its component along
        the other before both are added. None by default: gradients are just added.
        """
        return frozenset()

    def finish(self, student: nn.Module) -> nn.Module:
        """Returns the deployable student: auxiliary parts dropped, or fused where the method keeps them."""
        return student


def label_loss(logits: Tensor, batch: Batch) -> Term | Tensor:
    """Returns the cross-entropy of class scores ``[B, C]`` with the batch's labels, of the samples that have one."""
    from limbeck.functional.classification import cross_entropy

    labelled = batch.get("labelled_mask")
    values = cross_entropy(logits, batch["labels"], mask=labelled, reduction="none")
    return values if labelled is None else Term(values, labelled)


class LogitMethod(Method):
    """Base of methods that compare logits: cross-entropy on raw logits beside a distillation loss.

    The distillation loss sees logits that ``logit_transform`` may change first, the same way for both sides (for
    example standardised, see :mod:`limbeck.functional.logit_transforms`), so a transform serves every method and is no
    method of its own.
    """

    needs = Needs(student={"logits"}, teacher={"logits"}, batch={"labels"})

    def __init__(self) -> None:
        super().__init__()
        self.logit_transform: Callable[[Tensor], Tensor] = _identity

    def distill(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Terms:
        """Returns the distillation terms of two ``[B, C]`` logits and ``[B]`` labels."""
        raise TypeError(f"{type(self).__name__} does not define distill(student_logits, teacher_logits, labels)")

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``ce`` and the distillation terms."""
        assert student.logits is not None
        assert teacher.logits is not None
        transform = self.logit_transform
        return {
            "ce": label_loss(student.logits, batch),
            **self.distill(transform(student.logits), transform(teacher.logits), batch["labels"]),
        }


class FeatureMethod(Method):
    """Base of methods that compare features or relations: cross-entropy beside a distillation loss.

    A subclass adds the features it reads to :attr:`needs` and returns its own terms from :meth:`distill`.
    """

    needs = Needs(student={"logits"}, batch={"labels"})

    def distill(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns the distillation terms."""
        raise TypeError(f"{type(self).__name__} does not define distill(batch, student, teacher)")

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``ce`` and the distillation terms."""
        assert student.logits is not None
        return {"ce": label_loss(student.logits, batch), **self.distill(batch, student, teacher.detach())}


def _identity(logits: Tensor) -> Tensor:
    return logits


@functools.cache
def _arguments(forward: Callable[..., Terms]) -> tuple[str, ...]:
    """Names of the roles that ``forward`` takes; asked for at every step, and slow to find out."""
    return tuple(n for n in inspect.signature(forward).parameters if n not in ("self", "batch"))


def register(
    name: str, *, title: str, paper: str, year: int, family: str, authors: str = "", equation: str = ""
) -> Callable[[type[Method]], type[Method]]:
    """Returns a decorator that registers a :class:`Method` and checks its hyperparameters at construction.

    Args:
        name: name in recipes.
        title: title of the publication.
        paper: arXiv number, or a URL where there is none; empty for arms without a paper.
        year: year of publication.
        family: ``logit``, ``feature``, ``relation``, ``self``, ``online`` ...
        authors: authors of the publication, joined by ``and`` as BibTeX does.
        equation: the loss in LaTeX, for ``limbeck explain`` and the documentation.
    """
    enter = methods.register(
        name, title=title, paper=paper, year=year, family=family, authors=authors, equation=equation
    )

    def decorate(cls: type[Method]) -> type[Method]:
        cls.__init__ = validated(f"method '{name}'", cls.__init__)  # type: ignore[method-assign]
        return enter(cls)

    return decorate


def build_method(name: str, **hyperparameters: Any) -> Method:
    """Returns the method called ``name`` with the given hyperparameters.

    Raises:
        UnknownNameError: no method has that name.
        RecipeError: a hyperparameter is unknown or out of range.
    """
    return methods[name].part(**hyperparameters)
