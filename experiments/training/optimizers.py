"""A method, found by its name, and the base optimizer behind it."""

from collections.abc import Callable, Mapping
import inspect
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from experiments.recipes.base import Recipe
import sam_optax

SGD = "sgd"


class Optimizer(NamedTuple):
    """A method and the rest of its chain, apart so that the method can decide on the host."""

    method: optax.GradientTransformationExtraArgs
    base: optax.GradientTransformation
    learning_rate: optax.Schedule


def optimizer(
    recipe: Recipe,
    method: str,
    settings: Mapping[str, Any],
    *,
    epochs: int,
    steps_per_epoch: int,
    first_epoch: int = 0,
    key: Any = 0,
    axis_name: str | None = None,
) -> Optimizer:
    """The recipe's base optimizer behind a method of `sam_optax`.

    What a method asks for by the names of its arguments it gets: `total_steps`, `key`, the
    `base` of a decoupled one, first gradients at the gradient point, and `axis_name`; one that
    learns a posterior the examples of an epoch as `ess`, and the recipe's `weight_decay`.

    Args:
      recipe: what to train.
      method: "sgd", for the base alone, or the name of a method.
      settings: its keyword arguments; a mapping with a key "schedule" stands for that function of
        `sam_optax.schedules`, called with the rest of the mapping and, where it asks for them, with
        the run's `steps_per_epoch`, `total` (its epochs) and `learning_rate`. In the mapping "80%"
        is a share of the run's epochs. The schedule follows the run, also behind a switch.
      epochs: the method's own length, for `total_steps`; the learning rate has the recipe's.
      steps_per_epoch: steps of an epoch.
      first_epoch: the epoch in which the method begins.
      key: of the method's random numbers, an int or a `jax.random.key`.
      axis_name: the mapped axis of devices that perturb each for itself, over which the directions
        are averaged; None for none.

    Raises:
      ValueError, TypeError: the method does not take these settings.
    """
    rate = learning_rate(recipe, steps_per_epoch)
    base, descent = direction(recipe), optax.scale_by_learning_rate(rate)
    mean = optax.identity() if axis_name is None else sam_optax.average(axis_name)
    if method == SGD:
        link = optax.with_extra_args_support(optax.identity())
        return Optimizer(link, optax.chain(mean, base, descent), rate)
    function = getattr(sam_optax, method)
    offered = {
        "base": base,
        "key": key,
        "total_steps": epochs * steps_per_epoch,
        "updates_at": "gradient_point",
        "axis_name": axis_name,
        "ess": float(steps_per_epoch * recipe.batch_size),
        "weight_decay": recipe.weight_decay,
    }
    run = {"steps_per_epoch": steps_per_epoch, "total": recipe.epochs, "learning_rate": rate}
    first_step = first_epoch * steps_per_epoch
    settings = {name: _resolve(value, run, first_step) for name, value in settings.items()}
    link = function(**_asked(function, offered) | settings)
    behind = (descent,) if is_decoupled(method) else (base, descent)
    return Optimizer(link, optax.chain(mean, *behind), rate)


def is_decoupled(method: str) -> bool:
    """Whether a method holds the base optimizer inside, or a momentum and a decay of its own."""
    return learns_posterior(method) or "base" in _parameters(method)


def learns_posterior(method: str) -> bool:
    """Whether a method keeps a posterior that can be drawn from."""
    return "ess" in _parameters(method)


def _parameters(method):
    return inspect.signature(getattr(sam_optax, method)).parameters if method != SGD else ()


def _resolve(value, run, first_step):
    """The schedule that a mapping stands for, or the value itself."""
    if not isinstance(value, Mapping):
        return value
    given = dict(value)
    name = given.pop("schedule", None)
    names = [n for n, _ in inspect.getmembers(sam_optax.schedules, inspect.isfunction)]
    if name not in names or name.startswith("_"):
        raise ValueError(
            f"a schedule must be a function of sam_optax.schedules by its name, got {name!r}."
        )
    for key, item in given.items():
        if isinstance(item, str) and item.endswith("%"):
            given[key] = round(run["total"] * float(item[:-1]) / 100)
    function = getattr(sam_optax.schedules, name)
    schedule = function(**_asked(function, run) | given)
    return lambda step: schedule(step + first_step)


def _asked(function: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the offered arguments that the function takes."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in offered.items() if name in parameters}


def direction(recipe: Recipe) -> optax.GradientTransformation:
    """The recipe's base optimizer without the learning rate: clipping, weight decay, the base."""
    momentum = optax.trace(recipe.momentum) if recipe.momentum else optax.identity()
    bases = {
        "sgd": momentum,
        "rmsprop": optax.chain(optax.scale_by_rms(decay=0.99), momentum),
        "adamw": optax.scale_by_adam(),
    }
    if recipe.optimizer not in bases:
        raise ValueError(f"optimizer must be one of {', '.join(bases)}, got {recipe.optimizer!r}.")
    links = [bases[recipe.optimizer]]
    if recipe.weight_decay:
        decay = optax.add_decayed_weights(recipe.weight_decay)
        decoupled = recipe.decoupled or recipe.optimizer == "adamw"
        links.insert(len(links) if decoupled else 0, decay)
    if recipe.clip_norm is not None:
        links.insert(0, optax.clip_by_global_norm(recipe.clip_norm))
    return optax.chain(*links)


def learning_rate(recipe: Recipe, steps_per_epoch: int) -> optax.Schedule:
    """The recipe's learning rate at each step.

    Raises:
      ValueError: there is no such schedule, or the warm-up takes the whole run.
    """
    peak, total = recipe.learning_rate, recipe.epochs * steps_per_epoch
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    if not 0 <= warmup < total:
        raise ValueError(
            f"warmup_epochs must lie in [0, {recipe.epochs}), the epochs of the run, got "
            f"{recipe.warmup_epochs:g}: pass a shorter warm-up."
        )
    cosine = optax.cosine_decay_schedule(peak, total - warmup)
    schedules = {
        "cosine": cosine,
        "cosine_epoch": lambda step: cosine(_epoch_start(step, warmup, steps_per_epoch)),
        "linear": optax.linear_schedule(peak, 0.0, total - warmup),
        "constant": optax.constant_schedule(peak),
    }
    if recipe.schedule not in schedules:
        raise ValueError(
            f"schedule must be one of {', '.join(schedules)}, got {recipe.schedule!r}."
        )
    schedule = schedules[recipe.schedule]
    if not warmup:
        return schedule
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), schedule], [warmup])


def _epoch_start(step, warmup, steps_per_epoch):
    """The first step of the epoch of a step, both counted from the end of the warm-up."""
    begun = (step + warmup) // steps_per_epoch * steps_per_epoch
    return jnp.maximum(begun - warmup, 0)
