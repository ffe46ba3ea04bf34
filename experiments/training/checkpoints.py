"""Checkpoints of a run: its whole state and its metrics so far, written whole or not at all."""

from collections.abc import Sequence
import json
import logging
import math
import os
from pathlib import Path
import re
import shutil
import time
from typing import Any, NamedTuple
import warnings
import zlib

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

KEPT = 2
QUIET = 0.3  # seconds without a new half-written file, after which none comes
LONGEST = 5.0  # seconds to wait for that


class CheckpointError(Exception):
    """A checkpoint cannot be written or read; the message says which and what to do."""


class Restored(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      state: the whole state of the training.
      rows: the metrics of the epochs that were over.
      seconds: the time that they had taken.
      every: the number whose multiples are the steps of the checkpoints that stay.
    """

    state: Any
    rows: list[dict[str, Any]]
    seconds: float
    every: int | None


class Checkpoints:
    """The checkpoints of one run, by the number of steps taken; the last two are kept, or more.

    Orbax writes into a folder of another name and renames it at the end, so that a process that is
    killed meanwhile leaves nothing that could be read as a checkpoint.

    Attributes:
      of: the checksum of the run's config, which each checkpoint has to be of; None to take any.
    """

    def __init__(self, path: Path, *, read_only: bool = False):
        """Opens a folder, which is made with the first checkpoint.

        Args:
          path: of the folder.
          read_only: whether nothing is to be changed in it, as where a run still writes there.
        """
        self.path, self._read_only = path.absolute(), read_only
        self._kept = None
        self.of: int | None = None

    def keep(self, every: int) -> None:
        """Lets those stay, too, whose step is a multiple of a number."""
        self._kept = every

    def steps(self) -> list[int]:
        """The steps at which there is a checkpoint, in order.

        Raises:
          CheckpointError: the folder cannot be read.
        """
        if not self.path.is_dir():
            return []
        try:
            with self._manager() as manager:
                return sorted(manager.all_steps())
        except Exception as error:  # Orbax raises what it likes
            raise CheckpointError(
                f"cannot read the checkpoints under {self.path}: {_first(error)}."
            ) from error

    def save(self, step: int, state: Any, rows: Sequence[dict[str, Any]], seconds: float) -> None:
        """Writes a checkpoint, unless there is one of this step, and removes those not kept.

        Raises:
          CheckpointError: it cannot be written; those before it stay.
        """
        progress = {"rows": list(rows), "seconds": seconds, "of": self.of, "every": self._kept}
        try:
            with self._manager() as manager:
                if step in manager.all_steps():
                    return
                manager.save(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardSave(state),
                        progress=ocp.args.JsonSave(
                            {**progress, "digest": _digest(state, progress)}
                        ),
                    ),
                    force=True,
                )
        except BaseException as error:  # Orbax and what is below it raise what they like
            self._clear()
            if not isinstance(error, Exception):
                raise
            raise CheckpointError(
                f"cannot write the checkpoint of step {step} under {self.path}: {_first(error)}. "
                "What was saved before is kept: make room, and go on with --resume."
            ) from error

    def _clear(self):
        """Removes what is half written, and what Orbax's threads still write behind an error."""
        start = last = time.monotonic()
        while last - start < LONGEST and time.monotonic() - last < QUIET:
            for half in self.path.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(half, ignore_errors=True)
                last = time.monotonic()
            time.sleep(QUIET / 10)

    def forget_after(self, step: int) -> None:
        """Removes the checkpoints of later steps."""
        with self._manager() as manager:
            for later in manager.all_steps():
                if later > step:
                    manager.delete(later)

    def restore(self, step: int, like: Any) -> Restored:
        """Reads the checkpoint of a step into a state of the structure of another.

        Raises:
          CheckpointError: it cannot be read, or is one of another structure.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            with self._manager() as manager:
                held = manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(abstract),
                        progress=ocp.args.JsonRestore(),
                    ),
                )
            progress = {name: held.progress[name] for name in ("rows", "seconds", "of", "every")}
            if held.progress["digest"] != _digest(held.state, progress):
                raise ValueError("its numbers are not those that were saved")
            self._check_config(progress.pop("of"))
        except Exception as error:  # Orbax raises what it likes, Exception itself among it
            raise CheckpointError(
                f"cannot read the checkpoint of step {step} under {self.path}: {_first(error)}. "
                f"It is damaged or of other code: remove the folder {step} to go on from the one "
                "before, or start again with --overwrite."
            ) from error
        return Restored(held.state, **progress)

    def fingerprint(self, step: int) -> int:
        """A number that tells a checkpoint from others.

        Raises:
          CheckpointError: it cannot be read.
        """
        try:
            with self._manager() as manager:
                held = manager.restore(
                    step, args=ocp.args.Composite(progress=ocp.args.JsonRestore())
                )
            self._check_config(held.progress.get("of"))
            return zlib.crc32(json.dumps(held.progress["digest"]).encode())
        except Exception as error:  # Orbax raises what it likes, Exception itself among it
            raise CheckpointError(
                f"cannot read the checkpoint of step {step} under {self.path}: {_first(error)}. "
                "It is damaged or of other code: train again."
            ) from error

    def restore_part(self, step: int, like: dict[str, Any]) -> dict[str, Any]:
        """Reads some fields of a state, such as its parameters, onto the default device.

        Args:
          step: of the checkpoint.
          like: for each field a pytree of its structure, with shapes and dtypes.

        Raises:
          CheckpointError: it cannot be read, or these fields have another structure.
        """
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), like
        )
        arguments = ocp.checkpoint_utils.construct_restore_args(abstract)
        try:
            with self._manager() as manager:
                held = manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.PyTreeRestore(
                            abstract, restore_args=arguments, partial_restore=True
                        ),
                        progress=ocp.args.JsonRestore(),
                    ),
                )
            saved = held.progress["digest"]
            if any(words not in saved for words in _words_of(held.state)):
                raise ValueError("its numbers are not those that were saved")
        except Exception as error:  # Orbax raises what it likes, Exception itself among it
            raise CheckpointError(
                f"cannot read the checkpoint of step {step} under {self.path}: {_first(error)}. "
                "It is damaged or of other code: train again."
            ) from error
        return held.state

    def _check_config(self, of):
        if self.of is not None and of != self.of:
            raise ValueError("it is of a run with other options")

    def _manager(self):
        # An error is told by what raises it; the threads behind it would print it many times, and
        # Python what they have left undone.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        if self._read_only:
            options = ocp.CheckpointManagerOptions(read_only=True)
            return ocp.CheckpointManager(self.path, options=options)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT,
            keep_period=self._kept,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=True,
        )
        return ocp.CheckpointManager(self.path, options=options)


def _digest(state, progress):
    """A digest of every number of a state and of the metrics, so that damage is seen.

    It is the same however the arrays are divided over devices and processes.
    """
    return [*_words_of(state), zlib.crc32(json.dumps(progress).encode())]


def _words_of(state):
    return [[int(word) for word in words] for words in map(_words, jax.tree.leaves(state))]


@jax.jit
def _words(leaf):
    """Two sums, modulo 2³², of a hash of each number and its place; any one change changes both."""
    if leaf.dtype == jnp.bool:
        leaf = leaf.astype(jnp.uint8)
    width = min(8 * leaf.dtype.itemsize, 32)
    words = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{width}")).astype(jnp.uint32)
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis in range(words.ndim):
        iota = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        place += jnp.uint32(math.prod(words.shape[axis + 1 :]) % 2**32) * iota
    sums = []
    for factor in (0x9E3779B1, 0x85EBCA77):
        x = words + jnp.uint32(factor) * place
        # Each step can be undone, so that two different numbers never have the same hash.
        x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
        x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
        sums.append(jnp.sum(x ^ (x >> 16), dtype=jnp.uint32))
    return sums


def _first(error):
    """The beginning of what Orbax says, which may go on for many lines; or what the system said."""
    if found := re.search(r"os_error_code='(\d+)'|\[Errno (\d+)\]", str(error)):
        return os.strerror(int(found[1] or found[2]))
    return f"{str(error).strip().partition(chr(10))[0].rstrip('.:'):.200}"
