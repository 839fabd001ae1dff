"""Put the trained networks together as a diffusers folder, `$POCKET_WORK/diffusers`."""

import shutil

import torch
from diffusers import AutoencoderTiny, PNDMScheduler, StableDiffusionPipeline

import tokenizer
from data import WORK
from denoiser import networks


def main():
    saved = torch.load(WORK / "denoiser.pt")
    folder = WORK / ("vae-final" if (WORK / "vae-final").exists() else "vae")
    vae = AutoencoderTiny.from_pretrained(folder).eval()
    words = tokenizer.load()
    unet, text = networks(len(words), vae.config.latent_channels)
    with torch.no_grad():
        for parameter, value in zip(list(unet.parameters()) + list(text.parameters()), saved["average"]):
            parameter.copy_(value)
    vae.register_to_config(scaling_factor=saved["scale"])
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text.eval(),
        tokenizer=words,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(WORK / "diffusers")
    # transformers 5 writes its own format only; other programs read CLIP's two files.
    for file in "vocab.json", "merges.txt":
        shutil.copy(WORK / "tokenizer" / file, WORK / "diffusers/tokenizer")
    print("step", saved["step"], "minutes", saved["spent"] / 60)


if __name__ == "__main__":
    main()
