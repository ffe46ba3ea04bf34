"""Files of weights, as arrays by name."""

import hashlib
import io
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import safetensors

# Of safetensors, whose own reader for NumPy has no BF16.
DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
}
WRAPPERS = ("model", "state_dict")  # under which training scripts put a state dict
HOW = "pass a .safetensors, .npz, .pth, .pt or .bin file"


class WeightsError(Exception):
    """Weights cannot be read or do not fit the model; the message says all that is wrong."""


def read(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """Arrays by name, of a file that is read once.

    Args:
      path: of a file of safetensors (.safetensors), NumPy (.npz) or PyTorch (.pth, .pt, .bin), the
        last a state dict or one under "model" or "state_dict". No file runs code of its own.

    Returns:
      The arrays, and the SHA-256 of the file in hexadecimal.

    Raises:
      WeightsError: there is no such file, or it is of another kind, damaged, or needs a package
        that is not installed.
    """
    readers = {
        ".safetensors": _safetensors,
        ".npz": _npz,
        ".pth": _torch,
        ".pt": _torch,
        ".bin": _torch,
    }
    path = Path(path)
    if path.suffix not in readers:
        raise WeightsError(f"{path} is no file of weights by its name: {HOW}.")
    data = _bytes(path)
    try:
        arrays = readers[path.suffix](data)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except Exception as error:  # on damaged bytes the packages raise errors of any class
        said = str(error).strip().split("\n")[0] or type(error).__name__
        raise WeightsError(
            f"{path} cannot be read as {path.suffix}: {said}. It may be cut off: fetch it anew."
        ) from error
    return arrays, hashlib.sha256(data).hexdigest()


def digest(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal.

    Raises:
      WeightsError: it cannot be read.
    """
    return hashlib.sha256(_bytes(path)).hexdigest()


def _bytes(path):
    try:
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be read: {error.strerror}. {HOW.capitalize()}."
        ) from error


def _safetensors(data):
    arrays = {}
    for name, told in safetensors.deserialize(data):
        if told["dtype"] not in DTYPES:
            raise WeightsError(
                f"{name} is {told['dtype']}: convert it to one of {', '.join(DTYPES)}."
            )
        values = np.frombuffer(told["data"], DTYPES[told["dtype"]])
        arrays[name] = values.reshape(told["shape"])
    return arrays


def _npz(data):
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)


def _torch(data):
    try:
        import torch
    except ImportError as error:
        raise WeightsError(
            "to read it takes PyTorch: install torch, or convert the file to .safetensors where "
            "it is installed."
        ) from error
    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    for wrapper in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and torch.is_tensor(v) for k, v in state.items()
    ):
        raise WeightsError(
            "it holds more than tensors by name: save the model's state_dict() alone."
        )
    # NumPy has no bfloat16.
    wide = {k: v.float() if v.dtype == torch.bfloat16 else v for k, v in state.items()}
    return {name: tensor.detach().numpy() for name, tensor in wide.items()}
