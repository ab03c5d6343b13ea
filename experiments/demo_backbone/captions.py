"""The sentences to train with: the project's own states and templates, in a vocabulary of the words they use.

C classes, K sentences drawn per side, T tokens of the longest sentence.
"""

from pathlib import Path

import open_clip
import torch
from omegaconf import OmegaConf
from torch import Tensor

from src.models.prompts import Prompts

PROMPTS_FILE = Path(__file__).parents[2] / "conf" / "prompts" / "clip_ad.yaml"


def project_prompts() -> Prompts:
    """The prompts that the framework uses by default."""
    config = OmegaConf.load(PROMPTS_FILE)
    return Prompts(config.normal, config.anomalous, config.templates)


class Captions:
    """All sentences of all classes as token ids of a small vocabulary.

    open_clip's table has 49408 rows, of which these sentences use about a hundred. Training a table of only those
    saves time; `full_table` puts them back where open_clip's tokenizer expects them. The ids keep their order, so
    that the end-of-text token is still the largest of its sentence, which is how open_clip finds it.

    Args:
        class_names: C names, in the order of the class numbers.
    """

    def __init__(self, class_names: list[str]) -> None:
        prompts, tokenizer = project_prompts(), open_clip.SimpleTokenizer()
        sides = [side for name in class_names for side in prompts.sentences(name)]  # 2 C: normal, anomalous, ...
        tokens = [tokenizer(side) for side in sides]
        longest = max(int((side > 0).sum(dim=1).max()) for side in tokens)
        self.used, compact = torch.unique(torch.cat(tokens)[:, :longest], return_inverse=True)
        self.sides = list(compact.split([len(side) for side in tokens]))  # 2 C tensors (198 or 220, T)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` random sentences of each side: (2 C * K, T) ids of the small vocabulary, sides in order."""
        picks = [torch.randint(len(side), (count,), generator=generator) for side in self.sides]
        return torch.cat([side[pick] for side, pick in zip(self.sides, picks, strict=True)])

    def full_table(self, table: Tensor, vocabulary: int) -> Tensor:
        """Rows of the small vocabulary at their place in open_clip's; rows of words that are not used are zero."""
        full = table.new_zeros(vocabulary, table.shape[1])
        full[self.used] = table
        return full
