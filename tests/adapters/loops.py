"""One optimizer step on eight digits in the loops of other people, alone or as one of two processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from limbeck.adapters import Distillation
from limbeck.torchvision_compat import ensure_torchvision

SAMPLES, RATE = 8, 0.1
TAPS = {role: {"pooled": ["2@in"]} for role in ("student", "teacher")}
METHODS: dict[str, dict[str, Any]] = {
    "kd": {"name": "kd"},
    "rkd": {"name": "rkd"},
    "crd": {"name": "crd", "negatives": 16, "embedding": 4},
}


class Digits(Dataset[dict[str, Tensor]]):
    """The first digits of scikit-learn."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        values, classes = load_digits(return_X_y=True)
        self.inputs = torch.tensor(values[:SAMPLES] / 16, dtype=torch.float32)
        self.labels = torch.tensor(classes[:SAMPLES])

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return {"inputs": self.inputs[number], "labels": self.labels[number], "index": torch.tensor(number)}

    def whole(self) -> dict[str, Tensor]:
        return {"inputs": self.inputs, "labels": self.labels, "index": torch.arange(SAMPLES)}


def network(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def distillation_of(method: str) -> Distillation:
    """The same module in every process."""
    torch.manual_seed(0)
    digits = Digits()
    teacher, student = network(16), network(8)
    return Distillation(
        METHODS[method], student, digits.whole(), teacher=teacher, taps=TAPS, labels=digits.labels, num_classes=10
    )


def state_of(distillation: Distillation) -> dict[str, Tensor]:
    distillation.finish()
    return {name: tensor.detach().clone() for name, tensor in distillation.state_dict().items()}


def by_hand(method: str, folder: Path, rows: int) -> dict[str, Tensor]:
    distillation = distillation_of(method)
    optimizer = torch.optim.SGD(distillation.parameters(), lr=RATE)
    for batch in DataLoader(Digits(), batch_size=rows):
        distillation(batch).loss.backward()
        optimizer.step()
        distillation.advance()
    return state_of(distillation)


def with_accelerate(method: str, folder: Path, rows: int) -> dict[str, Tensor]:
    from accelerate import Accelerator

    distillation = distillation_of(method)
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.SGD(distillation.parameters(), lr=RATE)
    model, optimizer, batches = accelerator.prepare(distillation, optimizer, DataLoader(Digits(), batch_size=rows))
    for batch in batches:
        loss, _ = model(batch)
        accelerator.backward(loss)
        optimizer.step()
        distillation.advance()
    assert accelerator.unwrap_model(model) is distillation
    return state_of(distillation)


def with_transformers(method: str, folder: Path, rows: int) -> dict[str, Tensor]:
    ensure_torchvision()
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Distiller(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            return model(inputs)[0]

    class Steps(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            model.advance()

    distillation = distillation_of(method)
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        num_train_epochs=1,
        per_device_train_batch_size=rows,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        remove_unused_columns=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    Distiller(distillation, arguments, train_dataset=Digits(), callbacks=[Steps()]).train()
    return state_of(distillation)


def with_lightning(method: str, folder: Path, rows: int) -> dict[str, Tensor]:
    ensure_torchvision()
    import lightning

    class Distiller(lightning.LightningModule):
        def __init__(self, distillation: Distillation) -> None:
            super().__init__()
            self.distillation = distillation

        def training_step(self, batch: Any, number: int) -> Tensor:
            return self.distillation(batch).loss

        def on_train_batch_end(self, outputs: Any, batch: Any, number: int) -> None:
            self.distillation.advance()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.distillation.parameters(), lr=RATE)

    distillation = distillation_of(method)
    processes = SAMPLES // rows
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(Distiller(distillation), DataLoader(Digits(), batch_size=rows))
    return state_of(distillation)


LOOPS: dict[str, Callable[[str, Path, int], dict[str, Tensor]]] = {
    "accelerate": with_accelerate,
    "transformers": with_transformers,
    "lightning": with_lightning,
}
