"""The timeline as Parquet: a row an event, in one file or a folder with a part a machine.

Written in row groups of one block each, so that memory does not grow with the timeline. The file's metadata has the
whole proof.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from counterpoint.errors import UsageError
from counterpoint.outputs.files import replacing, replacing_folder
from counterpoint.outputs.report import sync_report
from counterpoint.timeline.arrow import ArrowEvents
from counterpoint.timeline.arrow_fields import arrow
from counterpoint.timeline.sync import SyncResult

_DELTA = ("host_ns", "host_ticks", "stamp")
"""Columns whose values differ little from row to row; a dictionary of them would be as long as they are."""

_PLAIN = ("bound_ns", "cpu", "pid", "lost_before")
"""Numbers that compress well as they are, and are written faster so than by a dictionary."""

_STATISTICS = [*_DELTA, "cpu", "pid"]
"""Columns by which a reader may pass over row groups."""

_PART = "part-0.parquet"


def write_parquet(
    result: SyncResult, path: Path, *, overwrite: bool, partitioned: bool = False, fields: bool = True
) -> list[str]:
    """Write the timeline of ``result`` to ``path``; returns what could not be kept, a sentence each.

    ``partitioned``: ``path`` becomes a folder with ``machine=NAME/part-0.parquet`` for each machine, as Hive lays out
    columns. ``fields``: with the events' own fields. UsageError where ``path`` exists and ``overwrite`` is False, or
    is a folder of other things, or pyarrow is not installed.
    """
    events = ArrowEvents(result.timeline, fields=fields)
    proof = json.dumps(sync_report(result))
    if not partitioned:
        with replacing(path, overwrite=overwrite) as file:
            write_events(events, proof, file, None)
    else:
        with replacing_folder(path, overwrite=overwrite, is_ours=is_parts) as folder:
            for index, machine in enumerate(result.timeline.machines):
                part = folder / f"machine={quote(machine.name, safe='')}"
                part.mkdir()
                with (part / _PART).open("xb") as file:
                    write_events(events, proof, file, index)
    if events.left_out:
        return [f"{events.left_out} fields have no column, for there are too many of different names"]
    return []


def is_parts(folder: Path) -> bool:
    """Whether a folder holds nothing but parts as they are written here."""
    return all(
        child.name.startswith("machine=") and child.is_dir() and [f.name for f in child.iterdir()] in ([], [_PART])
        for child in folder.iterdir()
    )


def write_events(events: ArrowEvents, proof: str, file: BinaryIO, machine: int | None) -> None:
    """All events, or those of one machine, whose name is the folder's then and no column."""
    arrow()
    from pyarrow import parquet

    schema = events.schema
    if machine is not None:
        schema = schema.remove(schema.get_field_index("machine"))
    leaves = [path for field in schema for path in _leaves(field.name, field.type)]
    with parquet.ParquetWriter(
        file,
        schema,
        compression={name: "zstd" if name.startswith("fields.") else "lz4" for name in leaves},
        use_dictionary=[name for name in leaves if name not in (*_DELTA, *_PLAIN)],
        column_encoding=dict.fromkeys(_DELTA, "DELTA_BINARY_PACKED"),
        write_statistics=_STATISTICS,
        store_schema=False,
    ) as writer:
        for batch in events.batches(machine):
            writer.write_batch(batch if machine is None else batch.drop_columns(["machine"]))
        said = {key.decode(): value.decode() for key, value in schema.metadata.items()}
        writer.add_key_value_metadata(said | {"counterpoint.proof": proof, "ARROW:schema": _stored(schema)})


def _stored(schema: Any) -> str:  # noqa: ANN401
    """The schema as Arrow's readers look for it, but for the struct's texts: as dictionaries they read them in no file
    of several row groups (Nested data conversions not implemented for chunked array outputs).
    """
    import pyarrow as pa

    at = schema.get_field_index("fields")
    if at >= 0:
        members = [f.with_type(pa.string()) if pa.types.is_dictionary(f.type) else f for f in schema.field(at).type]
        schema = schema.set(at, pa.field("fields", pa.struct(members), nullable=False))
    return base64.b64encode(schema.remove_metadata().serialize()).decode()


def _leaves(path: str, kind: Any) -> list[str]:  # noqa: ANN401 (pyarrow has no types)
    """The paths of a column's leaves, as Parquet names them."""
    from pyarrow import types

    if types.is_struct(kind):
        return [leaf for field in kind for leaf in _leaves(f"{path}.{field.name}", field.type)]
    return [f"{path}.list.element"] if types.is_list(kind) else [path]


def check_installed() -> None:
    """UsageError where pyarrow is missing: to be told before the work, not after it."""
    try:
        arrow()
    except UsageError as err:
        raise UsageError(f"Parquet cannot be written: {err}") from None
