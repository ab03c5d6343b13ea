"""The three commands: train, eval and predict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from omegaconf import DictConfig

from datamodules.errors import UserError
from src.features.cache import off
from src.files import write_json
from src.processes import is_first, say
from src.report.table import close_loggers, log_table, print_table
from src.run.assembly import Run, assemble, plain
from src.run.results import METRICS_FILE
from src.run.trained_weights import load_trained_weights, read_trained_weights, write_trained_weights
from src.run.trainer import selected_checkpoint, whole_checkpoint


def train(config: DictConfig) -> float | None:
    """Train the model if it has something to train, then test it.

    Returns:
        The selected epoch's score on the held-out categories; None if the epoch is not selected by a metric.
    """
    run = assemble(config, with_training=True)
    _check_test(run)
    with _announced(run, run.protocol.line):
        _serve_features(run)
        score = _fit(run) if run.train_data is not None else None
        if config.test:
            _test(run)
    return score


def evaluate(config: DictConfig) -> None:
    """Test the model; `train_data` is not opened."""
    run = assemble(config, with_training=False)
    _check_test(run)
    with _announced(run, run.protocol.line):
        _serve_features(run)
        _test(run)


def predict(config: DictConfig) -> None:
    """Score images; labels and masks are not needed."""
    run = assemble(config, with_training=False)
    with _announced(run, f"predict {run.test_data.title} ({len(run.test_data.records)} images)"):
        _serve_features(run)
        run.trainer.predict(run.module, datamodule=run.test_data, return_predictions=False)


COMMANDS: dict[str, Callable[[DictConfig], float | None]] = {"train": train, "eval": evaluate, "predict": predict}


def _check_test(run: Run) -> None:
    """Refuse a test that can't be made or would not be zero-shot, before anything is computed."""
    if not (run.test_data.has_labels or run.test_data.has_masks):
        raise UserError(
            f"{run.test_data.title} has neither labels nor masks, so there is nothing to test; use src.predict"
        )
    if not run.config.test and run.train_data is None:
        raise UserError("test=false leaves nothing to do where nothing is trained; leave it out")
    if not run.config.allow_leakage:
        run.protocol.refuse_leakage()


@contextmanager
def _announced(run: Run, line: str) -> Iterator[None]:
    """Say what the run is, on the terminal, in its folder and to the loggers; afterwards mark it as finished."""
    say(line)
    run.folder.write()
    try:
        for logger in run.trainer.loggers:
            logger.log_hyperparams({"protocol": line, **plain(run.config)})
        yield
    except BaseException:
        close_loggers(run.trainer.loggers, exit_code=1)
        raise
    close_loggers(run.trainer.loggers, exit_code=0)
    run.folder.finish()
    say(f"results in {run.folder.path}")


def _serve_features(run: Run) -> None:
    """Take the tower's part of the work from disk, where that is possible.

    All of it before Lightning starts further processes, so that these find what the first one has computed.
    """
    if run.features is None:
        return
    if isinstance(run.features, str):
        run.folder.write(feature_cache=off(run.features))
        return
    uses = [(run.train_data, "train")]
    uses += [(run.train_data, "val")] if run.config.val_categories else []
    uses += [(run.test_data, "test")] if run.config.test else []
    served = {role: run.features.serve(data, role) for data, role in uses if data is not None}
    run.folder.write(feature_cache=served)


def _fit(run: Run) -> float | None:
    """Train, go back to the selected epoch, and write the trained parameters alone. Returns the epoch's score."""
    assert run.train_data is not None
    resumed = run.folder.checkpoint_to_resume
    run.trainer.fit(run.module, datamodule=run.train_data, ckpt_path=resumed and whole_checkpoint(resumed))
    if run.config.trainer.get("fast_dev_run"):
        return None  # Lightning writes no checkpoints then
    checkpoint, score = selected_checkpoint(run.trainer, run.folder.path)
    weights = read_trained_weights(checkpoint)
    load_trained_weights(run.module.method, weights, checkpoint)
    name = f"{run.module.method.name}.trained_on_{run.train_data.name}.safetensors"
    if is_first():
        write_trained_weights(run.folder.path / name, run.module.method, weights.origin)
    selection = {"selected_by": run.config.select, "score": score, "epochs": weights.origin["epochs"]}
    run.folder.write(trained_weights={"file": name, **selection})
    if score is not None:
        held_out = ", ".join(run.config.val_categories)
        say(f"{run.config.select} of epoch {selection['epochs']} on held-out {held_out}: {100 * score:.1f}")
    return score


def _test(run: Run) -> None:
    """Test, show and write the metrics; a part of a test leaves what they need."""
    run.trainer.test(run.module, datamodule=run.test_data, verbose=False)
    if run.test_data.shard:
        say("a part of the test has no metrics: join all parts by `python -m experiments.merge FOLDER...`")
        return
    result = run.module.test_result
    if is_first():
        write_json(run.folder.path / METRICS_FILE, result)
        print_table(result, run.protocol.line)
    log_table(result, run.trainer.loggers)
