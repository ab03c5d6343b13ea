"""The three commands: train, eval and predict."""

from __future__ import annotations

from omegaconf import DictConfig

from datamodules.errors import UserError
from src.assembly import Run, assemble, plain
from src.files import write_json
from src.models.trained_weights import load_trained_weights, read_trained_weights, write_trained_weights
from src.report.table import log_table, print_table
from src.trainer import selected_checkpoint

METRICS_FILE = "metrics.json"


def train(config: DictConfig) -> None:
    """Train the model if it has something to train, then test it."""
    run = assemble(config, with_training=True)
    _check_test(run)
    _announce(run, run.protocol.line)
    if run.train_data is not None:
        _fit(run)
    _test(run)


def evaluate(config: DictConfig) -> None:
    """Test the model; `train_data` is not opened."""
    run = assemble(config, with_training=False)
    _check_test(run)
    _announce(run, run.protocol.line)
    _test(run)


def predict(config: DictConfig) -> None:
    """Score images; labels and masks are not needed."""
    run = assemble(config, with_training=False)
    _announce(run, f"predict {run.test_data.title} ({len(run.test_data.records)} images)")
    run.trainer.predict(run.module, datamodule=run.test_data, return_predictions=False)
    _finish(run)


COMMANDS = {"train": train, "eval": evaluate, "predict": predict}


def _check_test(run: Run) -> None:
    """Refuse a test that can't be made or would not be zero-shot, before anything is computed."""
    if not (run.test_data.has_labels or run.test_data.has_masks):
        raise UserError(
            f"{run.test_data.title} has neither labels nor masks, so there is nothing to test; use src.predict"
        )
    if not run.config.allow_leakage:
        run.protocol.refuse_leakage()


def _announce(run: Run, line: str) -> None:
    """Say what the run is: on the terminal, in its folder and to the loggers."""
    print(line, flush=True)
    run.folder.write()
    for logger in run.trainer.loggers:
        logger.log_hyperparams({"protocol": line, **plain(run.config)})


def _fit(run: Run) -> None:
    """Train, go back to the selected epoch, and write the trained parameters alone."""
    assert run.train_data is not None
    run.trainer.fit(run.module, datamodule=run.train_data, ckpt_path=run.folder.checkpoint_to_resume)
    origin = run.module.origin
    origin["epochs"] = run.trainer.current_epoch
    best = selected_checkpoint(run.trainer)
    if best is not None:
        weights = read_trained_weights(best)
        load_trained_weights(run.module.method, weights, best)
        origin = weights.origin
    name = f"{run.module.method.name}.trained_on_{run.train_data.name}.safetensors"
    write_trained_weights(run.folder.path / name, run.module.method, origin)
    run.folder.write(trained_weights={"file": name, "selected_by": run.config.select, "epochs": origin["epochs"]})


def _test(run: Run) -> None:
    """Test, show and write the metrics."""
    run.trainer.test(run.module, datamodule=run.test_data, verbose=False)
    result = run.module.test_result
    print_table(result, run.protocol.line)
    log_table(result, run.trainer.loggers)
    write_json(run.folder.path / METRICS_FILE, result)
    _finish(run)


def _finish(run: Run) -> None:
    run.folder.finish()
    print(f"results in {run.folder.path}")
