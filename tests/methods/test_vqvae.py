"""VQ-VAE: nearest codes, straight-through gradient and moving codes against loops."""

from __future__ import annotations

import copy
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from nolabel.backbones import build
from nolabel.errors import UsageError
from nolabel.methods.base import RecipeContext
from nolabel.methods.vqvae import VQVAE
from nolabel.nn.assignment import codes_in_use
from nolabel.nn.codebook import Codebook
from nolabel.types import Batch, Clock

CLOCK = Clock(0, 10, 2)


def make(backbone="vit_pico", **changes):
    torch.manual_seed(0)
    base = {"codes": 16, "code_dim": 6, "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
    return VQVAE(build(backbone, image_size=32), VQVAE.Options(**{**base, **changes})).train()


def pictures(n=4, seed=0):
    x = torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return Batch(views={"image": x[None]})


def naive_nearest(z: Tensor, codes: Tensor) -> list[int]:
    out = []
    for v in z.double():
        distances = [
            sum(float(a - b) ** 2 for a, b in zip(v, e, strict=True))
            for e in codes.detach().double()
        ]
        out.append(distances.index(min(distances)))
    return out


def test_the_nearest_code_is_the_one_of_a_double_loop():
    m = make()
    z = torch.randn(40, 6, generator=torch.Generator().manual_seed(3))
    ids = m.codebook.nearest(z)
    assert ids.dtype == torch.int64
    assert ids.tolist() == naive_nearest(z, m.codebook.codes)


@pytest.mark.parametrize("ema", [True, False])
def test_loss_and_straight_through_gradient_are_the_papers_equation_3(ema):
    """Against the equation written out, the sums in float64, and its gradient by hand."""
    m = make(ema=ema, commitment=0.4)
    batch = pictures()
    x = batch.views["image"][0]
    seen = {}

    def keep(name, t):
        t.retain_grad()
        seen[name] = t

    first = m.to_code.register_forward_hook(lambda _, __, out: keep("z", out))
    # What reaches the decoder must be the codes themselves, and its gradient goes on to z.
    second = m.from_code.register_forward_pre_hook(lambda _, args: keep("q", args[0]))
    loss = m.step(batch, CLOCK).loss
    first.remove()
    second.remove()
    loss.backward()
    z, q = seen["z"], seen["q"]
    ids = torch.tensor(naive_nearest(z.detach().flatten(0, 1), m.codebook.codes)).view(z.shape[:2])
    e = m.codebook.codes.detach()[ids]
    torch.testing.assert_close(q.detach(), e, rtol=1e-5, atol=1e-6)
    gap = (z - e).detach()
    weight = 0.4 if ema else 1.4
    with torch.no_grad():
        error = (m.decode(e) - x).double().pow(2).sum() / x.numel()
        expected = error + weight * gap.double().pow(2).sum() / gap.numel()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    by_hand = q.grad + 0.4 * 2 * gap / gap.numel()
    torch.testing.assert_close(z.grad, by_hand, rtol=1e-4, atol=1e-9)
    if ema:
        assert "codebook.codes" not in dict(m.named_parameters())
    else:
        pulled = torch.zeros_like(m.codebook.codes)
        for i, g in zip(ids.flatten().tolist(), gap.flatten(0, 1), strict=True):
            pulled[i] -= 2 * g / gap.numel()
        torch.testing.assert_close(m.codebook.codes.grad, pulled, rtol=1e-4, atol=1e-9)


def test_codes_follow_the_loop_of_appendix_a1():
    """Five steps of a float64 loop, a vector at a time, one code never used."""
    k, dim, g, eps = 5, 3, 0.9, 1e-5
    book = Codebook(k, dim, ema=True, decay=g, revive=0.0)
    book.codes[4] = 100.0
    codes = book.codes.double().tolist()
    n, m = [0.0] * k, [[0.0] * dim for _ in range(k)]
    for step in range(5):
        z = torch.randn(30, dim, generator=torch.Generator().manual_seed(step))
        ids = book.nearest(z)
        book.observe(z, ids, step)
        book.update()
        for i in range(k):
            mine = [v for v, at in zip(z.double().tolist(), ids.tolist(), strict=True) if at == i]
            n[i] = g * n[i] + (1 - g) * len(mine)
            for d in range(dim):
                m[i][d] = g * m[i][d] + (1 - g) * sum(v[d] for v in mine)
        for i in range(k):
            if n[i] > 0:
                smooth = (n[i] + eps) / (sum(n) + k * eps) * sum(n)
                codes[i] = [v / smooth for v in m[i]]
        torch.testing.assert_close(
            book.codes.double(), torch.tensor(codes).double(), rtol=1e-5, atol=1e-6
        )
    assert n[4] == 0 and (book.codes[4] == 100.0).all()


def test_step_alone_moves_no_code_and_micro_batches_equal_the_large_batch():
    """With revival: the same vectors are drawn, because all micro-batches are laid end to end."""
    whole, parts = make(), make()
    x = pictures(8).views["image"]
    before = copy.deepcopy(whole.codebook.state_dict())
    whole.step(Batch(views={"image": x}), CLOCK)
    for part in x.split(2, dim=1):
        parts.step(Batch(views={"image": part}), CLOCK)
    for name, value in whole.codebook.state_dict().items():
        assert torch.equal(value, before[name])
    for m in (whole, parts):
        torch.manual_seed(5)
        m.after_update(CLOCK)
    moved = whole.codebook.state_dict()
    assert not torch.equal(moved["codes"], before["codes"])
    for name, value in parts.codebook.state_dict().items():
        torch.testing.assert_close(value, moved[name], rtol=1e-5, atol=1e-6)


def one_of_two(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    out = {}
    for revive in (0.0, 0.5):
        book, z = book_and_vectors(revive)
        torch.manual_seed(7)  # processes have the same random state
        mine = z[rank * 20 : rank * 20 + 20]
        book.observe(mine, book.nearest(mine), 0)
        book.update()
        out[str(revive)] = book.state_dict()
    torch.save(out, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def book_and_vectors(revive):
    torch.manual_seed(0)
    return Codebook(32, 3, ema=True, decay=0.9, revive=revive), torch.randn(40, 3)


def test_two_processes_move_and_revive_codes_as_one(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(one_of_two, (port, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(2))
    for revive in ("0.0", "0.5"):
        for name, value in first[revive].items():
            assert torch.equal(value, second[revive][name]), (revive, name)
    for revive in (0.0, 0.5):
        book, z = book_and_vectors(revive)
        torch.manual_seed(7)
        book.observe(z, book.nearest(z), 0)
        book.update()
        for name, value in book.state_dict().items():
            torch.testing.assert_close(first[str(revive)][name], value, rtol=1e-5, atol=1e-6)
    # Codes that nothing was nearest to went to vectors of both processes.
    home = [(z == e).all(-1).nonzero() for e in first["0.5"]["codes"]]
    ranks = {int(h[0]) // 20 for h in home if len(h)}
    assert ranks == {0, 1}


def test_a_step_that_the_guard_skipped_leaves_no_trace():
    one, other = make(), make()
    one.step(pictures(seed=1), Clock(0, 10, 2))  # skipped: no after_update
    for m in (one, other):
        m.step(pictures(seed=2), Clock(1, 10, 2))
        torch.manual_seed(5)
        m.after_update(Clock(1, 10, 2))
    assert torch.equal(one.codebook.codes, other.codebook.codes)


@pytest.mark.parametrize("ema", [True, False])
def test_unused_codes_are_put_on_vectors_of_the_step_and_used_ones_stay(ema):
    torch.manual_seed(0)
    book = Codebook(6, 2, ema=ema, decay=0.5, revive=0.5)
    with torch.no_grad():
        book.codes.copy_(torch.tensor([[0.0, 0], [1, 1], [50, 0], [60, 0], [70, 0], [80, 0]]))
    z = torch.tensor([[0.0, 0], [0, 0], [1, 1], [1, 1]])
    book.observe(z, book.nearest(z), 0)
    book.update()
    assert torch.allclose(book.codes[:2], torch.tensor([[0.0, 0], [1, 1]]), atol=1e-3)
    assert all(any(torch.equal(e, v) for v in z) for e in book.codes[2:])


def test_without_revival_unused_codes_stay_where_they_are():
    m = make(revive=0.0, codes=64)
    before = m.codebook.codes.clone()
    m.step(pictures(1), CLOCK)
    m.after_update(CLOCK)
    used = m.codebook.count > 0
    assert 0 < used.sum() < 64
    assert torch.equal(m.codebook.codes[~used], before[~used])
    assert not torch.equal(m.codebook.codes[used], before[used])


@pytest.mark.parametrize("backbone", ["vit_pico", "resnet_nano"])
def test_tokens_lie_row_by_row_below_the_vocabulary(backbone):
    m = make(backbone).eval()
    x = pictures(3).views["image"][0]
    ids = m.tokens(x)
    side = 32 // m.backbone.patch_size
    assert ids.shape == (3, side * side) and ids.dtype == torch.int64
    assert ids.min() >= 0 and ids.max() < m.vocabulary == 16
    t = m.backbone.tokens(x)
    row, column = 1, 2
    z = m.to_code(t.patches[:, row * t.grid[1] + column])
    assert torch.equal(ids.view(3, side, side)[:, row, column], m.codebook.nearest(z))


def test_the_decoder_sees_nothing_but_the_tokens():
    m = make().eval()
    x = pictures(2).views["image"][0]
    rebuilt = m.reconstruct(x)
    assert rebuilt.shape == x.shape
    assert torch.equal(rebuilt, m.decode(m.codebook.codes[m.tokens(x)]))


def test_perplexity_is_the_number_of_equally_used_codes():
    out = codes_in_use(torch.tensor([[0, 1], [2, 3]]), 16)
    assert (int(out["codes_used"]), float(out["perplexity"])) == (4, pytest.approx(4.0))
    out = codes_in_use(torch.tensor([5, 5, 5]), 16)
    assert (int(out["codes_used"]), float(out["perplexity"])) == (1, pytest.approx(1.0))
    out = codes_in_use(torch.tensor([0, 0, 0, 1]), 16)
    assert float(out["perplexity"]) == pytest.approx(4 / 27**0.25)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"codes": 1}, "at least"), ({"decay": 1.0}, "below 1"), ({"decoder_heads": 3}, "multiple")],
)
def test_impossible_options_are_refused(change, message):
    with pytest.raises(UsageError, match=message):
        make(**change)


def test_an_image_of_no_whole_patches_is_refused():
    with pytest.raises(UsageError, match="does not divide"):
        VQVAE(build("resnet18", image_size=48), VQVAE.Options())


def test_paper_recipe_has_the_papers_numbers():
    r = VQVAE.paper_recipe(RecipeContext(image_size=128, images=1_281_167))
    o = r.options
    assert (o.codes, o.commitment, o.decay) == (512, 0.25, 0.99)
    assert (r.optim.lr, r.optim.lr_end, r.batch_size, r.epochs) == (2e-4, 2e-4, 128, 25)
