"""Distil guidance and steps into a LoRA: pictures in four steps without guidance; `python few_steps.py FOLDER STEPS`.

FOLDER is the model as diffusers reads it (`pochade convert pocket.safetensors FOLDER --format diffusers`). The student
learns a consistency function (Song et al. 2023; with guidance in it, Luo et al. 2023): from any point of the teacher's
guided path to its end. Luo et al. let the student guess that end from a point one step further on, since solving whole
paths of Stable Diffusion is dear; here it takes seconds, so the teacher's own ends are the targets. Points are those
of the path itself and the end under fresh noise, which is what LCM's sampler goes on from.
Resumable: the state is written every two minutes.
"""

import os
import sys
import time
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler, LCMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn

import tokenizer
from data import COLOURS, WORK, captions, held_out, things
from evaluate import Generator

BATCH, RATE, RANK, GUIDANCE = 32, 1e-3, 8, 3.0
# Steps of the teacher's path, students' steps for each path's batch, ends that are remembered.
PATH, LESSONS, REMEMBERED = 10, 12, 4096


class Adapted(nn.Module):
    """A frozen layer and the product of two small ones beside it."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        if isinstance(layer, nn.Linear):
            self.down = nn.Linear(layer.in_features, RANK, bias=False)
            self.up = nn.Linear(RANK, layer.out_features, bias=False)
        else:
            options = dict(stride=layer.stride, padding=layer.padding, bias=False)
            self.down = nn.Conv2d(layer.in_channels, RANK, layer.kernel_size, **options)
            self.up = nn.Conv2d(RANK, layer.out_channels, 1, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        nn.init.zeros_(self.up.weight)
        self.on = True

    def forward(self, x, *rest):
        y = self.layer(x)
        return y + self.up(self.down(x)) if self.on else y


def adapt(network, path=""):
    """Wraps every layer of matrices, and gives `{name: wrapper}`."""
    found = {}
    for name, child in list(network.named_children()):
        full = f"{path}.{name}" if path else name
        if type(child) in (nn.Linear, nn.Conv2d):
            # The two ends of the network stay: they see latents, of which eight channels are all there is.
            if full not in ("conv_in", "conv_out"):
                wrapper = Adapted(child)
                setattr(network, name, wrapper)
                found[full] = wrapper
        else:
            found |= adapt(child, full)
    return found


def write(wrappers, average, path):
    tensors = {}
    for (name, wrapper), (down, up) in zip(wrappers.items(), zip(average[::2], average[1::2])):
        tensors[f"unet.{name}.lora_A.weight"] = down.half().contiguous()
        tensors[f"unet.{name}.lora_B.weight"] = up.half().contiguous()
    save_file(tensors, path)


def main():
    folder, steps = Path(sys.argv[1]), int(sys.argv[2])
    torch.manual_seed(5)
    torch.set_num_threads(2)
    torch.set_flush_denormal(True)
    teacher = Generator(folder)
    unet = teacher.unet.requires_grad_(False).to(memory_format=torch.channels_last)
    wrappers = adapt(unet)
    parameters = [p for w in wrappers.values() for p in (w.down.weight, w.up.weight)]
    print("parameters", sum(p.numel() for p in parameters), flush=True)
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.99), weight_decay=0)

    kept_signal = DPMSolverMultistepScheduler.from_pretrained(folder, subfolder="scheduler").alphas_cumprod
    few = LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    few.set_timesteps(4)
    few_times = few.timesteps.tolist()
    shape = (unet.config.in_channels, 16, 16)

    listed = things()
    every = [(t, c) for t in range(len(listed)) for c in range(len(COLOURS))]
    pairs = [(t, c) for t, c in every if not held_out(listed[t][0], COLOURS[c])]
    with torch.no_grad():
        nothing = teacher.embedded([""])

    def ask(latents, times, context):
        """The noise, with the adapters as they are."""
        return unet(latents.contiguous(memory_format=torch.channels_last), times, context).sample

    def switch(on):
        for wrapper in wrappers.values():
            wrapper.on = on

    def clean(noisy, noise, times):
        signal = kept_signal[times].view(-1, 1, 1, 1)
        return (noisy - (1 - signal).sqrt() * noise) / signal.sqrt()

    @torch.no_grad()
    def path():
        """A batch of the teacher's guided paths: what was asked for, points with their timesteps, ends."""
        drawn = [pairs[i] for i in torch.randint(len(pairs), (BATCH,))]
        told = [captions(listed[t][1], COLOURS[c]) for t, c in drawn]
        context = teacher.embedded([some[torch.randint(len(some), ()).item()] for some in told])
        both = torch.cat([nothing.expand(BATCH, -1, -1), context])
        scheduler = DPMSolverMultistepScheduler.from_pretrained(folder, subfolder="scheduler", use_karras_sigmas=True)
        scheduler.set_timesteps(PATH)
        latents, points = torch.randn(BATCH, *shape) * scheduler.init_noise_sigma, []
        for at in scheduler.timesteps:
            points.append((int(at), latents))
            without, with_ = ask(torch.cat([latents, latents]), at, both).chunk(2)
            latents = scheduler.step(without + GUIDANCE * (with_ - without), at, latents).prev_sample
        return context, points, latents

    state, step, spent, ends, contexts = WORK / "few_steps.pt", 0, 0.0, [], []
    if state.exists():
        saved = torch.load(state)
        with torch.no_grad():
            for p, value in zip(parameters, saved["parameters"]):
                p.copy_(value)
        optimizer.load_state_dict(saved["optimizer"])
        average, step, spent = saved["average"], saved["step"], saved["spent"]
        ends, contexts = saved["ends"], saved["contexts"]
        torch.set_rng_state(saved["random"])
        print("resumed at", step, flush=True)
    start, written, shown = time.time() - spent, time.time(), {}

    def save():
        saved = dict(parameters=[p.detach() for p in parameters], optimizer=optimizer.state_dict(), average=average)
        saved |= dict(step=step, spent=time.time() - start, ends=ends, contexts=contexts, random=torch.get_rng_state())
        torch.save(saved, f"{state}.new")
        os.replace(f"{state}.new", state)
        write(wrappers, average, WORK / "few_steps.safetensors")

    def learn(noisy, times, context, end, kind):
        for group in optimizer.param_groups:
            done = step / steps
            group["lr"] = RATE * min(1, (step + 1) / 50) * (1 if done < 0.5 else max(0.02, (1 - done) / 0.5))
        wrong = clean(noisy, ask(noisy, times, context), times) - end
        # Huber's, as Luo et al. use it: a few wild guesses at the noisiest timesteps count no more than they should.
        loss = ((wrong.pow(2) + 0.03**2).sqrt() - 0.03).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        kept = min(0.99, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - kept)
        energy = wrong.detach().pow(2).mean().item()
        shown[kind] = energy if kind not in shown else 0.95 * shown[kind] + 0.05 * energy

    while step < steps:
        switch(False)
        context, points, end = path()
        switch(True)
        ends, contexts = (ends + list(end))[-REMEMBERED:], (contexts + list(context))[-REMEMBERED:]
        for lesson in range(LESSONS):
            if lesson % 4 == 0:
                # Points of the paths that were just followed, the beginning among them.
                chosen = torch.randint(len(points), (BATCH,))
                chosen[: BATCH // 4] = 0
                times = torch.tensor([points[i][0] for i in chosen])
                noisy = torch.stack([points[i][1][row] for row, i in enumerate(chosen)])
                learn(noisy, times, context, end, "path")
            else:
                rows = torch.randint(len(ends), (BATCH,))
                remembered = torch.stack([ends[row] for row in rows])
                # Half at the timesteps of four steps, half anywhere.
                times = torch.randint(1000, (BATCH,))
                times[: BATCH // 2] = torch.tensor(few_times).repeat(BATCH // 8)
                signal = kept_signal[times].view(-1, 1, 1, 1)
                noisy = signal.sqrt() * remembered + (1 - signal).sqrt() * torch.randn_like(remembered)
                learn(noisy, times, torch.stack([contexts[row] for row in rows]), remembered, "noised")
            step += 1
        if step % 48 == 0 or step == LESSONS:
            print(step, f"{time.time() - start:.0f}s", {k: round(v, 5) for k, v in shown.items()}, flush=True)
        if time.time() - written > 120:
            save()
            written = time.time()
    save()
    print("done", step, flush=True)


if __name__ == "__main__":
    main()
