"""What a stage must remember to go on with the same bits, written and read by all processes of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from limbeck.engine import checkpoint, distributed, sharded_checkpoint, sharding
from limbeck.engine.run_folder import RunFolder
from limbeck.engine.transform_reports import LOGS
from limbeck.errors import CheckpointError, NonFiniteLossError

if TYPE_CHECKING:
    from limbeck.engine.stage import Stage

_SHARDS = "shards"


def capture(stage: Stage) -> dict[str, Any]:
    """Returns everything that a bit-exact continuation needs; sharded tensors stay in parts."""
    return {
        "stage": stage.name,
        "step": stage.step,
        "metrics": stage.metrics.state_dict(),
        "watch": stage.watch.state_dict() if stage.watch is not None else {},
        "learners": {role: model.state_dict() for role, model in stage.learners.items()},
        "method": stage.method.state_dict(),
        "optimizers": {who: optimizer.state_dict() for who, optimizer in stage.optimizers.items()},
        "providers": {role: o.state_dict() for role, o in stage.observers.items() if hasattr(o, "state_dict")},
        "transforms": {str(n): t.state_dict() for n, t in enumerate(stage.transforms) if hasattr(t, "state_dict")},
        "loader": stage.loader.state_dict() if hasattr(stage.loader, "state_dict") else {},
        # Dropout draws differently in each process, and more often where a process got one sample more.
        "random": distributed.gather_objects(checkpoint.random_state()),
    }


def restore(stage: Stage, state: Mapping[str, Any]) -> None:
    """Puts the stage where ``state`` was taken.

    Raises:
        CheckpointError: the state is of other models, another method or another stage.
    """
    try:
        for role, model in stage.learners.items():
            sharding.load(model, state["learners"][role])
        sharding.load(stage.method, state["method"])
        for who, optimizer in stage.optimizers.items():
            sharding.load_optimizer(optimizer, state["optimizers"][who])
        for role, provider_state in state["providers"].items():
            stage.observers[role].load_state_dict(provider_state)  # type: ignore[attr-defined]
        for number, transform_state in state["transforms"].items():
            stage.transforms[int(number)].load_state_dict(transform_state)  # type: ignore[attr-defined]
        if hasattr(stage.loader, "load_state_dict"):
            stage.loader.load_state_dict(state["loader"])
        if stage.watch is not None:
            stage.watch.load_state_dict(state["watch"])
        stage.metrics.load_state_dict(state["metrics"])
        stage.step = int(state["step"])
        random_states = state["random"]
        if distributed.rank() < len(random_states):
            checkpoint.restore_random_state(random_states[distributed.rank()])
    except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the checkpoint does not fit this recipe: {distributed.first_line(error)}") from error


def save(stage: Stage, folder: RunFolder | None) -> None:
    """Writes a checkpoint; ``folder`` is None in all processes but the first.

    Raises:
        NonFiniteLossError: a weight is not finite; the last good checkpoint is kept.
        RunFolderError: the disk is full or the folder cannot be written.
    """
    distributed.together(lambda: _check_weights(stage))
    state, shards = sharded_checkpoint.split(capture(stage))
    name = f"{stage.name}-{stage.step:09d}"
    draft = distributed.on_first(lambda: checkpoint.draft(folder.checkpoints, name) if folder is not None else None)
    if draft is None:
        return
    if shards:
        sharded_checkpoint.write(draft / _SHARDS, shards)

    def commit() -> None:
        assert folder is not None
        checkpoint.commit(draft, name, {**state, "logs": {log: folder.length(log) for log in LOGS}})

    distributed.on_first(commit)


def _check_weights(stage: Stage) -> None:
    for role, model in stage.learners.items():
        for name, tensor in model.state_dict().items():
            part = sharding.own_part(tensor)
            if part.is_floating_point() and not bool(torch.isfinite(part).all()):
                raise NonFiniteLossError(
                    f"the weights '{name}' of role '{role}' are not finite after step {stage.step}; lower train.lr or "
                    "set train.clip_norm. The last good checkpoint is kept"
                )


def resume(stage: Stage, folder: RunFolder | None) -> None:
    """Continues from the newest checkpoint of this stage, and forgets metrics written after it.

    Raises:
        CheckpointError: it is corrupt, or of another recipe.
    """
    path: Path | None = distributed.on_first(
        lambda: checkpoint.last(folder.checkpoints) if folder is not None else None
    )
    if path is None:
        return
    found = distributed.on_first(lambda: checkpoint.read(path))
    if found.get("stage") != stage.name:
        return
    restore(stage, sharded_checkpoint.join(found, path / _SHARDS))
    distributed.on_first(lambda: _forget_later(folder, found["logs"]) if folder is not None else None)


def _forget_later(folder: RunFolder, lengths: Mapping[str, int]) -> None:
    """Cuts logs to what they held when the checkpoint was written."""
    for log, length in lengths.items():
        folder.truncate(log, int(length))
