"""Runs the teacher-hacking lab: three models, and one distillation for every source of sequences."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck import streams
from limbeck.data.text import TextLoader, TextSource, load_text, load_tokenizer
from limbeck.data.text.options import divide_options
from limbeck.engine.reporter import Reporter
from limbeck.engine.roles import Role
from limbeck.engine.run_folder import RunFolder, epoch_records
from limbeck.engine.settings import TrainSettings
from limbeck.engine.stage import BatchLoader, Stage
from limbeck.evaluate.teacher_hacking import Curves, curves_of, judge, law_numbers
from limbeck.generation import Draws
from limbeck.hyperparameters import validated_model
from limbeck.recipes.hacking.distances import Distances, Reference
from limbeck.recipes.hacking.samples import SampledText, prompts_of, written
from limbeck.recipes.hacking.spec import KEY, Lab, LabModel, SampleSource
from limbeck.recipes.load import with_overrides
from limbeck.recipes.method_section import make_method
from limbeck.recipes.run import default_folder
from limbeck.students.language import build_language_model
from limbeck.students.weight_files import load_weights, save_weights
from limbeck.tasks.causal_lm import CausalLM


@dataclass(frozen=True)
class SourceCurves:
    """What one source of sequences led to.

    Attributes:
        epochs: 0 for the student before its distillation, then every epoch.
        proxy: distance to the teacher, nats a sequence.
        golden: distance to the oracle, nats a sequence.
        hacking: whether the golden curve turned while the proxy fell.
        best_epoch: epoch at which the golden curve is lowest.
        rise: how far it ends above that, as a part of it.
        p: probability of such a rise by chance; None where it is not known.
        power_law: exponent, intercept and deviations of the proxy's power law; empty for short runs.
    """

    epochs: tuple[int, ...]
    proxy: tuple[float, ...]
    golden: tuple[float, ...]
    hacking: bool
    best_epoch: int
    rise: float
    p: float | None
    power_law: Mapping[str, Any]


@dataclass(frozen=True)
class FinishedLab:
    """What a lab found.

    Attributes:
        folder: its folder.
        about: what it is.
        teacher_distance: distance from the oracle to the teacher, nats a sequence.
        start: distance from the oracle to the student before its distillation.
        curves: by source.
    """

    folder: Path
    about: str
    teacher_distance: float
    start: float
    curves: Mapping[str, SourceCurves]

    @property
    def starts_nearer(self) -> bool:
        """Whether the student began nearer to the oracle than the teacher is: then any faithful distillation rises."""
        return self.start < self.teacher_distance


def run_lab(
    data: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    name: str,
    out: str | Path | None = None,
    trust: bool = False,
    reporter: Reporter | None = None,
) -> FinishedLab:
    """Trains oracle, teacher and student, then distils a copy of the student on every source of sequences.

    The oracle learns the text; teacher and student are fine-tuned on its samples, so that it is the only truth. After
    every epoch the distances to teacher (proxy) and oracle (golden) are measured on held-out prompts, on sequences that
    both wrote once for all. A killed call continues.

    Args:
        data: what the file holds, under ``hacking``.
        overrides: ``key=value`` strings, such as ``hacking.train.epochs=10``.
        name: what the file is called.
        out: its folder; ``runs/<name>-<hash>`` when None.
        trust: allow models that run the code they name.
        reporter: shows progress.

    Raises:
        LimbeckError: the file is no lab, or something went wrong; what is finished is kept.
    """
    lab = validated_model(Lab, with_overrides(data, overrides)[KEY], f"teacher-hacking lab '{name}'")
    plain = lab.model_dump(mode="json")
    folder = default_folder(name, plain) if out is None else Path(out)
    return _Bench(lab, plain, folder, trust, reporter or Reporter()).run()


class _Bench:
    """The models of a lab and what is done with them."""

    def __init__(self, lab: Lab, plain: dict[str, Any], folder: Path, trust: bool, reporter: Reporter) -> None:
        self.lab, self.plain, self.folder, self.trust, self.reporter = lab, plain, folder, trust, reporter
        options, reader = divide_options(lab.data.options)
        self.tokenizer = load_tokenizer(options.tokenizer or "bytes")
        where: dict[str, Any] = {"name": lab.data.name, **reader}
        if lab.data.path is not None:
            where["path"] = lab.data.path
        rows = {**options.rows, "limit": lab.data.limit}
        self.text = load_text(where, self.tokenizer, split="train", **rows)
        self.held = load_text(where, self.tokenizer, split="test", **rows)
        self.task = CausalLM(vocabulary=self.tokenizer.vocabulary)
        self.context = max(self.text.context, lab.prompt + lab.completion)

    def run(self) -> FinishedLab:
        lab = self.lab
        oracle = self._trained("oracle", lab.oracle, self.text)
        teacher = self._trained("teacher", lab.teacher, self._samples(oracle, "teacher", lab.teacher))
        student = self._trained("student", lab.student, self._samples(oracle, "student", lab.student))
        prompts = prompts_of(self.held, lab.prompt, lab.held, seed=lab.seed, purpose="held-out prompts")
        references = [
            Reference(model, prompts, self.tokenizer, self.task, tokens=lab.completion, seed=lab.seed, name=name)
            for name, model in (("oracle", oracle), ("teacher", teacher))
        ]
        distances = Distances(references[0], references[1])
        start = distances(student)
        curves = {
            name: self._distilled(name, source, teacher, student, distances, start)
            for name, source in lab.sources.items()
        }
        apart = references[0].divergences(teacher).double().mean().item()
        finished = FinishedLab(self.folder, lab.about, apart, float(start["held_out_loss"]), curves)  # type: ignore[arg-type]
        record = {**asdict(finished), "folder": self.folder.name}
        (self.folder / "lab.json").write_text(json.dumps(record, indent=1) + "\n")
        return finished

    def _model(self, name: str, spec: LabModel) -> nn.Module:
        torch.manual_seed(streams.torch_seed(self.lab.seed, f"init/{name}"))
        return build_language_model(
            spec.model, vocabulary=self.tokenizer.vocabulary, context=self.context, trust=self.trust
        )

    def _samples(self, oracle: nn.Module, who: str, spec: LabModel) -> TextSource:
        """Samples of the oracle for fine-tuning: the same for teacher and student, as far as both have them."""
        lab = self.lab
        prompts = prompts_of(self.text, lab.prompt, spec.sequences, seed=lab.seed, purpose="prompts")
        draws = Draws(lab.seed, "oracle", index=range(len(prompts)))
        sequences = written(oracle, prompts, self.tokenizer, tokens=lab.completion, draws=draws)
        return TextSource(f"samples for the {who}", sequences, self.tokenizer, context=lab.prompt + lab.completion)

    def _trained(self, name: str, spec: LabModel, source: TextSource) -> nn.Module:
        """Fine-tunes a model, or takes back what an earlier call left."""
        model, path = self._model(name, spec), self.folder / f"{name}.safetensors"
        if path.exists():
            load_weights(model, path)
            return model.eval()
        self.reporter.note(
            f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(source)} sequences"
        )
        loader = TextLoader(source, batch_size=spec.train.batch_size, seed=self.lab.seed)
        self._train(name, {"name": "sft"}, {"student": Role(model=model)}, loader, spec.train)
        save_weights(model, path)
        return model.eval()

    def _train(
        self,
        name: str,
        method: Mapping[str, Any],
        roles: Mapping[str, Role],
        loader: BatchLoader,
        settings: TrainSettings,
        distances: Distances | None = None,
    ) -> list[dict[str, Any]]:
        made, weights = make_method(method)
        torch.manual_seed(streams.torch_seed(self.lab.seed, f"train/{name}"))
        folder = RunFolder(self.folder / "stages" / name.replace(" ", "_"), self.plain)
        try:
            Stage(
                method=made, roles=roles, task=self.task, loader=loader, settings=settings, weights=weights,
                num_classes=self.tokenizer.vocabulary, evaluate=distances, folder=folder,
                name=name.replace(" ", "_"), seed=self.lab.seed, reporter=self.reporter,
            ).run()  # fmt: skip
            return epoch_records(folder.path)
        finally:
            folder.close()

    def _distilled(
        self,
        name: str,
        source: SampleSource,
        teacher: nn.Module,
        student: nn.Module,
        distances: Distances,
        start: Mapping[str, Any],
    ) -> SourceCurves:
        lab = self.lab
        learner = copy.deepcopy(student)
        prompts = prompts_of(self.text, lab.prompt, source.prompts or lab.prompts, seed=lab.seed, purpose="prompts")
        loader = SampledText(
            prompts, teacher, learner, self.tokenizer, source,
            tokens=lab.completion, batch_size=lab.train.batch_size, seed=lab.seed,
        )  # fmt: skip
        roles = {"student": Role(model=learner), "teacher": Role(model=teacher)}
        history = self._train(name, lab.method, roles, loader, lab.train, distances)
        curves = curves_of(history)
        if curves is None:
            last = history[-1]["evaluation"]
            curves = Curves((history[-1]["epoch"] + 1,), (last["held_out_kl"],), (last["held_out_loss"],))
        return _described(curves, start, lab.tolerance)


def _described(curves: Curves, start: Mapping[str, Any], tolerance: float) -> SourceCurves:
    judged = judge(curves, tolerance=tolerance)
    return SourceCurves(
        (0, *curves.epochs),
        (start["held_out_kl"], *curves.proxy),
        (start["held_out_loss"], *curves.golden),
        judged.hacking,
        curves.epochs[judged.turn.best],
        judged.turn.rise,
        judged.p,
        {} if judged.law is None else law_numbers(judged.law),
    )
