"""The pretended device is what it says: what CUDA refuses it refuses, and what is computed on it is the host's.

Run in a process of its own by `test_second_device.py`.
"""

import copy

import pretend
import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap

pretend.register()
FIRST, SECOND = torch.device("pretend:0"), torch.device("pretend:1")


def loss(w, x):
    return torch.nn.functional.silu(x @ w).softmax(dim=-1).log().square().sum()


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 4, generator=generator), torch.randn(3, 4, generator=generator)


@pytest.mark.parametrize(
    "mixing",
    [
        lambda a, host: a + host,
        lambda a, host: host + a,
        lambda a, host: host.add_(a),
        lambda a, host: a @ host,
        lambda a, host: torch.cat([a, host]),
        lambda a, host: torch.where(host > 0, a, a),
        lambda a, host: a @ host.to(FIRST),
        lambda a, host: torch.nn.functional.embedding(torch.tensor([1]), a),
        lambda a, host: a.index_add_(0, torch.tensor([0, 1, 2, 3]), a),
        lambda a, host: host[torch.tensor([2, 0], device=SECOND)],
        lambda a, host: a.index_put_((torch.tensor([2, 0]),), host[:2]),
        lambda a, host: torch.dot(a.view(-1), host.view(-1)),
    ],
)
def test_tensors_of_two_devices_do_not_meet(pair, mixing):
    host = pair[0]
    with pytest.raises(RuntimeError, match="same device"):
        mixing(host.to(SECOND), host)


def test_a_number_may_come_from_the_host_and_indices_are_copied_and_noted(pair):
    a = pair[0].to(SECOND)
    assert torch.equal((a * torch.tensor(2.0)).cpu(), pair[0] * 2)
    with pretend.recorded() as transfers:
        rows = a[torch.tensor([2, 0])]
    assert torch.equal(rows.cpu(), pair[0][[2, 0]])
    assert [(t.source.type, t.target, t.nbytes) for t in transfers[:1]] == [("cpu", SECOND, 16)]


def test_derivatives_of_every_kind_are_the_hosts(pair):
    def found(w, x):
        leaf = w.clone().requires_grad_()
        (first,) = torch.autograd.grad(loss(leaf, x), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first, leaf, w)
        forward = jvp(grad(loss), (w, x), (w, torch.zeros_like(x)))[1]
        several = vmap(lambda t: jvp(grad(loss), (w, x), (t, torch.zeros_like(x)))[1])(torch.stack([w, 2 * w]))
        with torch.no_grad(), forward_ad.dual_level():
            dual = forward_ad.unpack_dual(loss(forward_ad.make_dual(w, w), x)).tangent
        return first.detach(), second, forward, several, dual

    host = found(*pair)
    for device in (FIRST, SECOND):
        there = found(*(t.to(device) for t in pair))
        assert {t.device for t in there} == {device}
        for a, b in zip(there, host, strict=True):
            assert torch.allclose(a.cpu(), b, rtol=1e-6, atol=1e-7)


def test_memory_that_nobody_wrote_is_not_a_number():
    assert bool(torch.empty(3, device=SECOND).isnan().all())
    assert bool(torch.empty_like(torch.zeros(3, device=SECOND)).isnan().all())


def test_views_share_memory_and_copies_do_not(pair):
    a = pair[0].to(SECOND)
    a.t()[0].zero_()
    assert not bool(a[:, 0].any())
    other = copy.deepcopy(torch.nn.Parameter(a))
    other.data.fill_(5.0)
    assert not bool((a == 5.0).any())
    assert other.device == SECOND


def test_every_transfer_is_recorded(pair):
    with pretend.recorded() as transfers:
        pair[0].to(SECOND).to(FIRST).cpu()
    assert [(str(t.source), str(t.target), t.nbytes) for t in transfers] == [
        ("cpu", "pretend:1", 64),
        ("pretend:1", "pretend:0", 64),
        ("pretend:0", "cpu", 64),
    ]
