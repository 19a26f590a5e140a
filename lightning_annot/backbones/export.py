"""``lightning-annot export-model``: a trained classifier as one file that runs without this project."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn

from lightning_annot.backbones.classifier import KEY, ClassifierModule
from lightning_annot.checkpoints import fault
from lightning_annot.commandline.options import OptionParser
from lightning_annot.files import replacing, write_text
from lightning_annot.types import AnnotError

TOLERANCE = 1e-4  # of probabilities: other runtimes order sums in other ways
_DYNAMIC = {"x": {0: torch.export.Dim.DYNAMIC}}


class Probabilities(nn.Module):
    """Class probabilities (B, K) of inputs ``x``: what a trained classifier says, and nothing else of it."""

    def __init__(self, module: ClassifierModule) -> None:
        super().__init__()
        self.network = module.predictor
        self.temperature: Tensor
        self.register_buffer("temperature", module.temperature.float())

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities (B, K)."""
        probability: Tensor = (self.network(x) / self.temperature).softmax(1)
        return probability


def load_classifier(path: Path) -> ClassifierModule:
    """The classifier of a checkpoint, or of the run folder ``path``, in eval mode on the CPU."""
    path = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
    if reason := fault(path, ("state_dict",)):
        raise AnnotError(f"{path} cannot be read as a checkpoint ({reason}); give a classifier's .ckpt or its folder.")
    checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    held = checkpoint.get(KEY, {})
    module = ClassifierModule(held.get("backbone"), image_size=held.get("image_size"), ema_decay=held.get("ema_decay"))
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    return module.eval()


def description(module: ClassifierModule) -> dict[str, Any]:
    """What the exported file takes and gives, in plain values."""
    found: dict[str, Any] = {"classes": module.classes, "output": "probability (batch, classes) float32, rows sum to 1"}
    if module.backbone_name is None:
        return found | {"input": "x (batch, features) float32", "input_size": [module.n_features]}
    how = {key: module.preprocessing[key] for key in ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")}
    steps = " ".join(repr(create_transform(**module.preprocessing, is_training=False)).split())
    found |= {"input": "x (batch, channels, height, width) float32, RGB", "backbone": module.backbone_name}
    return found | how | {"transform": steps}


def export_model(module: ClassifierModule, form: str, out: Path) -> None:
    """Write ``out``, and ``out`` + ``.json`` with its ``description``; AnnotError if it does not say what ``module`` says.

    It is compared on a batch of another size than it was exported with.
    """
    model, size = Probabilities(module).eval(), description(module)["input_size"]
    generator = torch.Generator().manual_seed(0)
    example, other = (torch.randn(n, *size, generator=generator) for n in (2, 3))
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as draft:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # about the exporters themselves; what they wrote is looked at here
            run = FORMATS[form](model, example, draft)
            gap = float((model(other) - run(other)).abs().max())
        if not gap <= TOLERANCE:
            raise AnnotError(f"the {form} file differs from the classifier by {gap:.2g}; try another --format.")
    write_text(out.with_name(out.name + ".json"), json.dumps(description(module), indent=1) + "\n")


def _torchscript(model: nn.Module, example: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
    traced = torch.jit.trace(model, example)  # type: ignore[no-untyped-call]
    path.write_bytes(traced.save_to_buffer())
    loaded: Callable[[Tensor], Tensor] = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    return loaded


def _pt2(model: nn.Module, example: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(model, (example,), dynamic_shapes=_DYNAMIC), buffer)
    path.write_bytes(buffer.getvalue())
    return torch.export.load(path).module()


def _onnx(model: nn.Module, example: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise AnnotError(f"ONNX needs {error.name}: pip install 'lightning-annot[export]'.") from error
    torch.onnx.export(
        model,
        (example,),
        str(path),
        input_names=["x"],
        output_names=["probability"],
        dynamic_shapes=_DYNAMIC,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(np.asarray(session.run(None, {"x": x.numpy()})[0]))


FORMATS = {"torchscript": _torchscript, "onnx": _onnx, "pt2": _pt2}


def command(args: list[str]) -> int:
    """``lightning-annot export-model CKPT --format FORMAT --out FILE``."""
    parser = OptionParser(
        "lightning-annot export-model",
        description="Write a trained classifier as one file, and beside it FILE.json: its classes, and its input.",
    )
    parser.add_argument("checkpoint", type=Path, help="a classifier's .ckpt, or its output folder")
    parser.add_argument("--format", choices=sorted(FORMATS), default="onnx", help="default: onnx; pt2 is torch.export's")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    given = parser.parse_args(args)
    export_model(load_classifier(given.checkpoint), given.format, given.out)
    print(given.out)
    return 0
