"""Train the autoencoder (`AutoencoderTiny`) on the things and backgrounds; `python autoencoder.py MINUTES`.

Resumable: the state is written every two minutes. MINUTES is the whole length, earlier runs included.
"""

import os
import sys
import time

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny

from convolution import quicken
from data import WORK, on_background, palette, sprites

BATCH, RATE, LATENTS, WIDTH = 8, 6e-4, 8, 40
# Noise on the latents while training: what the denoiser leaves over must not show.
NOISE = 0.05


def shuffled(pictures):
    """Mild augmentation of one batch: mirrored or moved by a few pixels."""
    if torch.rand(()) < 0.3:
        pictures = pictures.flip(-1)
    if torch.rand(()) < 0.5:
        moved = torch.randint(-6, 7, (2,)).tolist()
        pictures = F.pad(pictures, (6, 6, 6, 6), mode="replicate")
        pictures = pictures[..., 6 + moved[0] : 134 + moved[0], 6 + moved[1] : 134 + moved[1]]
    return pictures


def edges(pictures):
    return pictures.diff(dim=-1), pictures.diff(dim=-2)


def main():
    minutes = float(sys.argv[1])
    torch.manual_seed(0)
    torch.set_num_threads(2)
    torch.set_flush_denormal(True)
    drawn, colours = sprites(), palette()
    model = AutoencoderTiny(
        latent_channels=LATENTS,
        encoder_block_out_channels=(WIDTH,) * 4,
        decoder_block_out_channels=(WIDTH,) * 4,
        num_encoder_blocks=(0, 1, 2, 3),
        num_decoder_blocks=(3, 3, 2, 1),
    ).to(memory_format=torch.channels_last)
    quicken(model, 16)
    print("parameters", sum(p.numel() for p in model.parameters()), "things", len(drawn), flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.0)
    average = [p.detach().clone() for p in model.parameters()]
    state, step, spent = WORK / "autoencoder.pt", 0, 0.0
    if state.exists():
        saved = torch.load(state)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        average, step, spent = saved["average"], saved["step"], saved["spent"]
        torch.set_rng_state(saved["random"])
    start = time.time() - spent
    written = time.time()

    def save():
        saved = dict(model=model.state_dict(), optimizer=optimizer.state_dict(), average=average, step=step)
        saved |= dict(spent=time.time() - start, random=torch.get_rng_state())
        torch.save(saved, f"{state}.new")
        os.replace(f"{state}.new", state)

    while (done := (time.time() - start) / 60 / minutes) < 1:
        rate = min(1, (step + 1) / 200) * (1 if done < 0.4 else max(0.01, (1 - done) / 0.6))
        for group in optimizer.param_groups:
            group["lr"] = RATE * rate
        which = torch.randint(len(drawn), (BATCH,))
        # Half the backgrounds are any colour: the picture must not depend on the ten.
        flat = colours[torch.randint(len(colours), (BATCH,))]
        flat = torch.where(torch.rand(BATCH, 1) < 0.3, torch.rand(BATCH, 3), flat)
        picture = shuffled(on_background(drawn[which], flat)).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            latents = model.encode(picture).latents.float()
            output = model.decode(latents + NOISE * torch.randn_like(latents)).sample.float()
        error = output - picture
        sharp = sum((a - b).abs().mean() for a, b in zip(edges(output), edges(picture)))
        # Keeps each channel near mean 0 and variance 1, where the noise schedule expects latents.
        mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        spread = (mean**2 + (std - 1) ** 2).mean() + F.relu(latents.abs() - 2.7).mean()
        loss = error.abs().mean() + 2 * error.pow(2).mean() + 0.5 * min(1, done * 3) * sharp + 3e-2 * spread
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        with torch.no_grad():
            kept = min(0.998, step / (step + 10))
            torch._foreach_lerp_(average, [p.detach() for p in model.parameters()], 1 - kept)
        if step % 100 == 0:
            psnr = 10 * torch.log10(4 / error.pow(2).mean()).item()
            seconds = time.time() - start
            print(f"{step} {seconds:.0f}s loss {loss:.4f} psnr {psnr:.2f} std {std.mean():.3f}", flush=True)
        if time.time() - written > 120:
            save()
            written = time.time()
    save()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), average):
            parameter.copy_(value)
    model.to(memory_format=torch.contiguous_format).eval().save_pretrained(WORK / "vae")
    print("done", step, flush=True)


if __name__ == "__main__":
    main()
