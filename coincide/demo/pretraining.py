"""Make the pretrained models of the demo, which are part of the package (`coincide/demo/weights`).

    .venv/bin/python -m coincide.demo.pretraining [--output FOLDER]

As for a real model, there are three stages:

1. A vision tower learns to see: linear classifiers on its outputs tell the facts of pictures
   (`coincide.demo.pictures`). CLIP's tower learns the same from captions.
2. A decoder learns to describe what the tower sees, and to answer questions about written descriptions, as a language
   model answers questions about a text. No question is about an image: that is left to finetuning.
3. Only the reference model is then finetuned on instructions: on the mix's split `pretrain`, as the published reference
   model was finetuned on another mix before it is used to select.

The target model and the reference model share the tower and differ in the width of the decoder and in the seed.
"""

import argparse
import logging
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPVisionModel, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from coincide.base.progress import Progress
from coincide.base.sections import Shape, Training
from coincide.dataset.conversation import IMAGE_MARK
from coincide.dataset.formats import read_records
from coincide.demo import PRETRAINED
from coincide.demo.mini_mix import write_mini_mix
from coincide.demo.pictures import CELL_CLASSES, FACTS, KINDS, Picture, cell_classes, draw_picture, fact_classes
from coincide.demo.questions import Question, ask_without_image, choose
from coincide.demo.tiny_models import (
    TEMPLATE_WITHOUT_SYSTEM,
    make_model,
    make_processor,
    train_tokenizer,
    vision_config,
)
from coincide.training.finetune import finetune

log = logging.getLogger(__name__)

SHAPES = {
    name: Shape(vision_hidden=128, vision_layers=3, hidden=hidden, layers=4, heads=4, vision_features="full")
    for name, hidden in (("target", 128), ("reference", 96))
}
SEEDS = {"target": 1, "reference": 0}
TOWER_STEPS, DECODER_STEPS = 2400, 2700
PICTURES, TOWER_BATCH, DECODER_BATCH = 64_000, 256, 64
PROMPTS = ("list what is shown.", "note all details.", "write a list of facts.")
TURNS = 3  # questions about one description, or notes about one image
BATCHES_SORTED = 8  # batches that are filled from samples sorted by length
INSTRUCTIONS = 6000
INSTRUCTION_TRAINING = Training(
    epochs=2, batch_size=16, learning_rate=5e-4, warmup=0.03, device="cpu", freeze=["vision_tower"]
)


def main() -> None:
    """Make both models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=PRETRAINED, help="folder for the models")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="pictures to pretrain on")
    parser.add_argument("--tower-steps", type=int, default=TOWER_STEPS, help=f"steps of {TOWER_BATCH} pictures")
    parser.add_argument("--decoder-steps", type=int, default=DECODER_STEPS, help=f"steps of {DECODER_BATCH} texts")
    parser.add_argument("--instructions", type=int, default=INSTRUCTIONS, help="samples to finetune the reference on")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pictures = draw_pictures(options.pictures, seed=0)
    tower = train_tower(pictures, options.tower_steps, seed=0)
    features = see(tower, [picture.image for picture in pictures])
    for name, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = options.output / name if name == "target" else Path(temporary) / name
            train_decoder(tower, pictures, features, shape, options.decoder_steps, seed=SEEDS[name], output=folder)
            if name == "reference":
                finetune_on_instructions(folder, options.instructions, Path(temporary), options.output / name)
        shrink(options.output / name)


def draw_pictures(count: int, *, seed: int) -> list[Picture]:
    """Pictures of all kinds, in proportion to their shares."""
    rng = np.random.default_rng(seed)
    shares = np.array([kind.share for kind in KINDS.values()])
    return [draw_picture(rng, kind) for kind in rng.choice(list(KINDS), count, p=shares / shares.sum())]


# --- the vision tower --------------------------------------------------------------------------------


def train_tower(pictures: list[Picture], steps: int, *, seed: int) -> CLIPVisionModel:
    """Train a vision tower with linear classifiers: of all facts on the class token, of the cells on the patches."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    shape = SHAPES["target"]
    tower = CLIPVisionModel(vision_config(shape))
    width = shape.vision_hidden
    for name, weight in tower.named_parameters():
        if weight.ndim == 2 and "embedding" not in name:
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)  # the usual 0.02 suits widths of thousands
    of_facts = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(FACTS.values())))
    of_cells = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, CELL_CLASSES))
    weights = [*tower.parameters(), *of_facts.parameters(), *of_cells.parameters()]
    optimizer = torch.optim.AdamW(weights, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    facts = torch.from_numpy(np.stack([fact_classes(picture) for picture in pictures]))
    cells = torch.from_numpy(np.stack([cell_classes(picture) for picture in pictures]))
    pixels = _pixels([picture.image for picture in pictures])
    progress = Progress(steps, "vision tower", unit="steps")
    for _ in range(steps):
        rows = torch.from_numpy(rng.integers(0, len(pictures), TOWER_BATCH))
        outputs = _features(tower, pixels[rows])
        loss = _cross_entropy(of_cells(outputs[:, 1:]).flatten(0, 1), cells[rows].flatten()) / 4
        for i, scores in enumerate(of_facts(outputs[:, 0]).split(list(FACTS.values()), dim=1)):
            loss = loss + _cross_entropy(scores, facts[rows, i])
        _step(loss / TOWER_BATCH, weights, optimizer)
        schedule.step()
        progress.update(1)
    progress.close()
    log.info("vision tower: final loss %.3f", loss.item() / TOWER_BATCH)
    return tower.eval()


def _pixels(images):
    """(n, size, size, 3) uint8 tensor."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images]))


def _features(tower, pixels):
    """(n, 1 + patches, width) output of the last layer, which LLaVA's projector takes."""
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    values = (pixels.float() / 255 - torch.tensor(OPENAI_CLIP_MEAN)) / torch.tensor(OPENAI_CLIP_STD)
    return tower(pixel_values=values.permute(0, 3, 1, 2), output_hidden_states=True).hidden_states[-1]


def _cross_entropy(scores, classes):
    return functional.cross_entropy(scores, classes, ignore_index=-1, reduction="sum")


def _step(loss, weights, optimizer):
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()


def see(tower: CLIPVisionModel, images: list) -> torch.Tensor:
    """(n, 1 + patches, width) features of images."""
    with torch.no_grad():
        blocks = [_features(tower, _pixels(images[i : i + 500])) for i in range(0, len(images), 500)]
    return torch.cat(blocks)


# --- the decoder -------------------------------------------------------------------------------------


def lesson(rng: np.random.Generator, picture: Picture) -> tuple[list[tuple[str, str]], bool]:
    """Turns of question and answer to pretrain a decoder on, and whether they are about the image.

    Two fifths of them describe the image, others note some of its facts, answer questions about a written description,
    or are without a picture.
    """
    kind = KINDS[picture.kind]
    draw = rng.random()
    if draw < 0.05:
        return _turns([ask_without_image(rng) for _ in range(TURNS)]), False
    if draw < 0.3:
        notes = list(kind.notes(picture.facts).items())
        return [
            (f"note: {about}", note) for about, note in (notes[i] for i in rng.permutation(len(notes))[:TURNS])
        ], True
    statements = kind.statements(rng, picture.facts)
    statements = [statements[i] for i in rng.permutation(len(statements))]
    description = ". ".join([f"image of {kind.name}", *statements]) + "."
    if draw < 0.7:
        return [(choose(rng, PROMPTS), description)], True
    first, *others = _turns([kind.ask(rng, picture.facts) for _ in range(TURNS)])
    return [(f"{description} {first[0]}", first[1]), *others], False


def _turns(questions: list[Question]) -> list[tuple[str, str]]:
    return [(question.text, question.answer) for question in questions]


def train_decoder(
    tower: CLIPVisionModel,
    pictures: list[Picture],
    features: torch.Tensor,
    shape: Shape,
    steps: int,
    *,
    seed: int,
    output: Path,
) -> None:
    """Train a projector and a decoder on features of the tower, and save them with it as a LLaVA.

    Args:
        tower: the vision tower, which is not trained.
        pictures: what the decoder reads about.
        features: (n, 1 + patches, width) features of the pictures.
        shape: sizes of the model.
        steps: number of steps.
        seed: seed of the weights, the texts and their order.
        output: folder to write.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 1])
    texts = [text for picture in pictures[:8000] for turn in lesson(rng, picture)[0] for text in turn]
    tokenizer = train_tokenizer([TEMPLATE_WITHOUT_SYSTEM, *texts], shape.vocabulary)
    model = make_model(tokenizer, shape)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    weights = [weight for name, weight in model.named_parameters() if "vision_tower" not in name]
    optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.04)
    encode = Encoder(tokenizer, image_tokens=features.shape[1])
    progress = Progress(steps, "decoder", unit="steps")
    for rows, token_ids, labels in _batches(rng, pictures, encode, steps):
        loss = _caption_loss(model, features[rows], token_ids, labels, encode.image)
        _step(loss, weights, optimizer)
        schedule.step()
        progress.update(1)
    progress.close()
    log.info("decoder of width %d: final loss %.3f", shape.hidden, loss.item())
    model.save_pretrained(output)
    make_processor(tokenizer, shape).save_pretrained(output)


def _batches(rng, pictures, encode, steps):
    """Yield rows of pictures, (batch, length) token ids and labels; samples of similar length share a batch."""
    pending: list = []
    for _ in range(steps):
        if not pending:
            rows = rng.integers(0, len(pictures), DECODER_BATCH * BATCHES_SORTED)
            samples = sorted(
                ((int(row), *encode(*lesson(rng, pictures[row]))) for row in rows), key=lambda s: len(s[1])
            )
            batches = [samples[i : i + DECODER_BATCH] for i in range(0, len(samples), DECODER_BATCH)]
            pending = [batches[i] for i in rng.permutation(len(batches))]
        batch = pending.pop()
        length = max(len(token_ids) for _, token_ids, _ in batch)
        padded = torch.full((2, len(batch), length), -100)
        padded[0] = encode.padding
        for i, (_, token_ids, labels) in enumerate(batch):
            padded[:, i, : len(token_ids)] = torch.tensor([token_ids, labels])
        yield [row for row, _, _ in batch], padded[0], padded[1]


def _caption_loss(model, features, token_ids, labels, image):
    """Mean cross entropy of the answers' tokens; `features` fill the places of the image token where there are any."""
    places = token_ids == image
    embeddings = model.get_input_embeddings()(token_ids)
    projected = model.model.multi_modal_projector(features[places.any(dim=1)])
    embeddings = embeddings.masked_scatter(places.unsqueeze(-1), projected)
    hidden = model.model.language_model(inputs_embeds=embeddings).last_hidden_state[:, :-1]
    answered = labels[:, 1:] != -100
    return functional.cross_entropy(model.lm_head(hidden[answered]), labels[:, 1:][answered])


class Encoder:
    """Turns of question and answer as token ids and labels, in the words of the chat template.

    Attributes:
        image: id of the image token.
        padding: id of the padding token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, image_tokens: int):
        self._tokenizer, self._image_tokens = tokenizer, image_tokens
        self.image = tokenizer.convert_tokens_to_ids(IMAGE_MARK)
        self.padding = tokenizer.pad_token_id
        self._known: dict[str, list[int]] = {}

    def __call__(self, turns: list[tuple[str, str]], with_image: bool) -> tuple[list[int], list[int]]:
        """Token ids, and labels: -100 except for answers with their end of turn."""
        token_ids = [self._tokenizer.bos_token_id, *self._encode("Look and answer.")]
        labels = [-100] * len(token_ids)
        for number, (question, answer) in enumerate(turns):
            prompt = self._encode(" USER: ")
            if with_image and number == 0:
                prompt = [*prompt, *[self.image] * self._image_tokens, *self._encode(f"\n{question} ASSISTANT:")]
            else:
                prompt = self._encode(f" USER: {question} ASSISTANT:")
            reply = [*self._encode(f" {answer}"), self._tokenizer.eos_token_id]
            token_ids += prompt + reply
            labels += [-100] * len(prompt) + reply
        return token_ids, labels

    def _encode(self, text):
        if text not in self._known:
            self._known[text] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._known[text]


# --- the reference model, and the files --------------------------------------------------------------


def finetune_on_instructions(model: Path, samples: int, folder: Path, output: Path) -> None:
    """Finetune a model on samples of the split `pretrain` of the default mix, which is written to `folder`."""
    write_mini_mix(folder / "mix", samples=1, pretrain_samples=samples, test_samples=1, validation_samples=1, seed=0)
    records = read_records(folder / "mix/pretrain.json")
    finetune(
        model, records, folder / "mix/images", INSTRUCTION_TRAINING, seed=0, output=output, checkpoints=folder / "steps"
    )


def shrink(folder: Path) -> None:
    """Store the weights in float16, and remove what training leaves beside a model."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float16)
    model.save_pretrained(folder)
    for name in ("fingerprint.txt", "trainer_state.json", "training_log.jsonl"):
        (folder / name).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
