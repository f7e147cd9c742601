"""Images and labels from the parquet files in which the Hugging Face hub keeps classification data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from limbeck.data.images import Mode, decode_image
from limbeck.errors import DataError, MissingExtraError


def read_image_parquet(files: Sequence[Path], *, label: str, mode: Mode) -> tuple[np.ndarray, np.ndarray]:
    """Returns all images and labels of the files, in order.

    Args:
        files: parquet files with one column of encoded images (``struct<bytes, path>``) and one of class numbers.
        label: name of the label column.
        mode: ``rgb`` gives images ``[N, H, W, 3]``, ``grey`` gives ``[N, H, W]``; uint8.

    Raises:
        DataError: a file is damaged or has other columns.
        MissingExtraError: pyarrow or pillow is not installed.
    """
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise MissingExtraError("datasets", "hf", "reading the hub's cache") from None
    images, labels = [], []
    for file in files:
        try:
            table = parquet.read_table(file)
        except (OSError, arrow.ArrowException) as error:
            raise DataError(f"cannot read {file}: {error}") from error
        column = next((f.name for f in table.schema if arrow.types.is_struct(f.type)), None)
        if column is None or label not in table.column_names:
            raise DataError(f"{file} has the columns {table.column_names}, not images and '{label}'")
        for number, cell in enumerate(table.column(column)):
            images.append(decode_image(cell.as_py()["bytes"], f"{number} of {file}", mode=mode).numpy())
        labels.append(table.column(label).to_numpy())
    stacked = np.stack(images)
    return (stacked[:, 0] if mode == "grey" else stacked.transpose(0, 2, 3, 1)), np.concatenate(labels).astype(np.int64)
