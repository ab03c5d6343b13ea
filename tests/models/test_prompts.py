"""The paper's sentences, spelt out."""

from __future__ import annotations

from typing import Any

import pytest

from src.models.prompts import Prompts
from tests.golden_reference import paper_prompts

FLAWS = ("flaw", "defect", "damage", "scratch", "crack", "contamination")
NORMAL = ["flawless {}", "perfect {}", "unblemished {}", *(f"{{}} without {flaw}" for flaw in FLAWS)]
ANOMALOUS = ["damaged {}", "imperfect {}", "blemished {}", "broken {}", *(f"{{}} with {flaw}" for flaw in FLAWS)]
TEMPLATES = """a cropped photo of the {}.|a cropped photo of a {}.|a close-up photo of a {}.|a close-up photo of the {}.
a bright photo of a {}.|a bright photo of the {}.|a dark photo of the {}.|a dark photo of a {}.
a jpeg corrupted photo of a {}.|a jpeg corrupted photo of the {}.|a blurry photo of the {}.|a blurry photo of a {}.
a photo of the {}.|a photo of a {}.|a photo of a large {}.|a photo of the small {}.|a photo of the large {}.
a photo of a small {}.|a photo of the {} for visual inspection.|a photo of a {} for visual inspection.
a photo of the {} for anomaly detection.|a photo of a {} for anomaly detection.""".replace("\n", "|").split("|")


def expand(states: list[str], class_name: str) -> list[str]:
    return [template.format(state.format(class_name)) for state in states for template in TEMPLATES]


def test_a_class_has_198_normal_and_220_anomalous_sentences() -> None:
    sentences = paper_prompts().sentences("bottle")
    assert len(sentences.normal) == len(set(sentences.normal)) == 198
    assert len(sentences.anomalous) == len(set(sentences.anomalous)) == 220


@pytest.mark.parametrize("class_name", ["metal_nut", "head ct"])
def test_each_state_has_all_templates_in_order(class_name: str) -> None:
    sentences = paper_prompts().sentences(class_name)
    assert sentences.normal == expand(NORMAL, class_name)
    assert sentences.anomalous == expand(ANOMALOUS, class_name)


@pytest.mark.parametrize("class_name", ["metal_nut", "100% {} \\1 $x {0}", "Ünïcode", "a.b"])
def test_class_name_goes_in_verbatim(class_name: str) -> None:
    prompts = Prompts(["perfect {}"], ["broken {}"], ["a photo of the {}."])
    assert prompts.sentences(class_name).normal == [f"a photo of the perfect {class_name}."]
    assert prompts.sentences(class_name).anomalous == [f"a photo of the broken {class_name}."]


@pytest.mark.parametrize("key", ["normal", "anomalous", "templates"])
@pytest.mark.parametrize("entries", [[], ["no place"], ["fine {}", "{} two {}"], ["{0}"], "perfect {}"])
def test_bad_prompts_are_refused_by_name(key: str, entries: Any) -> None:
    good: dict[str, Any] = {"normal": ["perfect {}"], "anomalous": ["broken {}"], "templates": ["a {}."]}
    with pytest.raises(ValueError, match=rf"^{key}"):
        Prompts(**good | {key: entries})
