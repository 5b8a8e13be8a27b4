"""Switches of the test suite: where the shared folder is, and whether a skip counts as a failure."""

import os
from pathlib import Path

import pytest

# Before NumPy is loaded: the models here are too small for two threads to share, and a busy second core makes two
# threads wait for each other.
for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")


def pytest_addoption(parser):
    # With "--shared DIR" and no test path, pytest takes DIR for the root of the tests: the form with = is safe.
    where = "published models and texts (default: ../shared); write --shared=DIR"
    parser.addoption("--shared", default=None, metavar="DIR", help=where)
    parser.addoption("--no-skips", action="store_true", help="a skipped test is a failure (continuous integration)")
    parser.addoption("--notebook-runs", type=int, default=1, metavar="N", help="run each notebook N times in a row")


def pytest_generate_tests(metafunc):
    if "nth_run" in metafunc.fixturenames:
        metafunc.parametrize("nth_run", range(1, metafunc.config.getoption("--notebook-runs") + 1))


@pytest.fixture(scope="session")
def shared(request) -> Path:
    """The folder of published models and texts; tests that need it are skipped where it is absent."""
    given = request.config.getoption("--shared")
    folder = Path(given) if given else request.config.rootpath.parent / "shared"
    if not (folder / "models").is_dir():
        pytest.skip(f"no shared folder at {folder}")
    return folder


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.skipped and item.config.getoption("--no-skips") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped under --no-skips: {report.longrepr}"


@pytest.fixture
def cold_disk(tmp_path):
    """Skips where a file that is dropped from the system's cache stays in it: tmpfs keeps its pages."""
    from minillm.prefetch.system import cached_share

    control = tmp_path / "control"
    control.write_bytes(bytes(1 << 20))
    with open(control, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached_share(control) > 0:
        pytest.skip("this file system keeps its pages in memory")
