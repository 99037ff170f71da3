"""`make test-matrix`: the whole suite on each supported Python that this machine has, each with its own Megatron-Core."""

import subprocess

import nox


@nox.session(venv_backend="none")
@nox.parametrize("version", ["3.11", "3.12"])
def tests(session: nox.Session, version: str) -> None:
    """Run `make test` on one Python, in the environment that make keeps for it."""
    python = f"python{version}"
    found = subprocess.run(["bash", "scripts/find_python.sh", python], capture_output=True, text=True)
    if found.returncode:
        session.skip(f"{python} is absent: {found.stderr.strip()}")
    session.run("make", "test", f"PYTHON={python}", external=True)
