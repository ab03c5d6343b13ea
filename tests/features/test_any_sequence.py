"""Any sequence of runs, kills and damage over one cache folder gives the figures of an empty one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from tests.cli import Cli, golden_backbone
from tests.features.test_cache import TRAIN, results
from tests.golden_reference import Golden

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda content: b"",
    "cut off": lambda content: content[:-9],
    "zeros": lambda content: content[:200] + bytes(len(content[200:])),
    # A file may have been emptied before.
    "one bit": lambda content: content[:-5] + bytes([content[-5] ^ 1]) + content[-4:] if len(content) > 4 else b"",
}


class Command(NamedTuple):
    """What may differ between the runs that share a cache."""

    trains: bool
    batch_size: int
    categories: str
    template: str
    dtype: str

    @property
    def overrides(self) -> list[str]:
        return [
            f"test_data.batch_size={self.batch_size}",
            f"prompts.templates=['{self.template}']",
            f"feature_cache.dtype={self.dtype}",
            *(
                ["model=sdp_plus", "trainer.max_epochs=2", f"train_data.batch_size={self.batch_size}"]
                if self.trains
                else ["model=sdp", "feature_cache.enabled=true", f"test_data.categories={self.categories}"]
            ),
        ]


COMMANDS = st.builds(
    Command,
    trains=st.booleans(),
    batch_size=st.integers(1, 4),
    categories=st.sampled_from(["[candle]", "[pcb1]", "[candle,pcb1]"]),
    template=st.sampled_from(["a photo of a {}.", "{} on a table"]),
    dtype=st.sampled_from(["float32", "float32", "float16"]),
)


class Killed(BaseException):
    """In the place of a SIGKILL, which would take the tests with it."""


class Shared:
    """What all sequences have in common: how a command is run, and what it gives over an empty cache."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, golden: Golden, folder: Path) -> None:
        golden.write_mvtec(folder / "data" / "mvtec")
        self.options = [*golden_backbone(golden), *TRAIN, f"paths.data_dir={folder / 'data'}"]
        self.cli = Cli(monkeypatch, None, folder)
        self.folder = folder
        self.numbers = count()
        self.expected: dict[Command, Any] = {}

    def run(self, command: Command, cache: Path, *more: str) -> Any:
        name = f"run{next(self.numbers)}"
        kind = "train" if command.trains else "eval"
        overrides = [*self.options, *command.overrides, f"paths.cache_dir={cache}", *more]
        figures = results(self.cli.ok(kind, *overrides, name=name))
        shutil.rmtree(self.folder / name)
        return figures

    def over_an_empty_cache(self, command: Command) -> Any:
        if command not in self.expected:
            self.expected[command] = self.run(command, self.folder / f"cache{next(self.numbers)}")
        return self.expected[command]


def machine_of(shared: Shared) -> type[RuleBasedStateMachine]:
    class AnySequence(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.cache = shared.folder / f"cache{next(shared.numbers)}"

        @rule(command=COMMANDS, has_room=st.sampled_from([True, True, False]))
        def runs(self, command: Command, has_room: bool) -> None:
            limit = [] if has_room else ["feature_cache.max_gb=1e-6"]
            assert shared.run(command, self.cache, *limit) == shared.over_an_empty_cache(command)

        @rule(command=COMMANDS, writes=st.integers(1, 8))
        def is_killed(self, command: Command, writes: int) -> None:
            replace, left = os.replace, count(-writes)

            def kill(source: Any, target: Any) -> None:
                if Path(target).is_relative_to(self.cache) and next(left) == 0:
                    raise Killed
                replace(source, target)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, "replace", kill)
                with suppress(Killed):
                    shared.run(command, self.cache)

        @rule(chosen=st.floats(0, 1, exclude_max=True), damage=st.sampled_from(sorted(DAMAGES)))
        def is_damaged(self, chosen: float, damage: str) -> None:
            files = sorted(path for path in self.cache.rglob("*") if path.is_file())
            for path in files[int(chosen * len(files)) :][:3]:
                path.write_bytes(DAMAGES[damage](path.read_bytes()))

        @rule(chosen=st.floats(0, 1, exclude_max=True))
        def is_mixed_up(self, chosen: float) -> None:
            files = sorted(path for path in self.cache.rglob("*") if path.is_file())
            for path, other in zip(files[int(chosen * len(files)) :], files, strict=False):
                path.write_bytes(other.read_bytes())

    return AnySequence


@pytest.fixture
def sequence(
    monkeypatch: pytest.MonkeyPatch, golden_a: Golden, tmp_path_factory: pytest.TempPathFactory
) -> type[RuleBasedStateMachine]:
    return machine_of(Shared(monkeypatch, golden_a, tmp_path_factory.mktemp("sequence")))


@pytest.mark.slow
def test_one_sequence(sequence: Any) -> None:
    of_three = Command(False, 3, "[candle]", "a photo of a {}.", "float32")
    of_two = of_three._replace(batch_size=2, categories="[candle,pcb1]")
    shared_cache = sequence()
    shared_cache.runs(of_three, has_room=True)
    shared_cache.is_killed(of_two, writes=4)
    shared_cache.is_damaged(0, "zeros")
    shared_cache.runs(of_two, has_room=True)
    shared_cache.runs(of_two._replace(trains=True, dtype="float16"), has_room=False)


@pytest.mark.slow
def test_any_sequence(sequence: type[RuleBasedStateMachine]) -> None:
    options = settings(
        max_examples=5,
        stateful_step_count=8,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],  # to shrink a sequence would take hundreds of runs
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(sequence, settings=options)
