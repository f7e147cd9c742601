"""The digits of scikit-learn: 1,797 grey images 8 x 8 of handwritten digits (Alpaydin and Kaynak, 1998, UCI)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from limbeck.data.arrays import array_source
from limbeck.data.source import Source, dataset
from limbeck.data.subsets import hold_out
from limbeck.errors import MissingExtraError

_TEST = 0.2
# Statistics of the training split.
_MEAN, _STD = (0.305381,), (0.37596,)
_LICENCE = "CC BY 4.0, E. Alpaydin and C. Kaynak, https://doi.org/10.24432/C50P49"


@dataset("digits", title="scikit-learn's digits, 1,797 grey images 8 x 8, 10 classes", licence=_LICENCE)
def digits(*, split: Literal["train", "test"]) -> Source:
    """Returns the digits; a fifth of each class, chosen by content, is the test split.

    Values 0 to 16 are scaled to bytes.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtraError("scikit-learn", "digits", "the data set 'digits'") from None
    values, labels = load_digits(return_X_y=True)
    images = np.rint(values * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    whole = array_source(
        images,
        labels,
        name="digits",
        class_names=tuple("0123456789"),
        mean=_MEAN,
        std=_STD,
        augment=({"name": "crop", "padding": 1},),
        licence=_LICENCE,
    )
    return hold_out(whole, _TEST, "held" if split == "test" else "rest", purpose="digits/test")
