"""Memory does not grow with the corpus but for some bytes a document, a line of gigabytes is not held, a run may be killed."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.make_data import make_record, make_records, make_tokenizer

ROOT = Path(__file__).parents[3]
SCRIPT = """
import resource, sys
from megatron_longpo.data import jsonl, text_source
from megatron_longpo.data.preprocess import PreprocessOptions, preprocess
from megatron_longpo.data.tokenizer import TokenizerSpec

text_source.UNIT_BYTES = {unit_bytes}
jsonl.MAX_LINE_BYTES = {longest}
options = dict(tokenizer=TokenizerSpec(sys.argv[1]), seq_length=10**6, on_bad_record="skip")
preprocess(PreprocessOptions(inputs=(sys.argv[2],), output_prefix=sys.argv[2] + ".warm", **options))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
manifest, _ = preprocess(PreprocessOptions(inputs=(sys.argv[3],), output_prefix=sys.argv[3] + ".out", **options))
print(manifest.num_records, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
"""Preprocess two files in one process; how much higher is the peak of resident memory after the second?"""


@pytest.fixture(scope="module")
def growth(tmp_path_factory):
    tokenizer = make_tokenizer(tmp_path_factory.mktemp("tokenizer"))

    def measure(first, second, unit_bytes, longest=10**9):
        script = SCRIPT.format(unit_bytes=unit_bytes, longest=longest)
        result = subprocess.run(
            [sys.executable, "-c", script, tokenizer, first, second], capture_output=True, text=True, check=True, cwd=ROOT
        )
        return tuple(map(int, result.stdout.split()))

    return measure


pytestmark = pytest.mark.slow


def test_eight_times_the_corpus_takes_the_same_memory(growth, tmp_path):
    small = make_records(tmp_path / "small.jsonl", 60, 2, num_words=4000)
    large = make_records(tmp_path / "large.jsonl", 480, 2, num_words=4000)
    added = large.stat().st_size - small.stat().st_size
    records, grown = growth(small, large, unit_bytes=100_000)
    assert records == 480
    assert added > 14_000_000
    assert grown < 0.2 * added


def test_a_document_costs_some_bytes(growth, tmp_path):
    paths = {}
    for count in (5000, 45_000):
        paths[count] = tmp_path / f"{count}.jsonl"
        with paths[count].open("w") as stream:
            for number in range(count):
                record = json.loads(make_record(random.Random(number), f"d{number}", 1, 4).to_json())
                record["turns"][0]["chosen"] = "yes" if number < 10 else " "  # all but ten are dropped, which is quick
                stream.write(json.dumps(record) + "\n")
    records, grown = growth(paths[5000], paths[45_000], unit_bytes=200_000)
    assert records == 45_000
    assert grown / 40_000 < 250


def test_a_line_of_gigabytes_is_not_held(growth, tmp_path):
    small = make_records(tmp_path / "small.jsonl", 20, 1)
    large = tmp_path / "large.jsonl"
    with large.open("wb") as stream:
        stream.truncate(3 << 30)  # a file with a hole: three gigabytes of zeros
        stream.seek(0, 2)
        stream.write(b"\n" + small.read_bytes())
    records, grown = growth(small, large, unit_bytes=10**6, longest=10 << 20)
    assert records == 20
    assert grown < 60 << 20
    listed = json.loads(Path(f"{large}.out.bad.jsonl").read_text())
    assert listed == {"file": str(large), "line": 1, "reason": "the line is longer than 10 MiB; write one record a line"}


KILLED = """
import sys
from megatron_longpo.data import text_source
from megatron_longpo.data.preprocess import PreprocessOptions, preprocess_all
from megatron_longpo.data.tokenizer import TokenizerSpec

if __name__ == "__main__":
    text_source.UNIT_BYTES = 50_000
    tokenizer, path, prefix = sys.argv[1:]
    preprocess_all(PreprocessOptions(
        inputs=(path,), output_prefix=prefix, tokenizer=TokenizerSpec(tokenizer), seq_length=10**6, workers=2, split="3,1"
    ))
"""


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_files(tmp_path):
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    path = make_records(tmp_path / "records.jsonl", 150, 2, num_words=4000)
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    files = [f"{name}.{suffix}" for name in ("train", "validation") for suffix in ("bin", "idx", "json")]

    def start(prefix):
        command = [sys.executable, script, tokenizer, path, tmp_path / prefix]
        return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})

    def finished_parts():
        return {part.name for part in (tmp_path / "killed.partial").glob("part-*.npz")}

    assert start("straight").wait() == 0
    rng, parts = random.Random(1), set()
    for kill in range(6):
        with start("killed") as process:
            if kill == 0:  # while it imports or checks; the others once it has gone on
                time.sleep(rng.uniform(0, 2))
            while kill and len(finished_parts()) <= len(parts) and process.poll() is None:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.05))
            assert process.poll() is None, "the run is over before it is killed: give it more to do"
            process.kill()
        assert parts <= finished_parts(), "a finished part was lost"
        assert not Path(f"{tmp_path}/killed-train.json").exists()
        parts = finished_parts()
    assert len(parts) >= 5
    with start("killed") as process:
        assert process.wait() == 0
    for name in files:
        assert (tmp_path / f"killed-{name}").read_bytes() == (tmp_path / f"straight-{name}").read_bytes()
    assert not [file for file in tmp_path.glob("killed*") if file.name not in {f"killed-{name}" for name in files}]
