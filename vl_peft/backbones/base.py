"""What VL-BART and VL-T5 have in common: text and vision join at the embedding, then it is a language model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from vl_peft.backbones.visual import VisualEmbedding
from vl_peft.batch import Batch, Generation
from vl_peft.errors import ConfigError
from vl_peft.tokenizer import TextTokenizer, pretrained_folder
from vl_peft.tuning.base import Route, Site, TunedLinear

VISUAL_FILE = "visual.safetensors"


@contextmanager
def _without_bars() -> Iterator[None]:
    """Without transformers' progress bars."""
    bars = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            enable_progress_bar()


class Backbone(nn.Module, ABC):
    """A text-to-text language model that reads visual tokens after its text.

    Args:
        pretrained: folder or hub name of the language model and its tokenizer; ``"demo"`` is the small one inside
            this package. A folder with ``visual.safetensors`` brings a trained visual embedding too.
        feature_dim: size F of the visual features; ``None`` takes that of ``visual.safetensors``. The command line
            sets it from the data.
        visual_pretrained: use that visual embedding; without it a new one is drawn.
        random_init: take only the shape and the tokenizer from ``pretrained``, not the weights.
        gradient_checkpointing: recompute layers in the backward pass to save memory.
        attention: ``sdpa`` is the fastest nearly everywhere; in bf16 on a CPU ``eager`` is.

    Raises:
        ConfigError: if there is no such model, or it was trained for features of another size.
    """

    beams_end: bool  # whether a beam that reaches the length limit is made to end there, as BART's are
    lm: Any  # a BartForConditionalGeneration or T5ForConditionalGeneration

    def __init__(
        self,
        pretrained: str = "demo",
        feature_dim: int | None = None,
        random_init: bool = False,
        visual_pretrained: bool = True,
        gradient_checkpointing: bool = False,
        attention: Literal["sdpa", "eager"] = "sdpa",
    ) -> None:
        super().__init__()
        self.tokenizer = TextTokenizer(pretrained)
        self.lm = self._load_language_model(pretrained, random_init, attention)
        # transformers fills what Generation leaves open from here: a checkpoint's habits would leak into ours.
        self.lm.generation_config = GenerationConfig()
        rows: int = self.lm.get_input_embeddings().num_embeddings
        if rows < len(self.tokenizer):
            self.lm.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
            self._draw_rows(rows)
        visual = Path(pretrained_folder(pretrained)) / VISUAL_FILE
        weights = load_file(visual) if visual.is_file() and visual_pretrained and not random_init else None
        self.visual_embedding = self._visual_embedding(pretrained, feature_dim, weights)
        if gradient_checkpointing:
            self.lm.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        self.route, self.added, self.text_length = Route(["any"]), nn.ModuleDict(), 0
        self.join_embeddings()
        self.lm.get_decoder().register_forward_pre_hook(self._split, with_kwargs=True)
        self.lm.get_decoder().register_forward_hook(self._beside, with_kwargs=True)
        self.train()  # transformers loads for evaluation, and Lightning leaves the mode as it finds it: no dropout

    @property
    @abstractmethod
    def model_class(self) -> type[PreTrainedModel]:
        """The language model's class in transformers."""

    @abstractmethod
    def join_embeddings(self) -> None:
        """Change the language model's encoder so that it takes embeddings which are complete."""

    @abstractmethod
    def embed_text(self, input_ids: Tensor, prompt: Tensor | None) -> Tensor:
        """Ids ``[B, L]`` and a prompt ``[B, P, D]`` to complete text embeddings ``[B, P + L, D]`` before dropout."""

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Decoder states ``[..., D]`` to ``[..., vocabulary]``."""

    @abstractmethod
    def norm(self, dim: int) -> nn.Module:
        """A norm of the kind that the language model has."""

    @abstractmethod
    def sites(self) -> Iterable[Site]:
        """Every Linear of the language model that a delta can be put on."""

    @abstractmethod
    def language_norms(self) -> Iterable[nn.Module]:
        """The norms of the language model."""

    @property
    @abstractmethod
    def answer_start(self) -> list[int]:
        """Ids that the decoder has read when it is about to write the first token of an answer."""

    def position_biases(self) -> Iterable[nn.Module]:
        """What the language model learnt of relative positions; BART has nothing of the kind."""
        return ()

    def head(self) -> Site:
        """The output head as a site; its weight is the token table's."""
        return Site("decoder", 0, "head", "out", self.lm, "lm_head")

    @property
    @abstractmethod
    def token_std(self) -> float:
        """Standard deviation that the token table began with."""

    @property
    def dim(self) -> int:
        """D."""
        dim: int = self.lm.config.d_model
        return dim

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Encoder states ``[B, S, D]`` of the joint sequence prompt, text, vision and their mask ``[B, S]``."""
        self.route.set(*batch.tasks)
        table = self.lm.get_input_embeddings()
        objects = table(table.num_embeddings - 1 - batch.object_index)
        visual = self.visual_embedding(batch.visual, batch.boxes, batch.image_index, objects)
        prompt = self.added["encoder_prompt"](batch.input_ids) if "encoder_prompt" in self.added else None
        text = self.embed_text(batch.input_ids, prompt)
        self.text_length = text.shape[1]
        joint = torch.cat([text, visual], dim=1)
        seen = batch.attention_mask.new_ones(len(batch), self.text_length - batch.input_ids.shape[1])
        mask = torch.cat([seen, batch.attention_mask, batch.visual_mask], dim=1)
        encoder = self.lm.get_encoder()
        if "encoder_side" not in self.added:
            return encoder(inputs_embeds=joint, attention_mask=mask).last_hidden_state, mask
        # The side network's states travel beside the encoder's, from here to :meth:`_beside`.
        out = encoder(inputs_embeds=joint.detach(), attention_mask=mask, output_hidden_states=True)
        states = torch.stack([joint, *out.hidden_states[1:]], dim=1)
        return torch.cat([out.last_hidden_state, self.added["encoder_side"](states, mask)], dim=-1), mask

    def forward(self, batch: Batch) -> Tensor:
        """Cross-entropy of every target token, at least float32 ``[B, T]``, 0 where there is no label."""
        if batch.labels is None:
            raise ValueError("The batch has no labels.")
        encoded, mask = self.encode(batch)
        hidden = self.decode(self._shift_right(batch.labels), encoded, mask)
        labelled = batch.labels != -100
        # Logits are the largest tensor of a step: they are made only where there is a label, unless the head itself
        # has to know which row is of which task.
        by_row = len(self.route.runs) > 1 and isinstance(self.head().linear, TunedLinear)
        logits = self.logits(hidden)[labelled] if by_row else self.logits(hidden[labelled])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = functional.cross_entropy(logits, batch.labels[labelled], reduction="none")
        return losses.new_zeros(batch.labels.shape).masked_scatter(labelled, losses)

    def decode(self, decoder_input_ids: Tensor, encoded: Tensor, mask: Tensor) -> Tensor:
        """Decoder states ``[B, T, D]``."""
        cache = self._decoder_prompt(encoded)
        out = self.lm.get_decoder()(
            input_ids=decoder_input_ids,
            encoder_hidden_states=encoded,
            encoder_attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        hidden: Tensor = out.last_hidden_state
        return hidden

    def _split(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the decoder: give it its part of the encoder's states and keep the side network's."""
        states = kwargs.get("encoder_hidden_states")
        if "decoder_side" not in self.added or states is None:
            return None
        self._side = states[..., self.dim :], kwargs["encoder_attention_mask"]
        return args, {**kwargs, "encoder_hidden_states": states[..., : self.dim].detach(), "output_hidden_states": True}

    def _beside(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        """After the decoder: add what the side network has to say."""
        if "decoder_side" in self.added and kwargs.get("encoder_hidden_states") is not None:
            memory, mask = self._side
            states = torch.stack(out.hidden_states, dim=1)
            side = self.added["decoder_side"](states, mask, memory)
            out.last_hidden_state = out.last_hidden_state + self.added["side_up"](side)
        return out

    def _decoder_prompt(self, like: Tensor) -> EncoderDecoderCache | None:
        """Keys and values that the decoder's prompt leaves for the tokens after it, for as many rows as ``like``."""
        if "decoder_prompt" not in self.added:
            return None
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.lm.get_decoder()(inputs_embeds=self.added["decoder_prompt"](like), past_key_values=cache, use_cache=True)
        return cache

    def generate(self, batch: Batch, generation: Generation) -> list[str]:
        """The text that the model writes for each example."""
        return self.tokenizer.decode(self.generate_ids(batch, generation))

    @torch.no_grad()
    def generate_ids(self, batch: Batch, generation: Generation) -> Tensor:
        """What the model writes for each example as ids, int64 ``[B, T]``, the decoder's start token included."""
        encoded, mask = self.encode(batch)
        config = GenerationConfig(
            **asdict(generation),
            decoder_start_token_id=self.lm.config.decoder_start_token_id,
            bos_token_id=getattr(self.lm.config, "bos_token_id", None),  # T5 has none
            eos_token_id=self.lm.config.eos_token_id,
            pad_token_id=self.lm.config.pad_token_id,
            use_cache="decoder_side" not in self.added,  # it has no cache of its own
            forced_eos_token_id=self.lm.config.eos_token_id if self.beams_end and generation.num_beams > 1 else None,
        )
        cache = self._decoder_prompt(encoded.repeat_interleave(generation.num_beams, dim=0))
        ids: Tensor = self.lm.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
            attention_mask=mask,
            generation_config=config,
            **({} if cache is None else {"past_key_values": cache}),
        )
        return ids

    @torch.no_grad()
    def choose(self, batch: Batch, candidates: Sequence[str]) -> list[str]:
        """The candidate whose first token is the likeliest answer; a tie goes to the first one named."""
        encoded, mask = self.encode(batch)
        start = torch.tensor([self.answer_start] * len(batch), device=encoded.device)
        last = self.logits(self.decode(start, encoded, mask)[:, -1])
        scores = last[:, [self.tokenizer.first_token(c) for c in candidates]]
        return [candidates[i] for i in scores.float().argmax(dim=-1).tolist()]

    def save_pretrained(self, folder: Path) -> None:
        """Write language model, tokenizer and visual embedding; ``pretrained=folder`` reads them back."""
        with _without_bars():
            self.lm.save_pretrained(folder)
        self.tokenizer.hf.save_pretrained(folder)
        save_file(self.visual_embedding.state_dict(), folder / VISUAL_FILE)

    def save_untuned(self, folder: Path) -> None:
        """As :meth:`save_pretrained`, without what a tuning strategy added to the sites."""
        deltas = [(site, site.linear) for site in (*self.sites(), self.head()) if isinstance(site.linear, TunedLinear)]
        for site, tuned in deltas:
            setattr(site.owner, site.name, tuned.plain())
        self.save_pretrained(folder)
        for site, tuned in deltas:
            setattr(site.owner, site.name, tuned)

    def _shift_right(self, labels: Tensor) -> Tensor:
        config: PretrainedConfig = self.lm.config
        start = labels.new_full((labels.shape[0], 1), config.decoder_start_token_id)
        return torch.cat([start, labels[:, :-1].masked_fill(labels[:, :-1] == -100, config.pad_token_id)], dim=1)

    def _draw_rows(self, first: int) -> None:
        """Draw the new rows of the token table as the others began, and always the same ones.

        Most strategies leave them frozen, so no checkpoint holds them, yet every visual token has one added.
        """
        table = self.lm.get_input_embeddings().weight
        drawn = torch.randn(len(table) - first, self.dim, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
        table.data[first:] = self.token_std * drawn

    def _load_language_model(self, pretrained: str, random_init: bool, attention: str) -> PreTrainedModel:
        name = pretrained_folder(pretrained)
        model_class: Any = self.model_class
        model: PreTrainedModel
        try:
            # Reading a file takes a moment; downloading one may take minutes.
            with _without_bars() if Path(name).is_dir() else nullcontext():
                if random_init:
                    config = model_class.config_class.from_pretrained(name)
                    model = model_class._from_config(config, attn_implementation=attention)
                else:
                    model = model_class.from_pretrained(name, dtype=torch.float32, attn_implementation=attention)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"No {self.model_class.__name__} at '{pretrained}': give a folder with config.json and weights, the "
                f"name of a model on the hub (which needs a network), or 'demo'. ({str(error).splitlines()[0]})"
            ) from error
        return model

    def _visual_embedding(
        self, pretrained: str, feature_dim: int | None, weights: dict[str, Tensor] | None
    ) -> VisualEmbedding:
        trained_dim = weights["feature.0.weight"].shape[1] if weights else None
        feature_dim = feature_dim or trained_dim
        if feature_dim is None:
            raise ConfigError(f"'{pretrained}' has no visual embedding: give model.backbone.feature_dim.")
        if trained_dim is not None and trained_dim != feature_dim:
            raise ConfigError(
                f"The visual embedding of '{pretrained}' reads features of size {trained_dim}, the data has "
                f"{feature_dim}. Use features of the encoder it was trained with, or another backbone."
            )
        embedding = VisualEmbedding(feature_dim, self.lm.config.d_model, self.norm)
        if weights:
            embedding.load_state_dict(weights)
        return embedding
