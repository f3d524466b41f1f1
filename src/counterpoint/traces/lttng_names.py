"""What LTTng's kernel tracer calls the kernel's events and fields, in the kernel's own words.

After lttng-modules, include/instrumentation/events: its probes are named as the tracepoints are but for those below. It
says ``tid`` where the kernel says ``pid``, and counts priorities from MAX_RT_PRIO on (events/sched.h).
"""

from __future__ import annotations

from typing import Final

MAX_RT_PRIO: Final = 100
"""include/linux/sched/prio.h"""

# (LTTng's beginning, the kernel's system, the kernel's beginning); the first that fits
_EVENTS: Final = (
    ("kvm_x86_", "kvm", "kvm_"),
    ("kvm_mmu_", "kvmmmu", "kvm_mmu_"),
    ("kvm_", "kvm", "kvm_"),
    ("sched_", "sched", "sched_"),
    ("irq_softirq_", "irq", "softirq_"),
    ("irq_handler_", "irq", "irq_handler_"),
    ("timer_hrtimer_", "timer", "hrtimer_"),
    ("timer_itimer_", "timer", "itimer_"),
    ("timer_", "timer", "timer_"),
    ("x86_irq_vectors_", "irq_vectors", ""),
    ("x86_exceptions_", "exceptions", ""),
    ("power_", "power", ""),
    ("syscall_entry_", "syscalls", "sys_enter_"),
    ("syscall_exit_", "syscalls", "sys_exit_"),
    ("workqueue_", "workqueue", "workqueue_"),
    ("block_", "block", "block_"),
    ("net_", "net", "net_"),
    ("rcu_", "rcu", "rcu_"),
    ("signal_", "signal", "signal_"),
    ("module_", "module", "module_"),
)
_THREADS: Final = {
    "tid": "pid",
    "prev_tid": "prev_pid",
    "next_tid": "next_pid",
    "parent_tid": "parent_pid",
    "child_tid": "child_pid",
    "old_tid": "old_pid",
    # LTTng's are of the whole process
    "parent_pid": "parent_tgid",
    "child_pid": "child_tgid",
}
_PRIORITIES: Final = frozenset({"prio", "prev_prio", "next_prio", "oldprio", "newprio"})


def kernel_event(name: str) -> tuple[str, str]:
    """The system and the name that the kernel has for an event of LTTng's; system "lttng" for what is its own."""
    for theirs, system, ours in _EVENTS:
        if name.startswith(theirs) and len(name) > len(theirs):
            return system, ours + name[len(theirs) :]
    return "lttng", name


def kernel_field(system: str, field: str) -> tuple[str, int]:
    """The kernel's name of a field of an event of ``system``, and what is to be added to its values."""
    if system != "sched":
        return field, 0
    return _THREADS.get(field, field), MAX_RT_PRIO if field in _PRIORITIES else 0
