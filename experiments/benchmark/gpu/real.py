"""A few epochs of real images with wrong labels: that what is quick also learns."""

from collections.abc import Iterator
import dataclasses
import time

from experiments.benchmark.gpu.setup import Row, Setup
from experiments.data import disk, sets
from experiments.data.feeds import arrays
from experiments.training.optimizers import SGD
from experiments.training.trainer import Trainer

METHODS = (SGD, "sam", "ae_sam")
NOISE = 0.4
DISPATCH = 100  # steps


def measure(setup: Setup) -> Iterator[Row]:
    """A row a method, after each of its epochs: accuracy on the test set, and seconds."""
    recipe = dataclasses.replace(setup.recipe, label_noise=NOISE, epochs=setup.epochs)
    try:
        loaded = sets.load(
            recipe.dataset,
            data_dir=setup.data_dir,
            label_noise=recipe.label_noise,
            train_examples=recipe.train_examples,
        )
    except disk.NotPreparedError as error:
        yield {"name": recipe.dataset, "said": str(error)}
        return
    train = arrays(loaded)
    for method in METHODS:
        settings = recipe.settings.get(method, {})
        trainer = Trainer(recipe, method, settings, data=loaded, on_host=False)
        state = trainer.init(loaded.train.shape, seed=0)
        start = time.perf_counter()
        for epoch in range(recipe.epochs):
            for _, after in trainer.dispatches(state, train, most=DISPATCH):
                state = after
            share = float(state.metrics["sam_fraction"]) / trainer.steps_per_epoch
            yield {
                "name": method,
                "label_noise": NOISE,
                "epochs": epoch + 1,
                "seconds": time.perf_counter() - start,
                "sam_fraction": share,
                "test_accuracy": trainer.evaluate(state, loaded.test, train)["accuracy"],
            }
