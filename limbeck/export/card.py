"""A student with its weights and its model card: what it is, where it comes from and how good it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from limbeck import __version__
from limbeck.engine.checkpoint import write_atomically
from limbeck.errors import CheckpointError
from limbeck.evaluate.measure import Measure
from limbeck.evaluate.runner import measures
from limbeck.students.weight_files import save_weights

_LOADING = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForCausalLM.from_pretrained("FOLDER")
```"""


@dataclass(frozen=True)
class ModelCard:
    """What a person must know to use a student.

    Attributes:
        method: name and hyperparameters of the method.
        roles: where each role came from, as in the recipe; ``student`` and mostly ``teacher``.
        data: name of the training data.
        licence: licence and origin of the data.
        num_classes: number of classes.
        input_shape: shape of one input, such as ``(C, H, W)``.
        mean: mean of the inputs by channel, to subtract after scaling to [0, 1]; empty where inputs are used as they
        are. std: standard deviation of the inputs by channel, to divide by.
        class_names: name of each class in the order of the scores.
        tokenizer: name of the tokenizer; empty where the student reads no text.
        seed: seed of the run.
        results: what :func:`limbeck.evaluate.evaluate` gave.
    """

    method: Mapping[str, Any] = field(default_factory=dict)
    roles: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""
    licence: str = ""
    num_classes: int = 0
    input_shape: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    class_names: tuple[str, ...] = ()
    tokenizer: str = ""
    seed: int | None = None
    results: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_run(cls, folder: str | Path) -> ModelCard:
        """Returns the card of the student in a run folder, with the run's results.

        Raises:
            CheckpointError: ``student.json`` or ``results.json`` is absent or damaged.
        """
        card, results = (_read(Path(folder) / name) for name in ("student.json", "results.json"))
        known = {name: card[name] for name in cls.__dataclass_fields__ if name in card and name != "results"}
        for name in ("input_shape", "mean", "std", "class_names"):
            known[name] = tuple(known.get(name, ()))
        return cls(**known, results=results)

    def model(self, role: str) -> str:
        """Returns the name of a role's model; empty where it has none, such as an ensemble or a cache."""
        spec = self.roles.get(role)
        if isinstance(spec, Mapping) and "from" in spec:
            origin = self.model(spec["from"]) if spec["from"] in self.roles else str(spec["from"])
            kept = spec.get("layers")
            return origin if kept is None else f"{origin}, {kept if isinstance(kept, int) else len(kept)} layers"
        model = spec.get("model", "") if isinstance(spec, Mapping) else spec or ""
        return str(model.get("name", "") if isinstance(model, Mapping) else model)

    def _measured(self) -> list[tuple[Measure, float]]:
        read = [(measure, measure.read(self.results)) for measure in measures(self.results)]
        return [(measure, value) for measure, value in read if value is not None]

    def metadata(self) -> dict[str, Any]:
        """Entries for the metadata of an ONNX file, headline numbers as ``figures``; what is not known is left out."""
        known = {name: value for name, value in asdict(self).items() if value or name == "seed"}
        known.pop("results", None)
        names = {"student": self.model("student"), "teacher": self.model("teacher")}
        figures = {measure.key: value for measure, value in self._measured()}
        return {"limbeck": __version__, **{k: v for k, v in names.items() if v}, **known, "figures": figures}

    def to_json(self) -> str:
        """The card as JSON, without the results, which a run folder keeps in a file of their own."""
        known = asdict(self)
        known.pop("results")
        return json.dumps({"limbeck": __version__, **known}, indent=2, sort_keys=True, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """The card as a page for people.

        Example:
            >>> roles = {"student": {"model": "resnet8"}, "teacher": {"model": "resnet20"}}
            >>> card = ModelCard({"name": "dkd"}, roles, data="digits")
            >>> print(card.to_markdown().splitlines()[2].partition(",")[0])
            A `resnet8` distilled from `resnet20` with `dkd` on `digits`
        """
        student, teacher = self.model("student") or "student", self.model("teacher")
        origin = f" distilled from `{teacher}`" if teacher else " trained"
        manner = f" with `{self.method['name']}`" if "name" in self.method else ""
        place = f" on `{self.data}`" if self.data else ""
        parts = [f"# {student}", f"A `{student}`{origin}{manner}{place}, by limbeck {__version__}."]
        if self.input_shape:
            parts.append(self._input_line())
        if self.class_names:
            parts.append("Classes, in the order of the scores: " + ", ".join(self.class_names) + ".")
        rows = [f"| {m.title} | {m.text(value)} | {m.explanation} |" for m, value in self._measured()]
        if rows:
            split = self.results.get("split", "test")
            parts.append("\n".join([f"| Measured on the {split} data | | |", "|---|---:|---|", *rows]))
        if self.licence:
            parts.append(f"Training data: {self.licence}")
        return "\n\n".join(parts) + "\n"

    def to_hub(self) -> str:
        """The card of a folder that transformers loads: the page, its metadata, the method and how to load the model.

        Example:
            >>> roles = {"student": {"from": "teacher", "layers": 6}, "teacher": {"model": "hf:some/model"}}
            >>> card = ModelCard({"name": "word_kd"}, roles, data="novel", tokenizer="hf:some/model")
            >>> print(card.to_hub().splitlines()[4])
            base_model: some/model
        """
        teacher = self.model("teacher")
        facts = ["library_name: transformers", "pipeline_tag: text-generation", "tags: [distillation, limbeck]"]
        if teacher.startswith("hf:") and not teacher.removeprefix("hf:").startswith((".", "/", "~")):
            facts.append(f"base_model: {teacher.removeprefix('hf:').partition(',')[0]}")
        settings = [f"| `{key}` | `{value}` |" for key, value in self.method.items() if key != "name"]
        parts = ["\n".join(["---", *facts, "---"]), self.to_markdown().rstrip()]
        if settings:
            parts.append("\n".join(["| Setting of the method | |", "|---|---|", *settings]))
        if teacher:
            parts.append(
                f"The teacher `{teacher}` has a licence of its own, which may bind students made of it; see its card."
            )
        parts.append(_LOADING)
        return "\n\n".join(parts) + "\n"

    def _input_line(self) -> str:
        shape = " x ".join(str(n) for n in self.input_shape)
        if self.tokenizer:
            return f"Input: token ids `[batch, up to {shape}]` of the tokenizer `{self.tokenizer}`."
        if not self.mean:
            return f"Input: `[batch, {shape}]`, float32."
        scale = f"scaled to [0, 1], minus {list(self.mean)}, divided by {list(self.std)} by channel"
        return f"Input: `[batch, {shape}]`, float32, {scale}."


def save_student(student: nn.Module, folder: str | Path, card: ModelCard) -> None:
    """Writes ``student.safetensors``, ``student.json`` and ``student.md`` (the card) into a folder.

    Raises:
        CheckpointError: the weights cannot be written.
        RunFolderError: the card cannot be written.
    """
    folder = Path(folder)
    save_weights(student, folder / "student.safetensors", card.metadata())
    write_atomically(folder / "student.json", card.to_json().encode())
    write_atomically(folder / "student.md", card.to_markdown().encode())


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{path}' cannot be read ({error}); run the recipe to the end to write it") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"'{path}' does not hold what a run leaves behind; run the recipe again")
    return found
