"""The tables of the papers: which method a row is, and which recipe a column.

Published figures are those of the recipes, and none is written here.
"""

from collections.abc import Mapping, Sequence
import dataclasses

Rows = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class PaperTable:
    """A table of a paper, or the part of it with one data set.

    Attributes:
      title: its number in the paper, and what it is about.
      columns: the recipe under each heading.
      rows: the methods in the paper's order, with the paper's names for them.
      average: whether a column with the mean over the recipes comes last.
      errors: whether the paper has 100 less the accuracy.
      note: what a reader has to know of the figures.
    """

    title: str
    columns: Mapping[str, str]
    rows: Rows
    average: bool = False
    errors: bool = False
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Paper:
    """A paper's title, and its tables of test accuracies."""

    title: str
    tables: Sequence[PaperTable]

    @property
    def recipes(self) -> set[str]:
        """The recipes of its tables."""
        return {recipe for table in self.tables for recipe in table.columns.values()}


def _rows(names: Rows, methods: str) -> Rows:
    """These methods under their names."""
    return {method: names[method] for method in methods.split()}


LE_SAM = {
    "sgd": "SGD",
    "eigen_sam": "Eigen-SAM",
    "asam": "ASAM",
    "esam": "ESAM",
    "friendly_sam": "F-SAM",
    "sam": "SAM",
    "le_sam": "LE-SAM",
    "le_sam_plus": "LE-SAM+",
}
LE_SAM_SCRATCH = _rows(LE_SAM, "sgd eigen_sam asam esam friendly_sam sam le_sam")
LE_SAM_DOMAINS = {**_rows(LE_SAM, "sgd sam le_sam"), "sgd": "ERM++"}
PLAIN = (
    "A column is the domain trained on, its accuracy the mean over the other domains. The paper "
    "has its methods on top of ERM++, the recipes on plain training."
)

AE_SAM = {
    "sgd": "ERM",
    "sam": "SAM",
    "esam": "ESAM",
    "ss_sam": "SS-SAM",
    "ae_sam": "AE-SAM",
    "looksam": "LookSAM",
    "ae_looksam": "AE-LookSAM",
}
AE_SAM_NOISE = _rows(AE_SAM, "sgd sam esam ss_sam looksam ae_sam ae_looksam")

R_SAM = {"sgd": "SGD+M", "lpf_sgd": "LPF-SGD", "sam": "SAM", "r_sam": "R-SAM"}
R_SAM_VIT = {"sgd": "AdamW", "sam": "SAM", "r_sam": "R-SAM"}
OTHER_BASES = (
    "SGD without momentum, RMSProp and AdamW, the table's other columns, are --method sgd with "
    "other options: the recipes' docstrings have their figures."
)

SAMAR = {"samar": "SAMAR", "sgd": "SGD", "sam": "SAM", "vasso": "VaSSO"}

WSAM = {
    "sgd": "Vanilla (SGDM)",
    "sam": "SAM",
    "esam": "ESAM",
    "gsam": "GSAM",
    "wsam": "WSAM",
    "coupled_wsam": "Coupled-WSAM",
}
WSAM_CIFAR = {
    "CIFAR-10 ResNet18": "cifar10_resnet18_wsam",
    "CIFAR-100 ResNet18": "cifar100_resnet18_wsam",
    "CIFAR-10 WRN-28-10": "cifar10_wrn28_10_wsam",
    "CIFAR-100 WRN-28-10": "cifar100_wrn28_10_wsam",
}


def _noise(model: str, paper: str) -> Mapping[str, str]:
    """The recipes for the four levels of label noise."""
    levels = (20, 40, 60, 80)
    return {f"{level} % noise": f"cifar10_{model}_noise{level}_{paper}" for level in levels}


PAPERS = {
    "le_sam": Paper(
        "LE-SAM: Fix the Loss, Not the Radius",
        (
            PaperTable(
                "Table 1: CIFAR-10",
                {
                    "ResNet-18": "cifar10_resnet18_le_sam",
                    "WRN-28-10": "cifar10_wrn28_10_le_sam",
                    "PyramidNet-110": "cifar10_pyramidnet110_le_sam",
                },
                LE_SAM_SCRATCH,
                note="The table's figures are not recorded.",
            ),
            PaperTable(
                "Table 1: CIFAR-100",
                {
                    "ResNet-18": "cifar100_resnet18_le_sam",
                    "WRN-28-10": "cifar100_wrn28_10_le_sam",
                    "PyramidNet-110": "cifar100_pyramidnet110_le_sam",
                },
                LE_SAM_SCRATCH,
                note="The table's figures are not recorded: those of SAM and LE-SAM are Table 4's.",
            ),
            PaperTable(
                "Table 2: ImageNet",
                {
                    "ResNet-50": "imagenet_resnet50_le_sam",
                    "ResNet-101": "imagenet_resnet101_le_sam",
                },
                LE_SAM_SCRATCH,
            ),
            PaperTable(
                "Table 3: ViT-B-16 fine-tuned",
                {"CIFAR-10": "cifar10_vit_b16_le_sam", "CIFAR-100": "cifar100_vit_b16_le_sam"},
                _rows(LE_SAM, "sgd sam le_sam"),
            ),
            PaperTable(
                "Table 4: LE-SAM+ on CIFAR-100",
                {
                    "ResNet-18": "cifar100_resnet18_le_sam",
                    "WRN-28-10": "cifar100_wrn28_10_le_sam",
                    "PyramidNet-110": "cifar100_pyramidnet110_le_sam",
                },
                _rows(LE_SAM, "sam le_sam le_sam_plus"),
            ),
            PaperTable(
                "Section 6.2: PACS, trained on one domain",
                {
                    "photo": "pacs_photo_le_sam",
                    "art painting": "pacs_art_painting_le_sam",
                    "cartoon": "pacs_cartoon_le_sam",
                    "sketch": "pacs_sketch_le_sam",
                },
                LE_SAM_DOMAINS,
                average=True,
                note=PLAIN,
            ),
            PaperTable(
                "Section 6.2: VLCS, trained on one domain",
                {
                    "VOC2007": "vlcs_voc2007_le_sam",
                    "LabelMe": "vlcs_labelme_le_sam",
                    "Caltech101": "vlcs_caltech101_le_sam",
                    "SUN09": "vlcs_sun09_le_sam",
                },
                LE_SAM_DOMAINS,
                average=True,
                note=PLAIN,
            ),
            PaperTable(
                "Table 7: CIFAR-100-LT, ResNet-32",
                {
                    "imbalance 100": "cifar100_resnet32_lt100_le_sam",
                    "imbalance 50": "cifar100_resnet32_lt50_le_sam",
                },
                {"sgd": "GLMC", "sam": "GLMC + SAM", "le_sam": "GLMC + LE-SAM"},
                note="LE-SAM's figures are GLMC's and the points that the text states; SAM's are "
                "not recorded. GLMC's code tells its best epoch.",
            ),
        ),
    ),
    "ae_sam": Paper(
        "AE-SAM: An Adaptive Policy to Employ Sharpness-Aware Minimization",
        (
            *(
                PaperTable(
                    f"Table 1: {said}",
                    {
                        "ResNet-18": f"{data}_resnet18_ae_sam",
                        "WRN-28-10": f"{data}_wrn28_10_ae_sam",
                        "PyramidNet-110": f"{data}_pyramidnet110_ae_sam",
                        "ViT-S16": f"{data}_vit_small_ae_sam",
                    },
                    AE_SAM,
                )
                for data, said in (("cifar10", "CIFAR-10"), ("cifar100", "CIFAR-100"))
            ),
            PaperTable("Table 2: ImageNet", {"ResNet-50": "imagenet_resnet50_ae_sam"}, AE_SAM),
            PaperTable(
                "Table 3: CIFAR-10 with label noise, ResNet-18",
                _noise("resnet18", "ae_sam"),
                AE_SAM_NOISE,
            ),
            PaperTable(
                "Table 3: CIFAR-10 with label noise, ResNet-32",
                _noise("resnet32", "ae_sam"),
                AE_SAM_NOISE,
            ),
        ),
    ),
    "r_sam": Paper(
        "R-SAM: Random Sharpness-Aware Minimization",
        (
            *(
                PaperTable(
                    f"Table {number}: {said}",
                    {
                        "ResNet-18": f"{data}_resnet18_r_sam",
                        "ResNet-50": f"{data}_resnet50_r_sam",
                        "WRN-28-10": f"{data}_wrn28_10_r_sam",
                    },
                    R_SAM,
                    note=OTHER_BASES,
                )
                for number, data, said in ((1, "cifar10", "CIFAR-10"), (2, "cifar100", "CIFAR-100"))
            ),
            PaperTable(
                "Table 3: ImageNet",
                {
                    "ViT-B-16": "imagenet_vit_b16_r_sam",
                    "ViT-S-16": "imagenet_vit_s16_r_sam",
                    "ViT-B-16 Mixup": "imagenet_vit_b16_mixup_r_sam",
                    "ViT-B-16 Mixup RandAug": "imagenet_vit_b16_randaug_r_sam",
                },
                R_SAM_VIT,
            ),
            PaperTable(
                "Figure 3 (a): comparison with GSAM on ImageNet",
                {"ViT-B-16": "imagenet_vit_b16_r_sam"},
                {"gsam": "GSAM", "r_sam": "R-SAM", "r_gsam": "R-GSAM"},
            ),
        ),
    ),
    "samar": Paper(
        "SAMAR: Sharpness-Aware Minimization with Adaptive Regularization",
        tuple(
            PaperTable(
                f"Table {number}: {said}",
                {"ResNet-34": f"{data}_resnet34_samar", "WRN-34-10": f"{data}_wrn34_10_samar"},
                SAMAR,
            )
            for number, data, said in (
                ("I", "cifar10", "CIFAR-10"),
                ("II", "cifar100", "CIFAR-100"),
            )
        ),
    ),
    "wsam": Paper(
        "WSAM: Sharpness-Aware Minimization Revisited: Weighted Sharpness as a Regularization Term",
        (
            PaperTable(
                "Table 2: CIFAR-10 and CIFAR-100",
                WSAM_CIFAR,
                _rows(WSAM, "sgd sam esam gsam wsam"),
                errors=True,
            ),
            PaperTable(
                "Table 4: ImageNet, three epochs more",
                {"DeiT-B": "imagenet_deit_b_wsam"},
                _rows(WSAM, "sgd sam gsam wsam"),
                errors=True,
            ),
            PaperTable(
                "Table 6: CIFAR-10 with label noise, ResNet18",
                _noise("resnet18", "wsam"),
                {**_rows(WSAM, "sgd sam esam gsam wsam"), "sgd": "Vanilla"},
            ),
            PaperTable(
                "Table 7: geometry of the region, CIFAR-10",
                {"WRN-28-10": "cifar10_wrn28_10_wsam"},
                {
                    "sam": "SAM",
                    "asam": "SAM +Adaptive",
                    "fisher_sam": "SAM +Fisher",
                    "wsam": "WSAM",
                },
                errors=True,
                note="WSAM +Adaptive and +Fisher, the table's other cells, are no methods here: "
                "the recipe's docstring has their figures.",
            ),
            PaperTable(
                "Table 8: WSAM without weight decouple",
                WSAM_CIFAR,
                _rows(WSAM, "sam coupled_wsam wsam"),
                errors=True,
            ),
        ),
    ),
}
