"""Runs in a host: sets a vCPU's TSC offset (KVM_VCPU_TSC_OFFSET, Linux 5.16) from inside its VMM, as a VMM may itself.

lab-set-offset COUNTERPOINT.PYZ VMM_PID VCPU OFFSET
"""

import struct
import sys

sys.path.insert(0, sys.argv[1])

from counterpoint.live import inject, kvm, vms


def main():
    """Make the call in the vCPU's own thread."""
    pid, number, offset = (int(word) for word in sys.argv[2:5])
    found, _ = vms.find_vms([pid])
    vcpu = next(v for vm in found for v in vm.vcpus if v.number == number)
    # struct kvm_device_attr: flags, group KVM_VCPU_TSC_CTRL, attr KVM_VCPU_TSC_OFFSET, address of the value
    request = kvm._request(kvm._WRITE, 0xE1, 24)
    call = kvm.Call("KVM_SET_DEVICE_ATTR", request, struct.pack("<IIQQq", 0, 0, 0, 0, offset), 16, 24)
    answer = inject.Injector(pid).call(vcpu.tid, vcpu.descriptor, [call]).answers[0]
    print("result", answer.result, "counter", answer.before, answer.after)
    sys.exit(answer.result != 0)


main()
