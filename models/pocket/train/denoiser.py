"""Train the text encoder and the UNet together on the autoencoder's latents; `python denoiser.py MINUTES`.

Resumable: the state is written every two minutes. MINUTES is the whole length, earlier runs included.
"""

import os
import sys
import time

import torch
from diffusers import AutoencoderTiny, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

import tokenizer
from convolution import quicken
from data import COLOURS, WORK, captions, held_out, on_background, palette, sprites, things

BATCH, RATE, DROPPED = 32, 1e-3, 0.1
# Bounds of the weight of the error in the clean latents. The upper one is min-SNR's (Hang et al. 2023), the lower one
# truncated SNR's (Salimans and Ho 2022): only in much noise does the caption matter, and there epsilon's own loss is tiny.
LEAST, MOST = 1.0, 5.0
HIDDEN, CHANNELS = 160, (96, 144, 144)


def unet(latent_channels):
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=CHANNELS,
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=HIDDEN,
        attention_head_dim=3,
    )


def text_encoder(vocabulary):
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=HIDDEN,
            intermediate_size=4 * HIDDEN,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.POSITIONS,
            hidden_act="quick_gelu",
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )


def networks(vocabulary, latent_channels):
    return unet(latent_channels), text_encoder(vocabulary)


def schedule():
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)


@torch.no_grad()
def encoded(vae):
    """Latents of every thing on every background, `[things, backgrounds, channels, 16, 16]`."""
    colours = palette()
    return torch.stack(
        [vae.encode(on_background(one.expand(len(colours), -1, -1, -1), colours)).latents for one in sprites()]
    )


def main():
    minutes = float(sys.argv[1])
    torch.manual_seed(0)
    torch.set_num_threads(2)
    torch.set_flush_denormal(True)
    vae = AutoencoderTiny.from_pretrained(WORK / "vae").eval()
    words = tokenizer.load()
    unet, text = networks(len(words), vae.config.latent_channels)
    text.load_state_dict(torch.load(WORK / "text.pt"))
    unet.to(memory_format=torch.channels_last)
    quicken(unet, 8)
    listed = things()
    cache, made = WORK / "latents.pt", WORK / "vae/diffusion_pytorch_model.safetensors"
    if not cache.exists() or cache.stat().st_mtime < made.stat().st_mtime:
        torch.save(encoded(vae), cache)
    latents = torch.load(cache)
    scale = 1 / latents.std().item()
    latents = latents * scale
    pairs, called = [], {}
    for thing, (name, names) in enumerate(listed):
        for colour, shade in enumerate(COLOURS):
            if held_out(name, shade):
                continue
            # White is drawn twice as often: it has the captions without a colour too.
            pairs += [(thing, colour)] * (2 if shade == "white" else 1)
            found = words(captions(names, shade), padding="max_length", max_length=tokenizer.POSITIONS)
            called[thing, colour] = torch.tensor(found.input_ids)
            assert called[thing, colour].shape[1] == tokenizer.POSITIONS
    nothing = torch.tensor(words("", padding="max_length").input_ids)
    parameters = list(unet.parameters()) + list(text.parameters())
    sizes = [sum(p.numel() for p in network.parameters()) / 1e6 for network in (unet, text)]
    print(f"parameters (millions) {sizes} vocabulary {len(words)} pairs {len(called)} scale {scale:.4f}", flush=True)
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.99), weight_decay=1e-2)
    state, step, spent = WORK / "denoiser.pt", 0, 0.0
    if state.exists():
        saved = torch.load(state)
        unet.load_state_dict(saved["unet"])
        text.load_state_dict(saved["text"])
        optimizer.load_state_dict(saved["optimizer"])
        average, step, spent = saved["average"], saved["step"], saved["spent"]
        torch.set_rng_state(saved["random"])
        print("resumed at", step, flush=True)
    start, written, shown = time.time() - spent, time.time(), None

    def save():
        saved = dict(unet=unet.state_dict(), text=text.state_dict(), optimizer=optimizer.state_dict())
        saved |= dict(average=average, step=step, spent=time.time() - start, random=torch.get_rng_state())
        torch.save(saved | dict(scale=scale), f"{state}.new")
        os.replace(f"{state}.new", state)

    kept_signal = schedule().alphas_cumprod
    while (done := (time.time() - start) / 60 / minutes) < 1:
        rate = min(1, (step + 1) / 300) * (1 if done < 0.6 else max(0.02, (1 - done) / 0.4))
        for group in optimizer.param_groups:
            group["lr"] = RATE * rate
        drawn = [pairs[i] for i in torch.randint(len(pairs), (BATCH,))]
        clean = torch.stack([latents[pair] for pair in drawn]).contiguous(memory_format=torch.channels_last)
        ids = torch.stack([called[pair][torch.randint(len(called[pair]), ())] for pair in drawn])
        ids = torch.where(torch.rand(BATCH, 1) < DROPPED, nothing, ids)
        # One timestep from each 32nd of the schedule: the loss of a batch varies less.
        times = ((torch.arange(BATCH) + torch.rand(BATCH)) / BATCH * 1000).long()
        signal = kept_signal[times].view(-1, 1, 1, 1)
        noise = torch.randn_like(clean)
        noisy = signal.sqrt() * clean + (1 - signal).sqrt() * noise
        with torch.autocast("cpu", torch.bfloat16):
            predicted = unet(noisy, times, text(ids).last_hidden_state).sample
        ratio = (signal / (1 - signal)).flatten()
        weight = ratio.clamp(LEAST, MOST) / ratio
        loss = (weight * (predicted.float() - noise).pow(2).mean((1, 2, 3))).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        kept = min(0.9985, step / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - kept)
        shown = loss.item() if shown is None else 0.98 * shown + 0.02 * loss.item()
        if step % 100 == 0 or step == 10:
            print(f"{step} {time.time() - start:.0f}s loss {shown:.4f}", flush=True)
        if time.time() - written > 120:
            save()
            written = time.time()
    save()
    print("done", step, flush=True)


if __name__ == "__main__":
    main()
