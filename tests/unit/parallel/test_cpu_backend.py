import subprocess
import sys

import pytest
import torch

INSTALL_FIRST = """
import torch
from megatron_longpo.parallel import cpu_backend
cpu_backend.install()
with torch.device("meta"):
    print([factory.device.type for factory in (torch.tensor([]), torch.zeros(1), torch.empty_like(torch.ones(1)))])
"""


@pytest.mark.slow
def test_a_device_context_works_as_before_even_if_its_first_use_comes_after_the_redirections() -> None:
    """In a fresh process: PyTorch lists the factories of such a context once."""
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", INSTALL_FIRST], capture_output=True, text=True, check=True)
    with torch.device("meta"):
        plain = [factory.device.type for factory in (torch.tensor([]), torch.zeros(1), torch.empty_like(torch.ones(1)))]
    assert found.stdout.strip() == str(plain) == str(["meta"] * 3)
