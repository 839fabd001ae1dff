"""The vocabulary: byte-pair encoding in CLIP's format, learned from all captions."""

import json

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from data import COLOURS, WORK, captions, things

# Longer than any caption, and half of what 77 positions would cost each attention.
POSITIONS = 32


def learn(folder):
    """Writes `vocab.json`, `merges.txt` and the config that CLIP's tokenizer reads."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=2048, initial_alphabet=alphabet, end_of_word_suffix="</w>", min_frequency=1, show_progress=False
    )
    text = [caption for _, names in things() for colour in COLOURS for caption in captions(names, colour)]
    tokenizer.train_from_iterator(text, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
    tokens = alphabet + [letter + "</w>" for letter in alphabet] + [pair.replace(" ", "") for pair in merges]
    tokens = list(dict.fromkeys(tokens)) + ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    ids = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    config = dict(bos_token="<|startoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    config |= dict(unk_token="<|endoftext|>", model_max_length=POSITIONS, tokenizer_class="CLIPTokenizer")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


def load():
    folder = WORK / "tokenizer"
    if not (folder / "tokenizer_config.json").exists():
        learn(folder)
    return CLIPTokenizer.from_pretrained(folder.resolve())
