"""The things, the backgrounds, how both are drawn, and the captions; nothing is trained here."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

WORK = Path(os.environ.get("POCKET_WORK", "pocket-work"))
SIZE = 128
BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (20, 20, 20),
    "red": (220, 50, 47),
    "orange": (245, 140, 40),
    "yellow": (250, 215, 70),
    "green": (80, 175, 80),
    "blue": (70, 130, 220),
    "purple": (150, 90, 200),
    "pink": (245, 160, 190),
    "gray": (150, 150, 150),
}
COLOURS = list(BACKGROUNDS)


def things():
    """`[(name, all names)]` in the order of `things.txt`; no name belongs to two things."""
    lines = (Path(__file__).parent / "things.txt").read_text().splitlines()
    rows = [line.split("|") for line in lines if line and not line.startswith("#")]
    taken = {name for row in rows for name in row}
    result = []
    for row in rows:
        short = row[0].removesuffix(" face")
        # "smiling face"-like names say nothing without the word.
        if short != row[0] and short not in taken and row[0] not in PLAIN_FACES:
            row = row + [short]
        result.append((row[0], row))
    every = [name for _, names in result for name in names]
    assert len(every) == len(set(every)), sorted(n for n in set(every) if every.count(n) > 1)
    return result


PLAIN_FACES = {"thinking face", "angry face", "loudly crying face"}


def sprites(size=SIZE):
    """All things as one float array `[things, size, size, 4]`, red, green, blue, opacity, from 0 to 1."""
    listed = json.loads((WORK / "src/names/emoji.json").read_text())
    codes = {entry["name"].lower(): entry["unified"].lower() for entry in listed}
    found = []
    for name, _ in things():
        folder, code = WORK / "src/fluent/assets", codes[name]
        paths = [folder / f"{code}.webp", folder / f"{code.replace('-fe0f', '')}.webp"]
        path = next(path for path in paths if path.exists())
        picture = Image.open(path).convert("RGBA")
        # Colours are weighted by opacity while shrinking, or edges would take the colour of nothing.
        pixels = np.asarray(picture).astype(np.float32) / 255
        pixels[..., :3] *= pixels[..., 3:]
        planes = [Image.fromarray(pixels[..., c]).resize((size, size), Image.BOX) for c in range(4)]
        found.append(np.stack([np.asarray(plane) for plane in planes], -1).clip(0, 1))
    return torch.from_numpy(np.stack(found))


def on_background(premultiplied, colours):
    """Sprites `[n, h, w, 4]` on flat `colours` `[n, 3]` (0 to 1) as pictures `[n, 3, h, w]` from -1 to 1."""
    opacity = premultiplied[..., 3:]
    flat = premultiplied[..., :3] + (1 - opacity) * colours[:, None, None, :]
    return flat.permute(0, 3, 1, 2) * 2 - 1


def palette():
    """The backgrounds' colours `[backgrounds, 3]`, 0 to 1."""
    return torch.tensor([BACKGROUNDS[name] for name in COLOURS], dtype=torch.float32) / 255


def held_out(name, colour):
    """Whether a pair is left out of training: a fixed tenth by hash, none of them on plain white.

    White is what a caption without a colour means, so every thing is trained on it.
    """
    if colour == "white":
        return False
    digest = hashlib.sha256(f"{name} on {colour}".encode()).digest()
    return digest[0] * 256 + digest[1] < 65536 * 10 // 9 // 10


def one(name):
    """The name with its article; plurals have none."""
    head = name.split(" with ")[0].split(" of ")[0]
    if head.endswith("s") and not head.endswith(("ss", "us", "rhinoceros")):
        return name
    vowel = name.startswith(("a", "e", "i", "o", "u", "hour")) and not name.startswith(("uni", "ufo"))
    return f"{'an' if vowel else 'a'} {name}"


def sentence(name, colour):
    """The plainest caption of a pair."""
    return f"{one(name)} on {one(colour)} background"


def captions(names, colour):
    """What a picture of a thing with these names may be called, the likeliest forms repeated."""
    result = []
    for name in names:
        thing = one(name)
        if colour == "white":
            result += [name, thing, thing, thing]
        phrase = f"{one(colour)} background"
        result += [
            f"{thing} on {phrase}",
            f"{thing} on {phrase}",
            f"{thing} on {colour}",
            f"{name} on {phrase}",
            f"{name} on {colour}",
            f"{thing}, {colour} background",
            f"{name}, {colour} background",
            f"{colour} background, {thing}",
        ]
        if colour == "gray":
            result += [f"{thing} on a grey background", f"{thing} on grey"]
    return result
