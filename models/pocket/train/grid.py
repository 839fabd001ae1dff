"""Draw a grid of pictures with the exported folder; `python grid.py FILE GUIDANCE COLUMNS ROWS`."""

import sys

import numpy as np
import torch
from PIL import Image

from data import COLOURS, SIZE, WORK, sentence, things
from evaluate import Generator

SHOWN = (
    "fox face;red apple;octopus;rocket;slice of pizza;owl;unicorn face;cactus;guitar;hot beverage;penguin;sunflower;"
    "doughnut;elephant;ghost;sailboat;strawberry;tiger;teddy bear;butterfly;camera;crown;steam locomotive;"
    "frog face;tram;panda face;rainbow;robot face;lobster;t-shirt;parrot"
).split(";")


def main():
    file, guidance, columns, rows = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    names = {name for _, found in things() for name in found}
    shown = [name for name in SHOWN if name in names][: columns * rows]
    colours = [COLOURS[3 * i % len(COLOURS)] for i in range(len(shown))]
    batch = [
        dict(prompt=sentence(name, colour), seed=seed) for seed, (name, colour) in enumerate(zip(shown, colours))
    ]
    torch.set_num_threads(2)
    pictures = Generator(WORK / "diffusers").draw(batch, 20, guidance)
    tiles = ((pictures.permute(0, 2, 3, 1) + 1) * 127.5).round().byte().numpy()
    tiles = tiles.reshape(rows, columns, SIZE, SIZE, 3).transpose(0, 2, 1, 3, 4)
    Image.fromarray(np.ascontiguousarray(tiles).reshape(rows * SIZE, columns * SIZE, 3)).save(file)


if __name__ == "__main__":
    main()
