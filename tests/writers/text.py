"""ftrace's text of recordings: as the kernel prints ``trace``, or as ``trace-cmd report`` prints."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from counterpoint.outputs.text import EventText
from counterpoint.traces.recording import Recording

HEAD = """# tracer: nop
#
# entries-in-buffer/entries-written: {kept}/{written}   #P:{cpus}
#
#                                _-----=> irqs-off/BH-disabled
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
#              | |         |   |||||     |         |
"""


def write_text(recording: Recording, path: Path, *, kernel: bool = True, cut: bool = False, extra: int = 0) -> Path:
    """Print ``recording``. ``kernel``: as tracefs does; ``cut``: microseconds cut off, not rounded.

    ``extra``: so many more events were written than are in the buffer.
    """
    shown = [""] * len(recording)
    texts = EventText(recording)
    for event_id in recording.counts_by_id():
        rows = recording.rows(event_id)
        for row, text in zip(rows.tolist(), texts.render(event_id, rows), strict=True):
            shown[row] = text
    cpus = np.array([s.cpu for s in recording.streams])[recording.stream_of].tolist()
    losses = dict(zip(recording.losses.row.tolist(), recording.losses.count.tolist(), strict=True))
    stamps = recording.stamp.tolist()
    lines = []
    # as printed: by stamp over all CPUs, each CPU in its own order
    reached = np.empty(len(recording), np.uint64)
    for stream in recording.streams:
        part = slice(stream.first, stream.last)
        reached[part] = np.maximum.accumulate(recording.stamp[part])
    for row in np.argsort(reached, kind="stable").tolist():
        if row in losses:
            lost = losses[row]
            lines.append(f"CPU:{cpus[row]} [LOST {lost} EVENTS]" if lost > 0 else f"CPU:{cpus[row]} [LOST EVENTS]")
        pid, name = int(recording.pid[row]), recording.event_name(int(recording.event_id[row]))
        when = f"{stamps[row]:12d}"
        if recording.unit == "ns":
            micros = (stamps[row] + (0 if cut else 500)) // 1000
            when = f"{micros // 10**6:5d}.{micros % 10**6:06d}"
        flags, gap = (" .....", " ") if kernel else ("", " " * max(21 - len(name), 1))
        lines.append(f"{recording.comm(pid):>16}-{pid:<7d} [{cpus[row]:03d}]{flags} {when}: {name}:{gap}{shown[row]}")
    head = HEAD.format(kept=len(recording), written=len(recording) + extra, cpus=recording.cpus)
    path.write_text((head if kernel else f"cpus={recording.cpus}\n") + "\n".join(lines) + "\n")
    return path
