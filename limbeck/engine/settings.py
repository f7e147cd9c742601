"""How a stage trains: the ``train`` section of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from limbeck.errors import RecipeError, suggest
from limbeck.hyperparameters import Count, Fraction, NonNegative, Positive, WholeNumber, validated_model

_OF_A_PLAYER = ("optimizer", "lr", "momentum", "weight_decay", "schedule", "milestones", "warmup_epochs")


class Balance(BaseModel):
    """Weights that make the terms' gradients equally long, times a share."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    every: Count = Field(10, description="steps between measurements")
    smoothing: Fraction = Field(0.9, lt=1, description="what a measurement keeps of those before it")
    shares: dict[str, NonNegative] = Field(
        default_factory=dict, description="length of a term's gradient over that of the first term's; 1 when absent"
    )


class TrainSettings(BaseModel):
    """Optimisation, schedule, precision and bookkeeping of one stage."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epochs: WholeNumber = Field(20, description="passes over the training data")
    batch_size: Count = Field(128, description="samples of one optimizer step, over all ranks and micro-batches")
    micro_batches: Count = Field(1, description="parts a batch is computed in, to save memory; gradients stay the same")
    optimizer: str | dict[str, Any] = Field(
        "sgd", description="a torch.optim class in lower case, or {name: ..., option: ...}"
    )
    lr: Positive = Field(0.05, description="peak learning rate")
    momentum: NonNegative = Field(0.9, lt=1, description="momentum of sgd")
    weight_decay: NonNegative = Field(5e-4, description="L2 penalty, or decoupled decay of adamw")
    schedule: Literal["cosine", "multistep", "constant"] = Field("cosine", description="course of the learning rate")
    milestones: tuple[float, ...] = Field(
        (150 / 240, 180 / 240, 210 / 240), description="parts of the run where multistep divides lr by 10"
    )
    warmup_epochs: NonNegative = Field(0.0, description="epochs over which the learning rate grows from 0")
    players: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="by player, where a method has several: its own optimizer, lr, momentum, weight_decay, schedule",
    )
    clip_norm: Positive | None = Field(None, description="largest norm of the gradient")
    balance: Balance | None = Field(
        None, description="weigh terms by the lengths of their gradients; {} for equal shares"
    )
    gradient_metrics: WholeNumber = Field(
        0, description="steps between measurements of each term's gradient, for metrics and report; 0 for never"
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16 runs models under autocast; losses stay in fp32"
    )
    channels_last: bool | None = Field(
        None, description="memory format of images and convolutions; on for CPUs when absent"
    )
    compile: bool = Field(False, description="torch.compile the models")
    compile_loss: bool = Field(False, description="torch.compile the method's loss, worth it for thousands of classes")
    workers: WholeNumber = Field(0, description="processes that decode data")
    threads: Count | None = Field(None, description="CPU threads of PyTorch; its own choice when absent")
    sharding: Literal["ddp", "fsdp"] = Field("ddp", description="how torchrun's processes share the student")
    evaluate_every: WholeNumber = Field(
        1, description="epochs between evaluations on the test data; 0 for the end only"
    )
    checkpoint_every: WholeNumber = Field(0, description="steps between checkpoints; 0 for every epoch")

    def of_player(self, name: str, usual: Mapping[str, Any]) -> TrainSettings:
        """Returns the settings of one player: this section's, changed by the method's ``usual`` ones, then by its own.

        Raises:
            RecipeError: an entry is unknown or out of its range.
        """
        changes = {**usual, **self.players.get(name, {})}
        if not changes:
            return self
        for key in changes:
            if key not in _OF_A_PLAYER:
                raise RecipeError(f"train.players.{name}: unknown key '{key}'. {suggest(key, _OF_A_PLAYER)}")
        values = {**self.model_dump(exclude={"players"}), **changes}
        return validated_model(TrainSettings, values, f"train.players.{name}")
