"""The package as a user meets it: imports at once and quietly, and every command explains itself."""

import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

import megatron_longpo

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(
    path
    for path in (*ROOT.glob("*.py"), *ROOT.glob("tools/*.py"), *ROOT.glob("checkpoint_conversion/*.py"))
    if path.name not in ("setup.py", "noxfile.py")
)


def run_python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_importing_the_package_is_fast_and_warns_about_nothing():
    code = "import time; start = time.time(); import megatron_longpo, sys; print(time.time() - start, 'torch' in sys.modules)"
    done = run_python("-W", "error", "-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    seconds, has_torch = done.stdout.split()
    assert has_torch == "False"
    assert float(seconds) < 1


@pytest.mark.parametrize("command", COMMANDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_explains_itself_fast(command):
    start = time.monotonic()
    done = run_python("-X", "importtime", str(command), "--help")
    seconds = time.monotonic() - start
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("usage: ")
    assert len(done.stdout.splitlines()) > 3
    assert not any(line.endswith((" torch", " transformers")) for line in done.stderr.splitlines())
    assert seconds < 10


@pytest.mark.parametrize("command", COMMANDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_refuses_a_flag_that_it_does_not_know(command):
    done = run_python(str(command), "--no-such-flag")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_the_installed_version_is_the_package_s():
    assert metadata.version("megatron-longpo") == megatron_longpo.__version__


def test_every_requirement_of_the_base_install_is_installed():
    for requirement in metadata.requires("megatron-longpo"):
        if "extra ==" not in requirement and "python_version" not in requirement:
            metadata.version(requirement.split(">")[0].split("=")[0])


def test_nothing_requires_apex():
    """NVIDIA's Apex is a source install; the package of that name on the registry is another project."""
    assert not [requirement for requirement in metadata.requires("megatron-longpo") if requirement.lower().startswith("apex")]
