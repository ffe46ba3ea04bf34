"""The data of a recipe, whichever way its set is read."""

import dataclasses
from pathlib import Path

from experiments.data import augment, disk, sets, streams
from experiments.data.normalization import NORMALIZATIONS
from experiments.recipes.base import Recipe
from experiments.system.errors import UserError


def load(
    recipe: Recipe,
    seed: int,
    data_dir: Path,
    *,
    workers: int | None = None,
    skip_corrupt: bool = False,
) -> sets.Data:
    """A recipe's data, its noise and its held-out part drawn from the seed.

    Args:
      recipe: what to load.
      seed: in [0, 2³²).
      data_dir: the TFDS directory.
      workers: processes that decode a streamed set; 0 for threads of this one, None for a process
        for each core.
      skip_corrupt: whether its images that cannot be decoded are left out.

    Raises:
      UserError: the set is not there, or the recipe's part of it cannot be made.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"a seed must lie in [0, 2**32), got {seed}.")
    try:
        data_dir = disk.directory(data_dir)
        if streams.is_streamed(recipe.dataset, data_dir, recipe.domain):
            return streams.load(
                recipe, data_dir=data_dir, seed=seed, workers=workers, skip_corrupt=skip_corrupt
            )
        _check_in_memory(recipe)
        loaded = sets.load(
            recipe.dataset,
            data_dir=data_dir,
            seed=seed,
            label_noise=recipe.label_noise,
            noise=recipe.noise,
            validation=recipe.validation,
            imbalance=recipe.imbalance,
            train_examples=recipe.train_examples,
        )
    except ValueError as error:
        raise UserError(with_options(str(error), recipe.domain)) from error
    except disk.NotPreparedError as error:
        # Of a set of TFDS the command that prepares it is told, with the directory.
        option = "" if recipe.domain is None else f"--data-dir {data_dir}: "
        raise UserError(f"{option}{error}") from error
    except OSError as error:
        raise UserError(f"--data-dir {data_dir} cannot be used: {error}.") from error
    if recipe.normalization == "data":
        return loaded
    mean, std = NORMALIZATIONS[recipe.normalization].of(loaded.train.shape[-1])
    return loaded._replace(mean=mean, std=std)


def _check_in_memory(recipe):
    """Raises where a recipe asks for what the workers of a streamed set do."""
    if asked := [name for name in recipe.augmentation if name in streams.AUGMENTATIONS]:
        raise UserError(
            f"--augmentation {' '.join(asked)} is for streamed sets, and {recipe.dataset} lies in "
            f"memory: pass any of {', '.join(augment.NAMES)}."
        )


def with_options(message: str, domain: str | None) -> str:
    """A message about an argument such as train_examples, as one about its option.

    Another, about image folders, is one about the domain of theirs that was asked for.
    """
    name, space, rest = message.partition(" ")
    if name in [field.name for field in dataclasses.fields(Recipe)]:
        return f"--{name.replace('_', '-')}{space}{rest}"
    return message if domain is None else f"--domain {domain}: {message}"
