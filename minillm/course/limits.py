"""What the process of a student's file may use: memory, processor time, the size of a file, no further processes.

    limit(memory, seconds)   called once by that process, before it runs a line of the file; nothing can take it back

Linux (x86-64 and arm64) has all of it. There, a filter on system calls (seccomp) refuses to start a process, to send a
signal to another one, to trace one, and to raise a limit; a limit on the number of processes would not hold for root,
and a signal could end the judge. macOS has no limit on memory, Windows has none at all: ``limit`` says which are
missing. Files and the network are not closed anywhere; a container does that.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
import sys

FILE_BYTES = 10_000_000  # of any file that is written
# prctl(2)
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 1, 22, 38, 2
# Numbers of system calls: each kernel's own, first the name of the machine in the filter's language (AUDIT_ARCH_...).
SYSTEM_CALLS = {
    "x86_64": (0xC000003E, {
        "fork": 57, "vfork": 58, "clone": 56, "clone3": 435, "kill": 62, "tgkill": 234, "tkill": 200,
        "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297, "pidfd_send_signal": 424, "ptrace": 101,
        "process_vm_readv": 310, "process_vm_writev": 311, "setrlimit": 160, "prlimit64": 302,
    }),
    "aarch64": (0xC00000B7, {
        "clone": 220, "clone3": 435, "kill": 129, "tgkill": 131, "tkill": 130, "rt_sigqueueinfo": 138,
        "rt_tgsigqueueinfo": 240, "pidfd_send_signal": 424, "ptrace": 117, "process_vm_readv": 270,
        "process_vm_writev": 271, "setrlimit": 164, "prlimit64": 261,
    }),
}  # fmt: skip
FOREIGN = 0x40000000  # from here on, numbers of x86-64 belong to a second table of calls (x32)
CLONE_THREAD = 0x10000  # a new thread of this process, which is allowed


def limit(memory: int, seconds: int) -> list[str]:
    """Limit this process to ``memory`` bytes and ``seconds`` of the processor, and to itself.

    Returns in words what this system cannot limit.
    """
    missing = resource_limits({
        "memory": ("RLIMIT_AS", memory), "processor time": ("RLIMIT_CPU", seconds),
        "the size of files": ("RLIMIT_FSIZE", FILE_BYTES), "core dumps": ("RLIMIT_CORE", 0),
    })  # fmt: skip
    die_with_parent()
    if not alone():
        missing += resource_limits({"the number of processes": ("RLIMIT_NPROC", 0)})
        if hasattr(os, "geteuid") and os.geteuid() == 0:  # it does not hold for root
            missing.append("the number of processes")
    return missing


def resource_limits(wanted: dict[str, tuple[str, int]]) -> list[str]:
    """Set limits that the system keeps per process; the names of those that it does not have."""
    try:
        import resource
    except ImportError:  # Windows
        return list(wanted)
    missing = []
    for name, (kind, value) in wanted.items():
        try:
            number = getattr(resource, kind)
            _, most = resource.getrlimit(number)
            value = value if most == resource.RLIM_INFINITY else min(value, most)
            resource.setrlimit(number, (value, value))
        except (AttributeError, ValueError, OSError):
            missing.append(name)
    return missing


def prctl(option: int, *values: int | ctypes.Array) -> bool:
    """Ask Linux for something that concerns this process; False where it does not do it, or is another system."""
    if not sys.platform.startswith("linux"):
        return False
    numbers = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in values]
    return ctypes.CDLL(None).prctl(option, *numbers, *[ctypes.c_ulong(0)] * (4 - len(numbers))) == 0


def die_with_parent() -> None:
    """Have this process killed when the one that started it ends, however that ends."""
    if sys.platform.startswith("linux"):
        parent = os.getppid()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has ended already
            os._exit(1)


def alone() -> bool:
    """Refuse every system call that starts a process, reaches another one, or raises a limit. False: not possible."""
    if platform.machine() not in SYSTEM_CALLS:
        return False
    program = call_filter(*SYSTEM_CALLS[platform.machine()])
    code = ctypes.create_string_buffer(program)
    # struct sock_fprog: the number of instructions (8 bytes each), and where they are
    whole = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))
    return prctl(PR_SET_NO_NEW_PRIVS, 1) and prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, whole)


# ---- the filter ------------------------------------------------------------------------------------------------------
# A program of Linux's packet filter: it looks at the number of a call and at its arguments, and returns a verdict. Each
# instruction is (code, jump if true, jump if false, constant).
ALLOW, REFUSE, UNKNOWN = 0x7FFF0000, 0x00050000 | 1, 0x00050000 | 38  # the call; EPERM; ENOSYS in its place
NUMBER, MACHINE, FIRST, THIRD = 0, 4, 16, 32  # where the call's number, the machine and two arguments are


def load(place: int) -> bytes:
    return struct.pack("=HBBI", 0x20, 0, 0, place)


def jump(code: int, constant: int, if_true: int, if_false: int) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, constant)


def equal(constant: int, if_true: int, if_false: int) -> bytes:
    return jump(0x15, constant, if_true, if_false)


def verdict(value: int) -> bytes:
    return struct.pack("=HBBI", 0x06, 0, 0, value)


def call_filter(machine: int, numbers: dict[str, int]) -> bytes:
    """The program as bytes."""
    refuse, either = [verdict(REFUSE)], [verdict(REFUSE), verdict(ALLOW)]
    bodies = {
        "clone": [load(FIRST), jump(0x45, CLONE_THREAD, 1, 0), *either],  # 0x45: one of these bits is set
        "clone3": [verdict(UNKNOWN)],  # its flags are in memory, out of sight; the C library then takes clone
        "kill": [load(FIRST), equal(os.getpid(), 1, 0), *either],
        "tgkill": [load(FIRST), equal(os.getpid(), 1, 0), *either],
        "prlimit64": [load(THIRD), equal(0, 1, 0), *either],  # 0: it only reads a limit
    }
    program = [load(MACHINE), equal(machine, 1, 0), *refuse, load(NUMBER)]
    if machine == SYSTEM_CALLS["x86_64"][0]:
        program += [jump(0x35, FOREIGN, 0, 1), *refuse]  # 0x35: greater or equal
    for name, number in numbers.items():
        body = bodies.get(name, refuse)
        program += [equal(number, 0, len(body)), *body]
    return b"".join([*program, verdict(ALLOW)])
