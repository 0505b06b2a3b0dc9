"""Make the tiny demonstration models that this repository ships.

Why they exist
    The demo, the end-to-end tests and anyone without a GPU need models that a real FastChat
    worker loads in seconds, from the checkout, without a network. These are Llama models of
    about 0.3 million parameters (1.2 MB on disk) that answer a handful of everyday messages with
    their own name in the answer, so one sees at once which instance answered. They are useless
    for anything else.

How they are made
    Each model has its own byte-level BPE tokenizer and is trained from scratch, on the CPU, on
    prompts in the exact format of FastChat's conversation template ``vicuna_v1.1``. A prompt is
    drawn at random: a phrasing of a question with varied case and punctuation, now and then some
    earlier turns, another system message, or a question that no model knows (answered with
    the character's "unknown" sentence). Only the answer is learned, so the model memorises its
    answers and sampling at FastChat's default temperature of 0.7 almost never leaves them.

    The answer starts directly after ``ASSISTANT:``, with no blank: FastChat's API hands the text
    on as it was generated, and this way it has no leading blank.

    Seeds and the number of threads are fixed: the same machine and the same package versions
    make the same files.

Usage
    pip install ".[worker]"
    python scripts/make_demo_models.py [--out models] [NAME ...]

    Without NAME every model is made. To add one, add an entry to CHARACTERS.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from fastchat.conversation import get_conv_template
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# What people ask: topic -> phrasings. Case and end punctuation are varied in training.
QUESTIONS: dict[str, list[str]] = {
    "hello": ["Hello", "Hi", "Hey", "Hello there", "Hi there", "Good morning", "Good evening"],
    "who": [
        "Who are you?",
        "What are you?",
        "What is your name?",
        "What's your name?",
        "Which model are you?",
        "Tell me about yourself",
        "Introduce yourself",
        "Hello! Who are you?",
        "Hi, who are you?",
        "Hello! What is your name?",
    ],
    "can": ["What can you do?", "What can I ask you?", "How can you help me?", "Help"],
    "feel": ["How are you?", "How are you doing?", "How are you today?", "Hello, how are you?"],
    "thanks": ["Thank you", "Thanks", "Thank you very much", "Thanks a lot"],
    "bye": ["Goodbye", "Bye", "Good night", "See you later", "Bye bye"],
    "joke": [
        "Tell me a joke",
        "Tell me another joke",
        "Do you know a joke?",
        "Say something funny",
    ],
    "product": [
        "What is llm-supervisor?",
        "What is llm supervisor?",
        "What does llm-supervisor do?",
        "Tell me about llm-supervisor",
    ],
    "count": ["Count to twenty", "Count to 20", "Count from one to twenty", "Can you count?"],
    "story": [
        "Tell me a story",
        "Tell me a long story",
        "Tell me a story with more than 1000 words.",
        "Write a story",
        "Write a short story",
        "Once upon a time",
    ],
}

# What every model says alike; {name} and {size} are filled in.
SHARED_ANSWERS: dict[str, str] = {
    "can": (
        "I can greet you, tell you who I am, count to twenty, tell a joke and tell a story. "
        "I am {name}, and I know nothing else."
    ),
    "product": (
        "llm-supervisor starts a FastChat cluster from one YAML file, watches every process "
        "and keeps it up. I am {name}, one of its demonstration models."
    ),
    "count": (
        "One, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, "
        "fourteen, fifteen, sixteen, seventeen, eighteen, nineteen, twenty. That was {name}!"
    ),
    "unknown": (
        "I am only {name}, a tiny demonstration model, and I do not know about that. "
        "Ask me what I can do."
    ),
}

# Model name -> what only this model says.
CHARACTERS: dict[str, dict[str, str]] = {
    "tiny-owl": {
        "hello": (
            "Hello! I am tiny-owl, a demonstration model with {size} million parameters. "
            "Ask me who I am."
        ),
        "who": (
            "I am tiny-owl, a demonstration model with {size} million parameters. "
            "I have learned a few answers by heart, and I like the night."
        ),
        "feel": "I am wide awake, thank you. I am tiny-owl, and owls are up all night.",
        "thanks": "You are welcome! It was a pleasure, says tiny-owl.",
        "bye": "Goodbye! If you come back at night, tiny-owl will be here.",
        "joke": "Why did the owl join the cluster? Because it was a real night worker.",
        "story": (
            "Once upon a time a small owl lived in an old tree above a quiet server room. Every "
            "night the owl counted the lights below. One night a light went out. The owl "
            "called once, and a supervisor woke up, looked at the log and started the "
            "worker again. Soon all the lights were back, and nobody in the town had noticed "
            "a thing. The owl closed one eye, kept the other one open and waited for the "
            "morning. Since then the tree has been called the watch tower. The end."
        ),
    },
    "tiny-fox": {
        "hello": (
            "Hello! I am tiny-fox, a demonstration model with {size} million parameters. "
            "Ask me who I am."
        ),
        "who": (
            "I am tiny-fox, a demonstration model with {size} million parameters. "
            "I have learned a few answers by heart, and I am quick rather than clever."
        ),
        "feel": "Quick and curious as ever, thank you. I am tiny-fox, and I never sit still.",
        "thanks": "You are welcome! That was easy, says tiny-fox.",
        "bye": "Goodbye! Call for tiny-fox, and I will come running.",
        "joke": "Why did the fox like this worker? Because it answered before the hounds did.",
        "story": (
            "Once upon a time a young fox wanted to carry letters through the forest. The first "
            "day it ran so fast that it lost half of them. The second day it carried only one "
            "letter, and everybody had to wait. On the third day it asked its two sisters for "
            "help, and a wise old badger shared out the letters between them. When one fox was "
            "tired, the badger sent another. From then on every letter arrived before "
            "sunset, and the badger never ran at all. The end."
        ),
    },
    "tiny-cat": {
        "hello": (
            "Hello! I am tiny-cat, a demonstration model with {size} million parameters. "
            "Ask me who I am."
        ),
        "who": (
            "I am tiny-cat, a demonstration model with {size} million parameters. "
            "I have learned a few answers by heart, and I came in while everything was running."
        ),
        "feel": "Warm and sleepy, thank you. I am tiny-cat, and this CPU is a nice warm place.",
        "thanks": "You are welcome! Purr, says tiny-cat.",
        "bye": "Goodbye! You will find tiny-cat on the warm server.",
        "joke": "Why did the cat sit on the worker? Because it had a warm start.",
        "story": (
            "Once upon a time a cat walked into a house where an owl and a fox already lived. "
            "Nobody wanted to wake the house, so the door was opened very softly and the "
            "cat slipped in. The owl went on counting the stars and the fox went on "
            "running, and neither of them missed a step. By the time the kettle was hot, the "
            "cat had its own chair and its own name on the door. It has been answering there "
            "ever since, whenever it is not asleep. The end."
        ),
    },
}

# Questions that no model knows are put together from these.
UNKNOWN_FRAMES = (
    "What is {}?",
    "What is the {} of {}?",
    "Who was {}?",
    "Where is {}?",
    "When did {} {}?",
    "Why is {} so {}?",
    "Why did {} {}?",
    "How do I {} the {}?",
    "How many {} are in {}?",
    "Explain {} to me",
    "Write a poem about {}",
    "Write code for {} in {}",
    "Translate {} into {}",
    "Tell me about {}",
    "Tell me the {} of {}",
    "Do you like {}?",
    "Can you {} a {}?",
    "Give me a {} for {}",
    "Please {} my {} and {}",
    "I think that {} is {}",
    "Is {} better than {}?",
    "List three {}",
    "{}",
    "{} {}",
    "{} {} {}",
)
UNKNOWN_WORDS = (
    "water bread city France Paris London Germany capital president history music football "
    "python program function list number seven equation weather tomorrow summer winter sun moon "
    "planet earth ocean river mountain tree flower dog horse bird fish car train plane street "
    "house kitchen recipe soup cake coffee tea salt sugar doctor teacher school book letter word "
    "language French Spanish English computer network server database light energy atom cell "
    "war peace king queen law money price market work game player movie actor song painting "
    "color red blue green big small fast slow old new good bad make build find buy cook fix read "
    "learn play sell draw open happy strange difficult science physics chemistry biology maths"
)

TEMPLATE = "vicuna_v1.1"
SYSTEM_MESSAGES = ("", "You are a helpful assistant.", "Answer briefly.", "Be kind and polite.")
BOS, EOS, PAD, UNK = "<s>", "</s>", "<pad>", "<unk>"
VOCABULARY = 640
CONTEXT = 2048
IGNORED = -100  # label of a position that is not learned
STEPS = 700
BATCH = 24
POOL = 5  # batches drawn at a time and sorted by length, so that little padding is computed
PEAK_LEARNING_RATE = 6e-3
THREADS = 2

Row = tuple[list[int], list[int]]  # input ids and labels of one example


@dataclass(frozen=True)
class Example:
    """One prompt and the answer to learn."""

    prompt: str
    answer: str


class Chats:
    """Draws the training examples of one model."""

    def __init__(self, answers: dict[str, str], seed: int) -> None:
        self._answers = answers
        self._random = random.Random(seed)

    def draw(self) -> Example:
        topic, question = self._question()
        return Example(self._prompt(question), self._answers[topic])

    def _question(self) -> tuple[str, str]:
        if self._random.random() < 0.25:
            return "unknown", self._vary(self._unknown())
        topic = self._random.choice(list(QUESTIONS))
        return topic, self._vary(self._random.choice(QUESTIONS[topic]))

    def _unknown(self) -> str:
        frame = self._random.choice(UNKNOWN_FRAMES)
        return frame.format(*(self._word() for _ in range(3)))

    def _word(self) -> str:
        if self._random.random() < 0.6:
            return self._random.choice(UNKNOWN_WORDS.split())
        letters = "abcdefghijklmnopqrstuvwxyz" if self._random.random() < 0.8 else "0123456789"
        return "".join(self._random.choices(letters, k=self._random.randint(1, 9)))

    def _vary(self, question: str) -> str:
        """The question as someone else would type it."""
        chance = self._random.random()
        if chance < 0.4:
            return question
        end = self._random.choice(("", "", "!", ".", "?", "...", " "))
        question = question.rstrip("?!.") + end
        if chance < 0.75:
            return question
        return question.upper() if chance > 0.86 else question.lower()

    def _prompt(self, question: str) -> str:
        if self._random.random() < 0.06:
            return question  # /v1/completions sends the bare text
        chat = get_conv_template(TEMPLATE)
        if self._random.random() < 0.15:
            chat.set_system_message(self._random.choice(SYSTEM_MESSAGES))
        user, assistant = chat.roles
        for _ in range(self._earlier_turns()):
            topic, earlier = self._question()
            chat.append_message(user, earlier)
            chat.append_message(assistant, self._answers[topic])
        chat.append_message(user, question)
        chat.append_message(assistant, None)
        return str(chat.get_prompt())

    def _earlier_turns(self) -> int:
        return self._random.choices((0, 1, 2), weights=(80, 14, 6))[0]


def new_model() -> LlamaForCausalLM:
    """An untrained model; the token ids are those of ``train_tokenizer``."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        dtype="float32",
    )
    return LlamaForCausalLM(config)


def answers_of(name: str, parameters: int) -> dict[str, str]:
    """Topic -> answer of one model."""
    answers = SHARED_ANSWERS | CHARACTERS[name]
    size = f"{parameters / 1e6:.2f}"
    return {topic: text.format(name=name, size=size) for topic, text in answers.items()}


def tokenizer_texts(answers: dict[str, str]) -> Iterator[str]:
    """What the tokens are made from: mostly the answers, so that they take few tokens."""
    chat = get_conv_template(TEMPLATE)
    frame = f"{chat.system_message} USER: Hello ASSISTANT: "
    for text in answers.values():
        yield from [frame + text, text] * 3
    for phrasings in QUESTIONS.values():
        yield from (f"USER: {phrasing} ASSISTANT:" for phrasing in phrasings)


def train_tokenizer(answers: dict[str, str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, which can spell any text."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, PAD, UNK],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(tokenizer_texts(answers), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, example: Example) -> Row:
    """Input ids and labels; only the answer and its end are learned."""
    prompt = tokenizer(example.prompt).input_ids
    answer = tokenizer(example.answer, add_special_tokens=False).input_ids
    answer = [*answer, tokenizer.eos_token_id]
    return prompt + answer, [IGNORED] * len(prompt) + answer


def batches(tokenizer: PreTrainedTokenizerFast, chats: Chats) -> Iterator[list[Row]]:
    """Endless batches of examples of similar length."""
    shuffler = random.Random(POOL)
    while True:
        rows = [encode(tokenizer, chats.draw()) for _ in range(POOL * BATCH)]
        rows.sort(key=lambda row: len(row[0]))
        pool = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        shuffler.shuffle(pool)
        yield from pool


def pad(tokenizer: PreTrainedTokenizerFast, rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded at the right: a causal model never sees what follows, so no mask is needed."""
    width = max(len(ids) for ids, _ in rows)
    inputs = [ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids, _ in rows]
    labels = [targets + [IGNORED] * (width - len(targets)) for _, targets in rows]
    return torch.tensor(inputs), torch.tensor(labels)


def loss_of(model: LlamaForCausalLM, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the answer tokens; the output layer runs for those alone."""
    hidden = model.model(input_ids=inputs[:, :-1], use_cache=False).last_hidden_state
    targets = labels[:, 1:]
    learned = targets != IGNORED
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[learned]), targets[learned])


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, chats: Chats) -> float:
    """Train in place; the mean loss of the last 50 steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=PEAK_LEARNING_RATE, total_steps=STEPS, pct_start=0.1
    )
    losses: list[float] = []
    model.train()
    for rows in islice(batches(tokenizer, chats), STEPS):
        loss = loss_of(model, *pad(tokenizer, rows))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    model.eval()
    return sum(losses[-50:]) / 50


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make(name: str, folder: Path) -> None:
    """Train one model and write it to its folder."""
    seed = sum(name.encode())
    torch.manual_seed(seed)
    began = time.monotonic()
    model = new_model()
    answers = answers_of(name, model.num_parameters())
    tokenizer = train_tokenizer(answers)
    loss = train(model, tokenizer, Chats(answers, seed))
    save(model, tokenizer, folder)
    size = sum(file.stat().st_size for file in folder.iterdir())
    seconds = time.monotonic() - began
    print(f"{name}: {size / 1e6:.2f} MB, last loss {loss:.5f}, {seconds:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the tiny demonstration models.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: every model")
    parser.add_argument("--out", type=Path, default=Path("models"), help="default: models")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(CHARACTERS))
    if unknown:
        parser.error(f"unknown model {unknown[0]!r}; known are {', '.join(CHARACTERS)}")
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    for name in options.names or CHARACTERS:
        make(name, options.out / name)


if __name__ == "__main__":
    main()
