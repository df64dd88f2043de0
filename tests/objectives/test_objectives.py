import torch

from maskpro.objectives import SampleValues


def test_sample_values_do_not_depend_on_who_asks_or_how():
    calls = []

    def compute(indices):
        calls.append(indices.tolist())
        return indices.double()[:, None] * 2

    values = SampleValues(compute)
    assert values(torch.tensor([70, 3, 64])).tolist() == [[140.0], [6.0], [128.0]]
    assert values(torch.tensor([65])).tolist() == [[130.0]]
    assert calls == [list(range(64, 128)), list(range(64))]
