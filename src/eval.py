"""Test a model: `python -m src.eval +exp=sdp_visa`. The training data is never opened."""

from __future__ import annotations

from omegaconf import DictConfig

from src.cli import run_command


def evaluate(config: DictConfig) -> None:
    """Test a frozen method, or trained parameters from `ckpt_path`.

    Args:
        config: a validated configuration.
    """
    from src.run import build, steps  # torch and Lightning, for a configuration that is known to be right

    folder = build.open_folder(config)
    clip = build.find_backbone(config)
    test_data = build.build_data(config.test_data, clip)
    references = build.find_references(config, clip, test_data)
    clip = build.find_weights(config, clip)
    method = build.build_method(config, clip, references)
    origin = build.load_weights(config, method, clip)
    decisions = build.read_decisions(config, method, clip, test_data, references)
    protocol = build.build_protocol(config, method, origin, test_data, references=references)
    build.check_test(config, protocol, test_data, references)
    module = build.build_module(
        config, folder, protocol, method, origin, test_data, decisions=decisions, references=references
    )
    trainer = build.build_trainer(config, folder, module, decisions)
    known = build.describe(config, clip, trainer, module, protocol, test_data, references=references)
    folder.describe(**known, **build.describe_decisions(config, decisions, test_data))

    with folder.recorded(protocol.line, trainer.loggers):
        steps.serve_features(config, folder, trainer, module, clip, test_data)
        trainer.test(module, datamodule=test_data, verbose=False)


def main() -> None:
    """Console script `clip-ad-eval`."""
    run_command("eval", evaluate)


if __name__ == "__main__":
    main()
