"""What to train: one recipe a row of the papers' tables, and small ones for a CPU.

A module a paper, two for LE-SAM, and `small` for a CPU; `cost` says what each needs, `markdown`
makes tables of them, and `python -m experiments.recipes` lists all. The room may import system
alone. Begin with `base`, where each field of a recipe is explained.
"""

from experiments.recipes import ae_sam, le_sam, le_sam_transfer, r_sam, samar, small, wsam
from experiments.recipes.base import Recipe

RECIPES: dict[str, Recipe] = {
    **small.RECIPES,
    **samar.RECIPES,
    **le_sam.RECIPES,
    **le_sam_transfer.RECIPES,
    **ae_sam.RECIPES,
    **r_sam.RECIPES,
    **wsam.RECIPES,
}

__all__ = ["RECIPES", "Recipe"]
