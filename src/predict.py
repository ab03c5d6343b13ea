"""Score images without labels: `python -m src.predict test_data.root=/my/images test_data.category=bottle`."""

from __future__ import annotations

from omegaconf import DictConfig

from src.cli import run_command


def predict(config: DictConfig) -> None:
    """Score images one by one; labels and masks are not needed.

    Args:
        config: a validated configuration.
    """
    from src.run import build, steps  # torch and Lightning, for a configuration that is known to be right

    folder = build.open_folder(config)
    clip = build.find_backbone(config)
    images = build.build_data(config.test_data, clip)
    clip = build.find_weights(config, clip)
    method = build.build_method(config, clip)
    origin = build.load_weights(config, method, clip)
    protocol = build.build_protocol(config, method, origin, images)
    module = build.build_module(config, folder, protocol, method, origin, images)
    trainer = build.build_trainer(config, folder, module)
    folder.describe(**build.describe(config, clip, trainer, protocol, images))

    with folder.recorded(f"predict {images.title} ({len(images.records)} images)", trainer.loggers):
        steps.serve_features(config, folder, trainer, module, clip, images)
        trainer.predict(module, datamodule=images, return_predictions=False)


def main() -> None:
    """Console script `clip-ad-predict`."""
    run_command("predict", predict)


if __name__ == "__main__":
    main()
