"""Runs in a host: one command to a VMM's monitor. lab-qmp SOCKET REQUEST"""

import json
import socket
import sys


def main():
    """Print the answer as JSON; events in between are left out."""
    end = socket.socket(socket.AF_UNIX)
    end.connect(sys.argv[1])
    lines = end.makefile("rw")
    lines.readline()
    for request in ('{"execute": "qmp_capabilities"}', sys.argv[2]):
        lines.write(request + "\n")
        lines.flush()
        for line in lines:
            answer = json.loads(line)
            if "return" in answer or "error" in answer:
                break
    print(json.dumps(answer))


main()
