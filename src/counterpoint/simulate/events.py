"""The events of simulated kernels: layouts as numpy dtypes, and the text of their ``format`` files.

The layouts are those of Linux 6.1 on x86 and 7.3 on arm64 (include/trace/events, arch/*/kvm/*trace*.h), little-endian.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from counterpoint.clocks.counter import I64

_CODES = {
    "int": "<i4", "pid_t": "<i4", "s32": "<i4", "unsigned int": "<u4", "u32": "<u4", "__u32": "<u4",
    "long": "<i8", "s64": "<i8", "unsigned long": "<u8", "u64": "<u8", "__u64": "<u8", "void *": "<u8",
    "bool": "u1",
    "__s8": "i1", "__u8": "u1", "unsigned short": "<u2", "unsigned char": "u1", "__data_loc char[]": "<u4",
}  # fmt: skip
_COMMON = (
    ("unsigned short", "common_type"),
    ("unsigned char", "common_flags"),
    ("unsigned char", "common_preempt_count"),
    ("int", "common_pid"),
)
COMM = 16


@dataclass(frozen=True)
class EventKind:
    """An event: ``fields`` are "type name" or "char name[16]", ``tail`` the bytes that follow them in every record."""

    id: int
    system: str
    name: str
    fields: tuple[str, ...]
    print_fmt: str
    tail: int = 0

    @cached_property
    def _layout(self) -> list[tuple[str, str, str, int]]:
        """(declaration, name, dtype code, offset) of each field, as a C compiler lays them out."""
        out, at = [], 0
        for declared in (*(f"{kind} {name}" for kind, name in _COMMON), *self.fields):
            kind, _, name = declared.rpartition(" ")
            if name.endswith("]"):
                name, _, size = name[:-1].partition("[")
                code, align = (f"S{size}", 1) if size else ("S0", 1)
            else:
                code = _CODES[kind]
                align = np.dtype(code).itemsize
            at += -at % align
            out.append((declared, name, code, at))
            at += np.dtype(code).itemsize if code != "S0" else 0
        return out

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """A record, with the tail as the field "tail"."""
        fields = [(name, code, at) for _, name, code, at in self._layout if code != "S0"]
        size = max(at + np.dtype(code).itemsize for _, code, at in fields)
        end = next((at for _, _, code, at in self._layout if code == "S0"), size)
        if self.tail:
            fields.append(("tail", f"S{self.tail}", end))
            size = end + self.tail
        else:
            align = max(np.dtype(code).itemsize for _, code, _ in fields if not code.startswith("S"))
            size += -size % align
        return np.dtype(
            {
                "names": [f[0] for f in fields],
                "formats": [f[1] for f in fields],
                "offsets": [f[2] for f in fields],
                "itemsize": size,
            }
        )

    @property
    def format_text(self) -> str:
        """The text of tracing/events/SYSTEM/NAME/format."""
        lines = []
        for declared, _, code, at in self._layout:
            size = 0 if code == "S0" else np.dtype(code).itemsize
            signed = int("i" in code or (code[0] == "S"))
            lines.append(f"\tfield:{declared};\toffset:{at};\tsize:{size};\tsigned:{signed};\n")
        body = "".join(lines[: len(_COMMON)]) + "\n" + "".join(lines[len(_COMMON) :])
        return f"name: {self.name}\nID: {self.id}\nformat:\n{body}\nprint fmt: {self.print_fmt}\n"

    def rows(
        self, pid: npt.NDArray[np.integer], values: Mapping[str, Any], rows: I64 | None = None
    ) -> npt.NDArray[Any]:
        """Records of tasks ``pid`` [n]; ``values``: scalars or columns, of which ``rows`` are taken where given."""
        out = np.zeros(len(pid), self.dtype)
        out["common_type"] = self.id
        out["common_pid"] = pid
        for name, value in values.items():
            out[name] = value[rows] if rows is not None and isinstance(value, np.ndarray) else value
        return out


PRINT = EventKind(5, "ftrace", "print", ("unsigned long ip", "char buf[]"), '"%ps: %s", (void *)REC->ip, REC->buf', 16)
_VMX_REASONS = {1: "EXTERNAL_INTERRUPT", 10: "CPUID", 12: "HLT", 24: "VMRESUME", 30: "IO_INSTRUCTION", 32: "MSR_WRITE",
                48: "EPT_VIOLATION", 52: "PREEMPTION_TIMER"}  # fmt: skip
_SVM_REASONS = {0x60: "interrupt", 0x72: "cpuid", 0x78: "hlt", 0x7B: "io", 0x7C: "msr", 0x80: "vmrun", 0x400: "npf"}


def _symbols(names: Mapping[int, str]) -> str:
    return ", ".join(f'{{ {value}, "{name}" }}' for value, name in names.items())


_EXIT_FIELDS = ("unsigned int exit_reason", "unsigned long guest_rip", "u32 isa", "u64 info1", "u64 info2",
                "u32 intr_info", "u32 error_code", "unsigned int vcpu_id")  # fmt: skip
_EXIT_FMT = (
    '"vcpu %u reason %s rip 0x%lx info1 0x%016llx info2 0x%016llx intr_info 0x%08x error_code 0x%08x", REC->vcpu_id, '
    f"(REC->isa == 1) ? __print_symbolic(REC->exit_reason & 0xffff, {_symbols(_VMX_REASONS)}) : "
    f"__print_symbolic(REC->exit_reason, {_symbols(_SVM_REASONS)}), REC->guest_rip, REC->info1, REC->info2, "
    "REC->intr_info, REC->error_code"
)
KVM_ENTRY_X86 = EventKind(
    1449, "kvm", "kvm_entry", ("unsigned int vcpu_id", "unsigned long rip", "bool immediate_exit"),
    '"vcpu %u, rip 0x%lx%s", REC->vcpu_id, REC->rip, REC->immediate_exit ? "[immediate exit]" : ""',
)  # fmt: skip
KVM_EXIT_X86 = EventKind(1440, "kvm", "kvm_exit", _EXIT_FIELDS, _EXIT_FMT)
KVM_NESTED_VMEXIT = EventKind(1427, "kvm", "kvm_nested_vmexit", _EXIT_FIELDS, _EXIT_FMT)
KVM_NESTED_VMENTER = EventKind(
    1429, "kvm", "kvm_nested_vmenter",
    ("__u64 rip", "__u64 vmcb", "__u64 nested_rip", "__u32 int_ctl", "__u32 event_inj", "bool tdp_enabled",
     "__u64 guest_pgd", "__u32 isa"),
    '"rip: 0x%016llx %s: 0x%016llx nested_rip: 0x%016llx int_ctl: 0x%08x event_inj: 0x%08x", REC->rip, '
    'REC->isa == 1 ? "vmcs" : "vmcb", REC->vmcb, REC->nested_rip, REC->int_ctl, REC->event_inj',
)  # fmt: skip
KVM_WRITE_TSC_OFFSET = EventKind(
    1420, "kvm", "kvm_write_tsc_offset",
    ("unsigned int vcpu_id", "__u64 previous_tsc_offset", "__u64 next_tsc_offset"),
    '"vcpu=%u prev=%llu next=%llu", REC->vcpu_id, REC->previous_tsc_offset, REC->next_tsc_offset',
)  # fmt: skip
KVM_PVCLOCK_UPDATE = EventKind(
    1419, "kvm", "kvm_pvclock_update",
    ("unsigned int vcpu_id", "__u32 version", "__u64 tsc_timestamp", "__u64 system_time", "__u32 tsc_to_system_mul",
     "__s8 tsc_shift", "__u8 flags"),
    '"vcpu_id %u, pvclock { version %u, tsc_timestamp 0x%llx, system_time 0x%llx, tsc_to_system_mul 0x%x, '
    'tsc_shift %d, flags 0x%x }", REC->vcpu_id, REC->version, REC->tsc_timestamp, REC->system_time, '
    "REC->tsc_to_system_mul, REC->tsc_shift, REC->flags",
)  # fmt: skip
KVM_ENTRY_ARM64 = EventKind(65, "kvm", "kvm_entry", ("unsigned long vcpu_pc",), '"PC: 0x%016lx", REC->vcpu_pc')
KVM_EXIT_ARM64 = EventKind(
    64, "kvm", "kvm_exit", ("int ret", "unsigned int esr_ec", "unsigned long vcpu_pc"),
    '"%s: HSR_EC: 0x%04x (%s), PC: 0x%016lx", __print_symbolic(REC->ret, {0, "IRQ" }, {2, "TRAP" }), REC->esr_ec, '
    '__print_symbolic(REC->esr_ec, { 0, "UNKNOWN" }, { 1, "WFx" }, { 22, "HVC64" }, { 24, "SYS64" }, { 26, "ERET" }, '
    '{ 36, "DABT_LOW" }), REC->vcpu_pc',
)  # fmt: skip
KVM_NESTED_ERET = EventKind(
    70, "kvm", "kvm_nested_eret",
    ("void * vcpu", "unsigned long elr_el2", "unsigned long spsr_el2", "unsigned long hcr_el2"),
    '"elr_el2: 0x%lx spsr_el2: 0x%08lx hcr_el2: 0x%lx", REC->elr_el2, REC->spsr_el2, REC->hcr_el2',
)  # fmt: skip
KVM_INJECT_NESTED = EventKind(
    71, "kvm", "kvm_inject_nested_exception", ("void * vcpu", "unsigned long esr_el2", "int type"),
    '"esr_el2 0x%lx, type: %d", REC->esr_el2, REC->type',
)  # fmt: skip
KVM_USERSPACE_EXIT = EventKind(
    1380, "kvm", "kvm_userspace_exit", ("__u32 reason", "int errno"),
    '"reason %s (%d)", REC->errno < 0 ? "error" : __print_symbolic(REC->reason, { 2, "KVM_EXIT_IO" }, '
    '{ 6, "KVM_EXIT_MMIO" }), REC->errno',
)  # fmt: skip
SET_CNTVOFF = EventKind(
    2200, "lab", "set_cntvoff", ("unsigned long __probe_ip", "u64 off"), '"(%lx) off=%Lu", REC->__probe_ip, REC->off'
)
SCHED_SWITCH = EventKind(
    319, "sched", "sched_switch",
    ("char prev_comm[16]", "pid_t prev_pid", "int prev_prio", "long prev_state", "char next_comm[16]", "pid_t next_pid",
     "int next_prio"),
    '"prev_comm=%s prev_pid=%d prev_prio=%d prev_state=%s ==> next_comm=%s next_pid=%d next_prio=%d", REC->prev_comm, '
    'REC->prev_pid, REC->prev_prio, (REC->prev_state & 0xff) ? __print_flags(REC->prev_state & 0xff, "|", '
    '{ 0x00000001, "S" }, { 0x00000002, "D" }, { 0x00000080, "I" }) : "R", REC->next_comm, REC->next_pid, '
    "REC->next_prio",
)  # fmt: skip
SCHED_WAKING = EventKind(
    322, "sched", "sched_waking", ("char comm[16]", "pid_t pid", "int prio", "int target_cpu"),
    '"comm=%s pid=%d prio=%d target_cpu=%03d", REC->comm, REC->pid, REC->prio, REC->target_cpu',
)  # fmt: skip
IRQ_ENTRY = EventKind(
    152, "irq", "irq_handler_entry", ("int irq", "__data_loc char[] name"),
    '"irq=%d name=%s", REC->irq, __get_str(name)', 12,
)  # fmt: skip
IRQ_EXIT = EventKind(
    151, "irq", "irq_handler_exit", ("int irq", "int ret"),
    '"irq=%d ret=%s", REC->irq, REC->ret ? "handled" : "unhandled"',
)  # fmt: skip
HRTIMER_EXPIRE_ENTRY = EventKind(
    378, "timer", "hrtimer_expire_entry", ("void * hrtimer", "s64 now", "void * function"),
    '"hrtimer=%p function=%ps now=%llu", REC->hrtimer, REC->function, (unsigned long long) REC->now',
)  # fmt: skip
HRTIMER_EXPIRE_EXIT = EventKind(377, "timer", "hrtimer_expire_exit", ("void * hrtimer",), '"hrtimer=%p", REC->hrtimer')
HRTIMER_START = EventKind(
    379, "timer", "hrtimer_start", ("void * hrtimer", "void * function", "s64 expires", "s64 softexpires", "int mode"),
    '"hrtimer=%p function=%ps expires=%llu softexpires=%llu mode=%d", REC->hrtimer, REC->function, '
    "(unsigned long long) REC->expires, (unsigned long long) REC->softexpires, REC->mode",
)  # fmt: skip
HRTIMER_REARM = EventKind(
    381, "timer", "hrtimer_rearm", ("s64 next_event", "bool deferred"),
    '"next_event=%llu deferred=%d", (unsigned long long) REC->next_event, REC->deferred',
)  # fmt: skip
KVM_GET_TIMER_MAP = EventKind(
    72, "kvm", "kvm_get_timer_map",
    ("unsigned long vcpu_id", "int direct_vtimer", "int direct_ptimer", "int emul_vtimer", "int emul_ptimer"),
    '"VCPU: %ld, dv: %d, dp: %d, ev: %d, ep: %d", REC->vcpu_id, REC->direct_vtimer, REC->direct_ptimer, '
    "REC->emul_vtimer, REC->emul_ptimer",
)  # fmt: skip
KVM_TIMER_SAVE = EventKind(
    73, "kvm", "kvm_timer_save_state", ("unsigned long ctl", "u64 cval", "int timer_idx"),
    '"   CTL: 0x%08lx CVAL: 0x%016llx arch_timer_ctx_index: %d", REC->ctl, REC->cval, REC->timer_idx',
)  # fmt: skip
KVM_TIMER_RESTORE = EventKind(
    74, "kvm", "kvm_timer_restore_state", ("unsigned long ctl", "u64 cval", "int timer_idx"),
    '"CTL: 0x%08lx CVAL: 0x%016llx arch_timer_ctx_index: %d", REC->ctl, REC->cval, REC->timer_idx',
)  # fmt: skip
KVM_TIMER_UPDATE_IRQ = EventKind(
    75, "kvm", "kvm_timer_update_irq", ("unsigned long vcpu_id", "u32 irq", "int level"),
    '"VCPU: %ld, IRQ %d, level %d", REC->vcpu_id, REC->irq, REC->level',
)  # fmt: skip
KVM_TIMER_EMULATE = EventKind(
    76, "kvm", "kvm_timer_emulate", ("int timer_idx", "bool should_fire"),
    '"arch_timer_ctx_index: %d (should_fire: %d)", REC->timer_idx, REC->should_fire',
)  # fmt: skip
KVM_MSR = EventKind(
    1423, "kvm", "kvm_msr", ("unsigned int write", "u32 ecx", "u64 data", "bool exception"),
    '"msr_%s %x = 0x%llx", REC->write ? "write" : "read", REC->ecx, REC->data',
)  # fmt: skip
KVM_WAIT_LAPIC_EXPIRE = EventKind(
    1421, "kvm", "kvm_wait_lapic_expire", ("unsigned int vcpu_id", "s64 delta"),
    '"vcpu %u: delta %lld", REC->vcpu_id, REC->delta',
)  # fmt: skip
KVM_INJ_VIRQ = EventKind(1422, "kvm", "kvm_inj_virq", ("unsigned int vector",), '"IRQ 0x%x", REC->vector')
SYS_ENTER = EventKind(348, "raw_syscalls", "sys_enter", ("long id",), '"NR %ld", REC->id')
SYS_EXIT = EventKind(347, "raw_syscalls", "sys_exit", ("long id", "long ret"), '"NR %ld = %ld", REC->id, REC->ret')

_BOTH = (PRINT, KVM_USERSPACE_EXIT, SET_CNTVOFF, SCHED_SWITCH, SCHED_WAKING, IRQ_ENTRY, IRQ_EXIT, HRTIMER_EXPIRE_ENTRY,
         HRTIMER_EXPIRE_EXIT, HRTIMER_START, HRTIMER_REARM, SYS_ENTER, SYS_EXIT)  # fmt: skip
KINDS = {
    "x86": (
        KVM_ENTRY_X86,
        KVM_EXIT_X86,
        KVM_NESTED_VMENTER,
        KVM_NESTED_VMEXIT,
        KVM_WRITE_TSC_OFFSET,
        KVM_PVCLOCK_UPDATE,
        KVM_MSR,
        KVM_WAIT_LAPIC_EXPIRE,
        KVM_INJ_VIRQ,
        *_BOTH,
    ),
    "arm64": (
        KVM_ENTRY_ARM64,
        KVM_EXIT_ARM64,
        KVM_NESTED_ERET,
        KVM_INJECT_NESTED,
        KVM_GET_TIMER_MAP,
        KVM_TIMER_SAVE,
        KVM_TIMER_RESTORE,
        KVM_TIMER_UPDATE_IRQ,
        KVM_TIMER_EMULATE,
        *_BOTH,
    ),
}
"""All events that a machine of each architecture may record."""

TICK_FUNCTION, BACKGROUND_FUNCTION = 0xFFFFFFFF81300000, 0xFFFFFFFF81400000
KALLSYMS = (
    f"{TICK_FUNCTION:016x} t tick_nohz_handler\n{BACKGROUND_FUNCTION:016x} t kvm_bg_timer_expire\n"
    f"{BACKGROUND_FUNCTION + 4096:016x} t what_follows\n"
).encode()
"""The kernel's functions that timers call, as far as recordings name them: those of other timers have no name."""

IRQ_NAME = b"virtio0-vq0\0"
IRQ_NAME_LOC = 12 << 16 | 16


@dataclass(frozen=True, slots=True)
class Block:
    """Events of one kind: hidden times ``t`` i64[k], on CPUs ``cpu`` i64[k], of tasks ``pid`` i64[k], field values."""

    kind: EventKind
    t: I64
    cpu: I64
    pid: I64
    values: Mapping[str, Any]
