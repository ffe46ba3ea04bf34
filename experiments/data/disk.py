"""The TFDS directory: which sets lie there, prepared to the end, and where one breaks."""

import difflib
import logging
from pathlib import Path
import shlex

import tensorflow_datasets as tfds

from experiments.data import digits  # noqa: F401, registers the set with TFDS

DATA_DIR = Path("~/tensorflow_datasets")  # as not everyone has a home, see `directory`

MOST_CLASSES = 10**6  # more than any set has, and fewer than names would fill the memory


class NotPreparedError(FileNotFoundError):
    """The set is not in the TFDS directory; the message says how to prepare it."""


class CorruptedError(ValueError):
    """The set is in the TFDS directory but cannot be read; the message says where it breaks."""


def directory(data_dir: Path) -> Path:
    """The TFDS directory, its `~` replaced.

    Raises:
      ValueError: nobody knows the home directory, as in a container with a user of no name.
    """
    try:
        return Path(data_dir).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"the home directory in {data_dir} cannot be determined: pass the path of the TFDS "
            "directory by --data-dir."
        ) from error


def is_prepared(name: str, data_dir: Path) -> bool:
    """Whether a set was prepared to the end.

    Raises:
      ValueError: as `directory`.
    """
    return _newest(directory(data_dir) / name) is not None


def opened(name: str, data_dir: Path) -> tfds.core.DatasetBuilder:
    """What reads the newest prepared version of a set, whatever its features.

    Raises:
      ValueError: the set is unknown to TFDS, its path is no UTF-8, or there is no such directory as
        `directory` says.
      NotPreparedError: it is not prepared, or not as array_record.
      CorruptedError: its description cannot be read.
      OSError: data_dir cannot be read or written.
    """
    data_dir = directory(data_dir)
    try:
        str(data_dir / name).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the path {str(data_dir / name)!r} is no UTF-8, as TFDS needs it: pass another "
            "directory by --data-dir."
        ) from error
    logging.getLogger("absl").setLevel(logging.ERROR)  # how images are decoded is of no interest
    folder = _newest(data_dir / name)
    if folder is None and name == "digits":
        _prepare_digits(data_dir)
        folder = _newest(data_dir / name)
    if folder is None:
        raise _not_found(name, data_dir)
    try:
        builder = tfds.builder_from_directory(folder)
        _look_at(builder.info)
    except Exception as error:  # JSON, protobuf and TFDS each raise their own
        raise CorruptedError(
            f"the description of {name} in {folder} cannot be read ({error!r:.200}): delete that "
            "folder and prepare the set again."
        ) from error
    formats = [file_format.value for file_format in builder.info.available_file_formats()]
    if "array_record" not in formats:
        raise NotPreparedError(
            f"{name} is prepared as {' and '.join(formats)} in {folder}, not as array_record: "
            f"delete that folder or choose another directory. {_how(name, data_dir)}"
        )
    return builder


def _look_at(info: tfds.core.DatasetInfo) -> None:
    """Raises where a description is not whole, which TFDS itself finds when it is asked for it."""
    for feature in dict(info.features.items()).values():
        if isinstance(feature, tfds.features.ClassLabel):
            if not 0 <= (feature.num_classes or 0) <= MOST_CLASSES:
                raise ValueError(f"there are {feature.num_classes} classes")
            list(feature.names)
    for split in info.splits.values():
        if min(split.shard_lengths, default=0) < 0:
            raise ValueError(f"a file of {split.name} has {min(split.shard_lengths)} images")
        if 0 < split.num_bytes < split.num_examples:  # as no images take
            raise ValueError(f"{split.num_examples} images take {int(split.num_bytes)} bytes")
        if split.num_examples:
            list(split.file_instructions)


def _prepare_digits(data_dir: Path) -> None:
    tfds.disable_progress_bar()
    builder = tfds.builder("digits", data_dir=data_dir, file_format="array_record")
    try:
        builder.download_and_prepare(file_format="array_record")
    except OSError:
        # another process may have prepared it in the meantime: its folder is not replaced
        if _newest(data_dir / "digits") is None:
            raise


def _newest(folder: Path) -> Path | None:
    """The newest version in a set's folder, None if none was prepared to the end.

    TFDS prepares in a folder `incomplete.…` and writes the two descriptions last.
    """
    complete = [
        path
        for path in folder.glob("*")
        if tfds.core.Version.is_valid(path.name)
        and (path / "dataset_info.json").is_file()
        and (path / "features.json").is_file()
    ]
    return max(complete, key=lambda path: tfds.core.Version(path.name), default=None)


def _not_found(name: str, data_dir: Path) -> Exception:
    """Why no version of a set was found: unknown, a configuration is missing, or not prepared."""
    known, set_name = tfds.list_builders(with_community_datasets=False), name.split("/")[0]
    if set_name not in known:
        near = difflib.get_close_matches(set_name.lower(), known, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "see tensorflow.org/datasets."
        return ValueError(
            f"unknown data set {name!r}: it is neither in the catalogue of TFDS nor prepared under "
            f"{data_dir}; {hint}"
        )
    folders = sorted((data_dir / name).glob("*"))
    if configurations := [f"{name}/{path.name}" for path in folders if _newest(path)]:
        return NotPreparedError(
            f"{name} is prepared under {data_dir} in {len(configurations)} configurations: pass "
            f"one of them, such as {', '.join(configurations[:3])}."
        )
    what = f"{name} is not prepared under {data_dir}."
    if unfinished := [path for path in folders if tfds.core.Version.is_valid(path.name)]:
        what = f"{name} is not prepared to the end in {unfinished[-1]}: delete that folder."
    return NotPreparedError(f"{what} {_how(name, data_dir)}")


def _how(name: str, data_dir: Path) -> str:
    """How a set gets prepared."""
    if name == "digits":
        return "Then load it again: it prepares itself."
    return (
        "Prepare it once with: python -m pip install 'sam_optax[prepare]' && "
        f"tfds build {name} --file_format=array_record --data_dir={shlex.quote(str(data_dir))}"
    )
