"""Train the decoder on with the encoder fixed, so that the denoiser's latents stay valid; `python decoder.py MINUTES`.

May run after or between the denoiser's runs. Resumable; MINUTES is the whole length, earlier runs included.
"""

import os
import sys
import time

import torch
from diffusers import AutoencoderTiny

from autoencoder import edges, shuffled
from convolution import quicken
from data import WORK, on_background, palette, sprites

BATCH, RATE, NOISE = 8, 6e-4, 0.05


def main():
    minutes = float(sys.argv[1])
    torch.manual_seed(1)
    torch.set_num_threads(2)
    torch.set_flush_denormal(True)
    drawn, colours = sprites(), palette()
    model = AutoencoderTiny.from_pretrained(WORK / "vae").to(memory_format=torch.channels_last)
    quicken(model, 16)
    parameters = list(model.decoder.parameters())
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.99), weight_decay=0.0)
    state, step, spent = WORK / "decoder.pt", 0, 0.0
    if state.exists():
        saved = torch.load(state)
        model.decoder.load_state_dict(saved["decoder"])
        optimizer.load_state_dict(saved["optimizer"])
        average, step, spent = saved["average"], saved["step"], saved["spent"]
        torch.set_rng_state(saved["random"])
    start, written = time.time() - spent, time.time()

    def save():
        saved = dict(decoder=model.decoder.state_dict(), optimizer=optimizer.state_dict(), average=average)
        saved |= dict(step=step, spent=time.time() - start, random=torch.get_rng_state())
        torch.save(saved, f"{state}.new")
        os.replace(f"{state}.new", state)

    while (done := (time.time() - start) / 60 / minutes) < 1:
        rate = min(1, (step + 1) / 100) * (1 if done < 0.3 else max(0.01, (1 - done) / 0.7))
        for group in optimizer.param_groups:
            group["lr"] = RATE * rate
        which = torch.randint(len(drawn), (BATCH,))
        flat = colours[torch.randint(len(colours), (BATCH,))]
        flat = torch.where(torch.rand(BATCH, 1) < 0.15, torch.rand(BATCH, 3), flat)
        picture = on_background(drawn[which], flat)
        if torch.rand(()) < 0.2:
            picture = shuffled(picture)
        picture = picture.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                latents = model.encode(picture).latents.float()
            output = model.decode(latents + NOISE * torch.randn_like(latents)).sample.float()
        error = output - picture
        sharp = sum((a - b).abs().mean() for a, b in zip(edges(output), edges(picture)))
        loss = error.abs().mean() + 4 * error.pow(2).mean() + 0.3 * sharp
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        with torch.no_grad():
            kept = min(0.998, step / (step + 10))
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - kept)
        if step % 100 == 0:
            psnr = 10 * torch.log10(4 / error.pow(2).mean()).item()
            print(f"{step} {time.time() - start:.0f}s loss {loss.item():.4f} psnr {psnr:.2f}", flush=True)
        if time.time() - written > 120:
            save()
            written = time.time()
    save()
    with torch.no_grad():
        for parameter, value in zip(parameters, average):
            parameter.copy_(value)
    model.to(memory_format=torch.contiguous_format).eval().save_pretrained(WORK / "vae-final")
    print("done", step, flush=True)


if __name__ == "__main__":
    main()
