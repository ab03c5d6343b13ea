"""Find thresholds that keep a promise: `python -m src.calibrate source=good_photos category="metal nut"`."""

from __future__ import annotations

from omegaconf import DictConfig

from src.cli import run_command


def calibrate(config: DictConfig) -> None:
    """Score images without defects, and write the thresholds above which `max_false_alarms` of such images lie.

    Args:
        config: a validated configuration.
    """
    from src.run import build, steps  # torch and Lightning, for a configuration that is known to be right

    folder = build.open_folder(config)
    clip = build.find_backbone(config)
    images = build.build_data(config.test_data, clip)
    references = build.find_references(config, clip, images)
    build.check_calibration(config, images, references)
    clip = build.find_weights(config, clip)
    method = build.build_method(config, clip, references)
    origin = build.load_weights(config, method, clip)
    belongs_to = build.calibrated_for(config, method, clip, images, references)
    protocol = build.build_protocol(config, method, origin, images, references=references)
    module = build.build_module(config, folder, protocol, method, origin, images, references=references)
    trainer = build.build_trainer(config, folder, module, measures_maps=True)
    folder.describe(**build.describe(config, clip, trainer, module, protocol, images, references=references))

    with folder.recorded(protocol.line_of("calibrate on"), trainer.loggers):
        steps.serve_features(config, folder, trainer, module, clip, images)
        trainer.predict(module, datamodule=images, return_predictions=False)
        unreadable = steps.note_unreadable(folder, trainer)
        steps.write_calibration(config, folder, belongs_to)
    steps.tell_unreadable(unreadable)


def main() -> None:
    """Console script `clip-ad-calibrate`."""
    run_command("calibrate", calibrate)


if __name__ == "__main__":
    main()
