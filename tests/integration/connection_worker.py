# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection plugin in a process of its own, whose memory, descriptors and children can be counted.

connection_worker.py INSTANCE COMMANDS BYTES [VARIABLE=VALUE…] → JSON
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import resource
import sys
import tempfile
import time
import typing as t
from pathlib import Path

from ansible.errors import AnsibleError
from ansible.playbook.play_context import PlayContext
from ansible.plugins.loader import connection_loader, init_plugin_loader

THREADS = 4


def connection(values: dict[str, str]) -> t.Any:
    made = connection_loader.get("mage.lxd.lxd", PlayContext(), None)
    made.set_options(var_options=values)
    return made


def run_commands(values: dict[str, str], first: int, count: int) -> list[int]:
    """Run commands in one connection, and return the numbers of those that answered wrong."""
    wrong = []
    made = connection(values)
    for number in range(first, first + count):
        data = bytes((number + index) % 256 for index in range(number % 97 * 31))
        done = made.exec_command(f"cat; echo {number} >&2; exit {number % 256}", in_data=data)
        if done != (number % 256, data, f"{number}\n".encode()):
            wrong.append(number)
    made.close()
    return wrong


def move_file(values: dict[str, str], size: int) -> bool:
    """Put a file and fetch it. Whether it is the same."""
    made = connection(values)
    # In memory at both ends: a gigabyte on disk would slow the whole machine down.
    made.exec_command("mkdir -p /mnt; mount -t tmpfs tmpfs /mnt")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        source, target = os.path.join(folder, "source"), os.path.join(folder, "target")
        with open(source, "wb") as file:
            file.write(b"first")
            file.seek(size - 4)
            file.write(b"last")
        made.put_file(source, "/mnt/large")
        made.exec_command("printf middle | dd of=/mnt/large bs=1 seek=700000 conv=notrunc")
        made.fetch_file("/mnt/large", target)
        made.exec_command("umount /mnt")
        made.close()
        with open(target, "rb") as file:
            found = [file.read(5)]
            for place, length in ((700000, 6), (size - 4, 4)):
                file.seek(place)
                found.append(file.read(length))
        return found == [b"first", b"middle", b"last"] and os.path.getsize(target) == size


def told_of_missing(values: dict[str, str]) -> list[str]:
    """What is said of files of an instance that is not there."""
    made = connection({**values, "ansible_lxd_instance": "mt-none"})
    told = []
    for move, source in ((made.put_file, __file__), (made.fetch_file, "/etc/passwd")):
        with tempfile.TemporaryDirectory() as folder:
            try:
                move(source, os.path.join(folder, "target"))
            except AnsibleError as e:
                told.append(f"{type(e).__name__}: {e}")
    made.close()
    return told


def memory_peak() -> int:
    """The most bytes that this program ever held; ``ru_maxrss`` would count those of the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def main() -> None:
    """Do it all and print what it took."""
    instance, commands, size, *further = sys.argv[1:]
    init_plugin_loader()
    values = {"ansible_lxd_instance": instance, **dict(one.split("=", 1) for one in further)}
    each = int(commands) // THREADS
    run_commands(values, 0, 1)
    descriptors = len(os.listdir("/proc/self/fd"))
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        wrong = list(pool.map(lambda thread: run_commands(values, thread * each, each), range(THREADS)))
    # What a bridge closes, it closes in a thread of its own.
    deadline = time.monotonic() + 20
    while len(os.listdir("/proc/self/fd")) > descriptors and time.monotonic() < deadline:
        time.sleep(0.1)
    result = {
        "wrong": [number for numbers in wrong for number in numbers],
        "leaked": len(os.listdir("/proc/self/fd")) - descriptors,
        "same": move_file(values, int(size)),
        "memory": memory_peak(),
        "started": resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt > children,
        "pylxd": "pylxd" in sys.modules,
        "missing": told_of_missing(values),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
