"""No term makes the host wait for the device."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from tests.methods.cases import CPU
from tutelage.engine.contract import StepContext
from tutelage.methods.distillation.distill import TERMS
from tutelage.methods.distillation.term import AdversarialTerm, Maps, NetShape, Pair, TermInputs

SMALL = {
    "cirkd_memory": {"pixel_slots": 40, "region_slots": 12, "pixels": 60, "regions": 12},
    "cirkd_channel": {"slots": 300, "channels": 20},
}


@pytest.mark.parametrize("name", TERMS)
def test_nothing_is_read_back_from_the_device(name: str) -> None:
    """On tensors without data every `.item()` and every mask as an index raises."""
    pair = Pair(3, NetShape(6, True), NetShape(9, True), (8, 8), (8, 8))
    term = TERMS[name](TERMS[name].Settings.model_validate(SMALL.get(name, {})), pair)
    critic = term.make_critic(pair) if isinstance(term, AdversarialTerm) else None
    with FakeTensorMode(allow_non_fake_inputs=True):
        feature, logits, auxiliary = (torch.randn(2, count, 8, 8, requires_grad=True) for count in (6, 3, 3))
        teacher = Maps(torch.randn(2, 3, 8, 8), torch.randn(2, 9, 8, 8), torch.randn(2, 3, 8, 8))
        seen = TermInputs(Maps(logits, feature, auxiliary), teacher, torch.randint(0, 3, (2, 32, 32)))
        context = StepContext(0, 10, 1, CPU, "train")
        if isinstance(term, AdversarialTerm):
            assert critic is not None
            term.fool(critic, seen).backward()
            term.judge(critic, logits.detach(), teacher.logits, context).backward()
        else:
            torch.stack(list(term(seen, context).values())).sum().backward()


def test_the_test_would_see_it() -> None:
    with FakeTensorMode():
        values = torch.randn(4)
        with pytest.raises(DataDependentOutputException):
            values.sum().item()
        with pytest.raises(DynamicOutputShapeException):
            values[values > 0]
