"""A folder with the files of tracefs that a head is made from, out of a recording that was written before."""

from __future__ import annotations

from pathlib import Path

from counterpoint.dat_layout import Option
from counterpoint.traces.dat import format_texts
from counterpoint.traces.recording import Recording


def fake_tracefs(folder: Path, recording: Recording) -> Path:
    """Tracefs as it was on the machine of ``recording``: events, printk_formats and saved_cmdlines."""
    events = folder / "events"
    events.mkdir(parents=True)
    header = recording.container.piece(Option.HEADER_INFO)
    page, _, event = header.partition(b"header_event\0")
    (events / "header_page").write_bytes(page[len(b"header_page\0") + 8 :])
    (events / "header_event").write_bytes(event[8:])
    for system, text in format_texts(recording.container):
        place = events / system / text.partition(b"name: ")[2].split(b"\n")[0].decode()
        place.mkdir(parents=True, exist_ok=True)
        (place / "format").write_bytes(text)
    (folder / "printk_formats").write_bytes(recording.printk_formats())
    (folder / "saved_cmdlines").write_text("".join(f"{pid} {name}\n" for pid, name in recording.cmdlines.items()))
    (folder / "instances").mkdir()
    return folder


def cpu_files(folder: Path, recording: Recording) -> dict[int, Path]:
    """Each CPU's pages, as trace_pipe_raw gave them; of a file that is not compressed."""
    folder.mkdir()
    content = recording.path.read_bytes()
    out = {}
    for cpu in recording.container.buffers[0].cpus:
        out[cpu.cpu] = folder / f"cpu{cpu.cpu}"
        out[cpu.cpu].write_bytes(content[cpu.offset : cpu.offset + cpu.size])
    return out
