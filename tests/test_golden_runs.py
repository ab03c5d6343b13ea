"""From the command line to the reference's maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.cli import Cli, golden_backbone
from tests.golden_reference import Golden

MEAN = "model.representative=mean"


@pytest.fixture(scope="session")
def golden_mvtec(golden_a: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden images as a data set in MVTec's layout."""
    return golden_a.write_mvtec(tmp_path_factory.mktemp("golden_data") / "mvtec")


def maps_of(folder: Path, golden: Golden) -> list[np.ndarray]:
    """The saved maps in the order of the golden images."""
    paths = [next(folder.glob(f"maps/{name}/*/{i:03}.npy")) for i, name in enumerate(golden.classes_of_images)]
    return [np.load(path) for path in paths]


def test_sdp_reproduces_the_reference(
    cli: Cli, golden_a: Golden, golden_mvtec: Path, recwarn: pytest.WarningsRecorder
) -> None:
    run = cli.ok(
        "eval", "+exp=sdp_mvtec", *golden_backbone(golden_a), f"test_data.root={golden_mvtec}", MEAN, "save_maps=true"
    )
    maps = maps_of(run.folder, golden_a)
    assert all(one.dtype == np.float32 for one in maps)
    np.testing.assert_allclose(np.stack(maps), golden_a["map_sdp_sigma8"].numpy(), rtol=0, atol=1e-4)

    rows = {row["image_path"]: row for row in run.predictions}
    for i, name in enumerate(golden_a.classes_of_images):
        row = next(row for path, row in rows.items() if path.startswith(name) and path.endswith(f"{i:03}.png"))
        assert float(row["cls_score"]) == pytest.approx(float(golden_a["prob"][i]), abs=1e-4)
        assert float(row["map_max"]) == pytest.approx(float(golden_a["map_sdp_sigma8"][i].max()), abs=1e-4)
    assert run.out.splitlines()[0] == "no training (frozen CLIP) -> test MVTec AD (6 images)"
    assert [str(one.message) for one in recwarn] == []


def test_sdp_plus_with_the_references_checkpoint(
    cli: Cli, golden_a: Golden, golden_mvtec: Path, tmp_path: Path
) -> None:
    checkpoint = golden_a.write_reference_checkpoint(tmp_path / "reference.pth")
    overrides = [*golden_backbone(golden_a), f"test_data.root={golden_mvtec}", MEAN, "save_maps=true"]
    run = cli.ok("eval", "+exp=sdp_plus_mvtec", *overrides, f"ckpt_path={checkpoint}")
    expected = golden_a["map_sdp_plus_sigma8"].numpy()
    np.testing.assert_allclose(np.stack(maps_of(run.folder, golden_a)), expected, rtol=0, atol=1e-4)
    assert run.out.splitlines()[0] == "trained on unknown data -> test MVTec AD (6 images)"
    assert run.provenance["checkpoint"]["file"] == str(checkpoint)


def test_block_output_is_another_map(cli: Cli, golden_a: Golden, golden_mvtec: Path) -> None:
    overrides = [*golden_backbone(golden_a), f"test_data.root={golden_mvtec}", MEAN, "save_maps=true"]
    run = cli.ok("eval", "+exp=sdp_mvtec", *overrides, "model.feature_tap=block_output")
    difference = np.stack(maps_of(run.folder, golden_a)) - golden_a["map_sdp_sigma8"].numpy()
    assert np.abs(difference).max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "ran"), [("16-mixed", "bf16-mixed"), ("bf16-mixed", "bf16-mixed"), ("32", "32-true")]
)
def test_precision(cli: Cli, golden_a: Golden, golden_mvtec: Path, asked: str, ran: str) -> None:
    overrides = [*golden_backbone(golden_a), f"test_data.root={golden_mvtec}", MEAN, "save_maps=true"]
    run = cli.ok("eval", "+exp=sdp_mvtec", *overrides, f"trainer.precision={asked}")
    assert run.provenance["device"]["precision"] == ran
    # bfloat16 keeps 8 bits: the maps move, but not far.
    difference = np.abs(np.stack(maps_of(run.folder, golden_a)) - golden_a["map_sdp_sigma8"].numpy()).max()
    assert difference < (1e-4 if ran == "32-true" else 5e-2)
    assert (difference > 1e-4) == (ran != "32-true")


@pytest.mark.slow
def test_evaluation_sizes(cli: Cli, golden_a: Golden, golden_mvtec: Path) -> None:
    overrides = [*golden_backbone(golden_a), f"test_data.root={golden_mvtec}", MEAN]
    native, model, larger = (
        cli.ok("eval", "+exp=sdp_mvtec", *overrides, f"test_data.eval_size={size}", name=str(size))
        for size in ("native", "model", "160")
    )
    # These images are at the model's size already, so native is the same comparison.
    assert native.metrics == model.metrics
    assert larger.metrics["mean"]["pixel_AUPRO"] != model.metrics["mean"]["pixel_AUPRO"]
    assert larger.metrics["mean"]["image_AUROC"] == model.metrics["mean"]["image_AUROC"]
    assert [row["map_max"] for row in larger.predictions] == [row["map_max"] for row in model.predictions]
