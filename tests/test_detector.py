"""The Python interface: the numbers of `src.predict`, whatever an image is given as."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from src import AnomalyDetector, UserError
from src.overrides import CONF
from src.scoring import at_own_size
from tests.cli import Cli, golden_backbone
from tests.golden_reference import Golden
from tests.test_own_images import draw

PIXELS = np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8)


def overrides_of(golden: Golden, *more: str) -> list[str]:
    return [f"backbone.config={golden.config_path}", f"backbone.pretrained={golden.weights_path}", "trainer=cpu", *more]


def cut_off() -> Image.Image:
    """A picture whose file ends too early, which Pillow sees when it is used."""
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "png")
    return Image.open(io.BytesIO(file.getvalue()[:-500]))


@pytest.fixture(scope="module")
def detector(golden_a: Golden) -> AnomalyDetector:
    return AnomalyDetector.from_experiment("sdp_mvtec", overrides=overrides_of(golden_a, "test_data.batch_size=4"))


@pytest.mark.slow
def test_maps_scores_and_decisions_are_those_of_the_command(cli: Cli, golden_a: Golden, tmp_path: Path) -> None:
    good, photos = draw(tmp_path / "good", 9), draw(tmp_path / "photos", 6)
    common = ["+exp=sdp_mvtec", *golden_backbone(golden_a), "category=metal nut"]
    made = cli.ok("calibrate", *common, f"source={good}", "max_false_alarms=0.3", name="calibration")
    threshold = made.folder / "calibration.json"
    run = cli.ok("predict", *common, f"source={photos}", f"threshold={threshold}", "save_maps=true", name="run")
    detector = AnomalyDetector.from_experiment("sdp_mvtec", overrides=overrides_of(golden_a), threshold=threshold)
    found = detector.predict(sorted(photos.iterdir()), category="metal nut")
    for row, one in zip(run.predictions, found, strict=True):
        expected = at_own_size(torch.from_numpy(np.load(run.folder / row["map"])), (32, 40))
        np.testing.assert_allclose(one.anomaly_map, expected, rtol=0, atol=1e-6)
        assert one.single_score == pytest.approx(float(row["single_score"]), abs=1e-6)
        assert (one.is_anomalous, one.p_value) == (row["is_anomalous"] == "1", float(row["p_value"]))
    anew = AnomalyDetector.from_experiment("sdp_mvtec", overrides=overrides_of(golden_a))
    anew.calibrate(sorted(good.iterdir()), "metal nut", max_false_alarms=0.3)
    assert [one.p_value for one in anew.predict(sorted(photos.iterdir()), "metal nut")] == [
        one.p_value for one in found
    ]


def test_all_kinds_of_images_give_one_result(detector: AnomalyDetector, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    alpha = np.concatenate([PIXELS, np.full_like(PIXELS[..., :1], 7)], axis=2)
    tensor = torch.from_numpy(PIXELS).permute(2, 0, 1)
    given = [
        path,
        str(path),
        Image.fromarray(PIXELS),
        Image.fromarray(alpha),
        PIXELS,
        alpha,
        PIXELS / 255,
        (PIXELS / 255).astype(np.float32),
        PIXELS.astype(np.uint16) * 257,
        tensor,
        tensor / 255,
    ]
    first, *others = detector.predict(given, category="cup")
    assert first.anomaly_map.shape == (30, 40)
    assert first.anomaly_map.dtype == np.float32
    for other in others:
        assert other.single_score == first.single_score
        assert np.array_equal(other.anomaly_map, first.anomaly_map)
    for several in (np.stack([PIXELS] * 2), torch.stack([tensor] * 2), (PIXELS for _ in range(2))):
        assert [one.single_score for one in detector.predict(several, category="cup")] == [first.single_score] * 2
    assert detector.predict(path)[0].category == tmp_path.name


def test_grey_images_of_all_kinds_give_one_result(detector: AnomalyDetector) -> None:
    grey = PIXELS[..., 0]
    kinds = [grey, grey[..., None], Image.fromarray(grey), torch.from_numpy(grey), torch.from_numpy(grey)[None]]
    kinds += [Image.fromarray(grey.astype(np.uint16) * 257), np.stack([grey] * 3, axis=2)]
    scores = {one.single_score for one in detector.predict(kinds, category="cup")}
    assert len(scores) == 1


def test_a_photo_is_turned_as_people_see_it(detector: AnomalyDetector, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    by_hand = np.ascontiguousarray(PIXELS.transpose(1, 0, 2)[:, ::-1])
    opened = Image.open(tmp_path / "a.png")
    first, *others = detector.predict([by_hand, tmp_path / "a.png", opened], category="cup")
    assert first.anomaly_map.shape == (40, 30)
    assert all(np.array_equal(other.anomaly_map, first.anomaly_map) for other in others)


def test_each_image_may_have_a_category(detector: AnomalyDetector) -> None:
    found = detector.predict([PIXELS] * 3, category=["cup", "metal nut", "cup"])
    assert [one.category for one in found] == ["cup", "metal nut", "cup"]
    assert found[0].single_score == found[2].single_score != found[1].single_score
    with pytest.raises(UserError, match="there is none for image 2"):
        detector.predict([PIXELS] * 3, category=["cup", "nut"])


def test_a_generator_is_read_batch_by_batch(detector: AnomalyDetector) -> None:
    taken = []

    def images() -> Iterator[np.ndarray]:
        for number in range(100):
            taken.append(number)
            yield PIXELS

    predictions = detector.iterate(images(), category="cup")
    next(predictions)
    assert len(taken) == 4
    for _ in range(4):
        next(predictions)
    assert len(taken) == 8


def test_many_threads_get_what_one_gets(golden_a: Golden) -> None:
    rng = np.random.default_rng(3)
    work = [(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8), f"object {number % 5}") for number in range(32)]
    alone = AnomalyDetector.from_experiment("sdp_mvtec", overrides=overrides_of(golden_a))
    expected = [alone.predict(image, category)[0].single_score for image, category in work]
    shared = AnomalyDetector.from_experiment("sdp_mvtec", overrides=overrides_of(golden_a))
    found: dict[int, float] = {}
    start = threading.Barrier(8)

    def run(first: int) -> None:
        start.wait()
        for number in range(first, len(work), 8):
            found[number] = shared.predict(*work[number])[0].single_score

    threads = [threading.Thread(target=run, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(len(work))] == expected


@pytest.mark.slow
def test_tiles(golden_a: Golden, cli: Cli, tmp_path: Path) -> None:
    large = draw(tmp_path / "large", 1, size=(100, 70))
    options = ["tile=32", "overlap=0.25"]
    run = cli.ok("predict", "+exp=sdp_mvtec", *golden_backbone(golden_a), f"source={large}", "save_maps=true", *options)
    detector = AnomalyDetector.from_experiment("sdp_mvtec", overrides=overrides_of(golden_a, *options))
    [found] = detector.predict(large / "000.png")
    blended = torch.from_numpy(np.load(run.folder / run.predictions[0]["map"]))
    assert blended.shape[0] > detector.method.image_size  # type: ignore[operator]
    np.testing.assert_allclose(found.anomaly_map, at_own_size(blended, (70, 100)), rtol=0, atol=1e-6)


def test_the_callers_random_numbers_and_hydra_stay(golden_a: Golden) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        AnomalyDetector.from_experiment("sdp_mvtec", overrides=overrides_of(golden_a))
        assert torch.equal(torch.rand(1), expected)
        assert compose("eval", ["+exp=sdp_visa"]).seed == 42


@pytest.fixture(scope="module")
def released(demo_data: Path, demo: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a short training leaves to hand to others."""
    folder = tmp_path_factory.mktemp("released")
    with pytest.MonkeyPatch.context() as patch:
        options = [*demo, "train_data.categories=[wood]", "trainer.max_epochs=1", "test=false"]
        Cli(patch, None, folder).ok("train", "+exp=sdp_plus_demo", *options)
    return folder / "run" / "sdp_plus.trained_on_demo.safetensors"


def with_origin(file: Path, target: Path, **changes: object) -> Path:
    """The same file with another header; None drops an entry."""
    with safe_open(file, framework="pt") as opened:
        origin = json.loads(opened.metadata()["origin"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    origin = {key: value for key, value in (origin | changes).items() if value is not None}
    save_file(tensors, target, {"origin": json.dumps(origin)})
    return target


@pytest.mark.slow
def test_a_released_file_is_enough(released: Path) -> None:
    alone = AnomalyDetector.from_weights(released)
    named = AnomalyDetector.from_experiment("sdp_plus_demo", ckpt_path=released)
    ours, theirs = (one.predict(PIXELS, category="coin")[0] for one in (alone, named))
    assert alone.method.name == "sdp_plus"
    assert ours.single_score == theirs.single_score
    assert np.array_equal(ours.anomaly_map, theirs.anomaly_map)


@pytest.mark.slow
def test_a_released_file_that_does_not_say_enough(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "changed.safetensors"
    with safe_open(released, framework="pt") as opened:
        origin = json.loads(opened.metadata()["origin"])
    cases: list[tuple[dict[str, object], str]] = [
        ({"model": None}, "does not say which model it belongs to; open it by from_experiment"),
        (
            {"backbone": {**origin["backbone"], "sha256": "1" * 64}},
            "was trained with the backbone weights of sha256 1111",
        ),
        ({"model": {**origin["model"], "_target_": "os.path.Thing"}}, "names the class os.path.Thing"),
        (
            {"model": {**origin["model"], "_target_": "src.models.maps.torch.nn.Linear"}},
            "names the class src.models.maps",
        ),
        (
            {"model": {**origin["model"], "smoothing_sigma": {"_target_": "numpy.memmap", "mode": "w+"}}},
            "_target_ is nothing",
        ),
        ({"prompts": {**origin["prompts"], "_args_": ["/tmp/x"]}}, "prompts._args_ is nothing that a training writes"),
        ({"model": {**origin["model"], "representative": "${oc.env:HOME}"}}, "must be a plain value"),
        ({"clip": {**origin["clip"], "pretrained": "/nowhere/clip.bin"}}, "/nowhere/clip.bin"),
    ]
    for changes, message in cases:
        with pytest.raises(UserError, match=re.escape(message)):
            AnomalyDetector.from_weights(with_origin(released, file, **changes))
    (tmp_path / "stranger.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(str(tmp_path))
    AnomalyDetector.from_weights(with_origin(released, file, tested_on="stranger.Data")).predict(PIXELS, "coin")
    with pytest.raises(UserError, match="the file says which method"):
        AnomalyDetector.from_weights(released, overrides=["model.smoothing_sigma=3"])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 5, 2)), r"image 1: expected the shape (H, W) or (H, W, 3), but got (4, 5, 2)"),
        (np.zeros((0, 5)), "image 1: expected the shape (H, W)"),
        (np.zeros(5), "image 1: expected the shape (H, W)"),
        (np.full((4, 5), 1.5), "image 1: expected floating-point values from 0 to 1, but got 1.5 to 1.5"),
        (np.full((4, 5), np.nan), "image 1: expected floating-point values from 0 to 1, but got nan to nan"),
        (np.zeros((4, 5), np.int64), "image 1: expected uint8, uint16 or floating-point values, but got int64"),
        (torch.zeros(5, 4, 4), "image 1: expected the shape"),
        (torch.zeros(4, 4).to_sparse(), "image 1: expected a dense tensor"),
        (cut_off(), "image 1: can't read it"),
        (7, "image 1: expected a path, a Pillow image, an array or a tensor, got int"),
        (Path("/nowhere/a.png"), "/nowhere/a.png: there is no such file"),
        (Path("/tmp"), "image 1: expected an image, but /tmp is a folder"),
    ],
)
def test_what_is_no_image_is_named(detector: AnomalyDetector, image: object, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        detector.predict([PIXELS, image], category="cup")  # type: ignore[list-item]


def test_scores_that_are_no_numbers_are_refused(golden_a: Golden) -> None:
    broken = AnomalyDetector.from_experiment("sdp_mvtec", overrides=overrides_of(golden_a, "paths.cache_dir=/nowhere"))
    with torch.no_grad():
        broken.method.dual_path.backbone.clip.visual.proj.fill_(torch.nan)
    with pytest.raises(UserError, match="the scores of image 0 by sdp are not finite"):
        broken.predict(PIXELS, "cup")


def test_other_mistakes_are_told_in_one_line(detector: AnomalyDetector, golden_a: Golden, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected category="):
        detector.predict(PIXELS)
    for category, message in ((5, "expected category as a text"), (["cup", "nut"], "more categories than images")):
        with pytest.raises(UserError, match=message):
            detector.predict([PIXELS], category=category)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="can't move to the device nodevice"):
        detector.to("nodevice")
    with pytest.raises(UserError, match="a line of text"):
        detector.predict(PIXELS, category=" ")
    with pytest.raises(UserError, match="has no 'sdp_vsa'"):
        AnomalyDetector.from_experiment("sdp_vsa")
    with pytest.raises(UserError, match="unknown configuration key"):
        AnomalyDetector.from_experiment("sdp_visa", overrides=["sede=7"])
    for override, message in (
        ("tile=8", "Expected tile to be"),
        ("test_data.batch_size=0", "Expected batch_size to be 1 or more"),
        ("test_data=demo", "test_data"),
        ("source=a.png", "arguments of predict"),
    ):
        with pytest.raises(UserError, match=message):
            AnomalyDetector.from_experiment("sdp_mvtec", overrides=overrides_of(golden_a, override))
    given = AnomalyDetector.from_experiment("sdp_mvtec", overrides=overrides_of(golden_a, "threshold=-99"))
    assert given.predict(PIXELS, "cup")[0].is_anomalous
    with pytest.raises(UserError, match=r"there are 0 of cup; add images$"):
        detector.calibrate([], "cup")
    with pytest.raises(UserError, match="needs trained parameters"):
        AnomalyDetector.from_experiment("sdp_plus_mvtec", overrides=overrides_of(golden_a))
    with pytest.raises(UserError, match="there is no file"):
        AnomalyDetector.from_experiment("sdp_mvtec", overrides=overrides_of(golden_a), threshold=tmp_path / "none.json")
    with pytest.raises(
        UserError, match=r"max_false_alarms=0\.01 takes 99 images without defects, but there are 3 of cup"
    ):
        detector.calibrate([PIXELS] * 3, "cup")


def test_a_calibration_counts_for_its_settings_and_categories_only(golden_a: Golden, tmp_path: Path) -> None:
    one = AnomalyDetector.from_experiment("sdp_mvtec", overrides=overrides_of(golden_a))
    good = list(np.random.default_rng(0).integers(0, 256, (9, 20, 20, 3), dtype=np.uint8))
    one.calibrate(good, "cup", max_false_alarms=0.2)
    both = one.calibrate(good, "nut", max_false_alarms=0.5)
    assert [category.alpha for category in both.categories.values()] == [0.2, 0.5]
    assert not any(found.is_anomalous for found in one.predict(good[0], "cup"))
    with pytest.raises(UserError, match="is of cup, nut, but not of mug"):
        one.predict(good[0], "mug")
    both.write(tmp_path / "calibration.json")
    other = [*overrides_of(golden_a), "model.smoothing_sigma=3"]
    with pytest.raises(UserError, match=r"model\.smoothing_sigma 8, here 3"):
        AnomalyDetector.from_experiment("sdp_mvtec", overrides=other, threshold=tmp_path / "calibration.json")


@pytest.mark.slow
def test_a_calibration_counts_for_its_trained_weights_only(released: Path, tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    one = AnomalyDetector.from_weights(released)
    one.calibrate([PIXELS, PIXELS[::-1], PIXELS[:, ::-1]], "coin", max_false_alarms=0.5).write(file)
    assert AnomalyDetector.from_weights(released, threshold=file).calibration == one.calibration
    with safe_open(released, framework="pt") as opened:
        header, tensors = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    first = next(iter(tensors))
    other = tmp_path / "other.safetensors"
    save_file(tensors | {first: tensors[first] * 1.001}, other, header)
    with pytest.raises(UserError, match="belongs to other settings: trained"):
        AnomalyDetector.from_weights(other, threshold=file)


def test_reduced_precision_is_near_and_not_equal(golden_a: Golden, detector: AnomalyDetector) -> None:
    half = AnomalyDetector.from_experiment(
        "sdp_mvtec", overrides=overrides_of(golden_a, "trainer.precision=bf16-mixed")
    )
    exact, near = (one.predict(PIXELS, category="cup")[0].anomaly_map for one in (detector, half))
    assert 0 < np.abs(exact - near).max() < 0.1 * np.abs(exact).max()


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = Path(__file__).parents[1] / "docs" / "own_images.ipynb"
    assert notebook.stat().st_size < 100_000
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for cell in json.loads(notebook.read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert names["found"]


def test_the_lines_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the demo's CLIP in the place of one that has to be downloaded."""
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    [lines] = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(PIXELS).save(name)
    names: dict[str, object] = {}
    exec(lines.replace('"sdp_visa"', '"sdp_demo"'), names)
    assert [one.category for one in names["predictions"]] == ["metal nut"] * 2  # type: ignore[attr-defined]
