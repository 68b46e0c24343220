"""Activations of a reference model: one vector a sample (paper section 3.2; DESIGN step 1)."""

import logging
from contextlib import contextmanager, suppress

import numpy as np
import torch
from jinja2 import TemplateError

from coincide.chat import ChatError, encode, fixed_prefix, render, text_length
from coincide.images import ImageError, image_names, open_image
from coincide.layers import resolve_layers
from coincide.models import load_model
from coincide.progress import Progress
from coincide.shards import read_shard
from coincide.storage import ROW_GROUP, write_activations

log = logging.getLogger(__name__)


class _Stop(Exception):
    """Ends a forward pass after the last layer that is needed."""


def decoder_layers(model):
    """The decoder's layers of an image-text-to-text model, in order."""
    return model.get_decoder().layers


@contextmanager
def _attention_outputs(model, layers):
    """Collect the self-attention outputs of the given layers, and end the forward pass after the last.

    The output is taken after the output projection and before the residual sum.
    """
    modules, found, handles = decoder_layers(model), {}, []
    for layer in layers:

        def hook(module, args, output, layer=layer):
            found[layer] = output[0] if isinstance(output, tuple) else output
            if layer == max(layers):
                raise _Stop

        handles.append(modules[layer].self_attn.register_forward_hook(hook))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def features(model, inputs, visual_mask, text_mask, layers):
    """Feature vectors of a batch.

    Of each layer's attention output the mean over the visual tokens and the mean over the text
    tokens; tanh; each scaled to unit norm; concatenated as layer 1 visual, layer 1 text, layer 2
    visual, …; divided by sqrt(2M).

    Args:
        model: the reference model, in evaluation mode.
        inputs: the processor's tensors for B samples, on the model's device.
        visual_mask, text_mask: (B, L) boolean tensors of the tokens to average; a row without any
            gives zeros.
        layers: zero-based decoder layers, M of them.

    Returns:
        (B, 2·M·h) float32 tensor on the model's device.

    Source: Lee, Li, Hwang (EMNLP 2024), section 3.2, and the published code's blocks.
    """
    with torch.inference_mode(), _attention_outputs(model, layers) as outputs:
        with suppress(_Stop):
            model(**inputs, use_cache=False)
        blocks = []
        for layer in layers:
            hidden = outputs[layer].float()
            for mask in (visual_mask, text_mask):
                weights = mask.to(hidden.dtype)
                count = weights.sum(dim=1, keepdim=True)
                mean = torch.einsum("bl,blh->bh", weights, hidden) / count.clamp(min=1)
                block = torch.nn.functional.normalize(torch.tanh(mean), dim=1)
                blocks.append(block * (count > 0))
        return torch.cat(blocks, dim=1) / (2 * len(layers)) ** 0.5


def token_masks(processor, inputs, text_mask, prefix):
    """Masks of the tokens to average: visual, and text without the template's fixed prefix.

    Args:
        processor: of the reference model.
        inputs, text_mask: as `coincide.chat.encode` gives them.
        prefix: as `coincide.chat.fixed_prefix` gives it.
    """
    ids = inputs["input_ids"].numpy()
    visual = ids == processor.image_token_id
    text = text_mask.copy()
    for row in range(len(ids)):
        text[row, : prefix[bool(visual[row].any())]] = False
    return torch.from_numpy(visual), torch.from_numpy(text)


def extract(
    model,
    processor,
    samples,
    images,
    *,
    layers,
    batch_size,
    max_tokens,
    output,
    metadata,
):
    """Extract the activations of a shard and write them.

    Samples are taken a row group at a time, batched by length inside it, and written in their order.
    A sample that cannot be used is set aside with its reason; the shard goes on.

    Args:
        model, processor: of the reference model.
        samples: list of dicts of sample_id, position, record (see `coincide.shards`).
        images: folder that image names are relative to.
        layers: zero-based decoder layers.
        batch_size: samples a batch.
        max_tokens: longest sample in tokens, visual ones included.
        output: Parquet file to write.
        metadata: what to say of the model in the file.

    Returns:
        list of rejected rows (sample_id, position, reason, detail).
    """
    hidden = model.config.get_text_config().hidden_size
    dimension = 2 * len(layers) * hidden
    prefix = fixed_prefix(processor)
    rejected, progress = [], Progress(len(samples), "activations")

    def reject(sample, reason, detail):
        rejected.append(
            {"sample_id": sample["sample_id"], "position": sample["position"], "reason": reason, "detail": detail}
        )

    def prepare(sample):
        try:
            rendered = render(processor, sample["record"]["conversations"])
            pictures = [open_image(images, name) for name in image_names(sample["record"])]
            return rendered, pictures
        except ImageError as error:
            reject(sample, error.reason, str(error))
        except (ChatError, TemplateError) as error:
            reject(sample, "malformed turns", f"the model's chat template refuses it: {error}")
        return None

    def run(batch, prepared, rows):
        """Fill `rows` for the samples of a batch; where the batch does not go through, one by one."""
        try:
            inputs, text_mask, _ = encode(processor, [p[0] for p in prepared], [p[1] for p in prepared])
        except Exception as error:  # whatever a processor says of one sample must not end the shard
            if len(batch) == 1:
                known = isinstance(error, ChatError)
                reason = "image token count mismatch" if known else "unreadable image"
                reject(batch[0], reason, str(error) if known else f"{type(error).__name__}: {error}")
                return
            for sample, one in zip(batch, prepared):
                run([sample], [one], rows)
            return
        lengths = inputs["attention_mask"].sum(dim=1)
        if (lengths > max_tokens).any():
            short = [i for i in range(len(batch)) if lengths[i] <= max_tokens]
            for i in set(range(len(batch))) - set(short):
                reject(batch[i], "too long", f"{int(lengths[i])} tokens, reference_model.max_tokens is {max_tokens}")
            if short:
                run([batch[i] for i in short], [prepared[i] for i in short], rows)
            return
        visual, text = (m.to(model.device) for m in token_masks(processor, inputs, text_mask, prefix))
        inputs = inputs.to(model.device, model.dtype)
        vectors = features(model, inputs, visual, text, layers).to(torch.float16).cpu().numpy()
        for sample, vector in zip(batch, vectors):
            if np.isfinite(vector).all():
                rows[sample["position"]] = vector
            else:
                reject(sample, "non-finite activation", "the reference model gave NaN or infinite numbers")

    def groups():
        for start in range(0, len(samples), ROW_GROUP):
            group, rows = samples[start : start + ROW_GROUP], {}
            for batch in batches(group, batch_size):
                prepared = [prepare(sample) for sample in batch]
                usable = [i for i, one in enumerate(prepared) if one is not None]
                if usable:
                    run([batch[i] for i in usable], [prepared[i] for i in usable], rows)
                progress.update(len(batch))
            kept = [sample for sample in group if sample["position"] in rows]
            matrix = np.array([rows[s["position"]] for s in kept], dtype=np.float16).reshape(len(kept), dimension)
            yield [s["sample_id"] for s in kept], matrix
        progress.close()

    write_activations(
        output,
        groups(),
        dimension=dimension,
        metadata={**metadata, "layers": list(layers), "hidden_size": hidden, "blocks": ["visual", "text"]},
    )
    return sorted(rejected, key=lambda row: row["position"])


def extract_shard(
    shard,
    images,
    *,
    model_name,
    layers,
    dtype,
    device,
    batch_size,
    max_tokens,
    output,
    revision=None,
    trust_remote_code=False,
):
    """Extract the activations of a shard file; `layers` may be fractions of depth. See `extract`."""
    model, processor = load_model(
        model_name, revision=revision, dtype=dtype, device=device, trust_remote_code=trust_remote_code
    )
    return extract(
        model,
        processor,
        read_shard(shard),
        images,
        layers=resolve_layers(layers, len(decoder_layers(model))),
        batch_size=batch_size,
        max_tokens=max_tokens,
        output=output,
        metadata={"model": str(model_name), "revision": revision, "model_dtype": dtype},
    )


def batches(samples, batch_size):
    """Batches of samples of like length: fewer padding tokens, the same vectors.

    Args:
        samples: list of dicts with a record.
        batch_size: samples a batch.
    """

    def length(sample):
        record = sample["record"]
        return len(image_names(record)), text_length(record["conversations"])

    ordered = sorted(samples, key=length)
    return [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]
