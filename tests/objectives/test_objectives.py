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


class Shelf(dict):
    def put(self, part, values):
        self[part] = values


def test_sample_values_are_looked_for_on_the_shelf_and_left_there(monkeypatch):
    monkeypatch.setattr("maskpro.objectives.PART", 128)
    calls = []

    def compute(indices):
        calls.append(indices.tolist())
        return indices.double()[:, None] * 2

    shelf, cpu = Shelf(), torch.device("cpu")
    first = SampleValues(compute, shelf, cpu)
    assert first(torch.tensor([130, 260])).tolist() == [[260.0], [520.0]]
    assert calls == [list(range(start, start + 64)) for start in (128, 192, 256, 320)]
    second = SampleValues(compute, shelf, cpu)
    assert second(torch.tensor([260, 255])).tolist() == [[520.0], [510.0]]
    assert len(calls) == 4
    assert second(torch.tensor([0])).tolist() == [[0.0]]
    assert sorted(shelf) == [0, 1, 2]
