"""Pretrains the demo vision encoder on the pretraining split of the embedded corpus and saves it into the package.

    python experiments/demo/pretrain_encoder.py --root <data root with pretrain/> --minutes 10

A second run with ``--start FOLDER --pool-only`` improves the pooled vector: the grid is finished by then, and without
the convolutions a step costs little.

Three objectives, each with a head that is thrown away afterwards: a caption decoder writes the dense caption from the
49 grid cells; the same decoder writes it from the single pooled vector (for a video: from the pooled vectors of its
frames), which makes that vector tell colour, shape, size and place of every object; and a CLIP-style contrast between
pooled vector and caption. The run takes as long as --minutes says; scores on the held-out part go into
``encoder.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from datamodules.demo.world import COLORS, PLACES, SHAPES, SIZES
from vl_peft.features import DemoEncoder, read_frames
from vl_peft.features.encoders import PACKAGED

WIDTH, FRAMES = 128, 8
PAD, START, END = 0, 1, 2
KINDS = {"color": COLORS, "shape": SHAPES, "size": SIZES, "place": PLACES}


@dataclass
class Pairs:
    """Pictures uint8 ``[N, T, 3, 112, 112]`` (T = 1 for images) and their tokenized captions, the dense one first."""

    pixels: Tensor
    captions: list[list[Tensor]]

    def dense(self, rows: Tensor) -> Tensor:
        """Dense captions int64 ``[B, L]``."""
        return pad([self.captions[i][0] for i in rows.tolist()])


def pad(captions: list[Tensor]) -> Tensor:
    """Captions of unequal length as int64 ``[B, L]``; L is a multiple of 16, as kernels are compiled for each shape."""
    longest = -(-max(map(len, captions)) // 16) * 16
    return torch.stack([functional.pad(c, (0, longest - len(c)), value=PAD) for c in captions])


def words(caption: str) -> list[str]:
    """The words of a caption; commas are words of their own."""
    return caption.replace(",", " ,").split()


def load(root: Path, encoder: DemoEncoder) -> tuple[dict[tuple[str, str], Pairs], list[str]]:
    """All pictures and captions below ``root/pretrain`` by (kind, split), and the vocabulary."""
    lines = [json.loads(line) for line in (root / "pretrain" / "captions.jsonl").read_text().splitlines()]
    vocabulary = ["<pad>", "<s>", "</s>", *sorted({w for line in lines for c in line["captions"] for w in words(c)})]
    number = {word: i for i, word in enumerate(vocabulary)}

    def picture(line: dict[str, str]) -> Tensor:
        if line["kind"] == "image":
            return encoder.prepare_image(Image.open(root / "pretrain" / "images" / f"{line['id']}.jpg"))[None]
        frames = read_frames(root / "pretrain" / "videos" / f"{line['id']}.mp4")
        chosen = np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)
        return torch.stack([encoder.prepare_frame(frames[i]) for i in chosen])

    groups: dict[tuple[str, str], Pairs] = {}
    with ThreadPoolExecutor(2) as pool:
        for key in sorted({(line["kind"], line["split"]) for line in lines}):
            part = [line for line in lines if (line["kind"], line["split"]) == key]
            tokens = [
                [torch.tensor([START, *(number[w] for w in words(c)), END]) for c in line["captions"]] for line in part
            ]
            groups[key] = Pairs(torch.stack(list(pool.map(picture, part))), tokens)
    return groups, vocabulary


def layer(cls: type[nn.Module]) -> nn.Module:
    """A small pre-norm transformer layer."""
    return cls(WIDTH, 4, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)


class Heads(nn.Module):
    """What is trained along with the encoder and thrown away: the caption decoder and the text encoder."""

    def __init__(self, vocabulary: int, dim: int, cells: int, longest: int = 96) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, WIDTH)
        nn.init.normal_(self.words.weight, std=0.05)
        self.places = nn.Parameter(torch.randn(longest, WIDTH) * 0.02)
        self.from_grid = nn.Linear(dim, WIDTH)
        self.cells = nn.Parameter(torch.randn(cells, WIDTH) * 0.02)
        self.from_pooled = nn.Linear(dim, WIDTH)
        self.times = nn.Parameter(torch.randn(FRAMES, WIDTH) * 0.02)
        self.decoder = nn.ModuleList([layer(nn.TransformerDecoderLayer) for _ in range(2)])
        self.norm = nn.LayerNorm(WIDTH)
        self.text = layer(nn.TransformerEncoderLayer)
        self.image_side, self.text_side = nn.Linear(dim, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def memory_of_grid(self, grid: Tensor) -> Tensor:
        """``[B, n, F]`` to decoder memory ``[B, n, D]``."""
        memory: Tensor = self.from_grid(grid) + self.cells
        return memory

    def memory_of_pooled(self, pooled: Tensor) -> Tensor:
        """``[B, T, F]``, one vector per frame, to decoder memory ``[B, T, D]``."""
        memory: Tensor = self.from_pooled(pooled) + self.times[: pooled.shape[1]]
        return memory

    def write(self, memory: Tensor, caption: Tensor) -> Tensor:
        """Logits of the word after each word, ``[B, L, vocabulary]``."""
        x = self.words(caption) + self.places[: caption.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        for block in self.decoder:
            x = block(x, memory, tgt_mask=mask, tgt_is_causal=True)
        logits: Tensor = self.norm(x) @ self.words.weight.T
        return logits

    def contrast(self, pooled: Tensor, caption: Tensor) -> Tensor:
        """Similarities ``[B, B]`` of images (rows) and captions (columns)."""
        gap = caption == PAD
        x = self.words(caption) + self.places[: caption.shape[1]]
        x = self.text(x, src_key_padding_mask=gap).masked_fill(gap[..., None], 0).sum(1) / (~gap).sum(1, keepdim=True)
        text, image = self.text_side(x), self.image_side(pooled)
        image, text = (functional.normalize(y.float(), dim=-1) for y in (image, text))
        return self.scale.exp() * image @ text.T


def augment(x: Tensor) -> Tensor:
    """Uint8 ``[B, 3, S, S]`` to float: moved by up to 5 pixels, brighter or darker, blurred, noisy, as files may be."""
    size, parts = x.shape[-1], []
    noise = torch.randn(3, 2 * size, 2 * size)
    for part in x.chunk(8):
        down, right = ((torch.arange(size) + random.randint(-5, 5)).clamp(0, size - 1) for _ in range(2))
        y = part[:, :, down][..., right].float()
        if random.random() < 0.4:  # coarse colours, as in 4:2:0 video, or a plain blur
            soft = functional.interpolate(functional.avg_pool2d(y, 2), scale_factor=2, mode="bilinear")
            y = soft + (y - soft).mean(1, keepdim=True) * random.random()
        top, left = random.randint(0, size), random.randint(0, size)
        y += noise[:, top : top + size, left : left + size] * random.uniform(0, 5)
        gain, offset = 0.85 + 0.3 * torch.rand(len(y), 1, 1, 1), 24 * torch.rand(len(y), 1, 1, 1) - 12
        parts.append((y * gain + (128 * (1 - gain) + offset)).clamp_(0, 255))
    return torch.cat(parts)


def caption_loss(logits: Tensor, caption: Tensor) -> Tensor:
    """Mean cross-entropy of the words after the first."""
    return functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), caption[:, 1:].flatten(), ignore_index=PAD)


def losses(
    encoder: DemoEncoder, heads: Heads, grid: Tensor, images: Pairs, rows: Tensor, videos: Pairs | None, clips: Tensor
) -> Tensor:
    """The sum of all objectives on the grids of one batch of images, ``rows``, and of the frames of ``clips``."""
    pooled = encoder.pool(grid)
    caption, n = images.dense(rows), len(rows)
    half = n // 2  # the grid is the easy part: half of the images do
    loss = caption_loss(heads.write(heads.memory_of_pooled(pooled[:n, None]), caption), caption)
    loss = loss + caption_loss(heads.write(heads.memory_of_grid(grid[:half]), caption[:half]), caption[:half])
    scores = heads.contrast(pooled[:n], pad([random.choice(images.captions[i]) for i in rows.tolist()]))
    target = torch.arange(n)
    loss = loss + 0.1 * (functional.cross_entropy(scores, target) + functional.cross_entropy(scores.T, target))
    if videos:
        caption = videos.dense(clips)
        memory = heads.memory_of_pooled(pooled[n:].unflatten(0, (len(clips), FRAMES)))
        loss = loss + caption_loss(heads.write(memory, caption), caption)
    return loss


@torch.inference_mode()
def evaluate(encoder: DemoEncoder, heads: Heads, pairs: Pairs, vocabulary: list[str]) -> dict[str, float]:
    """Teacher-forced accuracy in the dense captions by kind of word; for images retrieval among held-out captions."""
    encoder.eval(), heads.eval()
    caption = pairs.dense(torch.arange(len(pairs.captions)))
    pooled: list[Tensor] = []
    right: dict[str, list[Tensor]] = {"pooled": [], "grid": []}
    for rows in torch.arange(len(caption)).split(64):
        grid = encoder.grid(pairs.pixels[rows].flatten(0, 1))
        pooled.append(encoder.pool(grid).unflatten(0, (len(rows), -1)))
        memories = {"pooled": heads.memory_of_pooled(pooled[-1])}
        if len(grid) == len(rows):
            memories["grid"] = heads.memory_of_grid(grid)
        for name, memory in memories.items():
            right[name].append(heads.write(memory, caption[rows])[:, :-1].argmax(-1) == caption[rows, 1:])
    scores: dict[str, float] = {}
    for kind, names in KINDS.items():
        spoken = torch.tensor([i for i, word in enumerate(vocabulary) if word in " ".join(names).split()])
        chosen = torch.isin(caption[:, 1:], spoken)
        scores |= {f"{kind} from {name}": torch.cat(r)[chosen].float().mean().item() for name, r in right.items() if r}
    if pairs.pixels.shape[1] == 1:
        best = heads.contrast(torch.cat(pooled)[:, 0], caption).argmax(1)
        scores["retrieval"] = (best == torch.arange(len(best))).float().mean().item()
    return {name: round(score, 4) for name, score in scores.items()}


@torch.inference_mode()
def grids_of(encoder: DemoEncoder, pairs: Pairs) -> Tensor:
    """Grids of all pictures, float16 ``[N, T, 49, F]``, from the trunk as it is."""
    encoder.eval()
    parts = [encoder.grid(p.flatten(0, 1)).half().unflatten(0, p.shape[:2]) for p in pairs.pixels.split(32)]
    return torch.cat(parts).clone()


def train(encoder: DemoEncoder, heads: Heads, groups: dict[tuple[str, str], Pairs], args: argparse.Namespace) -> int:
    """Trains for ``args.minutes``, the learning rate following the clock; returns the number of steps."""
    images, videos = groups["image", "train"], groups.get(("video", "train"))
    parameters = [*(encoder.pool if args.pool_only else encoder).parameters(), *heads.parameters()]
    grids = {id(p): grids_of(encoder, p) for p in (images, videos) if p} if args.pool_only else {}

    def grid_of(pairs: Pairs | None, chosen: Tensor) -> Tensor:
        """Grids of all pictures of some items."""
        if pairs is None:
            return torch.empty(0, 49, encoder.dim)
        if args.pool_only:
            return grids[id(pairs)][chosen].flatten(0, 1).float()
        return encoder.grid(augment(pairs.pixels[chosen].flatten(0, 1)))

    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=0.02, betas=(0.9, 0.98), fused=True)
    start, step, order = time.monotonic(), 0, torch.empty(0, dtype=torch.long)
    encoder.train(not args.pool_only), heads.train()
    while (done := (time.monotonic() - start) / (60 * args.minutes)) < 1:
        if len(order) < args.batch_size:
            order = torch.randperm(len(images.captions))
        rows, order = order[: args.batch_size], order[args.batch_size :]
        clips = torch.randint(len(videos.captions), (args.videos,)) if videos else order[:0]
        optimizer.param_groups[0]["lr"] = args.lr * min((step + 1) / 200, 0.5 + 0.5 * math.cos(math.pi * done))
        # Plain attention: torch's fused kernel for CPUs is several times slower backward on heads as small as these.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            grid = torch.cat([grid_of(images, rows), grid_of(videos, clips)])
            loss = losses(encoder, heads, grid, images, rows, videos, clips)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            print(f"step {step}  {100 * done:.0f} %  loss {loss.item():.3f}", flush=True)
    return step


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="data root with the folder pretrain/")
    parser.add_argument("--out", type=Path, default=PACKAGED, help="where the weights go")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--batch-size", type=int, default=96, help="images per step")
    parser.add_argument("--videos", type=int, default=8, help="videos per step, eight frames each")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--start", type=Path, help="a saved encoder to go on with")
    parser.add_argument("--pool-only", action="store_true", help="train the attention pool on the finished grids")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    encoder = DemoEncoder.from_pretrained(args.start) if args.start else DemoEncoder()
    groups, vocabulary = load(args.root, encoder)
    print({key: tuple(pairs.pixels.shape) for key, pairs in groups.items()}, len(vocabulary), "words")
    heads = Heads(len(vocabulary), encoder.dim, cells=49)
    start = time.monotonic()
    steps = train(encoder, heads, groups, args)
    seconds = round(time.monotonic() - start)
    scores = {kind: evaluate(encoder, heads, p, vocabulary) for (kind, split), p in groups.items() if split != "train"}
    command = (
        f"python experiments/demo/pretrain_encoder.py --root {args.root} --minutes {args.minutes:g} "
        f"--batch-size {args.batch_size} --videos {args.videos} --lr {args.lr:g} --seed {args.seed} "
        f"--threads {args.threads}"
    ) + (f" --start {args.start} --pool-only" if args.pool_only else "")
    former = json.loads((args.start / "encoder.json").read_text()) if args.start else {}
    if former:
        command = f"{former['command']} && {command}"
        seconds, steps = seconds + former["seconds"], steps + former["steps"]
    encoder.save_pretrained(args.out, command=command, seed=args.seed, seconds=seconds, steps=steps, scores=scores)
    print(json.dumps(scores, indent=1))


if __name__ == "__main__":
    main()
