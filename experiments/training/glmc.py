"""GLMC, an objective for long-tailed sets: two mixtures of a batch, consistent with each other.

Du, Yang, Jia, Nan, Chen and Yang 2023, Global and Local Mixture Consistency Cumulative Learning for
Long-tailed Visual Recognitions (CVPR; arXiv 2305.08661), with the numbers of their code for
CIFAR-100-LT. A step takes a batch x in the order of the epoch and one x' that is drawn anew, rare
classes more often, and of each two augmentations, 1 and 2:

    global mixture (MixUp)   x_g = λ x_1 + (1 − λ) x'_1,  λ ~ Beta(ALPHA, ALPHA), one a step
    local mixture (CutMix)   x_l = x_2, in a box of the share 1 − λ of the image x'_2
    labels of both           p = λ y + (1 − λ) y',  and reweighted  q = λ w∘y + (1 − λ) w∘y'
    loss   α_T Σ_m CE(plain(x_m), p) + (1 − α_T) Σ_m CE(balanced(x_m), q)
             − CONTRAST (cos(u_g, sg z_l) + cos(u_l, sg z_g)),   m ∈ {g, l}

y and y' are one-hot, w_c ∝ n_c^−REWEIGHTING for the n_c training examples of class c, α_T =
1 − (T/T_max)² in epoch T of T_max, z a projection of the features, u a prediction from z, and sg
stops the gradient. The balanced classifier is the one that is evaluated.

Where paper and code differ, this is the code: it adds up the two mixtures, over which the paper
takes means (1/2N); it labels the local mixture by λ itself, also where the border cuts the box off;
and λ is uniform, since the function that mixes has an α of 1 and is called without the option
`--beta` of .5 that the paper's β would be. Batch norm takes the statistics of each mixture by
itself, and its running statistics see the global one and then the local one.
"""

from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from experiments import models
from experiments.data import augment
from experiments.data.feeds import Arrays
from experiments.recipes.base import Recipe

ALPHA = 1.0  # of λ's Beta(α, α)
RESAMPLING = 0.2  # the paper's k: an example of class c is drawn in proportion to n_c^−k
REWEIGHTING = 1.0  # labels of class c count in proportion to n_c to minus this
CONTRAST = 10.0  # the paper's γ, the weight of the consistency
WIDTH = 128  # of projection and prediction

# Kernels of the heads start from N(0, 2/inputs), as in the authors' code, and biases from 0.
HE_NORMAL = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class Outputs(NamedTuple):
    """What the heads give.

    Attributes:
      plain: logits [B, classes].
      balanced: logits [B, classes] of the classifier that learns from reweighted labels.
      projection: z [B, width].
      prediction: u [B, width].
    """

    plain: jax.Array
    balanced: jax.Array
    projection: jax.Array
    prediction: jax.Array


class GlmcNetwork(nn.Module):
    """An encoder under two classifiers, a projection and a prediction from it, all of them linear.

    Attributes:
      encoder: from images [B, H, W, C] to features [B, channels].
      classes: the number of classes.
      width: of projection and prediction.
    """

    encoder: nn.Module
    classes: int
    width: int = WIDTH

    @nn.compact
    def heads(self, images: jax.Array, *, train: bool) -> Outputs:
        """All that the loss needs; train updates the running statistics."""

        def dense(width, name):
            return nn.Dense(width, kernel_init=HE_NORMAL, name=name)

        features = self.encoder(images, train=train)
        z = dense(self.width, "projection")(features)
        return Outputs(
            plain=dense(self.classes, "plain")(features),
            balanced=dense(self.classes, "balanced")(features),
            projection=z,
            prediction=dense(self.width, "prediction")(z),
        )

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """The balanced classifier's logits [B, classes], with which the model is evaluated."""
        return self.heads(images, train=train).balanced


class Mixtures(NamedTuple):
    """A batch; each leaf has the examples on its leading axis.

    Attributes:
      global_: images float32 [B, H, W, C], mixed by MixUp.
      local: images float32 [B, H, W, C], mixed by CutMix.
      labels: p, float32 [B, classes], of both.
      reweighted: q, float32 [B, classes], of both.
      plain_share: α_T, float32 [B], the same for all.
    """

    global_: jax.Array
    local: jax.Array
    labels: jax.Array
    reweighted: jax.Array
    plain_share: jax.Array


def class_weights(labels: jax.Array, classes: int, power: float) -> jax.Array:
    """w_c = n_c^−power over its mean, for n_c labels of class c.

    Args:
      labels: of the training set, int32 [N].
      classes: their number.
      power: 0 for equal weights, 1 for classes that weigh the same altogether.

    Returns:
      float [classes], of mean 1 over the classes that have an example; 0 for the others.
    """
    counts = jnp.bincount(labels, length=classes)
    there = counts > 0
    weights = jnp.where(there, jnp.maximum(counts, 1) ** -power, 0.0)
    return weights / weights.mean(where=there)


def probabilities(labels: jax.Array, classes: int, power: float) -> jax.Array:
    """The probability of each example [N] to be drawn, in proportion to n_c^−power of its class."""
    weights = class_weights(labels, classes, power)[labels]
    return weights / weights.sum()


def mixed(weight: jax.Array, one: jax.Array, other: jax.Array) -> jax.Array:
    """λ · one + (1 − λ) · other, for images and labels alike."""
    return weight * one + (1 - weight) * other


def box(weight: jax.Array, centre: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """The pixels of CutMix's box, whose sides are √(1 − λ) of the image's, clipped at its border.

    Args:
      weight: λ, in [0, 1].
      centre: row and column of a pixel, int [2].
      shape: height and width of the image.

    Returns:
      bool [H, W]. As in the authors' code a side is rounded up to whole pixels, and its half down:
      from centre − ⌊side/2⌋ to centre + ⌊side/2⌋, the end not included.

    References:
      Yun et al. 2019, CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
      Features.
    """

    def covered(centre, length):
        half = jnp.ceil(length * jnp.sqrt(1 - weight)).astype(jnp.int32) // 2
        pixels = jnp.arange(length)
        return (centre - half <= pixels) & (pixels < centre + half)

    return covered(centre[0], shape[0])[:, None] & covered(centre[1], shape[1])


def cosine(one: jax.Array, other: jax.Array) -> jax.Array:
    """The cosine of the angle between vectors [B, width]; 0 with a zero vector, as its gradient."""

    def unit(v):
        square = (v**2).sum(-1, keepdims=True)
        there = square > 0
        return jnp.where(there, v / jnp.sqrt(jnp.where(there, square, 1)), 0)

    return (unit(one) * unit(other)).sum(-1)


def example_losses(
    one: Outputs, other: Outputs, batch: Mixtures, contrast: float = CONTRAST
) -> jax.Array:
    """The loss of each example [B], whose mean is that of the batch.

    Args:
      one: of the global mixtures.
      other: of the local ones.
      batch: their labels and α_T.
      contrast: the weight of the consistency.
    """

    def both(logits, logits_, labels):
        entropy = optax.softmax_cross_entropy
        return entropy(logits, labels) + entropy(logits_, labels)

    plain = both(one.plain, other.plain, batch.labels)
    balanced = both(one.balanced, other.balanced, batch.reweighted)
    fixed = jax.lax.stop_gradient((one.projection, other.projection))
    consistency = cosine(one.prediction, fixed[1]) + cosine(other.prediction, fixed[0])
    return mixed(batch.plain_share, plain, balanced) - contrast * consistency


class Glmc:
    """GLMC as what a trainer minimizes, see `experiments.training.objectives`."""

    def __init__(self, recipe: Recipe, classes: int):
        """Raises a ValueError where the recipe asks for what GLMC's own mixtures stand for."""
        for name in ("mixup", "label_smoothing"):
            if getattr(recipe, name):
                raise ValueError(
                    f"{name} must be 0 with the objective glmc, whose labels are mixtures of its "
                    f"own, got {getattr(recipe, name)}: pass 0."
                )
        self._recipe, self._classes = recipe, classes

    def model(self, dtype: Any = None) -> GlmcNetwork:
        """The network to train; the dtype is the recipe's where left out.

        Raises:
          ValueError: the recipe's model gives no features.
        """
        recipe = self._recipe
        dtype = jnp.dtype(recipe.dtype if dtype is None else dtype)
        encoder = models.encoder(recipe.model, dtype=dtype, width=recipe.width)
        return GlmcNetwork(encoder, self._classes)

    def batch(
        self, key: jax.Array, progress: jax.Array, train: Arrays, indices: jax.Array
    ) -> Mixtures:
        """The mixtures of these examples with others that are drawn."""
        draw_key, augment_key, weight_key, centre_key = jax.random.split(key, 4)
        names, size = self._recipe.augmentation, self._recipe.image_size
        labels, classes = train.labels, self._classes
        p = probabilities(labels, classes, RESAMPLING)
        others = jax.random.choice(draw_key, len(labels), indices.shape, p=p)

        views = train.images[jnp.concatenate([indices, others, indices, others])]
        views = augment.augment(augment_key, views, *train.scale, names, size=size)
        one, other, one_, other_ = jnp.split(views, 4)
        weight = jax.random.beta(weight_key, ALPHA, ALPHA, dtype=one.dtype)
        shape = one.shape[1:3]
        centre = jax.random.randint(centre_key, (2,), 0, jnp.array(shape))
        first, second = (jax.nn.one_hot(labels[chosen], classes) for chosen in (indices, others))
        w = class_weights(labels, classes, REWEIGHTING)
        return Mixtures(
            global_=mixed(weight, one, other),
            local=jnp.where(box(weight, centre, shape)[..., None], other_, one_),
            labels=mixed(weight, first, second),
            reweighted=mixed(weight, w * first, w * second),
            plain_share=jnp.full(indices.shape, 1 - progress**2),
        )

    def losses(
        self, model: GlmcNetwork, variables: Any, batch: Mixtures
    ) -> tuple[jax.Array, jax.Array, Any]:
        """Losses [B], whether the balanced classifier is right on x_g [B], and the new statistics.

        Right is the label with the larger share in the mixture.
        """
        params, state = variables["params"], {k: v for k, v in variables.items() if k != "params"}
        outputs = []
        for images in (batch.global_, batch.local):
            found, state = model.apply(
                {"params": params, **state}, images, train=True, mutable=list(state), method="heads"
            )
            outputs.append(found)
        hits = outputs[0].balanced.argmax(-1) == batch.labels.argmax(-1)
        return example_losses(*outputs, batch), hits, state
