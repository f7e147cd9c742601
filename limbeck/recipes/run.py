"""Runs recipes: stage after stage, then the evaluation, all of it resumable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.engine import distributed
from limbeck.engine.interruption import Interrupted
from limbeck.engine.reporter import Reporter
from limbeck.engine.run_folder import RunFolder, epoch_records
from limbeck.errors import RunFolderError
from limbeck.evaluate import evaluate, planned, predict
from limbeck.evaluate.accuracy import accuracy_on
from limbeck.evaluate.plan import Wanted
from limbeck.evaluate.predictions import Model
from limbeck.export import ModelCard, export_onnx, save_student
from limbeck.recipes.active import asked, run_rounds
from limbeck.recipes.build import BuiltStage, build_stage
from limbeck.recipes.load import as_plain, load_recipe
from limbeck.recipes.schema import Recipe, RoleSpec, StageSpec, goes_on
from limbeck.students.loading import load_weights, save_weights
from limbeck.teachers.ensemble import is_live


@dataclass(frozen=True)
class FinishedRun:
    """What a run left behind.

    Attributes:
        folder: the run folder.
        results: what the evaluations said, by name, and ``method``, ``seed``, ``split``.
    """

    folder: Path
    results: dict[str, Any]


def run_recipe(
    recipe: str | Path | dict[str, Any] | Recipe,
    overrides: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    trust: bool = False,
    reporter: Reporter | None = None,
) -> FinishedRun:
    """Trains what a recipe says, or continues where an earlier call was stopped, or returns what it already found.

    Args:
        recipe: a file, the name of a shipped recipe, a mapping or a loaded recipe.
        overrides: ``key=value`` strings.
        out: the run folder; ``runs/<name>-<hash>`` when None.
        trust: allow models that run the code they name.
        reporter: shows progress.

    Raises:
        LimbeckError: something is unknown, missing, does not fit or went wrong; the message says what and how to mend
            it.
        Interrupted: SIGINT or SIGTERM came; the same call continues.
    """
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides)
    check_evaluations(loaded)
    plain = as_plain(loaded)
    path = default_folder(recipe, plain) if out is None else Path(out)
    if loaded.stages[0].train.threads is not None:
        torch.set_num_threads(loaded.stages[0].train.threads)
    with distributed.session():
        folder = RunFolder.open(path, plain, lambda stored: as_plain(load_recipe(stored)))
        try:
            if not distributed.on_first(lambda: folder is not None and folder.finished):
                built = _run_stages(loaded, path, folder, trust=trust, reporter=reporter)
                distributed.on_first(partial(_conclude, loaded, built, folder))
            return FinishedRun(path, distributed.on_first(lambda: json.loads((path / "results.json").read_text())))
        finally:
            if folder is not None:
                folder.close()


def check_evaluations(recipe: Recipe) -> None:
    """Refuses evaluations that nobody knows before anything is trained.

    Raises:
        UnknownNameError: no evaluation has that name; proposes near matches.
        RecipeError: an option of an evaluation is unknown or out of its range.
    """
    planned(recipe.evaluate)


def default_folder(recipe: Any, plain: dict[str, Any]) -> Path:
    """Returns ``runs/<name>-<hash of the resolved recipe>``: the same recipe always finds its own run again."""
    name = Path(str(recipe)).name.removesuffix(".yaml") if isinstance(recipe, (str, Path)) else "recipe"
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]
    return Path("runs") / f"{name}-{digest}"


def _run_stages(
    recipe: Recipe, path: Path, folder: RunFolder | None, *, trust: bool, reporter: Reporter | None
) -> BuiltStage:
    def build(spec: StageSpec) -> BuiltStage:
        return build_stage(
            recipe,
            spec,
            trust=trust,
            folder=folder,
            reporter=reporter,
            earlier=lambda name, model: _load_left(path, name, "student", model),
        )

    if recipe.active is not None:
        return run_rounds(recipe, path, build, partial(_train, path), _accuracy)
    built: BuiltStage | None = None
    for number, spec in enumerate(recipe.stages):
        built = build(spec)
        go_on = partial(_go_on, recipe.stages[number - 1], spec, path, built) if number else None
        _train(path, built, spec.name, go_on)
        if reporter is not None:
            _tell_costs(built, reporter)
    assert built is not None
    return built


def _tell_costs(built: BuiltStage, reporter: Reporter) -> None:
    """Says what the servers of a stage have been paid, in this run and in those before."""
    for role, observer in built.stage.observers.items():
        client = getattr(observer, "client", None)
        if client is not None and distributed.rank() == 0:
            reporter.note(f"{role}: {client.endpoint.url} has given {client.ledger}; kept in {client.journal_folder}")


def _train(path: Path, built: BuiltStage, name: str, go_on: Callable[[], None] | None = None) -> None:
    """Runs a stage, or takes back what it left when it is done."""
    left = path / "stages" / name
    if not distributed.on_first((left / "done").exists):
        if go_on is not None:
            go_on()
        built.stage.run()
        distributed.on_first(partial(_leave, left, built))
        return
    for role, model in built.stage.learners.items():
        _load_left(path, name, role, model)
    if any(True for _ in built.stage.method.state_dict()):
        load_weights(built.stage.method, left / "method.safetensors")
    built.stage.settle()


def _accuracy(built: BuiltStage) -> float:
    return accuracy_on(built.stage.student(), built.data.held_loader, built.task)


def _load_left(path: Path, stage: str, role: str, model: nn.Module) -> None:
    load_weights(model, path / "stages" / stage / f"{role}.safetensors")


def _go_on(before: StageSpec, spec: StageSpec, path: Path, built: BuiltStage) -> None:
    """Learners of a later stage start from what the stage before left, unless they are fresh or of another model."""
    for role, model in built.stage.learners.items():
        left = path / "stages" / before.name / f"{role}.safetensors"
        if goes_on(before.roles.get(role), spec.roles[role]) and left.exists():
            _load_left(path, before.name, role, model)


def _leave(left: Path, built: BuiltStage) -> None:
    """Keeps what a finished stage learnt; the marker comes last, so that a kill in between repeats nothing but this."""
    left.mkdir(parents=True, exist_ok=True)
    for role, model in built.stage.learners.items():
        save_weights(model, left / f"{role}.safetensors")
    if any(True for _ in built.stage.method.state_dict()):
        save_weights(built.stage.method, left / "method.safetensors")
    (left / "done").touch()


def _conclude(recipe: Recipe, built: BuiltStage, folder: RunFolder | None) -> None:
    """Judges the student and writes what a run leaves behind, ``results.json`` last."""
    assert folder is not None
    last = recipe.stages[-1]
    student = built.stage.student().eval()
    results = {
        **_judge(recipe.evaluate, built, folder.path),
        "method": last.method_name,
        "seed": recipe.seed,
        "split": built.data.split,
        **asked(folder.path),
    }
    info = built.data.train.info
    card = ModelCard(
        method=last.method,
        roles={name: role.model_dump(mode="json", exclude_none=True) for name, role in last.roles.items()},
        data=info.name,
        licence=info.licence,
        num_classes=info.num_classes,
        input_shape=tuple(info.input_shape),
        mean=tuple(info.mean) if last.data.normalize else (),
        std=tuple(info.std) if last.data.normalize else (),
        class_names=tuple(info.class_names),
        tokenizer=built.data.train.tokenizer.name if built.text else "",  # type: ignore[attr-defined]
        seed=recipe.seed,
        results=results,
    )
    save_student(student, folder.path, card)
    if built.text:
        from limbeck.export.pretrained import save_pretrained

        save_pretrained(
            student,
            built.data.train.tokenizer,  # type: ignore[attr-defined]
            folder.path / "student",
            merge=_merges(last.roles["student"]),
            card=card,
        )
    folder.write_json("results.json", results)


def _judge(names: Sequence[Wanted], built: BuiltStage, path: Path) -> dict[str, Any]:
    student = built.stage.student().eval()
    teacher = _compared_with(built)
    found = None
    if not built.text:
        models = {"student": student} | ({"teacher": teacher} if teacher is not None else {})
        found = predict(models, built.data.held_loader, built.task)
        found.save(path / "predictions.safetensors")
    return evaluate(
        student,
        loader=built.data.held_loader,
        task=built.task,
        teacher=teacher,
        names=names,
        predictions=found,
        train=built.data.train,
        history=epoch_records(path),
    )


def _compared_with(built: BuiltStage) -> Model | None:
    """Returns the teacher, live or several live ones, or the model of the role ``reference`` where it is not live.

    None where the teacher reads other tokens than the student: nothing that is said of single tokens compares them.
    """
    if built.text and built.data.tokenizers:
        return None
    for role in ("teacher", "reference"):
        if role in built.roles:
            made = built.roles[role]
            if made.model is not None:
                return made.model
            if is_live(made.provider):
                return made.provider
    return None


def reopen(folder: Path, *, trust: bool = False) -> tuple[Recipe, BuiltStage]:
    """Returns the recipe of a finished run and its last stage with the trained weights.

    Raises:
        RunFolderError: the folder is no finished run.
    """
    if not (folder / "results.json").exists():
        raise RunFolderError(f"'{folder}' holds no finished run; run its recipe.yaml to the end first")
    recipe = load_recipe(folder / "recipe.yaml")
    return recipe, _run_stages(recipe, folder, None, trust=trust, reporter=None)


def evaluate_run(folder: Path, names: Sequence[Wanted] | None = None, *, trust: bool = False) -> FinishedRun:
    """Judges the student of a finished run again and adds what is new to its results.

    Args:
        folder: the run folder.
        names: evaluations, by name or as mappings of ``name`` and options; those of the recipe when None.
        trust: allow models that run the code they name.

    Raises:
        RunFolderError: the folder is no finished run.
        LimbeckError: an evaluation or an option is unknown, or cannot be done.
    """
    planned(names or ())
    recipe, built = reopen(folder, trust=trust)
    results = json.loads((folder / "results.json").read_text())
    results.update(_judge(names or recipe.evaluate, built, folder))
    (folder / "results.json").write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")
    return FinishedRun(folder, results)


def _merges(student: RoleSpec) -> bool:
    """Whether a finished student is to be one model, its adapters merged into its weights."""
    options = student.model if isinstance(student.model, Mapping) else {}
    return bool((student.lora or options.get("lora") or {}).get("merge"))


def export_run(folder: Path, form: str | None = None, out: Path | None = None, *, trust: bool = False) -> str:
    """Writes the student of a finished run for deployment and says where it is and how exact.

    Args:
        folder: the run folder.
        form: ``onnx``; for language models also ``pretrained`` and ``gguf``. What suits the model when None.
        out: where to; in the run folder when None.
        trust: allow models that run the code they name.

    Raises:
        LimbeckError: there is no such format, or the student cannot be expressed in it.
    """
    from limbeck.errors import RecipeError, suggest

    _, built = reopen(folder, trust=trust)
    if built.text:
        return _export_text(folder, built, form or "pretrained", out)
    if form not in (None, "onnx"):
        raise RecipeError(f"unknown export format '{form}'. {suggest(str(form), ['onnx'])}")
    example = next(iter(built.data.held_loader.epoch(0)))["inputs"][:2]
    card = ModelCard.of_run(folder).metadata()
    written = export_onnx(built.stage.student().eval(), example, out or folder / "student.onnx", metadata=card)
    exact = (
        "" if written.max_abs_error is None else f", within {written.max_abs_error:.1e} of the PyTorch student's scores"
    )
    return f"{written.path} ({written.bytes / 1e3:.0f} kB{exact})"


def _export_text(folder: Path, built: BuiltStage, form: str, out: Path | None) -> str:
    from limbeck.export.language import export_language_model, usual_place

    path, parity = export_language_model(
        built.stage.student(),
        built.data.train.tokenizer,  # type: ignore[attr-defined]
        form,
        out or usual_place(folder, form),
        batches=[next(iter(built.data.held_loader.epoch(0)))],
        card=ModelCard.of_run(folder),
    )
    return f"{path}: {parity}"


__all__ = ["FinishedRun", "Interrupted", "evaluate_run", "export_run", "reopen", "run_recipe"]
