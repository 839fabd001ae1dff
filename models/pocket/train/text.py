"""Teach the text encoder what captions mean before the UNet listens to it; `python text.py STEPS`.

From every end token linear maps must tell the thing, the background and the principal components of what the thing
looks like. Left to the denoiser's loss alone, the meaning of words is learned last: epsilon's error hardly depends on it.
"""

import sys

import torch
import torch.nn.functional as F
from torch import nn

import tokenizer
from data import COLOURS, WORK, captions, held_out, sprites, things
from denoiser import HIDDEN, text_encoder

BATCH, RATE, COMPONENTS = 128, 2e-3, 128


def appearances():
    """Each thing's leading principal components `[things, COMPONENTS]`, of colours and opacity at 16x16."""
    small = F.avg_pool2d(sprites().permute(0, 3, 1, 2), 8).flatten(1)
    small = small - small.mean(0)
    u, s, _ = torch.linalg.svd(small, full_matrices=False)
    # Between plain and whitened: the large differences first, the small ones not lost.
    scores = u[:, :COMPONENTS] * s[:COMPONENTS].sqrt()
    return scores / scores.std()


def main():
    steps = int(sys.argv[1])
    torch.manual_seed(3)
    torch.set_num_threads(2)
    words, listed, looks = tokenizer.load(), things(), appearances()
    text = text_encoder(len(words))
    heads = nn.Linear(HIDDEN, len(listed) + len(COLOURS) + COMPONENTS)
    parameters = list(text.parameters()) + list(heads.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.99), weight_decay=1e-2)
    planned = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
    told = []
    for thing, (name, names) in enumerate(listed):
        for colour, shade in enumerate(COLOURS):
            if not held_out(name, shade):
                told += [(thing, colour, caption) for caption in captions(names, shade)]
    ids = torch.tensor(words([caption for *_, caption in told], padding="max_length").input_ids)
    meant = torch.tensor([(thing, colour) for thing, colour, _ in told])
    for step in range(1, steps + 1):
        some = torch.randint(len(ids), (BATCH,))
        ends = ids[some] == len(words) - 1
        with torch.autocast("cpu", torch.bfloat16):
            found = heads(text(ids[some]).last_hidden_state[ends]).float()
        thing, colour = meant[some].repeat_interleave(ends.sum(1), 0).unbind(1)
        things_, colours_, looks_ = found.split([len(listed), len(COLOURS), COMPONENTS], 1)
        loss = F.cross_entropy(things_, thing) + F.cross_entropy(colours_, colour)
        loss = loss + F.mse_loss(looks_, looks[thing])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        planned.step()
        if step % 100 == 0:
            right = [round((a.argmax(1) == b).float().mean().item(), 3) for a, b in ((things_, thing), (colours_, colour))]
            error = F.mse_loss(looks_, looks[thing])
            print(f"{step} loss {loss:.4f} looks {error:.4f} things and backgrounds {right}", flush=True)
    torch.save(text.state_dict(), WORK / "text.pt")
    with torch.no_grad():
        hidden = text(ids[torch.randint(len(ids), (256,))]).last_hidden_state
    print("spread of the embeddings", hidden.std().item(), "over captions", hidden[:, -1].std(0).mean().item())


if __name__ == "__main__":
    main()
