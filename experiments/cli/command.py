"""How a command begins and ends: its options, its signals, its output, and its exit status.

0 is done; 2 is a mistake of the user's, or what a message tells, in one line on standard error; 1
the end of another process that trained along; 128 + the number of a signal an interruption.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import inspect
import os
import sys
import typing
from typing import Any

import jax
import tyro

from experiments.cli import limits
from experiments.data import disk
from experiments.data.pipeline import batches
from experiments.models.pretrained import WeightsError
from experiments.results import numerics
from experiments.system import compiler, interrupt, output, processes, words
from experiments.system.errors import UserError

# Options that make a command need less memory.
_SMALLER = ("batch_size", "width", "examples", "train_examples", "most", "samples")


def run(main: Callable[[Any], None], options: type) -> None:
    """Runs a command, and leaves with its exit status.

    Args:
      main: does it.
      options: a dataclass, which `tyro` reads from the command line.
    """
    with interrupt.heeded() as raising, output.guarded() as said:
        description = inspect.getdoc(sys.modules[main.__module__]) or ""

        def command():
            raising(True)
            asked = tyro.cli(options, prog=_called(main), description=description)
            limits.check(asked)
            if getattr(asked, "deterministic", False):  # of commands that train
                compiler.make_deterministic()
            numerics.pin()
            with processes.together():
                main(limits.expanded(asked))
            raising(False)

        code, at_once = _status(command, options)
        code = said.told() or code
        if at_once:
            _leave(code)
    if code:
        sys.exit(code)


def _called(main):
    """The command as it is started."""
    spec = getattr(sys.modules[main.__module__], "__spec__", None)
    name = spec.name if spec else main.__module__
    return f"python -m {name.removesuffix('.__main__')}"


def _status(command, options):
    """The exit status, its reason told, and whether to leave at once."""
    try:
        command()
    except processes.LostProcessError as error:
        output.tell(
            f"error: the processes cannot go on together, as where one is gone ({error}): start "
            "all of them again with --resume."
        )
        return 1, True
    except (UserError, disk.CorruptedError, WeightsError, batches.LostWorkerError) as error:
        option = "--weights: " if isinstance(error, WeightsError) else ""
        output.tell(f"error: {option}{error}")
        # The shutdown would wait for the others, who wait for this process.
        return 2, jax.distributed.is_initialized()
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        smaller = [f"--{name.replace('_', '-')}" for name in _SMALLER if _has(options, name)]
        advice = f": pass a smaller {' or '.join(smaller)}" if smaller else ""
        output.tell(f"error: out of memory ({str(error).partition(chr(10))[0]:.200}){advice}.")
        return 2, False
    except interrupt.InterruptedRunError as error:
        output.tell(f"interrupted: {error}")
        return 128 + error.signal, True
    except KeyboardInterrupt as error:
        output.tell("interrupted; what was written before is kept")
        return interrupt.status(error), True
    except (FloatingPointError, RuntimeError) as error:
        told = isinstance(error, FloatingPointError) or "Unable to initialize backend" in str(error)
        if not told:
            raise
        output.tell(f"error: {words.said(error)}")  # JAX_DEBUG_NANS or JAX_PLATFORMS asks for it
        return 2, False
    except OSError as error:
        output.tell(f"error: {f'{error.filename}: ' if error.filename else ''}{words.said(error)}.")
        return 2, False
    return 0, False


def _has(options, name):
    """Whether a command has an option, maybe among those that it shares with others."""
    return any(
        one == name or (dataclasses.is_dataclass(kind) and _has(kind, name))
        for one, kind in typing.get_type_hints(options).items()
    )


def _leave(code):
    """Ends the process at once: the shutdown can crash while a computation still runs.

    Streams end before, as Python would warn of what their workers leave.
    """
    with contextlib.suppress(KeyboardInterrupt):
        batches.close_all()
    for file in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            file.flush()
    os._exit(code)
