"""Train a file of four bits to answer as its floats do; `python four_bits.py FILE FLOATS MINUTES`.

FILE is what `pochade quantize --size` wrote of FLOATS, the model as diffusers reads it. Weights of four bits, their
scales and what is not rounded (norms, biases, layers of 16 bits) learn to answer both halves of guidance as the floats
do, on points of the floats' own paths; weights of eight bits and the autoencoder stay as they are. For the gradient
rounding is the identity (the straight-through estimator, Bengio et al. 2013), and scales learn beside the weights
(learned step sizes, Esser et al. 2020). The result, `$POCKET_WORK/four_bits.safetensors`, has FILE's form.
Resumable: the state is written every two minutes. MINUTES is the whole length, earlier runs included.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrize

from convolution import quicken
from data import COLOURS, WORK, captions, held_out, things
from denoiser import LEAST, MOST, schedule
from evaluate import Generator

# Paths that are followed at once; points in a batch, each in both halves of guidance; classes of timesteps.
PATH, BATCH, CLASSES = 32, 16, 32
# Inputs that share a scale.
GROUP = 32
GUIDANCE, STEPS = 3.0, 20
# Of weights in steps of their grid, of logarithms of scales, of floats.
RATES = 5e-3, 5e-4, 2e-4
# How many paths are followed of latents of this height and width.
PATHS = {(16, 16): 1152, (16, 24): 64, (24, 16): 64, (12, 12): 64, (8, 8): 64}


class Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, steps):
        ctx.save_for_backward((steps >= -8.5) & (steps <= 7.5))
        return steps.round().clamp(-8, 7)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0]


class FourBits(nn.Module):
    """Makes a weight of its place on a grid, which is trained in the weight's stead."""

    def __init__(self, shape, values, scales, columns):
        super().__init__()
        self.shape, (outputs, groups) = shape, scales.shape[:2]
        # `[outputs, groups, inputs of a group, taps]`, the last group filled with zeros.
        self.padding = groups * GROUP - shape[1]
        self.grouped = (outputs, groups, GROUP, -1)
        self.first = scales.float().view(outputs, groups, 1, -1)
        self.growth = nn.Parameter(torch.zeros_like(self.first))
        self.columns = None if columns is None else columns.float().view(1, -1, 1)
        self.start = nn.functional.pad(values.float().view(*shape[:2], -1), (0, 0, 0, self.padding)).view(self.grouped)

    def scales(self):
        return self.first * self.growth.exp()

    def forward(self, steps):
        weight = (Round.apply(steps) * self.scales()).view(self.shape[0], -1, steps.shape[-1])[:, : self.shape[1]]
        return (weight if self.columns is None else weight * self.columns).reshape(self.shape)

    def right_inverse(self, _):
        return self.start


def unpacked(rows, shape):
    """The values of rows in which two lie in a byte."""
    halves = torch.stack([rows & 15, rows >> 4], -1).flatten(1)
    return halves[:, : shape[1:].numel()].to(torch.int8) - 8


def packed(values):
    """`[outputs, values]` as such rows."""
    values = nn.functional.pad((values + 8).to(torch.uint8), (0, values.shape[1] % 2), value=8)
    return values[:, ::2] | values[:, 1::2] << 4


class Student:
    """Networks that hold what a native file does."""

    def __init__(self, path, networks):
        with safe_open(path, "pt") as file:
            self.metadata = file.metadata()
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}
        shapes = json.loads(self.metadata["pochade"])["four_bits"]["shapes"]
        self.grids, self.floats = {}, {}
        for prefix, network in networks.items():
            for name, parameter in list(network.named_parameters()):
                full = f"{prefix}.{name}"
                stored, scale = self.tensors[full], self.tensors.get(f"{full}_scale")
                columns = self.tensors.get(f"{full}_columns")
                if stored.dtype == torch.uint8:
                    shape = torch.Size(shapes[full])
                    layer = network.get_submodule(name.removesuffix(".weight"))
                    grid = FourBits(shape, unpacked(stored, shape), scale, columns)
                    parametrize.register_parametrization(layer, "weight", grid, unsafe=True)
                    self.grids[full] = (layer.parametrizations.weight.original, grid)
                    continue
                with torch.no_grad():
                    parameter.copy_(stored)
                    if stored.dtype == torch.int8:
                        parameter.mul_(scale.view(-1, *[1] * (stored.dim() - 1)))
                        if columns is not None:
                            parameter.mul_(columns.view(1, -1, *[1] * (stored.dim() - 2)))
                        parameter.requires_grad_(False)
                    else:
                        self.floats[full] = parameter

    def trained(self):
        """Parameters by their rates."""
        steps = [steps for steps, _ in self.grids.values()]
        return steps, [grid.growth for _, grid in self.grids.values()], list(self.floats.values())

    @torch.no_grad()
    def write(self, path):
        tensors = dict(self.tensors)
        for name, (steps, grid) in self.grids.items():
            values = steps.round().clamp(-8, 7).flatten(1, 2)[:, : grid.shape[1]].flatten(1)
            scales = self.tensors[f"{name}_scale"]
            tensors[name] = packed(values)
            tensors[f"{name}_scale"] = grid.scales().reshape(scales.shape).to(scales.dtype)
        for name, parameter in self.floats.items():
            tensors[name] = parameter.to(self.tensors[name].dtype)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, self.metadata)


def tokens(generator, prompts):
    return generator.words(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids


@torch.no_grad()
def followed(teacher, folder):
    """Points of the float model's guided paths, and what it answers there with fresh noise and without."""
    listed = things()
    every = [(t, c) for t in range(len(listed)) for c in range(len(COLOURS))]
    pairs = [(t, c) for t, c in every if not held_out(listed[t][0], COLOURS[c])]
    nothing, points = teacher.embedded([""]), []
    teacher.unet.to(memory_format=torch.channels_last)
    for (height, width), count in PATHS.items():
        for first in range(0, count, PATH):
            drawn = [pairs[i] for i in torch.randint(len(pairs), (PATH,))]
            told = [captions(listed[t][1], COLOURS[c]) for t, c in drawn]
            told = tokens(teacher, [some[torch.randint(len(some), ()).item()] for some in told])
            both = torch.cat([nothing.expand(PATH, -1, -1), teacher.text(told).last_hidden_state])

            def ask(latents, times):
                answers = teacher.unet(torch.cat([latents, latents]), times.repeat(2), both).sample.chunk(2)
                points.append((times, told, *[part.half() for part in (latents, *answers)]))
                return answers[0] + GUIDANCE * (answers[1] - answers[0])

            scheduler = DPMSolverMultistepScheduler.from_pretrained(
                folder, subfolder="scheduler", use_karras_sigmas=True
            )
            scheduler.set_timesteps(STEPS)
            latents = torch.randn(PATH, teacher.unet.config.in_channels, height, width) * scheduler.init_noise_sigma
            for at in scheduler.timesteps:
                latents = scheduler.step(ask(latents, at.expand(PATH)), at, latents).prev_sample
            for _ in range(STEPS // 2):
                times = ((torch.arange(PATH) + torch.rand(PATH)) / PATH * 1000).long()[torch.randperm(PATH)]
                signal = scheduler.alphas_cumprod[times].view(-1, 1, 1, 1)
                noisy = signal.sqrt() * latents + (1 - signal).sqrt() * torch.randn_like(latents)
                ask(noisy, times)
            print("paths", (height, width), first + PATH, flush=True)
    return points


def main():
    file, folder, minutes = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    torch.manual_seed(6)
    torch.set_num_threads(2)
    torch.set_flush_denormal(True)
    teacher, cache = Generator(folder), WORK / "paths.pt"
    if not cache.exists():
        torch.save(followed(teacher, folder), cache)
    points = torch.load(cache)
    nothing = tokens(teacher, [""])
    pupil = Generator(folder)
    unet, text = pupil.unet.to(memory_format=torch.channels_last), pupil.text
    quicken(unet, 8)
    student = Student(file, dict(unet=unet, text_encoder=text))
    groups = [dict(params=params, lr=rate) for params, rate in zip(student.trained(), RATES)]
    parameters = [p for group in groups for p in group["params"]]
    sizes = [sum(p.numel() for p in group["params"]) for group in groups]
    print("parameters", sizes, "batches", len(points), flush=True)
    signal = schedule().alphas_cumprod
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0, fused=True)
    # Error by class of timesteps in parts of the signal: each counts as much as it can still be improved, in decibel.
    errors, texts, cleans = torch.ones(CLASSES) * 1e-3, 1e-2, 1e-2
    state, step, spent = WORK / "four_bits.pt", 0, 0.0
    if state.exists():
        saved = torch.load(state)
        with torch.no_grad():
            for parameter, value in zip(parameters, saved["parameters"]):
                parameter.copy_(value)
        optimizer.load_state_dict(saved["optimizer"])
        errors, texts, cleans = saved["errors"], saved["texts"], saved.get("cleans", cleans)
        step, spent = saved["step"], saved["spent"]
        torch.set_rng_state(saved["random"])
        print("resumed at", step, flush=True)
    start, written = time.time() - spent, time.time()

    def save():
        saved = dict(parameters=[p.detach() for p in parameters], optimizer=optimizer.state_dict(), errors=errors)
        saved |= dict(texts=texts, cleans=cleans, step=step, spent=time.time() - start, random=torch.get_rng_state())
        torch.save(saved, f"{state}.new")
        os.replace(f"{state}.new", state)
        student.write(WORK / "four_bits.safetensors")

    while (done := (time.time() - start) / 60 / minutes) < 1:
        rate = min(1, (step + 1) / 100) * max(0.01, 1 - done)
        for group, most in zip(optimizer.param_groups, RATES):
            group["lr"] = most * rate
        # Points of one size, from several batches of paths.
        size = points[torch.randint(len(points), ())][2].shape
        alike = [batch for batch in points if batch[2].shape == size]
        rows = [(alike[torch.randint(len(alike), ())], torch.randint(PATH, ()).item()) for _ in range(BATCH)]
        times, told, latents, without, with_ = (torch.stack([batch[i][row] for batch, row in rows]) for i in range(5))
        expected = torch.cat([without, with_]).float()
        ids = torch.cat([nothing, told])
        context = text(ids).last_hidden_state
        with torch.no_grad():
            meant = teacher.text(ids).last_hidden_state
        both = torch.cat([context[:1].expand(BATCH, -1, -1), context[1:]])
        doubled = torch.cat([latents, latents]).float().contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            answer = unet(doubled, times.repeat(2), both).sample
        wrong = answer.float() - expected
        guided = wrong[:BATCH] + GUIDANCE * (wrong[BATCH:] - wrong[:BATCH])
        wrong = torch.stack([*wrong.chunk(2), guided / 3]).pow(2).mean((0, 2, 3, 4)) / expected.pow(2).mean()
        # The same in the clean latents: in much noise, where thing and background are decided, little is wrong with the
        # noise and all with them.
        ratio = (signal[times] / (1 - signal[times])).clamp(min=1e-3)
        clean_wrong = (wrong * ratio.clamp(LEAST, MOST) / ratio).mean()
        classes = times * CLASSES // 1000
        text_wrong = (context - meant).pow(2).mean() / meant.pow(2).mean()
        loss = (wrong / errors[classes]).mean() + clean_wrong / cleans + 0.1 * text_wrong / texts
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        with torch.no_grad():
            for which, found in zip(classes.tolist(), wrong.detach()):
                errors[which] = 0.95 * errors[which] + 0.05 * found
            texts = 0.98 * texts + 0.02 * text_wrong.item()
            cleans = 0.98 * cleans + 0.02 * clean_wrong.item()
        if step % 50 == 0 or step == 5:
            decibel = -10 * errors.log10()
            others = -10 * torch.tensor([texts, cleans]).log10()
            found = f"{decibel.mean():.1f} dB, least and most noise {decibel[0]:.1f} {decibel[-1]:.1f}"
            found += f", texts {others[0]:.1f}, clean latents {others[1]:.1f}"
            print(f"{step} {time.time() - start:.0f}s {found}", flush=True)
        if time.time() - written > 120:
            save()
            written = time.time()
    save()
    print("done", step, flush=True)


if __name__ == "__main__":
    main()
