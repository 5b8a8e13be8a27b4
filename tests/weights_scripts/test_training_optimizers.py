"""Muon takes the steps of PyTorch's own; rates and matrices of both optimizers."""

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


def test_the_rate_rises_stays_and_falls_to_zero(script):
    factors = [script.rate_factor(step, 1000) for step in range(1001)]
    assert factors[0] == 1 / 60 and factors[59:551] == [1.0] * 492  # 55 % of the steps
    assert factors[550] > factors[560] > factors[999] > factors[1000] == 0
    assert factors[775] == pytest.approx(0.5)


class Small:
    """A model of one block, as far as the optimizers look at it."""

    def __init__(self):
        import torch

        shapes = {"embed_tokens": (5, 4), "layers.0.up_proj": (6, 4), "layers.0.norm": (4,), "norm": (4,)}
        self.parameters = {name: torch.nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()}

    def named_parameters(self):
        return self.parameters.items()


def test_muon_gets_the_matrices_of_the_blocks_and_adam_the_rest(script):
    model = Small()
    muon, adam = script.make_optimizers(model)
    (matrix,), others = muon.param_groups[0]["params"], adam.param_groups[0]["params"]
    assert matrix is model.parameters["layers.0.up_proj"]
    assert [any(p is o for o in others) for p in model.parameters.values()] == [True, False, True, True]
    script.set_rates((muon, adam), 0.5, further=False)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in (muon, adam)]
    assert rates == [0.5 * script.MUON_RATE, 0.5 * script.ADAM_RATE]
    script.set_rates((muon, adam), 0.5, further=True)
    assert muon.param_groups[0]["lr"] == pytest.approx(script.FURTHER_RATE * rates[0])


def test_an_update_limits_the_gradients_of_adam_and_moves_every_weight(script):
    import torch

    model = Small()
    optimizers = script.make_optimizers(model)
    for p in model.parameters.values():
        p.grad = torch.full_like(p, 3.0)
    script.update(optimizers)
    others = [p.grad for name, p in model.parameters.items() if name != "layers.0.up_proj"]
    assert torch.cat([g.ravel() for g in others]).norm() == pytest.approx(1, abs=1e-4)
    assert (model.parameters["layers.0.up_proj"].grad == 3).all()
    assert all((p < 1).all() for p in model.parameters.values())
