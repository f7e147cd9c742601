"""A language model as an ONNX file with dynamic batch and length."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.export.onnx import cause, quiet, require
from limbeck.export.parity import Logits

INPUTS = ("input_ids", "attention_mask", "position_ids")
_ONE_FILE = 2**31


class _Logits(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        output = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        )
        return output.logits


def language_onnx(model: nn.Module, *, metadata: Mapping[str, Any] | None = None) -> bytes:
    """Returns a language model of transformers as ONNX.

    Inputs are ``input_ids``, ``attention_mask`` and ``position_ids``, each ``[batch, tokens]`` int64, with which
    padding may lie on either side; the output is ``logits``. There is no key-value cache in it.

    Args:
        model: the model, adapters merged; it is not changed.
        metadata: what the file shall say of the model.

    Raises:
        MissingExtraError: the packages of ``limbeck[onnx]`` are not installed.
        LimbeckError: the model cannot be expressed in ONNX, or takes 2 GB or more.
    """
    require("onnxscript", "onnx", "onnxruntime")
    plain = copy.deepcopy(model).cpu().eval()
    # Example sizes that nothing in the model has, so that no dimension is taken for a constant.
    ids = torch.ones(2, 7, dtype=torch.long)
    example = (ids, torch.ones_like(ids), torch.arange(7).expand(2, 7).clone())
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    try:
        with quiet():
            program = torch.onnx.export(
                _Logits(plain), example, dynamo=True, dynamic_shapes=(free, free, free),
                input_names=list(INPUTS), output_names=["logits"], verbose=False,
            )  # fmt: skip
    except Exception as error:  # the exporter raises whatever its stages raise
        raise LimbeckError(f"{type(model).__name__} cannot be expressed in ONNX: {cause(error)}") from error
    assert program is not None
    program.model.producer_name = "limbeck"
    for name, value in (metadata or {}).items():
        program.model.metadata_props[name] = value if isinstance(value, str) else json.dumps(value)
    data = program.model_proto.SerializeToString()
    if len(data) >= _ONE_FILE:
        raise LimbeckError(f"the model takes {len(data)} bytes, but one ONNX file holds less than 2 GB; use gguf")
    return data


def onnx_logits(data: bytes) -> Logits:
    """Returns what runs an ONNX language model with onnxruntime.

    Raises:
        MissingExtraError: it is not installed.
    """
    require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def logits(*inputs: Tensor) -> Tensor:
        given = {name: tensor.numpy() for name, tensor in zip(INPUTS, inputs)}
        return torch.from_numpy(session.run(["logits"], given)[0])

    return logits
