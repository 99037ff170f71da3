"""Conversion in one process stays within a small part of the weights' size, both ways."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.hf_models import make_hf_model

ROOT = Path(__file__).parents[3]
MEASURE = """
import sys
from pathlib import Path
from megatron_longpo.conversion.export_hf import mcore_to_hf
from megatron_longpo.conversion.import_hf import hf_to_mcore

def peak():
    # VmHWM is this program's own peak of resident memory, mapped file pages included; ru_maxrss would start from the parent's
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))

def warm_up(tiny, work):
    hf_to_mcore(tiny, work / "tiny-native")
    mcore_to_hf(work / "tiny-native", work / "tiny-back")

direction, tiny, source, work = sys.argv[1], *map(Path, sys.argv[2:])
warm_up(tiny, work)
before = peak()
if direction == "in":
    hf_to_mcore(source, work / "native")
else:
    mcore_to_hf(work / "native", work / "back")
print(1024 * (peak() - before))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_peak_memory_is_far_below_the_weights(tmp_path):
    tiny = make_hf_model(tmp_path / "tiny", "llama")
    shape = {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 4,
        "vocab_size": 4096,
        "num_attention_heads": 16,
    }
    source = make_hf_model(tmp_path / "hf", "llama", max_shard_size="100MB", **shape)
    weights = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    assert weights > 200e6
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for direction in ("in", "out"):
        (tmp_path / direction).mkdir()
        command = [sys.executable, "-c", MEASURE, direction, tiny, source, tmp_path / direction]
        if direction == "out":
            (tmp_path / "out" / "native").symlink_to(tmp_path / "in" / "native")
        extra = int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=240, env=environment).stdout)
        # seen in seven runs: 0.42 to 0.58 in, 0.24 to 0.27 out; all weights at once would be over 1
        assert extra < 0.8 * weights, f"{direction}: {extra / weights:.2f} of the weights"
