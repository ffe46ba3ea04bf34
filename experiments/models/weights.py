"""Weights that others trained, for a run to begin with: a file, and whether it fits the recipe."""

from pathlib import Path
from typing import Any, NamedTuple

from flax import linen as nn

from experiments.data.normalization import NORMALIZATIONS
from experiments.models import pretrained
from experiments.models.pretrained import Source, WeightsError
from experiments.models.pretrained.files import digest


class Weights(NamedTuple):
    """A file of weights.

    Attributes:
      path: of the file, in a format of `experiments.models.pretrained`.
      sha256: of its bytes, in hexadecimal: with the recipe it tells what the run begins with.
      normalization: the name by which the run's images are normalized, to be held against what the
        weights expect; None where the user has chosen it.
    """

    path: Path
    sha256: str
    normalization: str | None

    @classmethod
    def of(cls, path: Path, normalization: str | None) -> "Weights":
        """The weights in a file, of which no more than the digest is taken.

        Raises:
          WeightsError: there is no such file, or it cannot be read.
        """
        path = path.expanduser()
        return cls(path, digest(path), normalization)

    def onto(self, model: nn.Module, params: Any, model_state: Any) -> tuple[Any, Any, Source]:
        """The variables of a model with these weights, and what was read.

        A classifier for another number of classes stays new.

        Args:
          model: the module that they are of.
          params: its parameters, as initialised.
          model_state: its batch statistics.

        Raises:
          WeightsError: the file does not fit the model, has changed since its digest was taken, or
            expects images of another normalization.
        """
        loaded = pretrained.load(self.path, params, model_state, model=model, new_head=True)
        source = loaded.source
        if source.sha256 != self.sha256:
            raise WeightsError(
                f"{self.path} has changed since this command began: start it again once the file "
                "is whole."
            )
        if self.normalization not in (None, *_names(source.moments)):
            expected = " or ".join(_names(source.moments))
            raise WeightsError(
                f"{self.path}, a {source.format}, expects images normalized by {expected}, and "
                f"the run has {self.normalization}: pass --normalization {expected}, or "
                f"--normalization {self.normalization} to have it nevertheless."
            )
        return loaded.params, loaded.model_state, source


def _names(moments):
    return [name for name, known in NORMALIZATIONS.items() if known == moments]
