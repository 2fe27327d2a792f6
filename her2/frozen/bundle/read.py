"""A bundle, checked and read: the frozen model, and all that a slide needs before it.

Nothing of the results or the cache that it came from is needed. Nothing in it is run: weights are
tensors of a safetensors file, and all else is JSON.
"""

import hashlib
import logging
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from pydantic import ValidationError

from her2.config import KEEP_ORDER, TilingSection
from her2.config.catalogue import row
from her2.config.jobs import EncoderSpec
from her2.core.errors import UserError, first_line, problem_list
from her2.core.files import atomic_folder, digest, file_digest
from her2.encoders.card import CARD_NAME, WEIGHTS_NAME, EncoderCard, read_card, write_card
from her2.encoders.device import pick_device
from her2.encoders.fetching import fetch
from her2.encoders.loading import WEIGHTS_BYTES
from her2.encoders.stage import materialise_encoder, read_encoder, weights_digest
from her2.frozen.bundle.files import Files, list_files, problems_of, read_bytes
from her2.frozen.bundle.hashes import Seen, seen
from her2.frozen.bundle.schema import (
    ENCODER_NAME,
    MAX_JSON_BYTES,
    SCHEMA_NAME,
    Contents,
    Fold,
)
from her2.frozen.bundle.seal import parse_contents, problems_in
from her2.frozen.bundle.segmenters import segmenter_folders
from her2.frozen.development import Development
from her2.frozen.model import FrozenFold, FrozenModel, Threshold
from her2.mil.fold import SavedModel, build_model
from her2.mil.losses import output_names

log = logging.getLogger(__name__)

_HEAD_BYTES = 4 << 30
_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose files are all as its `bundle.json` states them."""

    path: Path
    files: Files
    schema: Contents
    model: FrozenModel

    @property
    def name(self) -> str:
        """Return `task / encoder / head`."""
        return self.model.name

    @property
    def development(self) -> Development:
        """Return the facts of what the model was developed on."""
        return self.schema.development

    @property
    def tiling(self) -> TilingSection:
        """Return every option that decides which tiles a slide has."""
        return self.schema.tiling.options

    @property
    def tile_seed(self) -> int | None:
        """Return the seed with which `max_tiles` tiles are drawn, None if all are kept."""
        return self.schema.tiling.seed

    @property
    def max_failed_tiles(self) -> float:
        """Return the largest share of unreadable tiles of a slide."""
        return self.schema.tiling.max_failed_tiles

    @property
    def mpp(self) -> float:
        """Return the um/px of the tiles."""
        return self.schema.grid.mpp

    @property
    def size(self) -> int:
        """Return the px per side of the tiles."""
        return self.schema.grid.size_px

    def trained_on(self, patients: Iterable[str], fingerprints: Iterable[str]) -> Seen:
        """Return which of these patients and slides the model was trained on."""
        return seen(self.schema.hashes, patients, fingerprints)

    def encoder_folder(self, into: Path, *, given: Path | None = None) -> Path:
        """Return a folder with the encoder's `weights.safetensors` and `card.json`.

        Args:
            into: where the folder is made, named by what the encoder is; one that is there is
                taken.
            given: an encoder's folder or weights file, where the bundle has no weights, and they
                cannot be fetched or need not be.

        Raises:
            UserError: the weights are other ones (with both digests), or can be had in no way,
                with what to do.
        """
        encoder = self.schema.encoder
        card = encoder.card()
        folder = into / digest(asdict(card))[:32]
        if (folder / CARD_NAME).exists():
            read_card(folder)
            return folder
        with atomic_folder(folder) as temporary:
            if encoder.included and given is None:
                with (
                    self.files.open(ENCODER_NAME) as source,
                    (temporary / WEIGHTS_NAME).open("wb") as target,
                ):
                    shutil.copyfileobj(source, target, _BLOCK_BYTES)
            else:
                own = self._materialise(temporary, given)
                if own.digest != card.digest:
                    raise UserError(
                        f"{self.path}: needs the encoder {encoder.model} with the digest "
                        f"{card.digest}, but {given or 'what was fetched'} has {own.digest}. "
                        "Features of other weights would be scored as if they were of these."
                    )
            write_card(temporary, card)
        return folder

    def segmenter_folders(
        self, into: Path, *, given: Mapping[str, Path] | None = None
    ) -> dict[str, Path]:
        """Return key of `tiling:` -> folder of the weights, of the segmenters that it names.

        Args and errors are those of `her2.frozen.bundle.segmenters.segmenter_folders`.
        """
        return segmenter_folders(self.schema.tiling, self.path, into, given=given or {})

    def _materialise(self, folder: Path, given: Path | None) -> EncoderCard:
        """Write the encoder's folder from weights that were given or are fetched."""
        encoder = self.schema.encoder
        if given is not None and (given / CARD_NAME).exists():
            card = read_card(given)
            if card.digest == encoder.digest:
                shutil.copyfile(given / WEIGHTS_NAME, folder / WEIGHTS_NAME)
                write_card(folder, card)
                read_encoder(folder)
            return card
        path = given or self._fetched()
        try:
            section = encoder.section(None if path is None else str(path.absolute()))
        except ValidationError as error:
            raise problem_list(
                f"{self.path}: its encoder {encoder.model} cannot be made by this version of her2. "
                f"{self._how()}",
                problems_in(error),
            ) from None
        if section.source == "catalogue" and (weights := section.local_weights()) is not None:
            # The bundle's digest of the weights decides, not the file that this version's row pins.
            section = section.model_copy(update={"sha256": file_digest(weights)})
        return materialise_encoder(EncoderSpec(encoder=section, seed=self.schema.seed), folder)

    def _fetched(self) -> Path | None:
        """Return the weights file from the hub; None where a library fetches it.

        Raises:
            UserError: this kind of encoder can only be given.
        """
        encoder = self.schema.encoder
        if encoder.source in ("checkpoint", "pretrain", "random"):
            raise UserError(
                f"{self.path}: has no weights of its encoder {encoder.name} ({encoder.model}; "
                f"{encoder.why}), and nobody publishes them. {self._how()}"
            )
        if encoder.source != "catalogue":
            return None
        try:
            known = row(encoder.model)
            return None if known.hub is None else fetch(known, revision=encoder.revision)
        except UserError as error:
            raise UserError(f"{self.path}: {error} {self._how()}") from None

    def _how(self) -> str:
        return (
            "Ask who made the bundle for the encoder's folder, or take weights that you have, and "
            f"name them with --encoder PATH. Their digest must be {self.schema.encoder.digest}."
        )


def read_bundle(path: Path, *, threads: int = 1) -> Bundle:
    """Check every file of a bundle, and read its models.

    Args:
        path: a folder, or a .zip as her2 writes one.
        threads: number of CPU threads for torch.

    Raises:
        UserError: it is not a bundle, of another schema version, or was changed. All files that
            differ are named.
    """
    files, contents = checked(path)
    device = pick_device(threads)
    return Bundle(path, files, contents, _model(files, contents, device))


def check_encoder(bundle: Bundle) -> None:
    """Check that the encoder's weights in a bundle, if any, are those of the stated digest.

    Raises:
        UserError: they are not.
    """
    encoder = bundle.schema.encoder
    if not encoder.included:
        return
    try:
        state = safetensors.torch.load(read_bytes(bundle.files, ENCODER_NAME, WEIGHTS_BYTES))
    except safetensors.SafetensorError as error:
        raise UserError(f"{bundle.path}: {ENCODER_NAME} cannot be read ({error}).") from None
    if (own := weights_digest(state)) != encoder.weights_sha256:
        raise UserError(
            f"{bundle.path}: {ENCODER_NAME} has the weights {own}, and {encoder.weights_sha256} "
            "are stated. Have the bundle made again."
        )


def checked(path: Path) -> tuple[Files, Contents]:
    """Return the files and contents of a bundle, after comparing every byte with its digest.

    Raises:
        UserError: as `read_bundle`.
    """
    files = list_files(path)
    contents = parse_contents(read_bytes(files, SCHEMA_NAME, MAX_JSON_BYTES), str(path))
    if problems := problems_of(files, contents.files, {SCHEMA_NAME}):
        raise problem_list(
            f"{path}: is not as it was made; copy it again from there, or have it made again",
            problems,
        )
    return files, contents


def _model(files: Files, contents: Contents, device: torch.device) -> FrozenModel:
    folds = tuple(_fold(files, contents, fold, device) for fold in contents.folds)
    thresholds = tuple(Threshold(**one.model_dump()) for one in contents.thresholds)
    return FrozenModel(
        contents.task_name,
        contents.encoder_name,
        contents.head_name,
        contents.task,
        folds,
        thresholds,
    )


def _fold(files: Files, contents: Contents, fold: Fold, device: torch.device) -> FrozenFold:
    card = fold_card(contents, fold)
    try:
        content = read_bytes(files, fold.weights, _HEAD_BYTES)
        if hashlib.sha256(content).hexdigest() != contents.files[fold.weights].sha256:
            raise ValueError("it changed while it was read")
        model = build_model(card, safetensors.torch.load(content))
    except UserError:
        raise
    except Exception as error:  # of tensors that somebody else made
        raise UserError(
            f"{files.path}: {fold.weights} is not the model that its bundle.json describes "
            f"({first_line(error)})."
        ) from None
    saved = SavedModel(files.path / fold.run, model.to(device).eval(), card)
    return FrozenFold(
        fold.run,
        saved,
        np.asarray(fold.share, np.float64),
        np.asarray(fold.seen, np.float64),
        fold.temperature,
    )


def fold_card(contents: Contents, fold: Fold) -> dict[str, Any]:
    """Return the card of a trained fold, as far as a prediction reads it."""
    own = fold.model_dump(mode="json", exclude={"run", "weights", "share", "seen", "temperature"})
    return {
        **own,
        "task": contents.task.model_dump(mode="json", context=KEEP_ORDER),
        "outputs": output_names(fold.loss, contents.task.class_names),
        "encoder_digest": contents.encoder.digest,
        "tiles": {"mpp": contents.grid.mpp, "px": contents.grid.size_px},
    }
