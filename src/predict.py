"""Score your own images: `python -m src.predict source=photos category="metal nut" +exp=sdp_visa`."""

from __future__ import annotations

from omegaconf import DictConfig

from src.cli import run_command


def predict(config: DictConfig) -> None:
    """Score images one by one; labels and masks are not needed. With a threshold, decide on each.

    Args:
        config: a validated configuration.
    """
    from src.run import build, steps  # torch and Lightning, for a configuration that is known to be right

    folder = build.open_folder(config)
    clip = build.find_backbone(config)
    images = build.build_data(config.test_data, clip)
    references = build.find_references(config, clip, images)
    if references is not None:
        references.warn_of_tested(images.records)
    clip = build.find_weights(config, clip)
    method = build.build_method(config, clip, references)
    origin = build.load_weights(config, method, clip)
    decisions = build.read_decisions(config, method, clip, images, references)
    protocol = build.build_protocol(config, method, origin, images, references=references)
    module = build.build_module(config, folder, protocol, method, origin, images, references=references)
    trainer = build.build_trainer(config, folder, module, decisions)
    known = build.describe(config, clip, trainer, module, protocol, images, references=references)
    folder.describe(**known, **build.describe_decisions(config, decisions, images))

    with folder.recorded(protocol.line_of("predict"), trainer.loggers):
        steps.serve_features(config, folder, trainer, module, clip, images)
        trainer.predict(module, datamodule=images, return_predictions=False)
        unreadable = steps.note_unreadable(folder, trainer)
    steps.tell_unreadable(unreadable)


def main() -> None:
    """Console script `clip-ad-predict`."""
    run_command("predict", predict)


if __name__ == "__main__":
    main()
