"""Hostile files: each attack costs the points of its own function, and nothing is left of it."""

import os
import resource
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import pytest
from student_files import PLAIN, file_of

from minillm.course import judge
from minillm.course.assignment import FUNCTIONS
from minillm.course.differences import Described
from minillm.course.grade import grade_file
from minillm.course.judge import Answers, outcome_of
from minillm.course.wire import WireError
from minillm.errors import MESSAGE_LIMIT, MinillmError

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
# What a function does, and words of what is said of it. FRAME(header) writes a frame to every pipe that there is.
BEFORE = """
import json, os, sys, time
import numpy as np

def WRITE(data):
    for fd in range(3, 12):
        try:
            os.write(fd, data)
        except OSError:
            pass

def FRAME(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    WRITE(len(text).to_bytes(4, "big") + text + data)
"""
ATTACKS = {
    "forks": ("os.fork()", "raised PermissionError"),
    "starts a process": ("import subprocess; subprocess.Popen(['sleep', '1000'])", "raised PermissionError"),
    "kills its parent": ("os.kill(os.getppid(), 9)", "raised PermissionError"),
    "leaves its session": ("os.setsid()", "raised PermissionError"),
    "garbage": ("WRITE(bytes(range(255, 0, -1)) * 1000)", "sent what is no result (a header of"),
    "empty headers": ("FRAME({})", "sent what is no result (a header that cannot be read)"),
    "a deep header": ("FRAME(b'[' * 60_000); time.sleep(60)", "sent what is no result (a header that cannot be read)"),
    "a huge array": ("FRAME({'number': 9, 'arrays': [['float64', [10**12]]]}); time.sleep(60)", "more bytes than may"),
    "answers to other questions": ("FRAME({'number': 2, 'arrays': [], 'result': None})", "returned None"),
    "no result": ("[FRAME({'number': n, 'arrays': []}) for n in range(99)]; time.sleep(60)", "sent what is no result"),
    "frames without end": ("while True: FRAME({'arrays': [], 'notice': 'imports minillm'})", "answer no question"),
    "closes everything": ("os.closerange(0, 100); time.sleep(60)", "closed the pipe to the judge"),
    "exits": ("os._exit(7)", "ended the process (exit status 7)"),
    "crashes": ("import ctypes; ctypes.string_at(0)", "ended the process (SIGSEGV)"),
    "becomes another program": ("os.execv('/bin/sleep', ['sleep', '1000'])", "closed the pipe to the judge"),
    "Ctrl-C": ("raise KeyboardInterrupt", "raised KeyboardInterrupt"),
    "allocates": ("return np.ones(1_500_000_000)", "raised MemoryError"),
    "a view of everything": ("return np.broadcast_to(np.ones(1), (10**12,))", "returned float64[1000000000000]"),
    "objects": ("return np.array([object()])", "returned object[1]"),
    "a lie": ("return type('A', (np.ndarray,), {'__eq__': lambda a, b: True, 'dtype': bool})((2,))", "float64[2]"),
    "a generator": ("yield 1", "a value of type generator"),
    "steers the terminal": ("raise ValueError('\\x1b[2J' * 10**5)", r"raised ValueError: \x1b[2J\x1b[2J"),
    "writes a large file": ("open('x', 'wb').write(b'1' * 10**8)", "raised OSError"),
    "deep folders": ("for _ in range(200): os.mkdir('d'); os.chdir('d')", "returned None"),
    "spoils NumPy": ("np.array_equal = np.asarray = np.isfinite = None; return 3", ""),
    "clears all objects": ("import gc; [o.clear() for o in gc.get_objects() if type(o) is dict]", ""),
    "raises its limits": ("import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "raised ValueError"),
    "prints without end": ("while True: print('x' * 10**6)", "did not finish within 2 s"),
    "stops": ("import signal; os.kill(os.getpid(), signal.SIGSTOP)", "did not finish within 2 s"),
    "half a frame": ("WRITE(b'\\0\\0'); time.sleep(60)", "did not finish within 2 s"),
    "half an array": ("FRAME({'number': 4, 'arrays': [['bool', [10**6]]]}, b'1'); time.sleep(60)", "not finish within"),
    "hangs, deaf": ("import signal\n    for s in range(1, 31): s in (9, 19) or signal.signal(s, signal.SIG_IGN)\n"
                    "    while True: pass", "did not finish within 2 s"),
}  # fmt: skip
# Of these a later function of the same process hears; each costs what it costs.
SPOILS_MORE = ("spoils NumPy", "clears all objects")


def attacking(attacks: dict[str, str]) -> str:
    """A file with a right form of every function, and {function: attack} in the place of some."""
    bodies = (f"\n\ndef {name}(*arguments):\n    {ATTACKS[attack][0]}\n" for name, attack in attacks.items())
    return BEFORE + PLAIN + "".join(bodies)


def left_over() -> list[str]:
    """Processes that run a student's file or sleep for one."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
            with open(f"/proc/{name}/stat", "rb") as file:
                parent = int(file.read().rpartition(b")")[2].split()[1])
        except OSError:
            continue
        if words[:2] == [b"sleep", b"1000"] or (b"minillm.course.child" in words and parent in (1, os.getpid())):
            found.append(b" ".join(words).decode())
    return found


QUICK = [name for name in ATTACKS if "did not finish" not in ATTACKS[name][1] and name not in SPOILS_MORE][:18]


@linux
@pytest.mark.parametrize("start", range(0, len(QUICK), 6))
def test_attacks_cost_their_own_points(tmp_path, start):
    names = QUICK[start : start + 6]
    attacks = dict(zip(list(FUNCTIONS)[:6], names, strict=False))
    report = grade_file(file_of(tmp_path, attacking(attacks)), seconds=8)
    for grade in report.grades:
        if grade.function not in attacks:
            assert grade.points == 10
        else:
            words = ATTACKS[attacks[grade.function]][1]
            assert grade.points == 0 and words in grade.problem, grade
            assert grade.problem.isprintable() and len(grade.problem) <= MESSAGE_LIMIT
    assert left_over() == [] and [p.name for p in tmp_path.iterdir()] == ["mine.py"]


@linux
@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
def test_each_attack_alone_leaves_the_other_functions_right_and_nothing_behind(tmp_path, monkeypatch, attack):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of all tests that this process has run
    report = grade_file(file_of(tmp_path, attacking({"lru": attack})), seconds=2)
    *others, lru = report.grades
    assert {grade.points for grade in others} == {10}
    assert lru.points <= 2 and ATTACKS[attack][1] in lru.problem and len(lru.problem) <= MESSAGE_LIMIT
    assert left_over() == [] and {p.name for p in tmp_path.iterdir()} == {"mine.py", "temporary"}
    assert list(temporary.iterdir()) == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kB


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import os; os.fork()", "importing it raised PermissionError"),
        ("import time; time.sleep(60)", "importing it did not finish within 1 s"),
        (BEFORE + "WRITE(b'\\xff' * 100)", "importing it sent what is no result"),
        (BEFORE + "[FRAME({'number': n, 'arrays': []}) for n in range(9)]", "an import without functions"),
        (BEFORE + "[FRAME({'number': n, 'arrays': [], 'error': 3}) for n in range(9)]", "in the place of a text"),
        (BEFORE + "[FRAME({'number': n, 'arrays': [], 'error': '\\x1b' * 9000}) for n in range(9)]", r"\x1b\x1b"),
        ("x = [0] * 10**10", "importing it raised MemoryError"),
    ],
)
def test_an_import_that_attacks_is_one_sentence(tmp_path, source, words):
    with pytest.raises(MinillmError) as caught:
        grade_file(file_of(tmp_path, source), seconds=1 if "sleep" in source else 8)
    assert words in str(caught.value) and str(caught.value).isprintable() and len(str(caught.value)) <= MESSAGE_LIMIT


def test_a_forged_import_gains_nothing(tmp_path):
    forged = "{'number': n, 'arrays': [], 'failed': {}, 'defined': ['lru', 'rope', 'os', 3]}"
    report = grade_file(file_of(tmp_path, BEFORE + f"[FRAME({forged}) for n in range(9)]\nos._exit(0)"), seconds=5)
    assert report.points == 0 and not report.all_right


@pytest.mark.parametrize(
    "header",
    [{}, {"result": 3}, {"result": {"array": 1}}, {"result": {"array": -1}}, {"result": {"array": True}},
     {"result": {"array": 0, "words": ""}}, {"result": {"tuple": 3}}, {"result": {"tuple": [{"tuple": []}]}},
     {"result": {"words": 3}}, {"result": None, "changed": 3}, {"problem": None}, {"result": {"object": 1}}],
)  # fmt: skip
def test_an_answer_of_another_form_is_refused(header):
    with pytest.raises(WireError):
        outcome_of({"changed": ""} | header, [np.ones(1)])


def test_an_answer_becomes_a_value_and_its_words_are_shown_escaped():
    outcome = outcome_of(
        {"result": {"list": [{"array": 0}, None, {"words": "\x1b" * 9000}]}, "changed": "\x07"}, [np.ones(1)]
    )
    array, none, words = outcome.result
    assert array.shape == (1,) and none is None and isinstance(words, Described) and outcome.changed == r"\x07"
    assert words.words.isprintable() and len(words.words) <= 500


def test_the_process_knows_neither_what_is_right_nor_where_anything_is_written(tmp_path):
    source = """
import gc, os, sys
import numpy as np

def lru(requests, capacity):
    arrays = [o for o in gc.get_objects() if isinstance(o, np.ndarray)]
    ours = [name for name in sys.modules if name.split(".")[0] == "minillm"]
    raise ValueError(f"{sys.argv[1:]} {ours} {os.listdir('.')} {len(arrays)}")
"""
    with Answers(file_of(tmp_path, source), 10, 1000, threading.Event()) as answers:
        outcome = answers.functions()["lru"]((np.arange(3), 2))
        assert outcome.problem.startswith("raised ValueError: [] [] [] 0 in line")
        with open(f"/proc/{answers.process.process.pid}/cmdline", "rb") as file:
            assert str(tmp_path).encode() not in file.read()


def test_a_stopped_grading_ends_its_process_at_once(tmp_path):
    stop = threading.Event()
    threading.Timer(1.0, stop.set).start()
    begun = time.perf_counter()
    grade = grade_file(file_of(tmp_path, PLAIN + "\n\ndef rms_norm(*a):\n    while True: pass\n"), 60, 1000, stop)
    assert time.perf_counter() - begun < 20 and grade.points == 0
    with pytest.raises(MinillmError, match="grading was stopped"):
        grade_file(file_of(tmp_path, PLAIN), stop=stop)


@pytest.mark.slow
@linux
def test_a_judge_that_is_killed_takes_its_process_with_it(tmp_path):
    path = file_of(tmp_path, "def rms_norm(*a):\n    while True: pass\n")
    code = f"from minillm.course.grade import grade_file; grade_file({str(path)!r}, 60)"
    parent = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(tmp_path)})
    children = f"/proc/{parent.pid}/task/{parent.pid}/children"
    deadline = time.monotonic() + 30
    while not (child := open(children).read().split()) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)
    parent.kill()
    parent.wait()
    while os.path.exists(f"/proc/{child[0]}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{child[0]}")


def test_a_process_that_does_not_start_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(judge, "START_SECONDS", 0.001)
    with pytest.raises(MinillmError, match="mine.py: the process that should run it did not start"):
        grade_file(file_of(tmp_path, PLAIN))


def test_little_memory_costs_what_needs_more(tmp_path):
    report = grade_file(file_of(tmp_path, PLAIN + "\n\ndef lru(*a):\n    return np.ones(10**8)\n"), memory=500)
    assert report.points == 60 and "raised MemoryError" in report.grades[-1].problem
