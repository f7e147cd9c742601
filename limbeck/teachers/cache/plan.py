"""What a cache is going to be, settled before its first row is written, so that a later attempt can be held to it."""

from __future__ import annotations

from pathlib import Path

from limbeck import __version__
from limbeck.errors import CacheError, RecipeError
from limbeck.teachers.cache import folder as folders
from limbeck.teachers.cache.header import FileEntry, Header
from limbeck.teachers.cache.layout import Layout
from limbeck.teachers.cache.samples import ViewLoader, augmentation_of, preprocessing_of

_SHARD_BYTES = 64 << 20
_SHARD_ROWS = 32768
_BLOCK_BYTES = 32 << 10

_COMPARED = {
    "teacher": "teacher (fingerprint of its architecture and weights)",
    "data": "data set (fingerprint of its content, labels and order)",
    "preprocessing": "preprocessing (fingerprint)",
    "role": "role",
    "seed": "seed",
    "codec": "codec",
    "classes": "number of classes",
    "extras": "set of further signals",
    "extras_dtype": "type of further signals",
    "further_views": "set of further views",
    "batch_size": "batch size",
    "rows_per_shard": "number of rows a shard",
    "rows_per_block": "number of rows a block",
    "keys": "file of sample keys",
}


def rows_per_block(layout: Layout) -> int:
    """Returns how many rows share a checksum: as many, a power of two, as fill some ten kilobytes."""
    return int(1 << max((_BLOCK_BYTES // layout.row_bytes()).bit_length() - 1, 0))


def make_plan(
    loader: ViewLoader,
    teacher: str,
    role: str,
    layout: Layout,
    epochs: int,
    keys: FileEntry,
    rows_per_shard: int | None,
) -> Header:
    """Returns the header of the cache to write, without its shards.

    Args:
        loader: the views of the samples.
        teacher: fingerprint of the teacher.
        role: the role whose inputs the teacher sees.
        layout: the columns of a row.
        epochs: number of epochs whose views are cached; views that are the same are cached once.
        keys: the file of sample keys.
        rows_per_shard: rows a shard, rounded down to whole batches; chosen by size when None.

    Raises:
        RecipeError: a shard would be smaller than a batch.
    """
    batch_size = loader.batch_size
    if rows_per_shard is None:
        rows_per_shard = max(min(_SHARD_ROWS, _SHARD_BYTES // layout.row_bytes()), batch_size)
    elif rows_per_shard < batch_size:
        raise RecipeError(
            f"rows_per_shard = {rows_per_shard}: a shard holds at least one batch of {batch_size} samples"
        )
    return Header(
        limbeck=__version__,
        teacher=teacher,
        data=loader.source.fingerprint(),
        preprocessing=preprocessing_of(loader, role, layout.views),
        role=role,
        seed=loader.view_seed,
        samples=len(loader.source),
        classes=layout.classes,
        codec={"name": layout.codec.name, **layout.codec.parameters},
        extras={name: [list(shape) for shape in shapes] for name, shapes in layout.extras.items()},
        extras_dtype=layout.extras_dtype,
        further_views=list(layout.views),
        batch_size=batch_size,
        rows_per_shard=rows_per_shard // batch_size * batch_size,
        rows_per_block=rows_per_block(layout),
        views=list(dict.fromkeys(augmentation_of(loader, role, layout.views, e) for e in range(epochs))),
        keys=keys,
        shards=[],
    )


def refuse_another(folder: Path, before: Header, plan: Header) -> None:
    """Refuses a plan that is not what a folder already holds, or that with further views.

    Raises:
        CacheError: they differ; the message says in what, with both values.
    """
    way_out = "choose another folder, or delete this one to write it anew"
    folders.refuse_another(folder, before, plan, _COMPARED, way_out)
    if len(before.views) > len(plan.views):
        raise CacheError(
            f"the cache '{folder}' has {len(before.views)} views, more than the {len(plan.views)} asked for; use it "
            f"as it is, or "
            f"{way_out}"
        )
    for epoch, (held, wanted) in enumerate(zip(before.views, plan.views)):
        if held != wanted:
            raise CacheError(
                f"the cache '{folder}' has another augmentation (key of epoch {epoch}): it holds {held}, now asked "
                f"for is "
                f"{wanted}; {way_out}"
            )
