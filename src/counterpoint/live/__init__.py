"""What the running machine tells: its abilities, its VMs, and their vCPUs' offsets by every source that works.

The standard library alone, Python 3.9: this room runs from one zip file on a bare hypervisor (``make zipapp``).
"""
