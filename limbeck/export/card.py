"""A model card: what a student is, where it comes from and how good it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from limbeck import __version__
from limbeck.evaluate.measure import Measure
from limbeck.evaluate.runner import measures


@dataclass(frozen=True)
class ModelCard:
    """What a person must know to use a student, in a file beside it and inside an ONNX file.

    Attributes:
        student: name of the architecture.
        teacher: name of the teacher; empty where there was none.
        method: name of the distillation method.
        data: name of the training data.
        licence: licence and origin of the data.
        input_shape: shape of one input, such as ``(C, H, W)``.
        mean: mean of the inputs by channel, to subtract after scaling to [0, 1].
        std: standard deviation of the inputs by channel, to divide by.
        class_names: name of each class in the order of the scores.
        seed: seed of the run.
        results: what :func:`limbeck.evaluate.evaluate` gave.
    """

    student: str
    teacher: str = ""
    method: str = ""
    data: str = ""
    licence: str = ""
    input_shape: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    class_names: tuple[str, ...] = ()
    seed: int | None = None
    results: Mapping[str, Any] = field(default_factory=dict)

    def figures(self) -> dict[str, float]:
        """The headline numbers of the results by key, those that were measured."""
        return {m.key: value for m, value in self._measured()}

    def _measured(self) -> list[tuple[Measure, float]]:
        read = [(m, m.read(self.results)) for m in measures(self.results)]
        return [(m, value) for m, value in read if value is not None]

    def metadata(self) -> dict[str, Any]:
        """Entries for the metadata of an ONNX file; what is not known is left out."""
        known = {
            name: value for name, value in asdict(self).items() if value not in ("", (), None, {}) and name != "results"
        }
        return {"limbeck": __version__, **known, "figures": self.figures()}

    def to_json(self) -> str:
        """The card as JSON, full results included."""
        return json.dumps({"limbeck": __version__, **asdict(self)}, indent=2, sort_keys=True, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """The card as a page for people.

        Example:
            >>> card = ModelCard("resnet8", teacher="resnet20", method="dkd", data="digits")
            >>> print(card.to_markdown().splitlines()[2].partition(",")[0])
            A `resnet8` distilled from `resnet20` with `dkd` on `digits`
        """
        origin = f" distilled from `{self.teacher}`" if self.teacher else " trained"
        manner = f" with `{self.method}`" if self.method else ""
        place = f" on `{self.data}`" if self.data else ""
        parts = [f"# {self.student}", f"A `{self.student}`{origin}{manner}{place}, by limbeck {__version__}."]
        if self.input_shape:
            parts.append(self._input_lines())
        if self.class_names:
            parts.append("Classes, in the order of the scores: " + ", ".join(self.class_names) + ".")
        rows = [f"| {m.title} | {m.text(value)} | {m.explanation} |" for m, value in self._measured()]
        if rows:
            parts.append("\n".join(["| measured on the test data | | |", "|---|---:|---|", *rows]))
        if self.licence:
            parts.append(f"Training data: {self.licence}")
        return "\n\n".join(parts) + "\n"

    def _input_lines(self) -> str:
        shape = " x ".join(str(n) for n in self.input_shape)
        if not self.mean:
            return f"Input: `[batch, {shape}]`, float32."
        scale = f"scaled to [0, 1], minus {list(self.mean)}, divided by {list(self.std)} by channel"
        return f"Input: `[batch, {shape}]`, float32, {scale}."
