"""Draw the list of `FOLDER/meta.json` with diffusers in float32, beside it; `python golden.py MODEL FOLDER`."""

import json
import sys
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline


def main():
    model, folder = map(Path, sys.argv[1:3])
    pipeline = StableDiffusionPipeline.from_pretrained(model)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, use_karras_sigmas=True)
    for picture in json.loads((folder / "meta.json").read_text()):
        width, height = map(int, picture["size"].split("x"))
        drawn = pipeline(
            picture["prompt"],
            width=width,
            height=height,
            num_inference_steps=picture["steps"],
            guidance_scale=picture["cfg"],
            generator=torch.Generator().manual_seed(picture["seed"]),
        )
        drawn.images[0].save(folder / picture["file"], optimize=True)


if __name__ == "__main__":
    main()
