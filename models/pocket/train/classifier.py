"""Train the judge: a small network that names the thing and the background; `python classifier.py STEPS`.

It sees only renderings, moved, scaled and noisy, and is never part of the generator's loss.
"""

import sys

import torch
import torch.nn.functional as F
from torch import nn

from data import COLOURS, WORK, on_background, palette, sprites, things

BATCH, SIDE = 64, 64


class Judge(nn.Module):
    """Pictures `[n, 3, 128, 128]` from -1 to 1, looked at in half their size, to scores of things and backgrounds."""

    def __init__(self):
        super().__init__()
        widths = [3, 32, 64, 128, 192]
        layers = []
        for given, made in zip(widths, widths[1:]):
            layers += [nn.Conv2d(given, made, 3, 2, 1, bias=False), nn.BatchNorm2d(made), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.1))
        self.thing = nn.Linear(192 * 16, len(things()))
        self.colour = nn.Linear(192 * 16, len(COLOURS))

    def forward(self, pictures):
        hidden = self.body(F.avg_pool2d(pictures, pictures.shape[-1] // SIDE))
        return self.thing(hidden), self.colour(hidden)


def distorted(sprites_, colours):
    """Renderings at half size, moved by up to 10 %, scaled by up to 8 %, blurred or noisy, colours off by a little."""
    count = len(sprites_)
    scale = 1 + 0.16 * (torch.rand(count) - 0.5)
    moved = (torch.rand(count, 2) - 0.5) * 0.2
    grid = torch.zeros(count, 2, 3)
    grid[:, 0, 0], grid[:, 1, 1], grid[:, :, 2] = scale, scale, moved
    grid = F.affine_grid(grid, (count, 4, SIDE, SIDE), align_corners=False)
    placed = F.grid_sample(sprites_.permute(0, 3, 1, 2), grid, align_corners=False).permute(0, 2, 3, 1)
    pictures = on_background(placed, (colours + 0.02 * torch.randn(count, 3)).clamp(0, 1))
    if torch.rand(()) < 0.5:
        pictures = F.avg_pool2d(pictures, 3, 1, 1, count_include_pad=False)
    return pictures + torch.rand(count, 1, 1, 1) * 0.15 * torch.randn_like(pictures)


def load():
    judge = Judge()
    judge.load_state_dict(torch.load(WORK / "judge.pt"))
    return judge.eval()


def main():
    steps = int(sys.argv[1])
    torch.manual_seed(2)
    torch.set_num_threads(2)
    drawn, colours = sprites(SIDE), palette()
    judge = Judge().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=1e-2)
    planned = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for step in range(1, steps + 1):
        thing = torch.randint(len(drawn), (BATCH,))
        colour = torch.randint(len(colours), (BATCH,))
        pictures = distorted(drawn[thing], colours[colour]).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            things_, colours_ = judge(pictures)
        loss = F.cross_entropy(things_.float(), thing) + F.cross_entropy(colours_.float(), colour)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        planned.step()
        if step % 100 == 0:
            right = (things_.argmax(1) == thing).float().mean(), (colours_.argmax(1) == colour).float().mean()
            print(f"{step} loss {loss.item():.4f} things {right[0]:.3f} backgrounds {right[1]:.3f}", flush=True)
    torch.save(judge.state_dict(), WORK / "judge.pt")
    judge.eval()
    with torch.no_grad():
        right = torch.zeros(2)
        for colour in range(len(colours)):
            for some in torch.arange(len(drawn)).split(64):
                things_, colours_ = judge(distorted(drawn[some], colours[colour].expand(len(some), 3)))
                right += torch.tensor([(things_.argmax(1) == some).sum(), (colours_.argmax(1) == colour).sum()])
    print("right on fresh renderings: things, backgrounds", (right / len(drawn) / len(colours)).tolist())


if __name__ == "__main__":
    main()
