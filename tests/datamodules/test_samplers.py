"""How images are dealt out to processes: each exactly once, and each step as in one process."""

import pytest

from datamodules.samplers import EpochSampler, Filler, SharedBatchSampler, own_slice


def steps(count: int, batch_size: int, processes: int, shuffle: bool = True, epoch: int = 0) -> list[list[list[int]]]:
    """For each step, the batch of each process."""
    dealt = []
    for rank in range(processes):
        order = EpochSampler(range(count), shuffle, seed=3)
        order.set_epoch(epoch)
        sampler = SharedBatchSampler(order, batch_size, rank, processes)
        dealt.append(list(sampler))
        assert len(dealt[-1]) == len(sampler)
    return [list(step) for step in zip(*dealt, strict=True)]


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 8, 17, 24])
def test_a_step_has_the_images_it_has_in_one_process(count: int, processes: int) -> None:
    alone = [step[0] for step in steps(count, 8, 1)]
    shared = [
        sorted(i for one in step for i in one if not isinstance(i, Filler)) for step in steps(count, 8, processes)
    ]
    assert shared == [sorted(step) for step in alone]
    assert sorted(i for step in shared for i in step) == list(range(count))


def test_a_process_without_an_image_gets_a_filler_alone() -> None:
    last = steps(9, 8, 3, shuffle=False)[-1]
    assert last == [[8], [8], [8]]
    assert [isinstance(batch[0], Filler) for batch in last] == [False, True, True]


def test_orders_differ_between_epochs_and_agree_between_processes() -> None:
    orders = [steps(20, 4, 2, epoch=epoch) for epoch in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("processes", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("count", [0, 1, 8, 41])
def test_tested_images_come_in_whole_batches_of_file_order(count: int, processes: int) -> None:
    slices = [own_slice(count, 4, rank, processes) for rank in range(processes)]
    assert [i for part in slices for i in range(count)[part]] == list(range(count))
    assert all(part.start % 4 == 0 or part.start == count for part in slices)
    sizes = [-(-len(range(count)[part]) // 4) for part in slices]
    assert max(sizes) - min(sizes) <= 1
