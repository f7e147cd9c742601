"""The images of the samples that a run was judged on, found again by the run's recipe."""

from __future__ import annotations

import numpy as np
from pydantic import ValidationError

from limbeck.data.source import Source
from limbeck.errors import DataError
from limbeck.recipes.schema import DataSpec
from limbeck.recipes.stage_data import held_split, load_split
from limbeck.report.disagreement import Images
from limbeck.report.runs import RunRecord


def judged_on(record: RunRecord) -> Source:
    """Returns the data set that a run's student was judged on.

    Raises:
        LimbeckError: the recipe does not tell, or the data is not on this machine.
    """
    given = record.stage.get("data")
    try:
        spec = DataSpec.model_validate({"name": given} if isinstance(given, str) else given)
    except ValidationError:
        raise DataError("the recipe does not say which data") from None
    return load_split(spec, held_split(spec))


def images_of(source: Source) -> Images:
    """Returns a function that gives images by the samples' ids.

    Raises:
        DataError: the samples are no images.
    """
    shape = source.info.input_shape
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise DataError(f"samples of shape {tuple(shape)} are no images")
    return lambda index: as_pixels(source, index)


def as_pixels(source: Source, index: np.ndarray) -> np.ndarray:
    """Returns samples as uint8 ``[n, C, H, W]``; floating-point ones are stretched over the range that they take."""
    inputs = source.fetch(np.asarray(index), 0)["inputs"]
    if not inputs.is_floating_point():
        return inputs.numpy()
    low, high = float(inputs.min()), float(inputs.max())
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scaled = (inputs - low) / max(high - low, 1e-12)
    return (255 * scaled).round().clamp(0, 255).byte().numpy()
