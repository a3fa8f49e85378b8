"""Load a model and its tokenizer, and check that the method's view of the model is right."""

from importlib.resources import files

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from ece.errors import ModelError
from ece.hooks import add_at
from ece.model import between, blocks, sites

CHECKPOINTS = files("ece") / "atlas" / "checkpoints"
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}  # nats; half precision: HALF
HALF = 0.3


def load(name: str, device: str | None = None, dtype: torch.dtype | None = None):
    """Load `(model, tokenizer)` in evaluation mode, without gradients, in float32 by default.

    `name` is an embedded model ("atlas-gpt2"), a hub name or a folder. Only safetensors are read
    and no code of the checkpoint runs. `device="auto"` spreads a big model over the devices there
    are. Raises `ModelError` for a model that cannot be had, is damaged, or is not served.
    """
    source, where = _source(name), {} if device != "auto" else {"device_map": "auto"}
    if device is not None and device != "auto":
        _check_device(device)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype or torch.float32, use_safetensors=True, trust_remote_code=False,
            output_loading_info=True, **where,
        )  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # transformers, the hub and safetensors raise many kinds
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"model '{name}' cannot be loaded ({why}); name an embedded model, a whole checkpoint "
            "folder, or a hub model within reach"
        ) from error
    if info["missing_keys"]:
        first = sorted(info["missing_keys"])[0]
        raise ModelError(f"model '{name}' lacks {len(info['missing_keys'])} tensors, {first} among "
                         "them; get the checkpoint again")  # fmt: skip
    if device is not None and device != "auto":
        model = model.to(device)
    check(model.eval().requires_grad_(False))
    return model, tokenizer


def _source(name: str) -> str:
    """The folder of an embedded model, or the name itself."""
    folder = CHECKPOINTS / name
    if name.startswith("atlas-") and not folder.is_dir():
        known = sorted(path.name for path in CHECKPOINTS.iterdir() if path.name.startswith("atlas"))
        raise ModelError(f"no embedded model '{name}'; known: {', '.join(known) or 'none'}")
    return str(folder) if name and folder.is_dir() else name


def _check_device(device: str) -> None:
    """Raise `ModelError` for a device that is not there or cannot hold float64."""
    try:
        torch.zeros(1, device=device, dtype=torch.float64).item()
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        why = str(error).splitlines()[0]
        raise ModelError(f"setting 'device' is {device!r} ({why}); name a device that holds "
                         "numbers in float64, as torch names it") from error  # fmt: skip


@torch.no_grad()
def check(model: nn.Module) -> None:
    """Check that a split run equals the whole run, and a value at a site one in the stream.

    Families with multipliers, norms behind the MLP or scaled logits would otherwise be edited
    wrongly without a word. Raises `ModelError`.
    """
    count, width = len(blocks(model)), model.config.hidden_size
    if count < 2:
        raise ModelError("the model has one block; a value needs a block above it")
    layer, device = (count - 2) // 2, model.get_input_embeddings().weight.device
    ids = torch.arange(2, 8, device=device)[None] % model.config.vocab_size
    places = torch.arange(ids.shape[1], device=device)[None]
    delta = torch.linspace(-1, 1, width, device=device)[None]
    try:
        with between(model, 0, layer) as base:
            states = base(ids, attention_mask=torch.ones_like(ids), use_cache=False)[0]
        # In proportion: states are some hundred long in one model and below 1 in another.
        delta = 0.1 * delta * states[0, -1].float().norm() / delta.norm()
        site = sites(model, (layer,))[0]
        whole = [_log_probs(model(ids, use_cache=False).logits)]
        with add_at(site, places[:, -1], delta):
            whole.append(_log_probs(model(ids, use_cache=False).logits))
        split = []
        for value in (torch.zeros_like(delta), delta):
            stream = states.float().clone()
            stream[:, -1] += value.to(stream.device)
            with between(model, layer + 1) as base:
                out = base(inputs_embeds=stream.to(states.dtype), position_ids=places,
                           attention_mask=torch.ones_like(ids), use_cache=False)[0]  # fmt: skip
            split.append(_log_probs(model.get_output_embeddings()(out)))
    except (TypeError, AttributeError, RuntimeError, ValueError, IndexError, KeyError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"model type '{model.config.model_type}' cannot be run in parts ({why}); "
                         "it is not served") from error  # fmt: skip
    most = TOLERANCE.get(model.dtype, HALF)
    for what, one, other in zip(("run", "value"), whole, split, strict=True):
        gap = float((one - other.to(one.device)).abs().max())
        if not gap <= most:
            raise ModelError(
                f"model type '{model.config.model_type}': a {what} in parts differs from the whole "
                f"one by {gap:.2g} nats, at most {most:g} is rounding; the family is not served"
            )


def _log_probs(logits):
    return logits[0].float().log_softmax(-1)
