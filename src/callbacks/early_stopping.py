"""Early stopping that a resumed run remembers."""

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping


class ResumableEarlyStopping(EarlyStopping):
    """Lightning's, but a run that was killed after it had stopped training does not train another epoch when resumed.

    The state of the callback is part of the checkpoint; the trainer's wish to stop is not.

    Example:
        >>> stopping = ResumableEarlyStopping(monitor="val/pixel_AP", mode="max", patience=2)
        >>> trainer = Trainer(callbacks=[stopping], logger=False)
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop again, if the run that is resumed had stopped."""
        if self.stopped_epoch > 0:
            trainer.should_stop = True
