"""The recipes of the papers as Markdown tables: what to run, what to expect, what it takes."""

from collections.abc import Mapping

from experiments.recipes import ae_sam, cost, le_sam, le_sam_transfer, r_sam, samar, wsam
from experiments.recipes.base import Recipe

PAPERS: Mapping[str, Mapping[str, Recipe]] = {
    "SAMAR": samar.RECIPES,
    "LE-SAM": le_sam.RECIPES | le_sam_transfer.RECIPES,
    "AE-SAM": ae_sam.RECIPES,
    "R-SAM": r_sam.RECIPES,
    "WSAM": wsam.RECIPES,
}
HEAD = (
    "| recipe | data | test accuracy in the paper, % | epochs | gradients | hours |",
    "|---|---|---|--:|--:|--:|",
)


def markdown() -> str:
    """A table for each paper, under a heading of the third level."""
    parts = []
    for paper, recipes in PAPERS.items():
        rows = [_row(name, recipe) for name, recipe in recipes.items()]
        parts.append("\n".join([f"### {paper}", "", *HEAD, *rows]))
    return "\n\n".join(parts) + "\n"


def _row(name, recipe):
    figures = ", ".join(f"{method} {figure:.2f}" for method, figure in recipe.paper.items())
    hours = cost.hours(recipe, recipe.method)
    cells = (
        f"`{name}`",
        _data(recipe),
        figures or "not recorded",
        str(recipe.of(recipe.method).epochs),
        cost.said(recipe, recipe.method),
        "" if hours is None else f"{hours:.2g}" if hours < 10 else f"{hours:,.0f}",
    )
    return f"| {' | '.join(cells)} |"


def _data(recipe):
    """The set, and what is done to it."""
    parts = [recipe.dataset if recipe.domain is None else f"{recipe.dataset}, {recipe.domain}"]
    if recipe.label_noise:
        parts.append(f"{recipe.label_noise:.0%} noise ({recipe.noise})")
    if recipe.imbalance:
        parts.append(f"imbalance {recipe.imbalance:g}")
    if recipe.objective == "glmc":
        parts.append("GLMC")
    if recipe.pretrained:
        parts.append(f"weights: {recipe.pretrained}")
    return "; ".join(parts)
