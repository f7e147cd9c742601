"""What a file of the teacher-hacking lab says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from limbeck.engine.settings import TrainSettings
from limbeck.hyperparameters import Count, Fraction, Positive, WholeNumber
from limbeck.recipes.schema import DataSpec

KEY = "hacking"
"""The key of a file under which a lab stands."""


def holds_lab(data: Mapping[str, Any]) -> bool:
    """Whether a file is a teacher-hacking lab and not a recipe."""
    return KEY in data


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LabModel(_Strict):
    """One of the three models, and how it learns what it knows before the experiment."""

    model: str | dict[str, Any] = Field(description="a language model: a name, or {name: ..., option: ...}")
    sequences: Count = Field(256, description="samples of the oracle that it is fine-tuned on; the oracle reads text")
    train: TrainSettings = Field(default_factory=TrainSettings, description="how it is fine-tuned")


class SampleSource(_Strict):
    """Where the sequences of an experiment come from."""

    student: Fraction = Field(0.0, description="part of the sequences that the student writes; the teacher the others")
    fresh: Fraction = Field(0.0, description="part of the sequences that is written anew for every epoch")
    prompts: Count | None = Field(None, description="number of prompts; that of the lab when absent")
    completions: Count = Field(1, description="sequences a prompt")


_SOURCES = {
    "offline": SampleSource(),
    "online teacher": SampleSource(fresh=1.0),
    "online student": SampleSource(student=1.0, fresh=1.0),
    "mixed": SampleSource(student=0.5, fresh=0.5),
    "more prompts": SampleSource(prompts=512),
}


class Lab(_Strict):
    """Oracle, teacher and student, and the sources of sequences on which the student is distilled."""

    about: str = Field("", description="one line for people")
    seed: WholeNumber = Field(0, description="seed of everything random")
    data: DataSpec = Field(description="text that the oracle learns and prompts are taken from")
    oracle: LabModel = Field(description="defines the truth; trained on the text")
    teacher: LabModel = Field(description="fine-tuned on samples of the oracle")
    student: LabModel = Field(description="fine-tuned on samples of the oracle, then distilled")
    prompt: Count = Field(16, description="tokens of a prompt")
    completion: Count = Field(24, description="most tokens that follow it")
    prompts: Count = Field(32, description="prompts that the student is distilled on")
    held: Count = Field(128, description="held-out prompts on which distances are measured")
    method: dict[str, Any] = Field(
        default_factory=lambda: {"name": "word_kd", "kd_ratio": 1.0}, description="the distillation"
    )
    train: TrainSettings = Field(default_factory=TrainSettings, description="how the student is distilled")
    sources: dict[str, SampleSource] = Field(
        default_factory=lambda: dict(_SOURCES), min_length=1, description="by name: what is compared"
    )
    tolerance: Positive = Field(0.01, description="rise of the golden curve that counts")
