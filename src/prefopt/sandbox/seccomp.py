"""A system-call filter for the sandbox: classic BPF that bubblewrap loads. A second wall behind the namespaces.

Denied are calls that Python code for mathematics has no use for and that reach the kernel's less travelled parts
(sockets, mounts, tracing, new namespaces, key rings, io_uring) or that hold memory outside the limits (memfd, System V
shared memory, POSIX queues, pages given to pipes). So is shared memory without a file: it stays when all of it but one
page is unmapped, and nothing then says how much it is. Shared mappings of files in the private folder are allowed, and
count. Numbers: the kernel's tables for x86-64 (`syscall_64.tbl`) and for the generic table that aarch64 uses
(`asm-generic/unistd.h`).
"""

from __future__ import annotations

import errno
import platform
import struct
from typing import NamedTuple


class Architecture(NamedTuple):
    """The identity and system-call numbers of a machine."""

    audit: int
    clone: int
    mmap: int
    denied: dict[str, int]


NEWER = {
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428, "move_mount": 429,
    "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_getfd": 438, "mount_setattr": 442,
    "memfd_secret": 447,
}  # fmt: skip
"""Calls since Linux 5.1 have one number everywhere."""

CLONE3 = 435
X32 = 0x40000000
"""Bit of the second, older system-call table of x86-64."""
NEW_NAMESPACES = 0x7E020080
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET and NEWTIME."""

ARCHITECTURES = {
    "x86_64": Architecture(0xC000003E, 56, 9, {
        "ptrace": 101, "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "swapon": 167, "swapoff": 168,
        "reboot": 169, "sethostname": 170, "setdomainname": 171, "init_module": 175, "finit_module": 313,
        "delete_module": 176, "kexec_load": 246, "kexec_file_load": 320, "bpf": 321, "perf_event_open": 298,
        "userfaultfd": 323, "add_key": 248, "request_key": 249, "keyctl": 250, "process_vm_readv": 310,
        "process_vm_writev": 311, "name_to_handle_at": 303, "open_by_handle_at": 304, "unshare": 272, "setns": 308,
        "memfd_create": 319, "shmget": 29, "shmat": 30, "msgget": 68, "semget": 64, "mq_open": 240, "socket": 41,
        "acct": 163, "quotactl": 179, "syslog": 103, "personality": 135, "kcmp": 312, "fanotify_init": 300,
        "clock_settime": 227, "settimeofday": 164, "iopl": 172, "ioperm": 173, "vmsplice": 278,
    }),
    "aarch64": Architecture(0xC00000B7, 220, 222, {
        "ptrace": 117, "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "swapon": 224, "swapoff": 225,
        "reboot": 142, "sethostname": 161, "setdomainname": 162, "init_module": 105, "finit_module": 273,
        "delete_module": 106, "kexec_load": 104, "kexec_file_load": 294, "bpf": 280, "perf_event_open": 241,
        "userfaultfd": 282, "add_key": 217, "request_key": 218, "keyctl": 219, "process_vm_readv": 270,
        "process_vm_writev": 271, "name_to_handle_at": 264, "open_by_handle_at": 265, "unshare": 97, "setns": 268,
        "memfd_create": 279, "shmget": 194, "shmat": 196, "msgget": 186, "semget": 190, "mq_open": 180, "socket": 198,
        "acct": 89, "quotactl": 60, "syslog": 116, "personality": 92, "kcmp": 272, "fanotify_init": 262,
        "clock_settime": 112, "settimeofday": 170, "vmsplice": 75,
    }),
}  # fmt: skip

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL, FAIL = 0x7FFF0000, 0x80000000, 0x00050000
NUMBER, ARCHITECTURE, FIRST_ARGUMENT, FOURTH_ARGUMENT = 0, 4, 16, 40
"""Offsets in `struct seccomp_data`; of arguments the lower half on little-endian machines."""
MAP_SHARED, MAP_ANONYMOUS = 0x01, 0x20
"""Flags of mmap; a private mapping has the lowest bit unset, and both kinds of shared ones have it set."""


def filter_program(machine: str | None = None) -> bytes | None:
    """The filter for a machine (default: this one) as an array of `struct sock_filter`, or None where none is known."""
    known = ARCHITECTURES.get(machine or platform.machine())
    if known is None:
        return None
    code = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, known.audit),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
        *when(AT_LEAST, X32, errno.ENOSYS),
        *when(
            EQUAL, CLONE3, errno.ENOSYS
        ),  # its flags are behind a pointer; libc falls back to clone
        (EQUAL, 0, 4, known.clone),
        (LOAD, 0, 0, FIRST_ARGUMENT),
        *when(ANY_BIT, NEW_NAMESPACES, errno.EPERM),
        (RETURN, 0, 0, ALLOW),
        (EQUAL, 0, 5, known.mmap),
        (LOAD, 0, 0, FOURTH_ARGUMENT),
        (ANY_BIT, 0, 2, MAP_ANONYMOUS),
        *when(ANY_BIT, MAP_SHARED, errno.EPERM),
        (RETURN, 0, 0, ALLOW),
    ]
    for number in sorted({*known.denied.values(), *NEWER.values()}):
        code += when(EQUAL, number, errno.EPERM)
    code.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


def when(test: int, value: int, error: int) -> list[tuple[int, int, int, int]]:
    """Two instructions: if the loaded word passes the test, the call fails with `error`."""
    return [(test, 0, 1, value), (RETURN, 0, 0, FAIL | error)]
