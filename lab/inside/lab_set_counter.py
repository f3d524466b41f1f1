"""Runs in a host: sets a VM's virtual counter (TIMER_CNT of vCPU 0) from inside its VMM, as a VMM may itself.

lab-set-counter COUNTERPOINT.PYZ VMM_PID TICKS_AHEAD
"""

import struct
import sys

sys.path.insert(0, sys.argv[1])

from counterpoint.live import inject, kvm, vms


def main():
    """Make the calls in the vCPU's own thread."""
    pid, ahead = (int(word) for word in sys.argv[2:4])
    found, _ = vms.find_vms([pid])
    vcpu = next(v for vm in found for v in vm.vcpus if v.number == 0)
    injector = inject.Injector(pid)
    now = kvm.one_reg_of(injector.call(vcpu.tid, vcpu.descriptor, [kvm.one_reg("", kvm.TIMER_CNT)]).answers[0].data)
    # KVM_SET_ONE_REG: struct kvm_one_reg, then the value that it points to
    request = kvm._request(kvm._WRITE, 0xAC, 16)
    call = kvm.Call("KVM_SET_ONE_REG", request, struct.pack("<QQQ", kvm.TIMER_CNT, 0, now + ahead), 8, 16)
    answer = injector.call(vcpu.tid, vcpu.descriptor, [call]).answers[0]
    print("result", answer.result, "counter", answer.before, answer.after)
    sys.exit(answer.result != 0)


main()
