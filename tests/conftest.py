from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import random

import numpy as np
import pytest
import torch

from limbeck.torchvision_compat import ensure_torchvision

torch.set_num_threads(1)
ensure_torchvision()


@pytest.fixture(autouse=True)
def _same_random_numbers_for_every_test() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
