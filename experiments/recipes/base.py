"""What a recipe is."""

from collections.abc import Mapping
import copy
import dataclasses
import types
import typing
from typing import Any

Settings = Mapping[str, Mapping[str, Any]]
Figures = Mapping[str, float]
Epochs = Mapping[str, int]

# Fields that say what to train, or what came of it elsewhere, and not how a run trains.
UNTRAINED = ("settings", "paper", "reports", "method", "epochs_of", "pretrained")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One experiment; every method shares all but its own settings.

    Attributes:
      dataset: a TFDS name, or the name of a folder of image folders. A set whose images differ in
        size is streamed: worker processes decode and augment it while the device trains.
      model: a name in `experiments.models.MODELS`.
      epochs: passes over the training set.
      batch_size: images a step; the last incomplete batch of an epoch is dropped.
      learning_rate: the largest.
      objective: what a step minimizes: "cross_entropy", or "glmc" for the two mixtures and the two
        classifiers of `experiments.training.glmc`, on residual networks and sets in memory. A
        mixture is the step's own, so that mixup and label_smoothing are 0 there.
      method: "sgd" or the method of `sam_optax` that is trained where none is named.
      optimizer: the base behind the method: "sgd", "rmsprop" or "adamw".
      momentum: of SGD and RMSProp; 0 for none. AdamW has β of 0.9 and 0.999.
      schedule: of the learning rate: "cosine" to 0 over all steps, "cosine_epoch" the same, but
        constant within an epoch, "linear" to 0, or "constant".
      warmup_epochs: at the start, from 0 linearly to learning_rate; the schedule takes the rest.
      weight_decay: outside the perturbation.
      decoupled: whether weight decay is applied to the parameters beside the base's direction,
        times the learning rate alone, in place of being added to the gradient in front of the base.
      label_smoothing: the share of a label, in [0, 1), spread evenly over all classes.
      clip_norm: the largest global norm of what the base is fed: the direction that the method
        hands on, or the clean gradient where the base is inside, as in wsam. None for none.
      augmentation: what training images go through: on the device "crop", "flip" and "cutout"; in
        the workers of a streamed set "inception" (a random resized crop), "randaugment", "jitter"
        (brightness, contrast, saturation and hue) and "grayscale".
      crop_area: the smallest and the largest share of the image that "inception" crops.
      randaugment: the number of operations of "randaugment" and their magnitude, of which 10 is the
        strongest of its paper.
      image_size: height and width of the images that the model sees; None for those of the set. A
        streamed set needs it, another is resized on the device.
      normalization: mean and deviation a channel of "data", the training images, of "imagenet", or
        "half", which maps bytes to −1 … 1.
      mixup: the α of mixup's Beta(α, α); 0 for none.
      validation: the share of the training split, in [0, 1), that is held out.
      label_noise: the share of training labels, in [0, 1], that are noisy.
      noise: "flip", to one of the other classes, or "symmetric", to any of all classes.
      imbalance: the largest class over the smallest, of a long-tailed set; None for all examples.
      train_examples: how many training examples to keep; None for all.
      dtype: of the model's computations, "float32" or "bfloat16"; parameters are float32.
      width: of the model's narrowest layer; None for the published one.
      domain: the domain of a set of image folders to train on, the others being the test sets; None
        for sets without domains.
      pretrained: the weights to begin with, in words; the file is given by `--weights`. None for
        those that the seed draws.
      settings: keyword arguments of each method; a method that is not named has its defaults. A
        mapping with the key "schedule" stands for that function of `sam_optax.schedules`, called
        with the rest of the mapping.
      epochs_of: the epochs of methods for which the protocol has another number.
      paper: the test accuracy in percent that the paper gives for each method.
      reports: which accuracy that is, of the "last" epoch or of the "best".
    """

    dataset: str
    model: str
    epochs: int
    batch_size: int
    learning_rate: float
    objective: str = "cross_entropy"
    method: str = "sam"
    optimizer: str = "sgd"
    momentum: float = 0.9
    schedule: str = "cosine"
    warmup_epochs: float = 0.0
    weight_decay: float = 5e-4
    decoupled: bool = False
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    augmentation: tuple[str, ...] = ()
    crop_area: tuple[float, float] = (0.08, 1.0)
    randaugment: tuple[int, int] = (2, 10)
    image_size: int | None = None
    normalization: str = "data"
    mixup: float = 0.0
    validation: float = 0.0
    label_noise: float = 0.0
    noise: str = "flip"
    imbalance: float | None = None
    train_examples: int | None = None
    dtype: str = "float32"
    width: int | None = None
    domain: str | None = None
    pretrained: str | None = None
    settings: Settings = dataclasses.field(default_factory=dict)
    epochs_of: Epochs = dataclasses.field(default_factory=dict)
    paper: Figures = dataclasses.field(default_factory=dict)
    reports: str = "last"

    def of(self, method: str) -> "Recipe":
        """The recipe with the method's own number of epochs."""
        return dataclasses.replace(self, epochs=self.epochs_of.get(method, self.epochs))


def of_config(config: Mapping[str, Any]) -> Recipe:
    """The recipe in the config of a run, whose method and settings are no fields of it there.

    Raises:
      KeyError, TypeError: a field is missing, or of another kind.
    """
    kinds = typing.get_type_hints(Recipe)
    fields = {}
    for field in dataclasses.fields(Recipe):
        if field.name == "method" or (field.name not in config and _has_default(field)):
            continue
        value, kind = config[field.name], kinds[field.name]
        value = tuple(value) if isinstance(value, list) else value
        if not _fits(value, kind):
            raise TypeError(f"{field.name} is {value!r:.60}")
        fields[field.name] = value
    return Recipe(**fields)


def _has_default(field):
    return (field.default, field.default_factory) != (dataclasses.MISSING,) * 2


def _fits(value, kind):
    """Whether a value is of the kind of a field."""
    if kind is Any:
        return True
    if isinstance(kind, types.UnionType):
        return any(_fits(value, one) for one in typing.get_args(kind))
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        if inside[-1] is Ellipsis:
            inside = inside[:1] * len(value) if isinstance(value, tuple) else ()
        return (
            isinstance(value, tuple)
            and len(value) == len(inside)
            and all(map(_fits, value, inside))
        )
    if origin is not None:
        return isinstance(value, origin)
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, int | float if kind is float else kind)


def mapping(**items: Any) -> Any:
    """A field of a recipe whose default is a new dictionary of these items."""
    return dataclasses.field(default_factory=lambda: copy.deepcopy(items))
