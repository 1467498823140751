"""What is said of several processes holds: threads that meet in a real sum over all of them, against one process."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.testing import assert_close

from gptlife.reward.logprobs import masked_moments
from gptlife.reward.objective import explained_variance
from gptlife.reward.shaping import whiten

SPLITS = [[6], [3, 3], [1, 3, 2], [0, 6]]  # rows per process; the last has a process with nothing


def run_in_processes(function, *batches):
    """function(*batch, reduce) in a thread per batch; `reduce` waits for all and answers the sum over them."""
    barrier = threading.Barrier(len(batches), timeout=10)
    brought = [None] * len(batches)

    def reduce_of(rank):
        def reduce(x):
            brought[rank] = x
            barrier.wait()
            total = torch.stack(brought).sum(0)
            barrier.wait()  # nobody brings the next before everybody has this
            return total

        return reduce

    with ThreadPoolExecutor(len(batches)) as pool:
        return list(pool.map(lambda rank: function(*batches[rank], reduce_of(rank)), range(len(batches))))


def ragged():
    generator = torch.Generator().manual_seed(0)
    values_BR, returns_BR = 3 + 2 * torch.randn(2, 6, 7, generator=generator, dtype=torch.float64)
    return values_BR, returns_BR, torch.arange(7) < torch.tensor([7, 3, 1, 5, 2, 6]).unsqueeze(1)


def split(sizes, *tensors):
    return list(zip(*(x.split(sizes) for x in tensors), strict=True))


@pytest.mark.parametrize("sizes", SPLITS)
def test_moments(sizes):
    x_BR, _, mask_BR = ragged()
    real = x_BR[mask_BR].numpy()
    for moments in run_in_processes(masked_moments, *split(sizes, x_BR, mask_BR)):
        assert [float(x) for x in moments] == pytest.approx([24, real.mean(), real.var()])


@pytest.mark.parametrize("sizes", SPLITS)
@pytest.mark.parametrize("shift_mean", [True, False])
def test_whiten(sizes, shift_mean):
    x_BR, _, mask_BR = ragged()
    real = x_BR[mask_BR].numpy()
    expected_BR = torch.zeros_like(x_BR)
    expected_BR[mask_BR] = torch.from_numpy((real - real.mean()) / real.std() + (0 if shift_mean else real.mean()))
    batches = [(x, mask, shift_mean) for x, mask in split(sizes, x_BR, mask_BR)]
    assert_close(torch.cat(run_in_processes(whiten, *batches)), expected_BR, rtol=0, atol=1e-6)
    if sizes in SPLITS[1:3]:  # twin: each process whitened by itself
        alone_BR = torch.cat([whiten(*batch) for batch in batches])
        with pytest.raises(AssertionError):
            assert_close(alone_BR, expected_BR, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sizes", SPLITS)
def test_explained_variance(sizes):
    values_BR, returns_BR, mask_BR = ragged()
    values, returns = values_BR[mask_BR].numpy(), returns_BR[mask_BR].numpy()
    expected = 1 - ((values - returns) ** 2).mean() / returns.var()
    batches = split(sizes, values_BR, returns_BR, mask_BR)
    assert [x.item() for x in run_in_processes(explained_variance, *batches)] == pytest.approx([expected] * len(sizes))
    if sizes in SPLITS[1:3]:  # twin: the mean of what each process finds by itself
        alone = [explained_variance(*batch).item() for batch in batches]
        assert sum(alone) / len(alone) != pytest.approx(expected)
