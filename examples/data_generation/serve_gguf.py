"""Serve a GGUF file on this machine by the OpenAI protocol, with llama.cpp from the package xllamacpp.

Prints one line with the URL when requests can come, and serves until Ctrl-C or SIGTERM. A prompt that does not fit is answered
with an error and never shortened. How tokens are drawn is up to the request, and what it does not name changes nothing: left to
itself, llama.cpp would leave out all but the 40 likeliest tokens, and those that are far behind the likeliest.
"""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path
from typing import Any

from megatron_longpo.utils.errors import UserError, run_command

STOPS = {signal.SIGINT, signal.SIGTERM}
ERRORS_ONLY = 1


def parameters(arguments: argparse.Namespace) -> Any:
    """Return llama.cpp's parameters."""
    import xllamacpp

    chosen = xllamacpp.CommonParams()
    chosen.model.path, chosen.model_alias = str(arguments.gguf), {arguments.gguf.stem}
    chosen.hostnames, chosen.port = ["127.0.0.1"], arguments.port
    chosen.n_parallel = arguments.parallel
    chosen.n_ctx = arguments.context_length * arguments.parallel  # of all slots together
    chosen.kv_unified = False
    chosen.fit_params = False  # take the sizes that were asked for, or fail
    chosen.ctx_shift = False
    chosen.rope_freq_base = arguments.rotary_base or 0.0
    chosen.cache_prompt = arguments.prompt_cache
    chosen.cache_ram_mib = 0  # else up to 8 GiB of earlier prompts, beside those in the slots
    chosen.cpuparams.n_threads = chosen.cpuparams_batch.n_threads = arguments.threads
    chosen.sampling.temp, chosen.sampling.top_p, chosen.sampling.min_p, chosen.sampling.top_k = 1.0, 1.0, 0.0, 0
    chosen.ui = False
    chosen.verbosity = ERRORS_ONLY
    return chosen


def check_context_length(url: str, wanted: int) -> None:
    """Ask the server how long a request may be: llama.cpp lowers what is beyond the model's own length without a word.

    Raises:
        UserError: it is less than was asked for.
    """
    import httpx2

    found = httpx2.get(f"{url}/models", trust_env=False).json()["data"][0]["meta"]["n_ctx"]
    if found < wanted:
        raise UserError(f"--context-length {wanted}: the model's file allows {found}; lower it")


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    threads = len(os.sched_getaffinity(0))
    parser.add_argument("--gguf", type=Path, required=True, help="file of the model")
    parser.add_argument("--port", type=int, required=True, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--context-length", type=int, default=4096, metavar="N", help="positions of a request (default: 4096)")
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="requests at a time (default: 1)")
    parser.add_argument("--threads", type=int, default=threads, metavar="N", help=f"default: {threads}, all cores")
    parser.add_argument("--rotary-base", type=float, metavar="X", help="RoPE base (default: the file's)")
    parser.add_argument(
        "--no-prompt-cache", dest="prompt_cache", action="store_false",
        help="read every prompt from its start, so that an answer depends on its request alone",
    )  # fmt: skip
    arguments = parser.parse_args()
    if min(arguments.context_length, arguments.parallel, arguments.threads) < 1 or not 0 <= arguments.port < 65536:
        raise UserError("--context-length, --parallel and --threads must be at least 1, and --port 0 to 65535")
    if not arguments.gguf.is_file():
        raise UserError(f"--gguf {arguments.gguf}: no such file; examples/quickstart/fetch_model.py downloads one")
    try:
        import xllamacpp
    except ImportError:
        raise UserError("the package xllamacpp is not installed; pip install xllamacpp") from None
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # in the server's threads too; taken below
    try:
        server = xllamacpp.Server(parameters(arguments))
    except Exception as error:  # whatever llama.cpp says
        raise UserError(f"{arguments.gguf}: could not be served ({error}); see its messages above") from None
    url = f"{server.listening_address}/v1"
    check_context_length(url, arguments.context_length)
    print(f"{arguments.gguf.name} at {url}", flush=True)
    signal.sigwait(STOPS)
    os._exit(0)  # there is nothing to save, and closing the server waits for the requests under way


if __name__ == "__main__":
    run_command(main)
