"""Many networks trained at once are trained as each would be alone."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from trainer_worker.metatrain.feeds import PictureFeed, TableFeed, TextFeed, View
from trainer_worker.metatrain.library import wiring_of
from trainer_worker.metatrain.networks import Design
from trainer_worker.metatrain.stack import Lane, train
from trainer_worker.wiring import wire

CONVNET = Design(kind="convnet", inputs=1, outputs=3, widths=(4, 8), strides=(2, 1), pooled=(False, True), norm="batch")
GPT = Design(kind="gpt", inputs=11, outputs=11, widths=(8, 8), heads=2, tokens=6, norm="layer", gain=2.0)
MLP = Design(kind="mlp", inputs=5, outputs=1, widths=(7,), norm="layer", activation="tanh")
LANES = tuple(
    Lane(lr=lr, weight_decay=decay, beta1=0.9, beta2=beta2, warmup=warmup, seed=seed)
    for lr, decay, beta2, warmup, seed in ((1e-2, 0.0, 0.999, 0, 1), (3e-3, 0.1, 0.95, 4, 2))
)
DATA = torch.Generator().manual_seed(0)
VIEWS = (View(1, True, -1.5, (0, 1, 2)), View(0, False, 1.0, (2, 2, 0)))
FEEDS = {
    "convnet": PictureFeed(torch.randn(50, 9, 9, generator=DATA), torch.randint(3, (50,), generator=DATA), VIEWS, flat=False),
    "gpt": TextFeed(torch.randint(11, (200,), generator=DATA), 2, 6),
    "mlp": TableFeed(torch.randn(50, 5, generator=DATA), torch.randn(50, generator=DATA), 2),
}


@pytest.mark.parametrize("design", [CONVNET, GPT, MLP], ids=lambda design: design.kind)
def test_a_lane_is_what_adamw_alone_makes_of_it(design: Design) -> None:
    """Trajectories of stacked networks would not be those of AdamW, which forecasts are about; or could not be wired again."""
    assert Design.from_dict(json.loads(json.dumps(design.to_dict()))) == design
    feed = FEEDS[design.kind]
    snapshots = list(train(design, LANES, feed, batch_size=4, steps=12, every=6, seed=3))
    for index, lane in enumerate(LANES):
        torch.manual_seed(lane.seed)
        network = design.build()
        decay, betas = lane.weight_decay, (lane.beta1, lane.beta2)
        optimizer = torch.optim.AdamW(network.parameters(), lr=lane.lr, weight_decay=decay, betas=betas)
        generator = torch.Generator().manual_seed(3)
        for step in range(1, 13):
            inputs, targets = (batch[index] for batch in feed.take(generator, batch_size=4))
            optimizer.param_groups[0]["lr"] = lane.lr * min(1.0, step / max(lane.warmup, 1))
            outputs = network(inputs)
            if targets.is_floating_point():
                loss = functional.mse_loss(outputs[:, 0], targets)
            else:
                loss = functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        alone = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
        assert torch.allclose(snapshots[-1].states[index], alone, atol=2e-4), (snapshots[-1].states[index] - alone).abs().max()
        assert not torch.allclose(snapshots[0].states[index], alone, atol=2e-3)


def test_gpt_is_hugging_faces() -> None:
    """A forecaster would be fitted to another network, in another wiring, than the one it will meet."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = GPT2Config(vocab_size=11, n_positions=24, n_embd=8, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None)
    design = replace(GPT, tokens=24)
    ours, theirs = design.build(), GPT2LMHeadModel(sizes).eval()
    assert [(name, p.shape) for name, p in ours.named_parameters()] == [(name, p.shape) for name, p in theirs.named_parameters()]
    theirs.load_state_dict(ours.state_dict(), strict=False)
    tokens = torch.randint(11, (3, 6))
    assert torch.allclose(ours(tokens), theirs(tokens).logits, atol=1e-5)
    assert wiring_of(design).hash == wire(theirs).hash
