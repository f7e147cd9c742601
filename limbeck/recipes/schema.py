"""The recipe's schema. Everything is plain data; reading a recipe executes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge
from pydantic import BaseModel, ConfigDict, Field, model_validator

from limbeck.engine.settings import TrainSettings
from limbeck.hyperparameters import Count, Fraction, Positive, WholeNumber


class _Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_by_name=True, serialize_by_alias=True
    )


class EMASpec(_Strict):
    """A role that follows a learner as an exponential moving average."""

    of: str = Field("student", description="the learner to follow")
    decay: Fraction = Field(0.999, description="decay of the average")


class RoleSpec(_Strict):
    """Where one role comes from: one of model, cache, ensemble, router, ema, adapter_off, from_stage, from, remote."""

    model: str | dict[str, Any] | None = Field(
        None, description="a zoo name, timm:NAME, hf:NAME, torchvision:NAME, python:module:factory (with trust)"
    )
    weights: str | None = Field(None, description="zoo, a .safetensors file, or a run folder")
    cache: str | None = Field(None, description="folder of a teacher cache")
    ensemble: tuple[RoleSpec, ...] | None = Field(None, description="members whose predictions are averaged")
    average: str = Field("probabilities", description="what an ensemble averages: probabilities or logits")
    member_weights: tuple[Positive, ...] | None = Field(None, description="weights of an ensemble's members")
    router: dict[str, RoleSpec] | None = Field(
        None, description="a teacher for each domain of the data `domains`, by the domain's name"
    )
    ema: EMASpec | None = Field(None, description="exponential moving average of a learner")
    adapter_off: str | None = Field(None, description="a learner with lora, whose adapters are switched off")
    from_stage: str | None = Field(None, description="the student of an earlier stage, by the stage's name")
    from_role: str | None = Field(
        None, alias="from", description="a role, or the name of a language model, of which this one is a copy"
    )
    layers: Count | tuple[WholeNumber, ...] | None = Field(
        None, description="blocks that the copy keeps: how many, evenly spaced, or which"
    )
    scored: Literal["block_influence", "loss_increase"] | None = Field(
        None, description="keep the blocks that matter most on the training text by this score, not evenly spaced ones"
    )
    scored_rows: Count = Field(16, description="rows of the training text on which parts are scored")
    heads: Count | None = Field(None, description="attention heads that the copy keeps, the most active ones")
    kv_heads: Count | None = Field(None, description="heads of keys and values that the copy keeps")
    inner: Count | None = Field(None, description="feed-forward neurons that the copy keeps, the most active ones")
    width: Count | None = Field(None, description="hidden channels that the copy keeps, the most active ones")
    vocabulary: Literal["seen"] | Count | None = Field(
        None,
        description="tokens that the whole stage keeps, the teacher included: those seen in the training text, or at "
        "most so many of them",
    )
    lora: dict[str, Any] | None = Field(None, description="low-rank adapters on the copy, whose own weights are frozen")
    checkpointing: bool = Field(False, description="the copy recomputes activations in the backward pass")
    remote: dict[str, Any] | None = Field(None, description="a server that speaks the OpenAI protocol")
    fresh: bool = Field(
        False, description="in a later stage: start this learner again instead of going on from the stage before"
    )
    taps: dict[str, tuple[str, ...]] | None = Field(
        None, description="module paths by tap group (stem, stages, preacts, pooled)"
    )
    precision: str | None = Field(None, pattern="^(fp32|bf16)$", description="fp32 or bf16, over train.precision")
    differentiable: bool = Field(False, description="let gradients flow through this frozen model to its inputs")

    @model_validator(mode="after")
    def _one_origin(self) -> RoleSpec:
        origins = ("model", "cache", "ensemble", "router", "ema", "adapter_off", "from_stage", "from_role", "remote")
        given = [k.removesuffix("_role") for k in origins if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a role comes from exactly one of model, cache, ensemble, router, ema, adapter_off, from_stage, "
                f"from, remote; this one has {given or 'none'}"
            )
        if self.weights is not None and self.model is None and self.from_role is None:
            raise ValueError("weights belong to a model")
        of_copies = ("layers", "scored", "heads", "kv_heads", "inner", "width", "vocabulary", "lora")
        given = [key for key in of_copies if getattr(self, key) is not None] + ["checkpointing"] * self.checkpointing
        if self.from_role is None and given:
            raise ValueError(
                f"{', '.join(given)} of a role belong to a copy (from: ...); a model takes layers, lora and "
                "checkpointing among its own options, {name: ..., layers: ...}"
            )
        return self

    def nested(self) -> Iterator[RoleSpec]:
        """Yields the role itself, and the members of an ensemble or a router, their members included."""
        yield self
        for member in (*(self.ensemble or ()), *(self.router or {}).values()):
            yield from member.nested()


def goes_on(before: RoleSpec | None, now: RoleSpec) -> bool:
    """Whether a learner of a later stage starts from what the stage before has left of its role.

    Args:
        before: the role in the stage before; None where it had none.
        now: the role in the later stage.
    """
    aside = {"weights", "taps", "precision", "fresh", "differentiable", "checkpointing"}
    return before is not None and not now.fresh and now.model_dump(exclude=aside) == before.model_dump(exclude=aside)


class DataSpec(_Strict):
    """Which data, and how a sample becomes an input."""

    name: str = Field(description="a named data set, `folder`, `npz`, or hf:NAME")
    path: str | None = Field(None, description="where it is, for data sets that are files")
    limit: Count | dict[str, Count] | None = Field(
        None, description="at most so many training samples, balanced over classes; or {train: n, test: m}"
    )
    validation: Fraction = Field(
        0.0, description="part of the training data held out; evaluation then uses it instead of the test data"
    )
    holdout: Fraction = Field(
        0.0, description="part of the training data kept out, for methods that judge the student while it trains"
    )
    train_on: Literal["rest", "holdout"] = Field(
        "rest", description="holdout: train on what `holdout` keeps out, for a model that is to judge the rest"
    )
    imbalance: Annotated[float, Ge(1)] = Field(
        1.0, description="make the classes a long tail: how many times as many samples the first has as the last"
    )
    label_noise: Fraction = Field(
        0.0, description="give so large a part of the training samples the label of another class, for studies of noise"
    )
    labelled: Count | Fraction | None = Field(
        None,
        description="keep the labels of so many training samples, or of such a part; the others are unlabelled, for "
        "semi-supervised methods",
    )
    unlabelled: Literal["keep", "drop"] = Field(
        "keep", description="samples whose label is not kept: keep, or drop for methods that learn nothing from them"
    )
    labelled_per_batch: Count | None = Field(
        None, description="how many samples of every training batch are labelled ones; as it happens when absent"
    )
    label_ids: tuple[WholeNumber, ...] | None = Field(
        None, description="numbers of the training samples that keep their labels; the others are unlabelled"
    )
    use_ids: tuple[WholeNumber, ...] | None = Field(
        None, description="numbers of the training samples to use; all when absent"
    )
    augment: tuple[str | dict[str, Any], ...] | None = Field(
        None, description="augmentation; the data set's usual one when absent, [] for none"
    )
    views: dict[str, tuple[str | dict[str, Any], ...]] = Field(
        default_factory=dict, description="further views of each sample, by name"
    )
    normalize: bool = Field(True, description="subtract the data set's mean and divide by its deviation")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the data set itself")


class StageSpec(_Strict):
    """One phase of training."""

    name: str = Field("train", pattern="^[a-z0-9_]+$", description="lower-case name of the stage")
    task: str = Field("classification", description="how models are run and judged")
    data: DataSpec = Field(description="the data")
    roles: dict[str, RoleSpec] = Field(description="models by role")
    method: dict[str, Any] = Field(
        description="name, hyperparameters, weights and logit_transform of the method; `methods: [...]` for several"
    )
    transforms: tuple[str | dict[str, Any], ...] = Field((), description="batch -> batch, in order")
    selection: str | dict[str, Any] | None = Field(
        None,
        description="a selector of what is trained on, by what the models say of it: samples before every epoch, rows "
        "of text before the first step, or a mixture of domains; the method's own when absent",
    )
    train: TrainSettings = Field(default_factory=TrainSettings, description="optimisation")

    @property
    def method_names(self) -> tuple[str, ...]:
        """Names of the methods that are used at once; usually one."""
        entries = self.method.get("methods", (self.method,))
        return tuple(str(e.get("name") if isinstance(e, Mapping) else e) for e in entries)

    @property
    def method_name(self) -> str:
        """What the method is called in tables: ``kd``, or ``kd + at``."""
        return " + ".join(self.method_names)


_USUAL = {"causal-lm": ("token_loss", "token_agreement", "writing", "size")}
"""Evaluations of tasks other than classification, where a recipe names none."""


class ActiveSpec(_Strict):
    """Rounds of training and asking: the recipe's stage is repeated with what was asked about in between."""

    selector: str | dict[str, Any] = Field(description="what chooses the samples: a name, or {name: ..., option: ...}")
    ask: Literal["labels", "teacher"] = Field(
        "labels",
        description="labels: an oracle gives labels, the teacher answers for the whole pool; teacher: the teacher "
        "answers for the chosen samples, which alone are trained on",
    )
    queries: Count = Field(10, description="samples that are asked about after a round")
    rounds: Count = Field(5, description="how often samples are asked about; the student trains once more than that")


class Recipe(_Strict):
    """A resolved recipe: stages in order, each complete."""

    about: str = Field("", description="one line for people")
    seed: WholeNumber = Field(0, description="seed of everything random")
    evaluate: tuple[str | dict[str, Any], ...] = Field(
        ("accuracy", "agreement", "calibration", "cost"),
        description="evaluations of the final student: names, or mappings of name and options",
    )
    active: ActiveSpec | None = Field(None, description="rounds of asking about samples of the training data")
    stages: tuple[StageSpec, ...] = Field(description="phases, each with task, data, roles, method, train")

    @model_validator(mode="before")
    @classmethod
    def _usual_evaluations(cls, data: Any) -> Any:
        """A recipe that names no evaluation gets those of its task."""
        stages = data.get("stages") if isinstance(data, Mapping) else None
        if not stages or "evaluate" in data or not isinstance(stages[-1], Mapping):
            return data
        usual = _USUAL.get(str(stages[-1].get("task")))
        return data if usual is None else {**data, "evaluate": usual}

    @model_validator(mode="after")
    def _unique_names(self) -> Recipe:
        names = [s.name for s in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stages need different names, but they are {names}")
        return self
