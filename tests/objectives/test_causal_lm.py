import pytest
import torch
from shared_fixtures import CPU
from transformers import LlamaConfig, LlamaForCausalLM

from maskpro.errors import MaskproError
from maskpro.initial_masks import magnitude_masked_model
from maskpro.masked_model import maskable_layers
from maskpro.objectives import HeldOutSamples, baseline_losses, teacher_outputs
from maskpro.objectives.causal_lm import CausalLMObjective
from maskpro.pattern import NMPattern
from maskpro.trainer import MaskTrainer
from maskpro.trainer_config import TrainerConfig


@pytest.fixture(scope="module")
def llama():
    """A tiny LLaMA with random weights."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture
def objective(generator):
    tokens = torch.randint(64, (500,), generator=generator)
    return CausalLMObjective(tokens, sequence_length=16, seed=0, device=CPU)


def test_the_loss_is_the_models_own(llama, objective):
    batch = objective.batch(torch.arange(4))
    assert batch.shape == (4, 16)
    with torch.no_grad():
        prediction = objective.predict(llama, batch)
        expected = llama(batch, labels=batch).loss
    assert torch.allclose(objective.losses(prediction, batch).mean(), expected, rtol=1e-5)
    assert objective.teacher_losses(prediction, prediction, batch).abs().max() < 1e-6
    assert (objective.teacher_losses(prediction, prediction.roll(1, dims=0), batch) > 0).all()


def test_a_window_depends_on_its_index_alone(objective):
    assert torch.equal(objective.batch(torch.tensor([7]))[0], objective.batch(torch.tensor([1, 7]))[1])


def test_every_linear_layer_but_the_head_is_masked(llama):
    names = maskable_layers(llama)
    assert len(names) == 2 * 7
    assert "lm_head" not in names


@pytest.mark.parametrize(("estimator", "target"), [("straight_through", "teacher"), ("policy_gradient", "noise")])
def test_masks_of_a_language_model_are_learned_by_the_same_trainer(llama, objective, estimator, target):
    masked = magnitude_masked_model(llama, pattern=NMPattern(2, 4), layout="channel")
    initial = magnitude_masked_model(llama, pattern=NMPattern(2, 4), layout="channel")
    teacher = teacher_outputs(llama, objective)
    trainer = MaskTrainer(
        TrainerConfig(estimator=estimator, target=target, batch_size=8, budget_samples=64, lr=2.0),
        masked=masked,
        objective=objective,
        validation=HeldOutSamples(objective, 64, llama),
        teacher=teacher,
        baseline=baseline_losses(initial.model, objective, teacher if target == "teacher" else None),
    )
    start = trainer.logits.clone()
    assert len(trainer.train(64)) == 8
    trainer.validate()
    assert not torch.equal(trainer.logits, start)
    assert (trainer.best_mask.sum(dim=1) == 2).all()


def test_a_stream_shorter_than_a_window_is_refused():
    with pytest.raises(MaskproError, match="sequence_length is 128; allowed: 2 to 10, the number of tokens"):
        CausalLMObjective(torch.zeros(10, dtype=torch.int64), seed=0, device=CPU)
