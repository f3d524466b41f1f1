# %% [markdown]
# # Why was my guest late?
#
# A real case, step by step, in Python: `cyc5ms`, a FIFO task of a guest, sleeps to every fifth millisecond and is late.
# The recordings are bundled (`tests/data/x86-busy`: 2.4 s, one vCPU, both sides stamped with the TSC).
#
# First one timeline, and its proof. Nobody says what the guest's TSC offset is: causality alone gives it.

# %%
import numpy as np

import counterpoint

result = counterpoint.sync("tests/data/x86-busy/host.dat", "tests/data/x86-busy/guest.dat")
for vcpu in result.guests[0].vcpus:
    epoch = vcpu.epochs[0]
    print(f"cpu {vcpu.guest_cpu}: {vcpu.verdict}, offset {epoch.offset} in {list(epoch.feasible)},")
    print(f"  {epoch.inside} guest events inside run windows, {epoch.violations} outside; thread {vcpu.host_tid}")

# %% [markdown]
# The true offset of this machine was -2887716760370 ticks. It lies in that interval.
#
# What did the vCPU do? Its states cover every instant of the host's recording: their times add up to it exactly.

# %%
from counterpoint.analysis.states import State, vcpu_states

rate = result.timeline.rate
(states,) = vcpu_states(result)
span = states.end - int(states.begin[0])
for state, took in sorted(states.residency().items(), key=lambda item: -item[1]):
    if took:
        print(f"{state.name.lower():8} {rate.to_ns(took) / 1e6:9.3f} ms  {took / span:6.1%}")
print(f"in all   {rate.to_ns(span) / 1e6:9.3f} ms; the sum is exact: {sum(states.residency().values()) == span}")

# %% [markdown]
# For half of the time the vCPU's thread could run and did not. Who ran instead?

# %%
waiting = states.state == State.WAITING
took = np.where(waiting, states.ends - states.begin, 0)
for tid in np.unique(states.by[waiting]).tolist():
    ms = rate.to_ns(int(took[states.by == tid].sum())) / 1e6
    if ms > 1:
        print(f"{result.host.comm(tid)} [{tid}]: {ms:.3f} ms")

# %% [markdown]
# Now the task. A wakeup's latency runs from the moment its timer was due to the `sched_switch` to it.

# %%
from counterpoint.analysis.why import Explainer, blame

explainer = Explainer(result)
found = explainer.tasks("guest").wakeups()
mine = found.take(explainer.is_task("guest", found, ["cyc5ms"]))
late_ns = rate.array_to_ns(mine.took.astype(np.uint64))
edges = [0, 100_000, 200_000, 500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000, 20_000_000, 50_000_000]
for low, high, count in zip(edges, edges[1:], np.histogram(late_ns, edges)[0].tolist(), strict=False):
    print(f"{low / 1e6:5.1f} to {high / 1e6:4.1f} ms {count:4} {'#' * (count // 2)}")

# %% [markdown]
# The worst of them, each nanosecond given to a cause:

# %%
worst = np.argsort(-mine.took)
(one,) = explainer.explain("guest", mine, [int(worst[0])])
print(f"{rate.to_ns(one.took) / 1e6:.3f} ms, to within {rate.to_ns(one.bound)} ns")
for cause, took in one.shares():
    print(f"{rate.to_ns(took) / 1e6:9.3f} ms  {cause}")
print("the pieces add up exactly:", sum(piece.took for piece in one.pieces) == one.took)

# %% [markdown]
# In their order, with the host's event that proves each (those of more than a millisecond):

# %%
for piece in one.pieces:
    if rate.to_ns(piece.took) > 1_000_000:
        since = rate.to_ns(piece.begin - one.begin) / 1e6
        row = piece.event and piece.event[1]
        event = result.host.event_name(int(result.host.event_id[row])) if row is not None else "(in guest mode)"
        print(f"+{since:7.3f} ms {rate.to_ns(piece.took) / 1e6:7.3f} ms  {piece.cause}  {event}")

# %% [markdown]
# And the blame over all wakeups that were more than 5 ms late:

# %%
bad = np.flatnonzero(late_ns > 5_000_000).tolist()
shares = blame(explainer.explain("guest", mine, bad))
total = sum(took for _, took in shares)
print(f"{len(bad)} wakeups, {rate.to_ns(total) / 1e6:.3f} ms")
for cause, took in shares[:5]:
    print(f"{took / total:6.1%}  {cause}")

# %% [markdown]
# A host thread called `hosthog` is the one to move elsewhere; then the guest's own `gbusy`, and the exits by which the
# guest programs its timer (`msr`), slow here since the processor is emulated.
#
# The same on the command line, in `tests/data/x86-busy`: `counterpoint why host.dat guest.dat --task cyc5ms`.
