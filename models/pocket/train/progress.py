"""How far training is: the autoencoder's PSNR, and how much the denoiser makes of captions; `python progress.py`."""

import torch
from diffusers import AutoencoderTiny

import tokenizer
from data import COLOURS, WORK, sentence, things
from denoiser import networks, schedule
from evaluate import autoencoder_psnr


@torch.no_grad()
def main():
    torch.manual_seed(4)
    torch.set_num_threads(2)
    for folder in "vae", "vae-final":
        if (WORK / folder).exists():
            psnr = autoencoder_psnr(AutoencoderTiny.from_pretrained(WORK / folder).eval())
            print(f"{folder}: mean {psnr.mean():.2f} dB, least {psnr.min():.2f} dB", flush=True)
    if not (WORK / "denoiser.pt").exists():
        return
    saved, latents = torch.load(WORK / "denoiser.pt"), torch.load(WORK / "latents.pt")
    clean, words, listed = latents * saved["scale"], tokenizer.load(), things()
    unet, text = networks(len(words), clean.shape[2])
    unet.load_state_dict(saved["unet"])
    text.load_state_dict(saved["text"])
    thing, colour = torch.randperm(len(listed))[:64], torch.randint(len(COLOURS), (64,))
    clean = clean[thing, colour]
    noise = torch.randn_like(clean)

    def embedded(which):
        prompts = [sentence(listed[t][0], COLOURS[c]) for t, c in zip(which.tolist(), colour.tolist())]
        return text(torch.tensor(words(prompts, padding="max_length").input_ids)).last_hidden_state

    right, wrong = embedded(thing), embedded(thing.roll(1))
    print("step", saved["step"], "minutes", saved["spent"] / 60)
    for time in 100, 300, 500, 700, 850, 950:
        signal = schedule().alphas_cumprod[time]
        noisy = signal.sqrt() * clean + (1 - signal).sqrt() * noise
        errors = []
        for context in right, wrong:
            found = unet(noisy, torch.full((64,), time), context).sample
            errors.append(((noisy - (1 - signal).sqrt() * found) / signal.sqrt() - clean).pow(2).mean())
        print(f"timestep {time}: error of the clean latents {errors[0]:.3f}, told of another thing {errors[1]:.3f}")


if __name__ == "__main__":
    main()
