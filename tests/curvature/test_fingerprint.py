"""A change of the weights shows, however it was made."""

import pytest
import torch

from hesscli.curvature.fingerprint import fingerprint


def one_bit(w):
    w.view(-1)[-1:].view(torch.uint8)[0] ^= 1  # the last digit of one number


def rows_in_another_order(w):
    w.copy_(w.flip(0))


def columns_in_another_order(w):
    w.copy_(w.roll(2, dims=-1))  # by a pair, as entries are read


@pytest.mark.parametrize("change", [one_bit, rows_in_another_order, columns_in_another_order])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(3, 5), (64, 96), (4, 512), (40, 1024)])
def test_a_change_through_data_shows(change, dtype, shape):
    other = torch.randn(7, 3)
    p = torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype))
    before, version = fingerprint([other, p]), p._version
    assert fingerprint([other, p]) == before
    change(p.data)
    assert p._version == version  # torch has not seen it
    assert fingerprint([other, p]) != before


def test_views_buffers_and_what_has_no_data_are_taken():
    base = torch.arange(12.0)
    for tensor in (base[1:6], base.view(3, 4).t(), torch.tensor(3), torch.tensor([True, False]), torch.empty(0)):
        before = fingerprint([tensor])
        assert fingerprint([tensor.clone()])[1:] == before[1:]
    assert fingerprint([torch.empty(2, device="meta")]) == (0,)
