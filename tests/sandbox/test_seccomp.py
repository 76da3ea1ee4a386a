"""The system-call filter, run by an interpreter of classic BPF written here, and by the kernel in test_escape."""

import struct

import pytest

from prefopt.sandbox.seccomp import ARCHITECTURES, filter_program

ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x50001, 0x50026
X86, ARM = 0xC000003E, 0xC00000B7


def verdict(machine: str, number: int, audit: int, first: int = 0, fourth: int = 0) -> int:
    """What the filter returns for a system call."""
    data = struct.pack("<IIQ6Q", number, audit, 0, first, 0, 0, fourth, 0, 0)
    program = list(struct.iter_unpack("<HBBI", filter_program(machine) or b""))
    word = place = 0
    while True:
        code, yes, no, value = program[place]
        place += 1
        if code == 0x06:
            return value
        if code == 0x20:
            word = struct.unpack_from("<I", data, value)[0]
        else:
            holds = {0x15: word == value, 0x35: word >= value, 0x45: bool(word & value)}[code]
            place += yes if holds else no


@pytest.mark.parametrize(
    ("machine", "number", "audit", "argument", "expected"),
    [
        ("x86_64", 0, X86, 0, ALLOW),  # read
        ("x86_64", 59, X86, 0, ALLOW),  # execve
        ("x86_64", 53, X86, 0, ALLOW),  # socketpair
        ("x86_64", 41, X86, 0, EPERM),  # socket
        ("x86_64", 101, X86, 0, EPERM),  # ptrace
        ("x86_64", 425, X86, 0, EPERM),  # io_uring_setup
        ("x86_64", 435, X86, 0, ENOSYS),  # clone3
        ("x86_64", 56, X86, 0x3D0F00, ALLOW),  # clone: a thread
        ("x86_64", 56, X86, 0x10000000, EPERM),  # clone: CLONE_NEWUSER
        ("x86_64", 0x40000000 + 41, X86, 0, ENOSYS),  # the x32 table
        ("x86_64", 359, 0x40000003, 0, KILL),  # the i386 table
        ("aarch64", 63, ARM, 0, ALLOW),  # read
        ("aarch64", 198, ARM, 0, EPERM),  # socket
        ("aarch64", 220, ARM, 0x20000, EPERM),  # clone: CLONE_NEWNS
        ("aarch64", 220, ARM, 0x11, ALLOW),  # clone: fork
        ("aarch64", 41, ARM, 0, EPERM),  # pivot_root; on x86-64 the number of socket
    ],
)
def test_verdicts(machine, number, audit, argument, expected):
    assert verdict(machine, number, audit, argument) == expected


SHARED, PRIVATE, EITHER, FIXED, ANONYMOUS, HUGE = 1, 2, 3, 16, 32, 0x40000
"""Flags of mmap; EITHER is MAP_SHARED_VALIDATE."""


@pytest.mark.parametrize(("machine", "mmap", "audit"), [("x86_64", 9, X86), ("aarch64", 222, ARM)])
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (SHARED, ALLOW),
        (EITHER, ALLOW),
        (PRIVATE | ANONYMOUS, ALLOW),
        (PRIVATE | ANONYMOUS | FIXED | HUGE, ALLOW),
        (SHARED | ANONYMOUS, EPERM),
        (EITHER | ANONYMOUS, EPERM),
        (SHARED | ANONYMOUS | FIXED | HUGE, EPERM),
    ],
)
def test_shared_memory_needs_a_file(machine, mmap, audit, flags, expected):
    assert verdict(machine, mmap, audit, first=0x10000000, fourth=flags) == expected


def test_both_tables_name_the_same_calls():
    x86, arm = (set(ARCHITECTURES[name].denied) for name in ("x86_64", "aarch64"))
    assert x86 - arm == {"iopl", "ioperm"}
    assert arm <= x86
    assert filter_program("riscv64") is None
