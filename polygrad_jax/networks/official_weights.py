"""Convert weights of the official PyTorch code (marc-rigter/polygrad-world-models) to parameters of our networks.

The official names and layouts appear in this file only. Linear weights are ``[out, in]`` there, ``[in, out]`` here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from polygrad_jax.types import Params

# our module -> official module, with {i} the number of a block
_MLP_LINEAR = {
    "embedding": "proj",
    "step_embedding/hidden": "time_mlp.1",
    "step_embedding/output": "time_mlp.3",
    "input": "residual_mlp.network.0",
    "output": "residual_mlp.final_linear",
}
_TRANSFORMER_LINEAR = {
    "embedding": "transformer.wte",
    "step_embedding/hidden": "time_mlp.1",
    "step_embedding/output": "time_mlp.3",
    "output": "output_head",
}
_TRANSFORMER_BLOCK_LINEAR = {
    "qkv": "attn.c_attn",
    "attention_output": "attn.c_proj",
    "mlp_hidden": "mlp.c_fc",
    "mlp_output": "mlp.c_proj",
}
_TRANSFORMER_BLOCK_NORM = {"attention_norm": "ln_1", "mlp_norm": "ln_2"}


class _Reader:
    """Take arrays by their official names; check their shapes and that none is left over."""

    def __init__(self, arrays: Mapping[str, Any]):
        self.left = {name: np.asarray(array) for name, array in arrays.items()}

    def take(self, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
        if name not in self.left:
            raise ValueError(f"official weights: {name} is missing")
        array = self.left.pop(name)
        fits = len(array.shape) == len(shape) and all(n in (None, m) for m, n in zip(array.shape, shape, strict=True))
        if not fits:
            raise ValueError(f"official weights: {name} has shape {array.shape}, expected {shape} (None: any)")
        return array

    def linear(self, name: str, fan_in: int | None = None, fan_out: int | None = None) -> Params:
        weight = self.take(f"{name}.weight", (fan_out, fan_in))
        bias = self.take(f"{name}.bias", (weight.shape[0],))
        return {"kernel": jnp.asarray(weight.T, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}

    def norm(self, name: str, features: int) -> Params:
        scale, bias = self.take(f"{name}.weight", (features,)), self.take(f"{name}.bias", (features,))
        return {"scale": jnp.asarray(scale, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}

    def vector(self, name: str, shape: tuple[int | None, ...]) -> Any:
        return jnp.asarray(self.take(name, shape), jnp.float32)

    def finish(self) -> None:
        if self.left:
            raise ValueError(f"official weights: unknown names {', '.join(sorted(self.left))}")


def denoiser_params(arrays: Mapping[str, Any], kind: str) -> Params:
    """Return the parameters of our ``kind`` ("mlp" or "transformer") denoiser from arrays under their official names.

    Raises:
      ValueError: a name is missing or unknown, or a shape does not fit its neighbours.
    """
    if kind == "mlp":
        return _residual_mlp_params(_Reader(arrays))
    if kind == "transformer":
        return _transformer_params(_Reader(arrays))
    raise ValueError(f"kind = {kind!r}: must be 'mlp' or 'transformer'")


def actor_params(arrays: Mapping[str, Any]) -> Params:
    """Return the parameters of our actor from ``actor.model.*`` and ``logstd._bias``; ignore other networks."""
    reader = _Reader(_of_networks(arrays, ("actor.", "logstd.")))
    network = _actor_critic_network(reader, "actor")
    log_std = reader.vector("logstd._bias", network["output"]["bias"].shape)
    reader.finish()
    return {"network": network, "log_std": log_std}


def critic_params(arrays: Mapping[str, Any], prefix: str = "critic") -> Params:
    """Return the parameters of our critic from ``{prefix}.model.*`` ("critic" or "critic_target"); ignore others."""
    reader = _Reader(_of_networks(arrays, (f"{prefix}.",)))
    network = _actor_critic_network(reader, prefix, fan_out=1)
    reader.finish()
    return {"network": network}


def load_pt(path: str | Path) -> dict[str, Any]:
    """Load an official checkpoint, tensors as NumPy arrays; needs PyTorch (``polygrad_jax[torch]``).

    Only tensors and plain containers are unpickled (``weights_only=True``).
    """
    try:
        import torch
    except ImportError:
        raise ImportError(f"reading {path} needs PyTorch: pip install 'polygrad_jax[torch]'") from None

    def to_numpy(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.detach().cpu().numpy()
        if isinstance(value, Mapping):
            return {name: to_numpy(entry) for name, entry in value.items()}
        return value

    return to_numpy(torch.load(path, map_location="cpu", weights_only=True))


def _residual_mlp_params(reader: _Reader) -> Params:
    # In the official Sequential every block is followed by a (dropout) identity: blocks 1, 3, 5, ...; then the norm.
    numbers = _block_numbers(reader.left, r"residual_mlp\.network\.(\d+)\.linear\.weight")
    if numbers != list(range(1, 2 * len(numbers), 2)):
        raise ValueError(f"official weights: residual blocks are numbered {numbers}, expected 1, 3, 5, ...")
    params = _linears(reader, _MLP_LINEAR)
    frequencies = reader.vector("time_mlp.0.weights", (None,))
    params["step_embedding"]["frequencies"] = frequencies
    width = params["input"]["bias"].shape[0]
    for i, number in enumerate(numbers):
        params[f"block_{i}"] = reader.linear(f"residual_mlp.network.{number}.linear", width, width)
        params[f"norm_{i}"] = reader.norm(f"residual_mlp.network.{number}.ln", width)
    params["output_norm"] = reader.norm(f"residual_mlp.network.{2 * len(numbers) + 1}", width)
    embed_dim = params["embedding"]["bias"].shape[0]
    _expect(params["input"], "residual_mlp.network.0.weight", (embed_dim, width))
    _expect(params["output"], "residual_mlp.final_linear.weight", (width, None))
    _expect(params["step_embedding"]["hidden"], "time_mlp.1.weight", (2 * frequencies.shape[0] + 1, embed_dim))
    _expect(params["step_embedding"]["output"], "time_mlp.3.weight", (embed_dim, embed_dim))
    reader.finish()
    return params


def _transformer_params(reader: _Reader) -> Params:
    numbers = _block_numbers(reader.left, r"transformer\.h\.(\d+)\.attn\.c_attn\.weight")
    if numbers != list(range(len(numbers))):
        raise ValueError(f"official weights: transformer blocks are numbered {numbers}, expected 0, 1, 2, ...")
    params = _linears(reader, _TRANSFORMER_LINEAR)
    e = params["embedding"]["bias"].shape[0]
    params["positions"] = reader.vector("transformer.wpe.weight", (None, e))
    sizes = {"qkv": (e, 3 * e), "attention_output": (e, e), "mlp_hidden": (e, 4 * e), "mlp_output": (4 * e, e)}
    for i in numbers:
        block = {our: reader.norm(f"transformer.h.{i}.{its}", e) for our, its in _TRANSFORMER_BLOCK_NORM.items()}
        for our, its in _TRANSFORMER_BLOCK_LINEAR.items():
            block[our] = reader.linear(f"transformer.h.{i}.{its}", *sizes[our])
        params[f"block_{i}"] = block
    _expect(params["output"], "output_head.weight", (e, None))
    _expect(params["step_embedding"]["hidden"], "time_mlp.1.weight", (e, e))
    _expect(params["step_embedding"]["output"], "time_mlp.3.weight", (e, e))
    reader.finish()
    return params


def _actor_critic_network(reader: _Reader, prefix: str, fan_out: int | None = None) -> Params:
    hidden_0 = reader.linear(f"{prefix}.model.0")
    size = hidden_0["bias"].shape[0]
    return {
        "hidden_0": hidden_0,
        "norm_0": reader.norm(f"{prefix}.model.1", size),
        "hidden_1": reader.linear(f"{prefix}.model.3", size, size),
        "norm_1": reader.norm(f"{prefix}.model.4", size),
        "output": reader.linear(f"{prefix}.model.6", size, fan_out),
    }


def _linears(reader: _Reader, names: Mapping[str, str]) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for our, its in names.items():
        *folders, leaf = our.split("/")
        place = params
        for folder in folders:
            place = place.setdefault(folder, {})
        place[leaf] = reader.linear(its)
    return params


def _expect(linear: Params, name: str, shape: tuple[int | None, int | None]) -> None:
    actual = linear["kernel"].shape
    if any(n not in (None, m) for m, n in zip(actual, shape, strict=True)):
        raise ValueError(f"official weights: {name} has shape {actual[::-1]}, expected {shape[::-1]} (None: any)")


def _block_numbers(names: Iterable[str], pattern: str) -> list[int]:
    return sorted(int(match[1]) for match in (re.fullmatch(pattern, name) for name in names) if match)


def _of_networks(arrays: Mapping[str, Any], prefixes: tuple[str, ...]) -> dict[str, Any]:
    known = ("actor.", "logstd.", "critic.", "critic_target.")
    unknown = sorted(name for name in arrays if not name.startswith(known))
    if unknown:
        raise ValueError(f"official weights: unknown names {', '.join(unknown)}")
    return {name: array for name, array in arrays.items() if name.startswith(prefixes)}
