"""The limits of a student's process hold, and say where they do not."""

import os
import platform
import subprocess
import sys

import pytest

from minillm.course import limits

WITH_FILTER = sys.platform.startswith("linux") and platform.machine() in limits.SYSTEM_CALLS
only_with_filter = pytest.mark.skipif(not WITH_FILTER, reason="needs Linux on x86-64 or arm64")
BEGIN = "from minillm.course.limits import limit\nassert limit(1_000_000_000, 5) == []\n"


def run(code: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", BEGIN + code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, start_new_session=True)


@only_with_filter
def test_no_process_no_signal_no_higher_limit_no_large_file_and_no_more_memory(tmp_path):
    tries = f"""
import os, resource, subprocess
def refused(what, *arguments):
    try:
        what(*arguments)
    except (OSError, MemoryError, ValueError):
        return
    print("not refused:", what, arguments)
refused(os.fork)
refused(os.forkpty)
refused(subprocess.run, ["/bin/true"])
refused(os.posix_spawn, "/bin/true", ["true"], dict(os.environ))
refused(os.kill, os.getppid(), 0)
refused(os.kill, -1, 0)
refused(os.killpg, 0, 0)
refused(resource.setrlimit, resource.RLIMIT_AS, (-1, -1))
refused(resource.prlimit, os.getppid(), resource.RLIMIT_NOFILE, (9, 9))
refused(bytearray, 2_000_000_000)
with open({str(tmp_path / "big")!r}, "wb", buffering=0) as file:
    file.write(b"1" * 20_000_000)
    refused(file.write, b"1")
assert os.system("true") != 0
"""
    done = run(tries)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "big").stat().st_size == limits.FILE_BYTES


@only_with_filter
def test_what_it_does_to_itself_is_its_own_affair():
    allowed = """
import os, resource, signal, threading
thread = threading.Thread(target=print, args=("a thread",))
thread.start()
thread.join()
resource.getrlimit(resource.RLIMIT_AS)
os.kill(os.getpid(), 0)
signal.raise_signal(signal.SIGTERM)
"""
    done = run(allowed)
    assert (done.returncode, done.stdout) == (-15, "a thread\n"), done.stderr


@pytest.mark.slow
@only_with_filter
def test_it_ends_with_its_time_on_the_processor_and_with_its_parent():
    loop = "import time\nbegun = time.process_time()\nwhile time.process_time() < begun + 60: pass"
    done = subprocess.run([sys.executable, "-c", BEGIN.replace("5)", "1)") + loop], timeout=60)
    assert done.returncode < 0
    starts = f"""
import subprocess, sys
code = {BEGIN!r} + "print('limited', flush=True); import time; time.sleep(1000)"
child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
import os
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", starts], stdout=subprocess.PIPE, timeout=60)
    assert done.returncode == -9
    with pytest.raises(OSError, match="No such process"):
        for _ in range(100):  # it may take a moment
            os.kill(int(done.stdout), 0)
            subprocess.run(["sleep", "0.05"])


def test_a_system_without_limits_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(limits, "alone", lambda: False)
    monkeypatch.setattr(limits, "die_with_parent", lambda: None)
    assert {"memory", "processor time", "the number of processes"} <= set(limits.limit(10**9, 5))


@pytest.mark.parametrize("machine", limits.SYSTEM_CALLS)
def test_the_filter_decides_by_number_and_argument(machine):
    """The filter's own machine, as short as it is, runs it here for both kinds of processors."""
    audit, numbers = limits.SYSTEM_CALLS[machine]
    program = limits.call_filter(audit, numbers)
    steps = [program[i : i + 8] for i in range(0, len(program), 8)]

    def decide(number: int, first: int = 0, third: int = 0, arch: int = audit) -> int:
        seen = {limits.NUMBER: number, limits.MACHINE: arch, limits.FIRST: first, limits.THIRD: third}
        at = value = 0
        while True:
            code, yes, no, k = int.from_bytes(steps[at][:2], sys.byteorder), *steps[at][2:4], steps[at][4:]
            constant, at = int.from_bytes(k, sys.byteorder), at + 1
            if code == 0x06:
                return constant
            if code == 0x20:
                value = seen[constant]
            else:
                holds = {0x15: value == constant, 0x35: value >= constant, 0x45: bool(value & constant)}[code]
                at += yes if holds else no

    always = set(numbers) - {"clone", "clone3", "kill", "tgkill", "prlimit64"}
    assert {decide(numbers[name], os.getpid(), 0) for name in always} == {limits.REFUSE}
    assert decide(numbers["clone"], limits.CLONE_THREAD | 0x100) == limits.ALLOW
    assert decide(numbers["clone"], 17) == limits.REFUSE and decide(numbers["clone3"]) == limits.UNKNOWN
    for name in ("kill", "tgkill"):
        assert decide(numbers[name], os.getpid()) == limits.ALLOW and decide(numbers[name], 1) == limits.REFUSE
    assert decide(numbers["prlimit64"], third=0) == limits.ALLOW
    assert decide(numbers["prlimit64"], third=0x7FFF0000) == limits.REFUSE
    assert decide(0) == limits.ALLOW and decide(0, arch=0x40000003) == limits.REFUSE  # the 32-bit calls
    if machine == "x86_64":
        assert decide(limits.FOREIGN + 57) == limits.REFUSE
