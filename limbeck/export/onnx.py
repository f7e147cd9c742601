"""ONNX export whose outputs are compared with PyTorch's before the file appears."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.engine.checkpoint import write_atomically
from limbeck.errors import LimbeckError, MissingExtraError
from limbeck.modes import evaluation_mode

_CHATTY = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "onnx")
_ONE_FILE = 2**31
_BATCHES = (1, 2, 7, 32)
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class ExportResult:
    """What was written, and how far it is from the PyTorch model.

    Attributes:
        path: the file.
        bytes: its size.
        opset: version of the ONNX operators.
        batch_sizes: the sizes of the batches on which both models were compared; empty without a check.
        max_abs_error: largest difference of a score; None without a check.
        max_relative_error: the same, divided by the largest score of its batch; None without a check.
    """

    path: Path
    bytes: int
    opset: int
    batch_sizes: tuple[int, ...] = ()
    max_abs_error: float | None = None
    max_relative_error: float | None = None


class _Scores(nn.Module):
    """A classifier that gives a tensor, whatever record its model gives."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        output = self.model(inputs)
        return output if isinstance(output, Tensor) else output.logits


def export_onnx(
    model: nn.Module,
    example_input: Tensor,
    path: str | Path,
    *,
    metadata: Mapping[str, Any] | None = None,
    check: bool = True,
    batch_sizes: Sequence[int] = _BATCHES,
) -> ExportResult:
    """Writes a classifier as an ONNX file with a dynamic batch size, after comparing it with the model.

    The model is exported in eval mode and is left as it was. Its input is called ``inputs`` and its output
    ``logits``. Nothing is written when the comparison fails, and an existing file is replaced only by a complete one.

    Args:
        model: gives scores ``[B, C]``, or a record with ``logits``.
        example_input: ``[B, ...]`` inputs like those the model was trained on.
        path: the file to write.
        metadata: what the file shall say of the model, such as :meth:`limbeck.export.ModelCard.metadata`; values that
        are no text
            are written as JSON.
        check: whether to run the file with onnxruntime and compare.
        batch_sizes: on batches of these sizes.

    Raises:
        MissingExtraError: the packages of ``limbeck[onnx]`` are not installed.
        LimbeckError: the model cannot be expressed in ONNX, or the file's scores differ by more than 1e-4 of the
        largest score. RunFolderError: the file cannot be written.
    """
    require("onnxscript", "onnx", *(["onnxruntime"] if check else []))
    path, check = Path(path), check and len(batch_sizes) > 0
    model = getattr(model, "_orig_mod", model)
    scores = _Scores(model if _on_cpu(model) else copy.deepcopy(model).cpu())
    example = example_input.detach().cpu()
    with evaluation_mode(model, scores):
        data, opset = _translate(scores, example, metadata or {})
        errors = _compare(scores, data, example, batch_sizes) if check else []
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data)
    result = ExportResult(path, len(data), opset)
    if not check:
        return result
    absolute, relative = (max(column) for column in zip(*errors))
    return ExportResult(path, len(data), opset, tuple(batch_sizes), absolute, relative)


def require(*packages: str) -> None:
    """Refuses where packages of ONNX export are not installed.

    Raises:
        MissingExtraError: names the first that is absent.
    """
    for package in packages:
        try:
            __import__(package)
        except ImportError:
            raise MissingExtraError(package, "onnx", "ONNX export") from None


def _on_cpu(model: nn.Module) -> bool:
    return all(tensor.device.type == "cpu" for tensor in (*model.parameters(), *model.buffers()))


def _translate(scores: nn.Module, example: Tensor, metadata: Mapping[str, Any]) -> tuple[bytes, int]:
    """Returns the file's content and the version of its operators."""
    # The exporter takes a dimension of size 1 for a constant.
    pair = example[torch.arange(2) % len(example)]
    try:
        with quiet():
            program = torch.onnx.export(
                scores,
                (pair,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["inputs"],
                output_names=["logits"],
                verbose=False,
            )
    except Exception as error:  # the exporter raises whatever its stages raise
        raise LimbeckError(
            f"the model cannot be expressed in ONNX with a dynamic batch size: {cause(error)}"
        ) from error
    assert program is not None
    program.model.producer_name = "limbeck"
    for name, value in metadata.items():
        program.model.metadata_props[name] = value if isinstance(value, str) else json.dumps(value)
    data = program.model_proto.SerializeToString()
    if len(data) >= _ONE_FILE:
        raise LimbeckError(f"the model takes {len(data)} bytes, but one ONNX file holds less than 2 GB")
    return data, int(program.model.opset_imports[""])


def cause(error: BaseException) -> str:
    """Returns the first line of the innermost reason of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"


def _compare(scores: nn.Module, data: bytes, example: Tensor, sizes: Sequence[int]) -> list[tuple[float, float]]:
    """Returns the largest absolute and relative difference for each batch size."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    errors = []
    for size in sizes:
        batch = _varied(example, size)
        try:
            expected = scores(batch)
            given = torch.from_numpy(session.run(["logits"], {"inputs": batch.numpy()})[0])
        except Exception as error:  # onnxruntime's errors have no common base
            raise LimbeckError(
                f"the model cannot be expressed in ONNX: on {size} samples it does not run ({cause(error)})"
            ) from error
        if given.shape != expected.shape:
            raise LimbeckError(
                f"on {size} samples the ONNX file gives {tuple(given.shape)} and the model {tuple(expected.shape)}: "
                "the model fixes a batch size somewhere; nothing was written"
            )
        absolute = float((given - expected).abs().max())
        relative = absolute / max(float(expected.abs().max()), 1e-12)
        if not relative <= _TOLERANCE:
            raise LimbeckError(
                f"on {size} samples the ONNX file's scores differ from the model's by {absolute:.2e}, {relative:.2e} "
                f"of the largest score, which is more than {_TOLERANCE:g}; nothing was written"
            )
        errors.append((absolute, relative))
    return errors


def _varied(example: Tensor, size: int) -> Tensor:
    """Returns ``size`` different inputs like the example: its samples, with noise where they are floating-point."""
    batch = example[torch.arange(size) % len(example)]
    if not example.is_floating_point():
        return batch
    noise = torch.randn(batch.shape, generator=torch.Generator().manual_seed(size), dtype=batch.dtype)
    return batch + example.std().nan_to_num(1.0) * noise


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the exporter's progress marks, deprecation notices and log lines from the terminal."""
    levels = {name: logging.getLogger(name).level for name in _CHATTY}
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        for name in levels:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
