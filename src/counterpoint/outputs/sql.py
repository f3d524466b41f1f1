"""The timeline for SQL: DuckDB over the events as Parquet, with views of what is asked for most.

A query is anyone's text: it reads the views and nothing else. DuckDB may open the one file of events, no other, loads
no extension, and cannot have its settings changed; only queries are run, no statement that writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from counterpoint.analysis.contexts import Context
from counterpoint.analysis.exit_spans import exit_spans
from counterpoint.analysis.exits import ExitNames
from counterpoint.analysis.states import State, VcpuStates, vcpu_states
from counterpoint.clocks.counter import I64, add
from counterpoint.errors import UsageError
from counterpoint.outputs.parquet import write_parquet
from counterpoint.outputs.report import sync_report
from counterpoint.timeline.arrow_fields import from_numpy
from counterpoint.timeline.details import vcpus_by_thread
from counterpoint.timeline.merge import Machine
from counterpoint.timeline.sync import SyncResult

VIEWS = {
    "events": "a row an event, as in docs/parquet.md, and its position in the merged order",
    "sched": "what ran on each CPU: from a sched_switch to the next, where no event was lost between",
    "exits": "each kvm_exit with the kvm_entry after it; entry_ns is null where the host did not see that",
    "vcpu_states": "what each vCPU was doing at every instant: a row a state, in order",
    "proof": "a row an epoch of each vCPU's clock map: verdict, offset, bound",
}

_SETTINGS = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
    "temp_directory": "",
}

# a CPU's span holds where its next switch tells of the same task, and nothing was lost on it meanwhile
_SCHED = """
CREATE VIEW sched AS
WITH marked AS (
    SELECT *, sum(CASE WHEN lost_before <> 0 THEN 1 ELSE 0 END) OVER one AS losses FROM events
    WINDOW one AS (PARTITION BY machine, cpu ORDER BY position ROWS UNBOUNDED PRECEDING)
), switches AS (
    SELECT machine, cpu, position, host_ns, host_ticks, losses, proved, bound_ns,
        fields.next_comm AS task, fields.next_pid AS pid, fields.next_prio AS prio, fields.prev_pid AS prev_pid,
        fields.prev_state AS prev_state
    FROM marked WHERE event = 'sched:sched_switch'
), pairs AS (
    SELECT *, lead(position) OVER one AS end_position, lead(host_ns) OVER one AS end_ns,
        lead(host_ticks) OVER one AS end_ticks, lead(prev_pid) OVER one AS end_pid,
        lead(prev_state) OVER one AS end_state, lead(losses) OVER one AS end_losses, lead(proved) OVER one AS end_proved
    FROM switches WINDOW one AS (PARTITION BY machine, cpu ORDER BY position)
)
SELECT machine, cpu, task, pid, prio, host_ns AS begin_ns, end_ns, end_ns - host_ns AS ran_ns,
    host_ticks AS begin_ticks, end_ticks, end_state, proved AND end_proved AS proved, bound_ns, position, end_position
FROM pairs WHERE end_pid = pid AND end_losses = losses
"""

_NO_SCHED = """
CREATE VIEW sched AS SELECT ''::VARCHAR AS machine, 0::USMALLINT AS cpu, ''::VARCHAR AS task, 0::INTEGER AS pid,
    0::INTEGER AS prio, 0::BIGINT AS begin_ns, 0::BIGINT AS end_ns, 0::BIGINT AS ran_ns, 0::UBIGINT AS begin_ticks,
    0::UBIGINT AS end_ticks, 0::BIGINT AS end_state, false AS proved, 0::BIGINT AS bound_ns, 0::BIGINT AS position,
    0::BIGINT AS end_position WHERE false
"""

_SWITCH_FIELDS = ("prev_pid", "prev_state", "next_comm", "next_pid", "next_prio")


def duckdb() -> Any:  # noqa: ANN401
    """The duckdb module; UsageError where it, or pyarrow, is not installed."""
    try:
        import duckdb
        import pyarrow  # noqa: F401
    except ImportError as err:
        raise UsageError(f"{err.name} is not installed: pip install 'counterpoint[sql]'") from None
    return duckdb


@contextmanager
def database(result: SyncResult) -> Iterator[Database]:
    """The views over a timeline, for as long as the block lasts."""
    module = duckdb()
    with TemporaryDirectory(prefix="counterpoint-sql-") as folder:
        path = Path(folder) / "events.parquet"
        write_parquet(result, path, overwrite=False)
        connection = module.connect(":memory:", config=_SETTINGS)
        try:
            _views(connection, result, path)
            # from here on what is run is anyone's
            connection.execute("SET allowed_paths = [$1]", [str(path)])
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            yield Database(module, connection)
        finally:
            connection.close()


class Database:
    """The views, to be asked."""

    def __init__(self, module: Any, connection: Any) -> None:  # noqa: ANN401
        """Use ``database``."""
        self._module = module
        self._connection = connection

    def ask(self, query: str, block: int = 4096) -> tuple[list[str], Iterator[Sequence[Any]]]:
        """The names of a query's columns, and its rows; UsageError for what is no single query, or fails."""
        error = self._module.Error
        try:
            statements = self._connection.extract_statements(query)
        except error as err:
            raise UsageError(f"the query is not understood: {_sentence(err)}") from None
        kinds = self._module.StatementType
        if len(statements) != 1 or statements[0].type not in (kinds.SELECT, kinds.EXPLAIN):
            raise UsageError("one query is expected, such as SELECT count(*) FROM events: nothing can be changed here")
        try:
            cursor = self._connection.execute(statements[0])
        except error as err:
            raise UsageError(f"the query failed: {_sentence(err)}") from None
        return [column[0] for column in cursor.description], self._rows(cursor, block)

    def _rows(self, cursor: Any, block: int) -> Iterator[Sequence[Any]]:  # noqa: ANN401
        try:
            while rows := cursor.fetchmany(block):
                yield from rows
        except self._module.Error as err:
            raise UsageError(f"the query failed: {_sentence(err)}") from None


def _sentence(err: Exception) -> str:
    """DuckDB's message without the drawing of where in the query it is."""
    return " ".join(str(err).split("\n\n")[0].split())


def _views(connection: Any, result: SyncResult, path: Path) -> None:  # noqa: ANN401
    from pyarrow import parquet

    source = str(path).replace("'", "''")
    events = "SELECT * EXCLUDE (file_row_number), file_row_number AS position FROM read_parquet"
    connection.execute(f"CREATE VIEW events AS {events}('{source}', file_row_number = true)")
    schema = parquet.read_schema(path)
    members = [f.name for f in schema.field("fields").type] if "fields" in schema.names else []
    connection.execute(_SCHED if all(name in members for name in _SWITCH_FIELDS) else _NO_SCHED)
    for name, table in (("exits", _exits(result)), ("vcpu_states", _states(result)), ("proof", _proof(result))):
        connection.register("given", table)
        connection.execute(f"CREATE TABLE {name} AS SELECT * FROM given")  # noqa: S608
        connection.unregister("given")


def _proof(result: SyncResult) -> Any:  # noqa: ANN401
    import pyarrow as pa

    stamp, whole, word = pa.uint64(), pa.int64(), pa.string()
    schema = {
        "guest": word, "parent": word, "guest_cpu": whole, "host": word, "host_tid": whole, "epoch": whole,
        "verdict": word, "source": word, "offset": whole, "unit": word, "ratio": stamp, "frac_bits": whole,
        "feasible_low": whole, "feasible_high": whole, "bound_ns": whole, "guest_from": stamp, "guest_to": stamp,
        "host_from": stamp, "host_to": stamp, "checked": whole, "inside": whole, "violations": whole, "unknown": whole,
    }  # fmt: skip
    rows = []
    for guest in sync_report(result, merged=False)["guests"]:
        for vcpu in guest["vcpus"]:
            for number, epoch in enumerate(vcpu["epochs"]):
                low, high = epoch["feasible"] or (None, None)
                own = {
                    "guest": guest["name"], "parent": guest["parent"], "guest_cpu": vcpu["guest_cpu"],
                    "host": epoch.get("host") or guest["parent"],
                    "host_tid": epoch["host_tid"] if epoch.get("host") else vcpu["host_tid"],
                    "epoch": number, "feasible_low": low, "feasible_high": high, "bound_ns": epoch["width_ns"],
                }  # fmt: skip
                rows.append({name: own[name] if name in own else epoch[name] for name in schema})
    columns = {
        name: pa.array([_fitting(row[name], kind == stamp) for row in rows], kind) for name, kind in schema.items()
    }
    return pa.table(columns)


def _fitting(value: object, unsigned: bool) -> object:
    """An offset near 2**63 may have an interval that reaches past it: such an end is not shown."""
    if isinstance(value, int) and not (0 <= value < 1 << 64 if unsigned else -(1 << 63) <= value < 1 << 63):
        return None
    return value


def _exits(result: SyncResult) -> Any:  # noqa: ANN401
    """A row for each kvm_exit of the threads of a host, of a further one and of a guest with guests."""
    import pyarrow as pa

    parents = {g.parent for g in result.guests} | {h.name for h in result.hosts}
    tables = [_exits_of(result, m) for m in result.timeline.machines if m.name in parents]
    return pa.concat_tables(tables, promote_options="permissive")


def _exits_of(result: SyncResult, machine: Machine) -> Any:  # noqa: ANN401
    import pyarrow as pa

    recording = machine.recording
    vcpus = vcpus_by_thread(result, machine.name)
    spans = exit_spans(machine)
    out, back = spans.exit_row, spans.entry_row
    known = back >= 0
    ticks, entry_ticks = machine.host_stamp[out], machine.host_stamp[back]
    rate = result.timeline.rate
    zero = np.zeros(len(out), np.int64)
    ns, entry_ns = (zero, zero) if rate is None else (rate.array_to_ns(ticks), rate.array_to_ns(entry_ticks))
    has_ns = np.full(len(out), rate is not None)
    pids = recording.pid[out].tolist()
    cpus = np.array([s.cpu for s in recording.streams] or [0], np.uint16)
    columns = {
        "machine": pa.array([machine.name] * len(out), pa.string()),
        "cpu": pa.array(cpus[recording.stream_of[out]]),
        "tid": pa.array(recording.pid[out]),
        "guest": pa.array([vcpus[p][0] if p in vcpus else None for p in pids], pa.string()),
        "vcpu": pa.array([vcpus[p][1] if p in vcpus else None for p in pids], pa.int32()),
        "exit_ns": from_numpy(pa.int64(), ns, has_ns),
        "entry_ns": from_numpy(pa.int64(), entry_ns, has_ns & known),
        "handled_ns": from_numpy(pa.int64(), entry_ns - ns, has_ns & known),
        "reason": _named(ExitNames(recording).of(out)),
        "exit_ticks": from_numpy(pa.uint64(), ticks, np.ones(len(out), np.bool_)),
        "entry_ticks": from_numpy(pa.uint64(), entry_ticks, known),
    }
    event = recording.format_named("kvm", "kvm_exit")
    for field in event.fields if event else ():
        if event and field.kind == "int" and not field.dynamic and field.name and field.name not in columns:
            columns[field.name] = pa.array(recording.column(event, field.name, out))
    return pa.table(columns)


def _states(result: SyncResult) -> Any:  # noqa: ANN401
    """The states of every vCPU thread, a row each."""
    import pyarrow as pa

    word = pa.dictionary(pa.int32(), pa.string())
    schema = pa.schema(
        {
            "guest": pa.string(), "vcpu": pa.int32(), "host": pa.string(), "tid": pa.int32(), "state": word,
            "reason": word, "syscall": pa.int64(), "woken_by": word, "told_by": word, "cpu": pa.int32(),
            "by_tid": pa.int32(), "by_task": word, "guest_context": word, "guest_what": pa.int64(), "guest_task": word,
            "begin_ns": pa.int64(), "end_ns": pa.int64(), "took_ns": pa.int64(), "begin_ticks": pa.uint64(),
            "end_ticks": pa.uint64(),
        }
    )  # fmt: skip
    tables = [_states_of(result, vcpu, schema) for vcpu in vcpu_states(result)]
    return pa.concat_tables(tables) if tables else schema.empty_table()


def _states_of(result: SyncResult, vcpu: VcpuStates, schema: Any) -> Any:  # noqa: ANN401
    import pyarrow as pa

    timeline = result.timeline
    machines = timeline.machines
    n = len(vcpu)
    begin, end = (add(at.view(np.uint64), timeline.base) for at in (vcpu.begin, vcpu.ends))
    rate = timeline.rate
    zero = np.zeros(n, np.int64)
    begin_ns, end_ns = (zero, zero) if rate is None else (rate.array_to_ns(begin), rate.array_to_ns(end))
    has_ns = np.full(n, rate is not None)
    by_task = np.full(n, -1, np.int64)
    names: list[str] = []
    for number, machine in enumerate(machines):
        waits = np.flatnonzero((vcpu.machine == number) & (vcpu.by >= 0))
        tids, at = np.unique(vcpu.by[waits], return_inverse=True)
        by_task[waits] = at + len(names)
        names += [machine.recording.comm(tid) for tid in tids.tolist()]
    told = np.unique(vcpu.what[vcpu.context == Context.TASK])
    inside = next((m.recording for m in machines if m.name == vcpu.guest), None)
    task = np.where(vcpu.context == Context.TASK, np.searchsorted(told, vcpu.what), -1)
    tasks = [inside.comm(tid) if inside else "<...>" for tid in told.tolist()]
    inner, contexts = vcpu.context != Context.SYSCALL, [c.name.lower() for c in list(Context)[1:]]
    columns = {
        "guest": pa.array([vcpu.guest] * n, pa.string()),
        "vcpu": pa.array([vcpu.guest_cpu] * n, pa.int32()),
        "host": pa.array([vcpu.host] * n, pa.string()),
        "tid": pa.array(np.full(n, vcpu.tid, np.int32)),
        "state": _named((vcpu.state.astype(np.int64), [state.name.lower() for state in State])),
        "reason": _named(vcpu.causes()),
        "syscall": from_numpy(pa.int64(), vcpu.what, vcpu.context == Context.SYSCALL),
        "woken_by": _named(_wakers(vcpu, machines)),
        "told_by": _named((vcpu.machine.astype(np.int64), [m.name for m in machines])),
        "cpu": from_numpy(pa.int32(), vcpu.cpu.astype(np.int32), vcpu.cpu >= 0),
        "by_tid": from_numpy(pa.int32(), vcpu.by.astype(np.int32), vcpu.by >= 0),
        "by_task": _named((by_task, names)),
        "guest_context": _named((np.where(inner, vcpu.context.astype(np.int64), 0) - 1, contexts)),
        "guest_what": from_numpy(pa.int64(), vcpu.what, inner & (vcpu.what >= 0)),
        "guest_task": _named((task, tasks)),
        "begin_ns": from_numpy(pa.int64(), begin_ns, has_ns),
        "end_ns": from_numpy(pa.int64(), end_ns, has_ns),
        "took_ns": from_numpy(pa.int64(), end_ns - begin_ns, has_ns),
        "begin_ticks": pa.array(begin),
        "end_ticks": pa.array(end),
    }
    return pa.table(columns, schema=schema)


def _wakers(vcpu: VcpuStates, machines: Sequence[Machine]) -> tuple[I64, list[str]]:
    """By which thread of its host each sleep was ended."""
    recording = next(m.recording for m in machines if m.name == vcpu.host)
    row = vcpu.woken_by()
    tids, at = np.unique(np.where(row >= 0, recording.pid[row], -1), return_inverse=True)
    return np.where(row >= 0, at, -1), [recording.comm(tid) for tid in tids.tolist()]


def _named(named: tuple[I64, Sequence[str]]) -> Any:  # noqa: ANN401
    """Texts by an index (-1: null) into them, as a dictionary."""
    import pyarrow as pa

    index, names = named
    at = from_numpy(pa.int32(), index.astype(np.int32), index >= 0)
    return pa.DictionaryArray.from_arrays(at, pa.array(list(names), pa.string()))


def shown(value: object) -> object:
    """A value as JSON has it: what it has no word for as text."""
    if isinstance(value, dict):
        return {str(k): shown(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [shown(v) for v in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    return value if isinstance(value, float) and np.isfinite(value) else str(value)


def text_of(value: object) -> str:
    """A value as a cell of a table or of a CSV: nothing for null, JSON for lists and structs."""
    if value is None:
        return ""
    return json.dumps(shown(value)) if isinstance(value, dict | list | tuple) else str(value)
