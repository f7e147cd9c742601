"""HARD's generative augmentor: learns how far the latent maps of an autoencoder may be moved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from limbeck import streams
from limbeck.errors import DataError
from limbeck.hyperparameters import Count, NonNegative, Positive
from limbeck.signals import Batch, Signals
from limbeck.transforms.base import transform
from limbeck.transforms.image_autoencoder import LEVELS, ImageAutoencoder
from limbeck.transforms.learnt_augmentation import FIRST_DEVIATION, LearntAugmentation, cap_deviation

_MOST = 3.0


@transform(
    "hard_vae",
    title="HARD: Hard Augmentations for Robust Distillation",
    authors="Arne F. Nix and Max F. Burg and Fabian H. Sinz",
    paper="2305.14890",
    year=2023,
)
class HardVAE(LearntAugmentation):
    """Adds ``hard_inputs``: images decoded from latent maps that were moved by noise whose size is trained.

    As ``hard``, with another augmentor: a small variational autoencoder is trained on the training images before the
    run and then frozen; each sample is encoded, noise is added to its fine and coarse latent maps, and it is decoded.
    One deviation of each latent channel is trained. The autoencoder is in the transform's state.

    The paper uses a large pretrained hierarchical autoencoder; this one has two levels and learns the run's own images.

    Args:
        temperature: divides logits in the augmentor's objective.
        disagreement: weight of the divergence between teacher and student that it seeks.
        drift: weight of the divergence between the teacher's answers to plain and changed inputs that it avoids.
        lr: its learning rate, of Adam.
        lowest: with ``highest``: the augmentor rests until the disagreement falls below this.
        highest: and then trains until it exceeds this.
        most_steps: steps that it may take on one batch while it trains.
        pretraining_steps: batches that the autoencoder is trained on.
        pretraining_lr: its learning rate, of Adam.
        seed: seed of the run.
        num_classes: number of classes.
    """

    def __init__(
        self,
        *,
        temperature: Positive = 2.0,
        disagreement: NonNegative = 1.0,
        drift: NonNegative = 0.3,
        lr: Positive = 0.01,
        lowest: NonNegative | None = None,
        highest: NonNegative | None = None,
        most_steps: Count = 5,
        pretraining_steps: Count = 400,
        pretraining_lr: Positive = 0.003,
        seed: int,
        num_classes: int,
    ) -> None:
        super().__init__(
            temperature=temperature, disagreement=disagreement, drift=drift, lr=lr, lowest=lowest, highest=highest,
            most_steps=most_steps, seed=seed, num_classes=num_classes,
        )  # fmt: skip
        self.pretraining_steps, self.pretraining_lr = pretraining_steps, pretraining_lr
        self.autoencoder: ImageAutoencoder | None = None

    def begin(self) -> Mapping[str, Tensor]:
        """Makes the tensors that are trained, and returns them by name."""
        self.raw_deviations = [torch.full((channels,), FIRST_DEVIATION, requires_grad=True) for channels, _ in LEVELS]
        return {f"raw_deviation{n}": leaf for n, leaf in enumerate(self.raw_deviations)}

    def bind(self, observers: Mapping[str, Callable[[Batch], Signals]], loader: Any = None) -> None:
        """Takes what gives each role its signals, and trains the autoencoder on the loader's batches.

        Raises:
            NeedsError: a role that it runs is not there.
            DataError: there is no loader, or its inputs are no images.
        """
        super().bind(observers, loader)
        if loader is None:
            raise DataError("hard_vae trains its autoencoder on the run's own images, but there is no loader of them")
        step, epoch = 0, 0
        while step < self.pretraining_steps:
            for batch in islice(loader.epoch(epoch), self.pretraining_steps - step):
                self._pretrain(batch["inputs"], step)
                step += 1
            epoch += 1
        assert self.autoencoder is not None
        self.autoencoder.requires_grad_(False).eval()

    def _pretrain(self, inputs: Tensor, step: int) -> None:
        if self.autoencoder is None:
            if inputs.dim() != 4:
                raise DataError(f"hard_vae encodes images [batch, channels, height, width], not {tuple(inputs.shape)}")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(streams.torch_seed(self.seed, "hard_vae"))
                self.autoencoder = ImageAutoencoder(inputs.shape[1]).to(inputs.device)
            self._pretraining = torch.optim.Adam(self.autoencoder.parameters(), lr=self.pretraining_lr)
        pixels = self._to_pixels(inputs)
        generator = torch.Generator().manual_seed(streams.torch_seed(self.seed, "hard_vae/noise", 0, step))
        with torch.enable_grad():
            with torch.no_grad():
                shapes = [mean.shape for mean, _ in self.autoencoder.encode(pixels)]
            noise = [torch.randn(shape, generator=generator).to(pixels) for shape in shapes]
            loss = self.autoencoder.loss(pixels, noise)
            self._pretraining.zero_grad()
            loss.backward()
        self._pretraining.step()

    def augment(self, batch: Batch) -> Tensor:
        """Returns the decoded inputs, with a graph to the augmentor where gradients are on."""
        assert self.autoencoder is not None
        inputs = batch["inputs"]
        with torch.no_grad():
            means = [mean for mean, _ in self.autoencoder.encode(self._to_pixels(inputs))]
        noise = self.noise(batch, sum(mean[0].numel() for mean in means)).to(inputs)
        moved, start = [], 0
        for mean, raw in zip(means, self.raw_deviations):
            own = noise[:, start : start + mean[0].numel()].view_as(mean)
            moved.append(mean + softplus(raw).to(inputs).view(1, -1, 1, 1) * own)
            start += mean[0].numel()
        low, high = self.pixel_scale.bounds(inputs)
        return low + self.autoencoder.decode(moved, (inputs.shape[2], inputs.shape[3])) * (high - low)

    def _to_pixels(self, inputs: Tensor) -> Tensor:
        low, high = self.pixel_scale.bounds(inputs)
        return ((inputs - low) / (high - low)).clamp(0, 1)

    def keep_in_range(self) -> None:
        """Keeps the noise within what the autoencoder has seen."""
        for raw in self.raw_deviations:
            cap_deviation(raw, _MOST)

    def state_dict(self) -> dict[str, Any]:
        """Returns the autoencoder, the deviations, their optimizer and the phase."""
        own = {} if self.autoencoder is None else {"autoencoder": self.autoencoder.state_dict()}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        if self.autoencoder is not None:
            self.autoencoder.load_state_dict(state["autoencoder"])
