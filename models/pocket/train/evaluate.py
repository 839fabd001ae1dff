"""Draw (thing, background) pairs with diffusers in float32 and let the judge name them; see `--help`.

With `--folder` pictures drawn elsewhere (`NUMBER.png`, in the order of `--list`) are judged instead.
"""

import argparse
import json

import numpy as np
import torch
from diffusers import AutoencoderTiny, DPMSolverMultistepScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

import classifier
from data import COLOURS, WORK, held_out, on_background, palette, sentence, sprites, things


def jobs(others, seeds):
    """All held-out pairs and `others` of the trained ones (all, if negative), each with `seeds` seeds."""
    pairs = [(t, c) for t in range(len(things())) for c in range(len(COLOURS))]
    unseen = [pair for pair in pairs if held_out(things()[pair[0]][0], COLOURS[pair[1]])]
    seen = [pair for pair in pairs if pair not in set(unseen)]
    order = np.random.default_rng(0).permutation(len(seen))
    chosen = unseen + [seen[i] for i in (order if others < 0 else order[:others])]
    result = []
    for index, (thing, colour) in enumerate(chosen):
        name = things()[thing][0]
        prompt = sentence(name, COLOURS[colour])
        for seed in range(seeds):
            unseen_pair = held_out(name, COLOURS[colour])
            result.append(
                dict(thing=thing, colour=colour, prompt=prompt, seed=seeds * index + seed, held_out=unseen_pair)
            )
    return result


class Generator:
    """The exported folder, drawing batches: what `StableDiffusionPipeline` does, one noise seed per picture."""

    def __init__(self, folder):
        self.words = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.text = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
        self.unet = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
        self.vae = AutoencoderTiny.from_pretrained(folder / "vae").eval()
        self.folder = folder

    def embedded(self, prompts):
        ids = self.words(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return self.text(ids).last_hidden_state

    @torch.no_grad()
    def draw(self, batch, steps, guidance):
        scheduler = DPMSolverMultistepScheduler.from_pretrained(
            self.folder, subfolder="scheduler", use_karras_sigmas=True
        )
        scheduler.set_timesteps(steps)
        shape = (1, self.unet.config.in_channels, 16, 16)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(job["seed"])) for job in batch]
        latents = torch.cat(noise) * scheduler.init_noise_sigma
        context = self.embedded([""] * len(batch) + [job["prompt"] for job in batch])
        for time in scheduler.timesteps:
            both = scheduler.scale_model_input(torch.cat([latents, latents]), time)
            without, with_ = self.unet(both, time, context).sample.chunk(2)
            latents = scheduler.step(without + guidance * (with_ - without), time, latents).prev_sample
        return self.vae.decode(latents / self.vae.config.scaling_factor).sample.clamp(-1, 1)


def loaded(path):
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1


@torch.no_grad()
def autoencoder_psnr(vae):
    """Of every thing on one background each, in dB: the mean over pictures, and the least."""
    colours, drawn, found = palette(), sprites(), []
    for some in torch.arange(len(drawn)).split(32):
        pictures = on_background(drawn[some], colours[some % len(colours)])
        error = vae.decode(vae.encode(pictures).latents).sample.clamp(-1, 1) - pictures
        found.append(10 * torch.log10(4 / error.pow(2).mean((1, 2, 3))))
    return torch.cat(found)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--others", type=int, default=-1, help="how many trained pairs beside all held-out ones")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--limit", type=int, help="only this many pictures, drawn at random")
    parser.add_argument("--list", action="store_true", help="print the pictures as a list for `pochade batch` and stop")
    parser.add_argument("--folder", help="judge pictures of this folder")
    options = parser.parse_args()
    torch.set_num_threads(2)
    todo = jobs(options.others, options.seeds)
    if options.limit:
        todo = [todo[i] for i in np.random.default_rng(1).permutation(len(todo))[: options.limit]]
    if options.list:
        for index, job in enumerate(todo):
            print(json.dumps(dict(id=str(index), prompt=job["prompt"], seed=job["seed"])))
        return
    judge = classifier.load()
    if not options.folder:
        generator = Generator(WORK / "diffusers")
        psnr = autoencoder_psnr(generator.vae)
        print(f"autoencoder: mean {psnr.mean():.2f} dB, least {psnr.min():.2f} dB", flush=True)
    right = []
    for first in range(0, len(todo), 32):
        batch = todo[first : first + 32]
        if options.folder:
            pictures = torch.stack([loaded(f"{options.folder}/{first + i}.png") for i in range(len(batch))])
        else:
            pictures = generator.draw(batch, options.steps, options.guidance)
        with torch.no_grad():
            things_, colours_ = (scores.argmax(1).tolist() for scores in judge(pictures))
        for job, thing, colour in zip(batch, things_, colours_):
            right.append((job["held_out"], thing == job["thing"], colour == job["colour"]))
            if thing != job["thing"] or colour != job["colour"]:
                print(f"{job['prompt']} (seed {job['seed']}): {things()[thing][0]} on {COLOURS[colour]}", flush=True)
    right = np.array(right)
    for title, some in ("all", right), ("held out", right[right[:, 0]]), ("trained", right[~right[:, 0]]):
        if len(some):
            thing, colour = some[:, 1:].mean(0) * 100
            print(f"{title}: {len(some)} pictures, thing {thing:.2f} %, background {colour:.2f} %")


if __name__ == "__main__":
    main()
