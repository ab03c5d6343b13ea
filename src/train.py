"""Train a model if it has something to train, then test it: `python -m src.train +exp=sdp_plus_visa`."""

from __future__ import annotations

from omegaconf import DictConfig

from src.cli import run_command


def train(config: DictConfig) -> float | None:
    """Train, go back to the selected epoch, and test it.

    Args:
        config: a validated configuration.

    Returns:
        The selected epoch's score on the held-out categories; None if no metric selects the epoch.
    """
    from src.run import build, steps  # torch and Lightning, for a configuration that is known to be right

    folder = build.open_folder(config)
    clip = build.find_backbone(config)
    test_data = build.build_data(config.test_data, clip)
    references = build.find_references(config, clip, test_data)
    train_data = build.build_train_data(config, clip)
    clip = build.find_weights(config, clip)
    method = build.build_method(config, clip, references)
    if not method.trainable_parameters():
        train_data = None  # such as SDP
    origin = build.origin_of(config, method, clip, train_data)
    protocol = build.build_protocol(config, method, origin, test_data, train_data, references)
    build.check_test(config, protocol, test_data, references)
    module = build.build_module(config, folder, protocol, method, origin, test_data, train_data, references=references)
    trainer = build.build_trainer(config, folder, module)
    folder.describe(**build.describe(config, clip, trainer, module, protocol, test_data, train_data, references))

    score = None
    with folder.recorded(protocol.line, trainer.loggers):
        steps.serve_features(config, folder, trainer, module, clip, test_data, train_data)
        if train_data is not None:
            trainer.fit(module, datamodule=train_data, ckpt_path=folder.checkpoint_to_resume)
            score = steps.load_selected_epoch(config, folder, trainer, module, train_data)
        if config.test:
            trainer.test(module, datamodule=test_data, verbose=False)
    return score


def main() -> None:
    """Console script `clip-ad-train`."""
    run_command("train", train)


if __name__ == "__main__":
    main()
