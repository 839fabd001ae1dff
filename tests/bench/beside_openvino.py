"""pochade's int8 speed beside OpenVINO's, in alternating rounds of one run on one machine.

    pip install torch diffusers openvino nncf
    python tests/bench/beside_openvino.py target/release/pochade FOLDER [--kernel NAME] [--rounds 3]

Both take SD 1.5's shapes with random weights, 512x512, a batch of two, and as many threads. OpenVINO's UNet is
quantized by NNCF (int8 weights and activations) and, like its VAE decoder, runs with whichever precision hint is
faster. FOLDER keeps what OpenVINO needs, 2.5 GB, made at the first run. --kernel holds both to an instruction set: avx2, or avx512vnni without AMX.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

# Pochade's kernels, and what holds OpenVINO to the same instructions.
KERNELS = {"avx2": "AVX2", "avx512vnni": "AVX512_CORE_BF16"}
LATENTS, CONTEXT = (2, 4, 64, 64), (2, 77, 768)


def prepare(folder):
    """Exports both networks, and quantizes the UNet on random inputs: figures of speed don't depend on them."""
    import nncf
    import numpy as np
    import openvino
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    class Only(torch.nn.Module):
        """One method of a network, giving a tensor alone."""

        def __init__(self, network, method):
            super().__init__()
            self.network, self.method = network, method

        def forward(self, *inputs):
            return getattr(self.network, self.method)(*inputs, return_dict=False)[0]

    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[128, 256, 512, 512],
        layers_per_block=2,
    )
    step = (torch.randn(LATENTS), torch.tensor(500.0), torch.randn(CONTEXT))
    with torch.no_grad():
        model = openvino.convert_model(Only(unet.eval(), "forward"), example_input=step)
        model.reshape({0: LATENTS, 1: [], 2: CONTEXT})
        openvino.save_model(model, folder / "float.xml")
        latents = (1, *LATENTS[1:])
        decoder = openvino.convert_model(Only(vae.eval(), "decode"), example_input=torch.randn(latents))
        decoder.reshape(latents)
        openvino.save_model(decoder, folder / "vae.xml")

    random = np.random.default_rng(1)
    normal = lambda shape: random.standard_normal(shape, dtype=np.float32)
    samples = [[normal(LATENTS), np.float32(t), normal(CONTEXT)] for t in (950, 450, 50)]
    off = nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
    parameters = nncf.AdvancedQuantizationParameters(smooth_quant_alphas=off, disable_bias_correction=True)
    quantized = nncf.quantize(
        openvino.Core().read_model(folder / "float.xml"),
        nncf.Dataset(samples),
        subset_size=len(samples),
        model_type=nncf.ModelType.TRANSFORMER,
        advanced_parameters=parameters,
    )
    openvino.save_model(quantized, folder / "int8.xml")


def measure(path, hint, threads):
    """Prints the median seconds of a network, in a process of its own."""
    import numpy as np
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": hint}
    model = openvino.Core().compile_model(path, "CPU", options)
    inputs = [np.full(tuple(i.shape), 0.5, dtype=np.float32) for i in model.inputs]
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        model(inputs)
        seconds.append(time.perf_counter() - start)
    print(statistics.median(seconds[1:]))


def theirs(folder, network, threads, environment):
    """OpenVINO's seconds with the faster hint, and the hint."""
    found = []
    for hint in ("f32", "bf16"):
        command = [sys.executable, __file__, "--measure", str(folder / network), hint, str(threads)]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found.append((float(run.stdout.split()[-1]), hint))
    return min(found)


def main():
    if sys.argv[1:2] == ["--measure"]:
        return measure(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pochade")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kernel", choices=KERNELS)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if not all((options.folder / f"{name}.xml").exists() for name in ("float", "int8", "vae")):
        prepare(options.folder)

    environment = dict(os.environ)
    if options.kernel:
        environment |= {"POCHADE_KERNEL": options.kernel, "ONEDNN_MAX_CPU_ISA": KERNELS[options.kernel]}
    rows = {"UNet step": [], "VAE decode": []}
    for _ in range(options.rounds):
        command = [options.pochade, "bench", "--json", "--repeats", "1", "--steps", "3"]
        ours = json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)
        for row, key, network in (
            ("UNet step", "unet_step_seconds", "int8.xml"),
            ("VAE decode", "vae_decode_seconds", "vae.xml"),
        ):
            rows[row].append((ours[key], *theirs(options.folder, network, ours["threads"], environment)))
    print(f"{ours['kernels'][0]}, {ours['threads']} threads; seconds, medians of {options.rounds} rounds")
    for row, rounds in rows.items():
        mine, other = (statistics.median(r[i] for r in rounds) for i in (0, 1))
        print(f"{row:10}  pochade {mine:6.2f}  OpenVINO {other:6.2f} ({rounds[-1][2]})  ratio {mine / other:.2f}")


if __name__ == "__main__":
    main()
