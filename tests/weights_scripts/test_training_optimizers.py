"""Muon takes the steps of PyTorch's own."""

import pytest
from scripts import load_script


@pytest.fixture(scope="module")
def script():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    return load_script("weights_scripts/training_optimizers.py")


pytestmark = pytest.mark.parity


@pytest.mark.parametrize("shape", [(128, 384), (384, 128), (64, 64)])
def test_muon_takes_the_steps_of_the_library_but_in_float32(script, shape):
    import torch

    random = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=random)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    optimizers = [script.Muon([ours], lr=0.02), torch.optim.Muon([theirs], lr=0.02, momentum=0.95, weight_decay=0.02)]
    for _ in range(4):
        ours.grad = torch.randn(shape, generator=random)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = (theirs - start).detach().norm()
    assert (ours - theirs).detach().norm() < 0.02 * moved  # bfloat16 has eight bits
    values = torch.linalg.svdvals(script.Muon.orthogonal(start))
    assert values.median() > 0.6 and values.max() < 1.3  # the least ones would need more than five steps
