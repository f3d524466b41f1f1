"""Runs in a host: sets a VM's counter from inside its VMM, as a VMM may itself.

lab-set-counter COUNTERPOINT.PYZ VMM_PID TICKS_AHEAD timer-cnt|counter-offset

timer-cnt: KVM_SET_ONE_REG of TIMER_CNT on vCPU 0. counter-offset: KVM_ARM_SET_COUNTER_OFFSET (Linux 6.4) on the VM, of
which no other vCPU may be running.
"""

import struct
import sys

sys.path.insert(0, sys.argv[1])

from counterpoint.live import counter, inject, kvm, vms


def main():
    """Make the calls in the vCPU's own thread."""
    pid, ahead, how = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    (vm,) = vms.find_vms([pid])[0]
    vcpu = next(v for v in vm.vcpus if v.number == 0)
    injector = inject.Injector(pid)
    now = injector.call(vcpu.tid, vcpu.descriptor, [kvm.one_reg("", kvm.TIMER_CNT)]).answers[0]
    guest = kvm.one_reg_of(now.data)
    if how == "timer-cnt":
        # struct kvm_one_reg, then the value that it points to
        request = kvm._request(kvm._WRITE, 0xAC, 16)
        call = kvm.Call("KVM_SET_ONE_REG", request, struct.pack("<QQQ", kvm.TIMER_CNT, 0, guest + ahead), 8, 16)
    else:
        # struct kvm_arm_counter_offset: what is subtracted from the host's counter, reserved
        request = kvm._request(kvm._WRITE, 0xB5, 16)
        offset = (now.before - guest - ahead) & counter.MASK
        argument = struct.pack("<QQ", offset, 0)
        call = kvm.Call("KVM_ARM_SET_COUNTER_OFFSET", request, argument, descriptor=vm.descriptor)
    answer = injector.call(vcpu.tid, vcpu.descriptor, [call]).answers[0]
    print("result", answer.result, "counter", answer.before, answer.after)
    sys.exit(answer.result != 0)


main()
