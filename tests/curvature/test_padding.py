"""What a row's loss must not depend on: the padding that an encoder, or a decoder, reads beside it."""

import pytest
import torch
from breadth.subjects import SUBJECTS
from breadth.test_breadth import risk_on

from hesscli.curvature.trust.loss_checks import check_loss
from hesscli.data.slice import IGNORED, Batch
from hesscli.errors import UntrustworthyError


def pairs(lengths):
    """Rows of (tokens to read, tokens to write), padded as a slice pads them."""
    generator = torch.Generator().manual_seed(0)
    read, written = (max(n) for n in zip(*lengths, strict=True))
    ids, given = (torch.randint(3, 20, (len(lengths), n), generator=generator) for n in (read, written))
    mask, targets = torch.ones_like(ids), torch.randint(3, 20, given.shape, generator=generator)
    for row, (n, m) in enumerate(lengths):
        ids[row, n:], mask[row, n:], given[row, m:], targets[row, m:] = 0, 0, 0, IGNORED
    return Batch({"input_ids": ids, "attention_mask": mask, "decoder_input_ids": given}, targets)


def checked(name, lengths):
    risk = risk_on(SUBJECTS[name].build(), pairs(lengths))
    check_loss(risk, risk.loss())


def test_padding_that_a_decoder_sees_is_caught_where_the_encoder_has_none():
    # By 6e-4 of the loss and 6e-3 of the largest eigenvalue; nothing else of a preflight shows it.
    lengths = [(5, 6), (5, 3)]
    with pytest.raises(UntrustworthyError, match=r"with padding and .*sees its padding; use --batch-size 1"):
        checked("prophetnet", lengths)
    checked("bart", lengths)
    checked("prophetnet", [(5, 6), (3, 6)])


def test_the_row_with_most_padding_is_the_one_that_is_asked():
    # Its first rows have next to none.
    seen = SUBJECTS["bert"].build()
    forward = seen.forward

    def shifted(input_ids, attention_mask):
        out = forward(input_ids=input_ids, attention_mask=attention_mask)
        many = (attention_mask == 0).sum(dim=1) > 2
        out.logits = out.logits * torch.where(many, 1.01, 1.0)[:, None, None]
        return out

    seen.forward = shifted
    lengths, ids = (6, 5, 2), torch.randint(3, 20, (3, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * n + [0] * (6 - n) for n in lengths])
    targets = torch.where(mask == 1, ids, IGNORED)
    risk = risk_on(seen, Batch({"input_ids": ids, "attention_mask": mask}, targets))
    with pytest.raises(UntrustworthyError, match="the model sees its padding"):
        check_loss(risk, risk.loss())


def test_a_source_and_a_target_as_wide_as_each_other_are_cut_apart():
    checked("bart", [(6, 4), (3, 6)])


def test_the_rounding_of_a_loss_that_is_nearly_zero_is_no_padding_that_is_seen():
    # Scores of 300 are rounded to 3e-5, and so is a loss of 1e-2 that is made from them.
    model = SUBJECTS["bert"].build()
    forward = model.forward
    answers = torch.zeros(24)
    answers[7] = 310.0

    def confident(input_ids, attention_mask):
        out = forward(input_ids=input_ids, attention_mask=attention_mask)
        noise = 3e-5 * (input_ids.shape[1] == 3)  # what another shape's order of adding does
        out.logits = 0.01 * out.logits + answers + noise * answers / 310.0
        out.logits[..., 8] += 305.4
        return out

    model.forward = confident
    ids = torch.tensor([[5, 6, 7, 9], [5, 6, 7, 0]])
    mask, targets = (ids != 0).long(), torch.tensor([[7, 7, 7, 7], [7, 7, 7, IGNORED]])
    risk = risk_on(model, Batch({"input_ids": ids, "attention_mask": mask}, targets))
    assert risk.loss().value < 0.02
    check_loss(risk, risk.loss())
