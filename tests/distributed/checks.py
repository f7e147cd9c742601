"""Checks that run in each of two processes; one process alone gives what they are compared with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from methods.workbench import label, variants

from distributed.stages import Records, make_stage, state_of
from limbeck.methods.base import build_method

Check = Callable[[Path], dict[str, Any]]


def trained(name: str, config: dict[str, Any], folder: Path, **train: Any) -> dict[str, Any]:
    """State after an epoch of two uneven batches."""
    torch.set_default_dtype(torch.float64)
    try:
        records = Records()
        stage = make_stage(name, config, reporter=records, **train)
        stage.run()
        return {**state_of(stage), "notes": records.notes, "epochs": records.epochs}
    finally:
        torch.set_default_dtype(torch.float32)


def couples(name: str, config: dict[str, Any]) -> bool:
    return build_method(name, **config).batch_coupled


GRADIENTS: dict[str, Check] = {}
for _name, _config in variants():
    for _sharding in ("ddp", "fsdp"):
        GRADIENTS[f"{label((_name, _config))} {_sharding}"] = functools.partial(
            trained, _name, _config, sharding=_sharding
        )
    if not couples(_name, _config):
        GRADIENTS[f"{label((_name, _config))} micro"] = functools.partial(trained, _name, _config, micro_batches=2)

CHECKS: dict[str, Check] = {**GRADIENTS}
