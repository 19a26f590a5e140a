"""One LightningCLI for annotation, adaptation and fine-tuning: fit, validate, test, predict."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins import TorchCheckpointIO

from lightning_annot.backbones.adapt_settings import StartSettings
from lightning_annot.callbacks.annotation_round import AnnotationRound
from lightning_annot.callbacks.prediction_file import PredictionFile
from lightning_annot.callbacks.progress import RoundProgress
from lightning_annot.callbacks.wandb_records import WandbRecords
from lightning_annot.checkpoints import TRAINING, WEIGHTS, DurableCheckpointIO, fault, is_local, unusable
from lightning_annot.commandline.config_files import check_files
from lightning_annot.commandline.faults import UsageFault, explain
from lightning_annot.commandline.texts import install, quoted_args
from lightning_annot.data.datamodule import AnnotationDataModule
from lightning_annot.data.ranks import peers_explained
from lightning_annot.files import write_text
from lightning_annot.learner.module import MixMatchModule
from lightning_annot.quiet import hush
from lightning_annot.types import AnnotError

logger = logging.getLogger(__name__)

_NOT_FILES = ("best", "last", "hpc", "registry")  # what else Lightning takes as --ckpt_path
_ADAPTS = "lightning_annot.backbones.adaptation.SelfSupervisedModule"  # by name: a run that adapts nothing need not load it

TRAINER_DEFAULTS = {
    "max_epochs": 100,
    "reload_dataloaders_every_n_epochs": 1,  # pools change every round; other values shift on resume
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,  # each rank slices the same draw itself
    "log_every_n_steps": 1,
    "enable_model_summary": False,
}
ROOTS = {"trainer": Trainer, "annotation": AnnotationRound, "model": MixMatchModule, "data": AnnotationDataModule}
OTHERS = {"seed_everything": bool | int, "config": Any, "ckpt_path": str | None, "weights_only": bool | None}


class SaveRunConfig(SaveConfigCallback):
    """Writes the resolved configuration of ``fit`` to the run's folder, where the newest counts, and to its loggers."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Rank 0 alone, after the round callback has claimed the folder; an equal file stays as it is."""
        if stage != "fit":
            return
        text = self.parser.dump(self.config, skip_none=False)
        given = yaml.safe_load(text)
        given["annotation"].pop("log_url")  # may hold a password, and loggers may send what they are given
        for logger in trainer.loggers:
            logger.log_hyperparams(given)
        path = Path(self.config["annotation"]["output_dir"]) / "config.yaml"
        if not path.is_file() or path.read_bytes() != text.encode():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)


class Parser(LightningArgumentParser):
    """Raises a fault where jsonargparse prints its usage and exits."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what jsonargparse tries, or the fault to be explained where it would exit."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise UsageFault(message) from ex


class AnnotationCLI(LightningCLI):
    """Adds the round, its checkpoints and its records to Lightning's command line; any Lightning model and data run too."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The ``annotation`` group, our model and data by default, and one seed for all."""
        parser.add_lightning_class_args(AnnotationRound, "annotation")
        for group in ("data", "model"):
            parser.link_arguments("seed_everything", f"{group}.init_args.seed")
        parser.link_arguments("annotation.output_dir", "data.init_args.output_dir")
        parser.set_defaults({"model": _class_path(MixMatchModule), "data": _class_path(AnnotationDataModule)})

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Refuse a named checkpoint that cannot be read, before Lightning takes settings from it."""
        super().parse_arguments(parser, args)
        path = self.config[self.config.subcommand].get("ckpt_path") if self.config.get("subcommand") else None
        if path and is_local(path) and str(path).partition(":")[0] not in _NOT_FILES and not Path(path).is_dir():
            reason = fault(Path(path), WEIGHTS, (), self.config[self.config.subcommand].get("weights_only"))
            if reason is not None:
                raise AnnotError(unusable(path, reason))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Checkpoints, logs and records go below ``annotation.output_dir`` unless the configuration says otherwise."""
        config = self._get(self.config_init, "trainer")
        output = Path(self.output_dir)
        callbacks: list[Callback] = list(config.get("callbacks") or [])
        if not any(isinstance(c, ModelCheckpoint) for c in callbacks):
            callbacks.append(
                ModelCheckpoint(
                    dirpath=output / "checkpoints",
                    filename="last",  # replaced every round; save_last with save_top_k=0 would write at the end of fit alone
                    save_on_train_epoch_end=True,
                    enable_version_counter=False,
                )
            )
        if config.get("enable_progress_bar") is not False:
            callbacks.append(RoundProgress())
        # After the round callback, whose files they read.
        callbacks += [self._get(self.config_init, "annotation"), WandbRecords(str(output)), PredictionFile(str(output))]
        if config.get("logger") in (None, True):
            kwargs["logger"] = CSVLogger(output, name="logs") if self.subcommand == "fit" else False
        kwargs["callbacks"] = callbacks
        try:
            trainer = self._instantiate_trainer({**config, **kwargs}, [])
        except (ValueError, TypeError, MisconfigurationException) as error:
            if isinstance(error, AnnotError):
                raise
            raise AnnotError(f"Lightning refuses the trainer's settings: {' '.join(str(error).split())}") from error
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # neither the user nor the strategy has one of its own
            trainer.strategy.checkpoint_io = DurableCheckpointIO()
        return trainer

    @property
    def output_dir(self) -> str:
        """Folder of the run."""
        return str(self._get(self.config, "annotation")["output_dir"])

    @property
    def annotation_round(self) -> AnnotationRound:
        """The callback with the workers and all settings of a round."""
        found: AnnotationRound = self._get(self.config_init, "annotation")
        return found

    def _run_subcommand(self, subcommand: str) -> None:
        with peers_explained():
            super()._run_subcommand(subcommand)

    def before_fit(self) -> None:
        """The same command goes on: from the run's last checkpoint if there is one that is whole, else from the log.

        Nothing is listed or downloaded first where a file is missing, or the folder is a study's.
        """
        if isinstance(self.datamodule, AnnotationDataModule):
            self.annotation_round.opening.files()
        config = self.config_init["fit"]
        if config["ckpt_path"] in (None, "last"):
            config["ckpt_path"] = self._whole_checkpoint()
        else:
            self._check_given("fit")

    def _whole_checkpoint(self) -> str | None:
        """The run's last checkpoint if ``fit`` can go on from it; one that is damaged is passed over with a warning."""
        last = self._last_checkpoint()
        if not last.is_file():
            return None
        reason = self._fault("fit", last)
        if reason is None:
            return str(last)
        if self.trainer.is_global_zero:
            rounds = isinstance(self.datamodule, AnnotationDataModule)
            consequence = "the run goes on from its log" if rounds else "training starts anew"
            logger.warning("the checkpoint %s cannot be used: %s; %s", last, reason, consequence)
        return None

    def before_validate(self) -> None:
        """A checkpoint is needed."""
        self._need_checkpoint("validate")

    def before_test(self) -> None:
        """A checkpoint is needed."""
        self._need_checkpoint("test")

    def before_predict(self) -> None:
        """A checkpoint is needed; predictions go to a file, not to memory."""
        self._need_checkpoint("predict")
        self.config_init["predict"]["return_predictions"] = False

    def _need_checkpoint(self, command: str) -> None:
        config = self.config_init[command]
        if config["ckpt_path"] not in (None, "last"):
            self._check_given(command)
            return
        last = self._last_checkpoint()
        if not last.is_file():
            raise AnnotError(
                f"{command} needs a trained learner, and {last} does not exist. Run fit first, name the run's folder as "
                "--annotation.output_dir, or give --ckpt_path."
            )
        config["ckpt_path"] = str(last)
        self._check_given(command)

    def _check_given(self, command: str) -> None:
        """AnnotError where the checkpoint of ``command`` is a file that cannot be used."""
        path = self.config_init[command]["ckpt_path"]
        if Path(path).is_file() and (reason := self._fault(command, Path(path))):
            raise AnnotError(unusable(path, reason))

    def _fault(self, command: str, path: Path) -> str | None:
        """Why the file at ``path`` is no checkpoint that ``command`` can use, or None."""
        parts: tuple[str, ...] = TRAINING if command == "fit" else WEIGHTS
        states: list[str] = []
        if isinstance(self.datamodule, AnnotationDataModule):
            parts = (*parts, type(self.datamodule).__qualname__)
            states = [self.annotation_round.state_key] if command in ("fit", "test") else []
        return fault(path, parts, states, self.config_init[command].get("weights_only"))

    def _last_checkpoint(self) -> Path:
        return Path(self.output_dir) / "checkpoints" / "last.ckpt"


class PreparedCLI(AnnotationCLI):
    """Has all that a command would run, and runs nothing.

    A model that adapts gets its weights when it is made; here they are random, and ``start`` says what they would be.
    """

    start = StartSettings()

    def instantiate_classes(self) -> None:
        """Make model, data, round and Trainer without the download of any weights."""
        model = self._get(self.config, "model")
        if model["class_path"] == _ADAPTS:
            given = model["init_args"]["backbone"]
            self.start = StartSettings(given["name"], given["weights"], given["image_size"])
            given["weights"] = "random"
        super().instantiate_classes()

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def _class_path(kind: type) -> dict[str, str]:
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}"}


def run(args: list[str] | None = None) -> AnnotationCLI:
    """Parse ``args`` (default: the command line) and run the Trainer's method they name."""
    return _command_line(args, True, AnnotationCLI)


def build(args: list[str]) -> AnnotationCLI:
    """Model, data, round and Trainer that ``fit`` with these settings (without the word ``fit``) would have; nothing runs."""
    return _command_line(args, False, AnnotationCLI)


def prepare(args: list[str]) -> PreparedCLI:
    """All that the command of ``args`` would run; nothing is run, written or downloaded."""
    return _command_line(args, True, PreparedCLI)


CLI = TypeVar("CLI", bound=AnnotationCLI)


def _command_line(args: list[str] | None, run: bool, kind: type[CLI]) -> CLI:
    words = quoted_args(sys.argv[1:] if args is None else args)
    no_files: dict[str, Any] = {"default_config_files": []}
    check_files(words)
    install()
    hush()
    try:
        return kind(
            model_class=LightningModule,
            datamodule_class=LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_class=Parser,
            parser_kwargs={
                "parser_mode": "omegaconf",
                **(dict.fromkeys(("fit", "validate", "test", "predict"), no_files) if run else no_files),
            },
            auto_configure_optimizers=False,
            args=words,
            run=run,
        )
    except UsageFault as usage:
        raise _refusal(usage, words[1:] if run else words) from usage


def _refusal(usage: UsageFault, words: list[str]) -> AnnotError:
    """The error to show: ours, where a setting's own check has raised it, else what is wrong with the ``words``."""
    error: BaseException | None = usage
    while error is not None:
        if isinstance(error, AnnotError):
            return error
        error = error.__cause__ or error.__context__
    return AnnotError(explain(words, str(usage), ROOTS, OTHERS))
