"""Lists the recipes; with names, says all about these: python -m experiments.recipes [NAME ...].

With --markdown it prints the tables of docs/benchmarks.md.
"""

import argparse
from collections.abc import Mapping, Sequence
import dataclasses
import difflib
import inspect
import sys

from rich.console import Console
from rich.table import Table

from experiments.recipes import RECIPES, Recipe, cost
from experiments.recipes.markdown import markdown
from experiments.system import interrupt, output

WIDTH = 100  # at least


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; an unknown name is an error on one line and exit 2."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.recipes",
        description="Lists the recipes; with names, says all about these.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a recipe")
    parser.add_argument("--markdown", action="store_true", help="the papers' recipes as tables")
    asked = parser.parse_args(arguments)
    if asked.markdown:
        print(markdown(), end="")
        return
    names = asked.names
    for name in names:
        if name not in RECIPES:
            near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.5)
            hint = (
                f"did you mean {' or '.join(near)}?" if near else "without a name all are listed."
            )
            print(f"error: unknown recipe {name!r}: {hint}", file=sys.stderr)
            sys.exit(2)
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH)
    if names:
        for name in names:
            describe(console, name, RECIPES[name])
    else:
        console.print(overview())
        console.print(
            "\nSGD, SAM, own: the paper's test accuracy in % of these and of the recipe's method.\n"
            "gradients: of one batch, in the whole run of the recipe's method.\n"
            "All about one: python -m experiments.recipes NAME"
        )


def overview() -> Table:
    """One line a recipe."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("recipe", no_wrap=True)
    table.add_column("model", no_wrap=True)
    for header in ("epochs", "batch", "SGD", "SAM", "own", "gradients"):
        table.add_column(header, justify="right", no_wrap=True)
    for name, recipe in RECIPES.items():
        own = None if recipe.method in ("sgd", "sam") else recipe.method
        table.add_row(
            name,
            recipe.model,
            str(recipe.epochs),
            str(recipe.batch_size),
            *(_figure(recipe, method) for method in ("sgd", "sam", own)),
            cost.said(recipe, recipe.method),
        )
    return table


def describe(console: Console, name: str, recipe: Recipe) -> None:
    """Prints a recipe's docstring, its protocol's, its fields and its methods."""
    console.rule(name, align="left", characters="─")
    kinds = [kind for kind in type(recipe).__mro__ if issubclass(kind, Recipe)]
    for kind in kinds[:-1]:  # the last is Recipe itself
        console.print(inspect.getdoc(kind), "", sep="\n", markup=False)
    fields = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    for field in dataclasses.fields(recipe):
        if field.name not in ("settings", "paper", "epochs_of"):
            fields.add_row(field.name, str(getattr(recipe, field.name)))
    console.print(fields, "")
    methods = Table(box=None, padding=(0, 2, 0, 0))
    methods.add_column("method", no_wrap=True)
    methods.add_column("paper", justify="right", no_wrap=True)
    methods.add_column("epochs", justify="right", no_wrap=True)
    methods.add_column("gradients", justify="right", no_wrap=True)
    methods.add_column("settings")
    for method in dict.fromkeys(["sgd", *recipe.settings, *recipe.paper, recipe.method]):
        settings = _arguments(recipe.settings.get(method, {}))
        epochs = str(recipe.of(method).epochs)
        methods.add_row(
            method, _figure(recipe, method), epochs, cost.said(recipe, method), settings
        )
    console.print(methods, "")


def _figure(recipe, method):
    return f"{recipe.paper[method]:.2f}" if method in recipe.paper else "-"


def _arguments(settings):
    """Keyword arguments as they read in a call."""
    return ", ".join(f"{name}={_value(value)}" for name, value in settings.items())


def _value(value):
    if not isinstance(value, Mapping):
        return str(value)
    rest = {name: item for name, item in value.items() if name != "schedule"}
    return f"{value['schedule']}({_arguments(rest)})"


def run() -> None:
    """Runs the command as the others are run, which import JAX."""
    with interrupt.heeded() as raising, output.guarded() as said:
        code = 0
        try:
            raising(True)
            main()
            raising(False)
        except KeyboardInterrupt as error:
            code = interrupt.status(error)
            output.tell("interrupted")
        code = said.told() or code
    sys.exit(code)


if __name__ == "__main__":
    run()
