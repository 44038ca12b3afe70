"""What jmm's systems take and give, said of their twins in transformers and diffusers.

Each of `TWINS` makes, of a twin, a function (program, **batch) → outputs on torch tensors, in our names and shapes.
"""

from collections.abc import Callable
from typing import Any

Run = Callable[..., dict[str, Any]]


def _vit(twin: Any) -> Run:
    body = getattr(twin, "vit", twin)

    def run(program: str, image: Any) -> dict[str, Any]:
        found = body(pixel_values=_channels_first(image))
        features = found.last_hidden_state
        pooled = features[:, 0] if found.pooler_output is None else found.pooler_output
        outputs = {"image_features": features, "image_pooled": pooled}
        return outputs if body is twin else {**outputs, "logits": twin.classifier(pooled)}

    return run


def _clip(twin: Any) -> Run:
    def run(program: str, **batch: Any) -> dict[str, Any]:
        if program == "image":
            found = twin.vision_model(pixel_values=_channels_first(batch["image"]))
            features = twin.vision_model.post_layernorm(found.last_hidden_state)
            pooled = twin.visual_projection(found.pooler_output)
        else:
            features = twin.text_model(input_ids=batch["text"].long()).last_hidden_state
            # The last real token; argmax gives the first of equal ones.
            last = batch["text_mask"].long().cumsum(1).argmax(1)
            pooled = twin.text_projection(
                features.gather(1, last[:, None, None].expand(-1, 1, features.shape[-1]))[:, 0]
            )
        scale = twin.logit_scale.exp().clamp(max=100)
        return {f"{program}_features": features, f"{program}_embedding": _unit(pooled), "logit_scale": scale}

    return run


def _siglip(twin: Any) -> Run:
    def run(program: str, **batch: Any) -> dict[str, Any]:
        if program == "image":
            found = twin.vision_model(pixel_values=_channels_first(batch["image"]))
        else:
            found = twin.text_model(input_ids=batch["text"].long(), attention_mask=batch["text_mask"].long())
        return {
            f"{program}_features": found.last_hidden_state,
            f"{program}_embedding": _unit(found.pooler_output),
            "logit_scale": twin.logit_scale.exp()[0],
            "logit_bias": twin.logit_bias[0],
        }

    return run


def _decoder(twin: Any) -> Run:
    body = twin.get_decoder()
    projection = getattr(body, "project_out", None)
    if projection is not None:
        body.project_out = None  # our features are those before it

    def run(program: str, text: Any, text_mask: Any) -> dict[str, Any]:
        found = body(
            input_ids=text.long(),
            attention_mask=text_mask.long(),
            position_ids=_positions(text_mask),
            use_cache=False,
        )
        features = found.last_hidden_state
        logits = twin.lm_head(features if projection is None else projection(features))
        return {"features": features, "logits": logits}

    return run


def _encoder(twin: Any) -> Run:
    body = twin.base_model

    def run(program: str, text: Any, text_mask: Any, segment: Any = None) -> dict[str, Any]:
        positions = None
        if "roberta" in twin.config.model_type:  # counted from the row after that of padding
            positions = text_mask.long().cumsum(1) * text_mask + twin.config.pad_token_id
        found = body(
            input_ids=text.long(),
            attention_mask=text_mask.long(),
            token_type_ids=None if segment is None else segment.long(),
            position_ids=positions,
        )
        features = found.last_hidden_state
        outputs = {"text_features": features}
        pooled = found.get("pooler_output")
        if pooled is not None:
            outputs["text_pooled"] = pooled
        if hasattr(twin, "lm_head"):
            outputs["logits"] = twin.lm_head(features)
        elif hasattr(twin, "cls") and pooled is None:
            outputs["logits"] = twin.cls(features)
        elif hasattr(twin, "cls"):
            outputs["logits"], outputs["next_sentence_logits"] = twin.cls(features, pooled)
        return outputs

    return run


def _encoder_decoder(twin: Any) -> Run:
    def run(program: str, text: Any, text_mask: Any, target: Any, target_mask: Any) -> dict[str, Any]:
        for stack, mask in ((twin.get_encoder(), text_mask), (twin.get_decoder(), target_mask)):
            if hasattr(stack, "embed_positions"):
                _count_real_tokens(stack.embed_positions, mask)
        found = twin(
            input_ids=text.long(),
            attention_mask=text_mask.long(),
            decoder_input_ids=_shifted(target.long(), target_mask, twin.config.decoder_start_token_id),
            decoder_attention_mask=target_mask.long(),
            use_cache=False,
        )
        return {"text_features": found.encoder_last_hidden_state, "logits": found.logits}

    return run


def _tokenizer(twin: Any) -> Run:
    def run(program: str, image: Any) -> dict[str, Any]:
        vectors = twin.quant_conv(twin.encoder(_channels_first(image))).permute(0, 2, 3, 1)
        book = twin.quantize.embedding.weight
        # Without the vectors' own squares, which are the same for all codes.
        codes = ((book * book).sum(1) - 2 * vectors @ book.T).argmin(-1)
        standing = _channels_first(book[codes])
        more = (standing,) if twin.config.norm_type == "spatial" else ()
        made = twin.decoder(twin.post_quant_conv(standing), *more)
        return {"vectors": vectors, "codes": codes.int(), "image": made.permute(0, 2, 3, 1)}

    return run


TWINS: dict[str, Callable[[Any], Run]] = {
    **dict.fromkeys(("ViTForImageClassification", "ViTModel"), _vit),
    "CLIPModel": _clip,
    "SiglipModel": _siglip,
    **dict.fromkeys(("GPT2LMHeadModel", "OPTForCausalLM", "LlamaForCausalLM", "Qwen2ForCausalLM"), _decoder),
    **dict.fromkeys(("BertModel", "BertForMaskedLM", "BertForPreTraining"), _encoder),
    **dict.fromkeys(("XLMRobertaModel", "XLMRobertaForMaskedLM", "RobertaModel", "RobertaForMaskedLM"), _encoder),
    **dict.fromkeys(
        ("BartForConditionalGeneration", "MarianMTModel", "T5ForConditionalGeneration", "MT5ForConditionalGeneration"),
        _encoder_decoder,
    ),
    "VQModel": _tokenizer,
}
"""By their class."""


def _channels_first(image: Any) -> Any:
    return image.permute(0, 3, 1, 2)


def _unit(vectors: Any) -> Any:
    return vectors / vectors.norm(dim=-1, keepdim=True)


def _positions(mask: Any) -> Any:
    """The place of each token among the real ones of its row."""
    return (mask.long().cumsum(1) - 1) * mask


def _shifted(target: Any, mask: Any, start_id: int) -> Any:
    """The token before each of the target; `start_id` before the first real one."""
    before = mask.long().cumsum(1) - mask.long()
    return target.roll(1, 1).where(mask.roll(1, 1) & (before > 0), start_id)


def _count_real_tokens(positions: Any, mask: Any) -> None:
    """Makes a table of learned positions read the places of the real tokens, so that padding on the left moves none."""
    offset = getattr(positions, "offset", 0)  # Marian's fixed table has none
    positions.forward = lambda *_, **__: positions.weight[_positions(mask) + offset]
