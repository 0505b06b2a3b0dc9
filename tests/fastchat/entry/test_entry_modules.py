"""What holds for all entry modules, and the mends of packages newer than FastChat."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys

import pytest

# FastChat imports these itself, so they are there wherever FastChat is.
AT_HAND = {"aiohttp", "fastapi", "fastchat", "requests", "transformers", "uvicorn"}
# What belongs to more than one entry module, or is too much for one.
SHARED = {
    *("asking_again", "asking_itself", "gentle_server", "mending", "progress", "read_ahead"),
    "template",
}


def imported_by(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]


def test_they_run_under_another_interpreter(entry_folder):
    for source in entry_folder.glob("*.py"):
        tree = ast.parse(source.read_text(), feature_version=(3, 8))
        strangers = set(imported_by(tree)) - set(sys.stdlib_module_names) - AT_HAND - SHARED
        assert not strangers, f"{source.name} imports {strangers}"


def test_each_is_named_like_its_module_of_fastchat(entry_folder):
    names = {source.stem for source in entry_folder.glob("*.py")} - SHARED - {"__init__"}

    assert names
    assert all(importlib.util.find_spec(f"fastchat.serve.{name}") for name in names)


@pytest.fixture
def with_mending(entry_folder):
    """Runs code that has imported `mending` as an entry module does, and fails where it fails."""

    def run(code):
        start = f"import sys; sys.path.insert(0, {str(entry_folder)!r}); import mending\n"
        subprocess.run([sys.executable, "-c", start + code], check=True, env={"LOGDIR": ""})

    return run


def test_their_names_shadow_no_other_module(with_mending, entry_folder):
    with_mending(f"assert {str(entry_folder)!r} not in sys.path")


def test_a_model_without_a_rope_scaling_factor_has_a_context_length(with_mending):
    with_mending("""
from types import SimpleNamespace
from fastchat import utils

plain = utils.get_context_length
mending.read_context_length_without_factor()
mended = utils.get_context_length

without_factor = SimpleNamespace(rope_scaling={"rope_type": "default"}, max_position_embeddings=64)
try:
    plain(without_factor)
except KeyError:
    assert mended(without_factor) == 64
else:
    sys.exit("FastChat needs this mend no longer")

stretched = SimpleNamespace(rope_scaling={"factor": 2.0}, max_position_embeddings=64)
assert mended(stretched) == plain(stretched) == 128
""")


def test_tokenizers_have_batch_encode_plus(with_mending):
    # A stand-in, because transformers 4 has the method and does not work without it.
    with_mending("""
from types import SimpleNamespace

class Tokenizer:
    def __call__(self, texts, padding):
        return [texts, padding]

sys.modules["transformers"] = SimpleNamespace(PreTrainedTokenizerBase=Tokenizer)
assert not hasattr(Tokenizer, "batch_encode_plus")
mending.give_tokenizers_batch_encode_plus()
assert Tokenizer().batch_encode_plus(["Hello"], padding=True) == [["Hello"], True]
""")


def test_tokenizers_keep_their_own_batch_encode_plus(with_mending):
    with_mending("""
from types import SimpleNamespace

class Tokenizer:
    def batch_encode_plus(self):
        return "own"

sys.modules["transformers"] = SimpleNamespace(PreTrainedTokenizerBase=Tokenizer)
mending.give_tokenizers_batch_encode_plus()
assert Tokenizer().batch_encode_plus() == "own"
""")


def test_what_is_there_before_serving_is_spared_by_collections(with_mending):
    with_mending("""
import gc, uvicorn

frozen = []
uvicorn.run = lambda *args, **kwargs: frozen.append(gc.get_freeze_count())
mending.spare_collections_what_stays()
uvicorn.run("app", host="127.0.0.1")
assert frozen[0] > 10_000
""")
