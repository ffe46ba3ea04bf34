"""A finished or unfinished run, read from its folder, and its loss as a function of parameters."""

from collections.abc import Callable
import functools
import json
import math
from pathlib import Path
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.analysis.objective import AnalysisError, Objective
from experiments.data import augment, feeds, loading, streams
from experiments.data.disk import CorruptedError, directory
from experiments.data.reading import Split
from experiments.data.sets import Data, changes
from experiments.recipes.base import of_config
from experiments.results import files, folders
from experiments.system.errors import UserError
from experiments.training import objectives
from experiments.training.checkpoints import CheckpointError, Checkpoints
from experiments.training.optimizers import learns_posterior, optimizer

# Of all images of a streamed set, where no number of them is asked for.
MOST_BYTES = 2 * 10**9


class Trained:
    """A run that `experiments.train` wrote.

    Attributes:
      path: its folder.
      config: what was asked for, with the fields of the recipe.
      recipe: the same as a recipe.
      rows: the figures of its epochs so far.
      summary: its results; empty where it is not finished.
      seed: what its random numbers follow from.
      how: the workers that decode a streamed set, and skip_corrupt, as they were asked for.
      checkpoints: its checkpoints.
      steps: of these, ascending.
      corrupt: training images of a streamed set that could not be decoded to look at them.
    """

    def __init__(
        self,
        path: Path,
        data_dir: Path,
        *,
        workers: int | None = None,
        skip_corrupt: bool = False,
    ):
        """Reads all but the weights and the data.

        Args:
          path: the folder.
          data_dir: the TFDS directory.
          workers: processes that decode a streamed set; None for one for each core.
          skip_corrupt: whether its images that cannot be decoded are left out.

        Raises:
          UserError: it is no folder of a run, or holds no checkpoint.
        """
        path = path.resolve()
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"the path {str(path)!r} is no UTF-8, as checkpoints need it: move the folder."
            ) from error
        self.path, self._data_dir = path, data_dir
        self.how: dict[str, Any] = {"workers": workers, "skip_corrupt": skip_corrupt}
        self.corrupt: list[str] = []
        self._decoded: dict[int | None, Split] = {}
        try:
            self.config = files.read_json(path / folders.CONFIG)
            self.recipe = of_config(self.config)
            self.seed = self.config["seed"]
            _check(self.config)
            self.rows = list(files.read_lines(path / folders.METRICS).values())
            if [row["epoch"] for row in self.rows] != [*range(1, len(self.rows) + 1)]:
                raise ValueError("an epoch is missing in its metrics")
            summary = path / folders.SUMMARY
            self.summary = files.read_json(summary) if summary.exists() else {}
            if not folders.belongs(self.summary, self.config):
                raise ValueError("its summary is that of another run")
            if self.summary.get("metrics", files.checksum(self.rows)) != files.checksum(self.rows):
                raise ValueError("its metrics are not those that its summary was made of")
        except files.DamagedError as error:
            raise UserError(
                f"{error}: pass a folder that experiments.train wrote, and nothing has changed."
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is no folder of a run ({type(error).__name__}: {error}): pass one that "
                "experiments.train wrote."
            ) from error
        self.checkpoints = Checkpoints(path / folders.CHECKPOINTS, read_only=True)
        if files.is_sealed(path):
            self.checkpoints.of = files.checksum(self.config)
        try:
            self.steps = self.checkpoints.steps()
        except CheckpointError as error:
            raise UserError(str(error)) from error
        if not self.steps:
            raise UserError(
                f"{path} holds no checkpoint: train it, or go on with it by --resume, so that "
                "there are parameters to look at."
            )

    @property
    def method(self) -> str:
        """The methods that trained it, by name."""
        return "-then-".join([self.config["method"], *(m for _, m, _ in self.config["then"])])

    @property
    def label(self) -> str:
        """The method with its settings."""
        settings = [self.config["method_kwargs"], *(kw for _, _, kw in self.config["then"])]
        said = [f"{k} {v}" for kwargs in settings for k, v in kwargs.items()]
        if self.unfinished is not None:
            said.append(f"unfinished, at step {self.unfinished}")
        return f"{self.method} ({', '.join(said)})" if said else self.method

    @property
    def group(self) -> str:
        """What runs that differ in their seeds alone share; unfinished ones their step too."""
        kept = {name: value for name, value in self.config.items() if name not in _OF_A_SEED}
        return json.dumps([kept, self.unfinished], sort_keys=True)

    @property
    def unfinished(self) -> int | None:
        """The step of the last checkpoint of a run that is not finished."""
        return None if self.summary else self.steps[-1]

    @property
    def fingerprint(self) -> int:
        """A number that tells the run and its last checkpoint from others.

        Raises:
          UserError: the checkpoint cannot be read.
        """
        try:
            return self.checkpoints.fingerprint(self.steps[-1])
        except CheckpointError as error:
            raise UserError(str(error)) from error

    @functools.cached_property
    def is_streamed(self) -> bool:
        """Whether it was trained on a streamed set.

        Raises:
          ValueError, NotPreparedError, CorruptedError: as `experiments.data.streams.is_streamed`.
        """
        recipe = self.recipe
        return streams.is_streamed(recipe.dataset, directory(self._data_dir), recipe.domain)

    @functools.cached_property
    def data(self) -> Data:
        """Its data set, with its noise.

        Raises:
          UserError: it cannot be read, or is not what the run was trained on.
        """
        changed = changes(self.config.get("data", {}), files.plain(self.found.read))
        if "data" in self.config and changed:
            raise UserError(
                f"the data are not those that {self.path} was trained on ({changed}): bring them "
                "back."
            )
        return self.found

    @functools.cached_property
    def found(self) -> Data:
        """What there is of its data set, for what does not depend on the images themselves."""
        return loading.load(self.recipe, self.seed, self._data_dir, **self.how)

    def forget(self) -> None:
        """Lets go of the data, which are read again where they are needed."""
        for name in ("data", "found"):
            self.__dict__.pop(name, None)
        self._decoded.clear()

    @property
    def epochs(self) -> dict[int, float]:
        """The epochs that were over at each checkpoint."""
        per_epoch = self.data.train.examples // self.recipe.batch_size
        return {step: step / per_epoch for step in self.steps}

    def weights(self, step: int | None = None) -> tuple[optax.Params, Any]:
        """Parameters and batch statistics of a checkpoint, of the last where step is left out.

        Raises:
          UserError: it cannot be read.
        """
        model = self.model(jnp.float32)
        shape = augment.shape(self.found.train.shape, self.recipe.image_size)
        image = jnp.zeros((1, *shape), jnp.float32)
        variables = jax.eval_shape(
            functools.partial(model.init, train=False), jax.random.key(0), image
        )
        params = variables.pop("params")
        like = {"params": params, "model_state": dict(variables)}
        try:
            held = self.checkpoints.restore_part(self.steps[-1] if step is None else step, like)
        except CheckpointError as error:
            raise UserError(str(error)) from error
        return held["params"], held["model_state"]

    def last_weights(self) -> tuple[optax.Params, Any]:
        """Parameters and batch statistics of the last checkpoint.

        Raises:
          AnalysisError: the parameters are not finite.
          UserError: it cannot be read.
        """
        params, model_state = self.weights()
        if not np.isfinite(jax.jit(optax.tree.norm)(params)):  # one program for all leaves
            raise AnalysisError(
                f"the parameters of {self.path} are not finite: the run has diverged, and there is "
                "nothing to look at."
            )
        return params, model_state

    def posterior(self, params: optax.Params) -> optax.OptState | None:
        """The state of the method at the last checkpoint, if it has learned a posterior.

        Args:
          params: the parameters there, or their shapes and dtypes.

        Raises:
          UserError: it cannot be read, or each device has learned one of its own.
        """
        # Nothing switches to such a method or from it.
        method, settings = self.config["method"], self.config["method_kwargs"]
        if not learns_posterior(method):
            return None
        if self.config["device_perturbations"] is not None:
            raise UserError(
                f"each device of {self.path} has learned a posterior of its own: evaluate it "
                "without --posterior-samples."
            )
        link = optimizer(self.recipe, method, settings, epochs=1, steps_per_epoch=1).method
        like = {"method_state": jax.eval_shape(link.init, params)}
        try:
            return self.checkpoints.restore_part(self.steps[-1], like)["method_state"]
        except CheckpointError as error:
            raise UserError(str(error)) from error

    def objective(
        self,
        model_state: Any,
        *,
        training: bool,
        size: int,
        examples: int | None = None,
        dtype: Any = jnp.float32,
        on_pass: Callable[[], None] = lambda: None,
    ) -> Objective:
        """The cross-entropy on its training set, with its labels, their noise and smoothing.

        Without augmentation, mixup and weight decay: those are of training alone. Images of a
        streamed set are decoded with a central crop. Of a run of another objective it is the
        cross-entropy too, of the logits that are evaluated.

        Args:
          model_state: the batch statistics.
          training: whether batch norm takes the statistics of each batch, in place of these.
          size: examples in a batch.
          examples: how many of the set, drawn from the run's seed; all where left out.
          dtype: of the computation; parameters are to have it too.
          on_pass: called after each pass over the examples.

        Raises:
          UserError: images of a streamed set cannot be decoded, or are too many for the memory.
        """
        chosen, classes = self._chosen(examples), self.data.classes
        model = self.model(dtype)
        state = jax.tree.map(lambda leaf: leaf.astype(dtype), model_state)
        mean, std = (jnp.asarray(a, dtype) for a in (self.data.mean, self.data.std))

        def loss_fn(params, batch):
            images, labels = batch
            images = augment.augment(None, images, mean, std, (), size=self.recipe.image_size)
            variables = {"params": params, **state}
            if training:
                logits, _ = model.apply(variables, images, train=True, mutable=list(state))
            else:
                logits = model.apply(variables, images, train=False)
            one_hot = jax.nn.one_hot(labels, classes, dtype=logits.dtype)
            smooth = optax.smooth_labels(one_hot, self.recipe.label_smoothing)
            return optax.softmax_cross_entropy(logits, smooth).mean()

        on_device = tuple(map(jnp.asarray, chosen))
        return Objective.divided(loss_fn, on_device, size, on_pass=on_pass)

    def model(self, dtype: Any = jnp.float32) -> nn.Module:
        """The module that it trained, for computations in a dtype."""
        return objectives.make(self.recipe, self.found.classes).model(dtype)

    def _chosen(self, examples):
        """So many training images drawn from the seed, or all; those of a stream are kept."""
        train = self.data.train
        chosen = np.arange(train.examples)
        if examples is not None and examples < len(chosen):
            chosen = np.random.default_rng(self.seed).choice(chosen, examples, replace=False)
        if isinstance(train, Split):
            return Split(train.images[chosen], train.labels[chosen])
        if examples not in self._decoded:
            bytes_of_all = train.examples * math.prod(train.shape)
            if examples is None and bytes_of_all > MOST_BYTES:
                raise UserError(
                    f"all {train.examples:,} training images of {self.recipe.dataset} would take "
                    f"{bytes_of_all / 1e9:,.1f} GB of memory: pass such as --examples 2000."
                )
            try:
                self._decoded = {examples: feeds.decoded(train.part(chosen))}
            except CorruptedError as error:
                raise UserError(str(error)) from error
            self.corrupt = list(train.corrupt)
        return self._decoded[examples]


def _check(config):
    """Raises TypeError where what a config holds beside the recipe is of another kind."""
    kinds = {"recipe": str, "method": str, "method_kwargs": dict, "seed": int, "then": list}
    for name, kind in kinds.items():
        if not isinstance(config[name], kind) or isinstance(config[name], bool):
            raise TypeError(f"{name} is {config[name]!r:.60}")
    for switch in config["then"]:
        start, method, settings = switch
        if (
            not isinstance(start, int)
            or not isinstance(method, str)
            or not isinstance(settings, dict)
        ):
            raise TypeError(f"then is {config['then']!r:.60}")


# What may differ between runs of one group.
_OF_A_SEED = ("seed", "together", "data", "jax")
