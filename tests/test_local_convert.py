"""Conversion of GPT-2 folders without torch, and where the results lie."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sive.config.sections import LocalSettings
from sive.errors import LocalModelError
from sive.local import store
from sive.local.convert import convert, quantize, read_tokenizer
from sive.local.prepare import PACKAGE_ROOT, converted, prepare
from sive.local.store import LocalModelInfo, choose

ROWS = 600
Array = npt.NDArray[Any]


def write_gpt2(
    folder: Path,
    *,
    width: int = 64,
    layers: int = 2,
    context: int = 256,
    dtype: str = "F32",
    prefix: str = "",
) -> Path:
    """Write a Hugging Face folder with GPT-2-shaped random weights and a byte-level BPE of its own."""
    folder.mkdir(parents=True)
    write_tokenizer(folder)
    tensors = random_tensors(width, layers, context)
    write_safetensors(
        folder / "model.safetensors", {prefix + name: value for name, value in tensors.items()}, dtype
    )
    config = {
        "model_type": "gpt2",
        "n_layer": layers,
        "n_head": 4,
        "n_embd": width,
        "n_positions": context,
        "vocab_size": ROWS,
        "activation_function": "gelu_new",
        "eos_token_id": ROWS - 100,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_tokenizer(folder: Path) -> None:
    """Train a byte-level BPE of 500 tokens and an end token, fewer than the model has rows."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ROWS - 100,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=1,
    )
    tokenizer.train_from_iterator(
        (f"User: said {n * n} to the Assistant: {n:x}" for n in range(2000)), trainer
    )
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))


def random_tensors(width: int, layers: int, context: int) -> dict[str, Array]:
    """GPT-2's tensors by name; Conv1D weights lie [in, out]."""
    random = np.random.default_rng(7)

    def normal(*shape: int) -> Array:
        return random.standard_normal(shape, dtype=np.float32) * np.float32(0.2)

    tensors = {"wte.weight": normal(ROWS, width), "wpe.weight": normal(context, width)}
    norms, linears = ["ln_f"], {}
    for layer in range(layers):
        at = f"h.{layer}."
        norms += [at + "ln_1", at + "ln_2"]
        linears[at + "attn.c_attn"] = (width, 3 * width)
        linears[at + "attn.c_proj"] = (width, width)
        linears[at + "mlp.c_fc"] = (width, 4 * width)
        linears[at + "mlp.c_proj"] = (4 * width, width)
    for name in norms:
        tensors |= {name + ".weight": 1 + normal(width), name + ".bias": normal(width)}
    for name, shape in linears.items():
        tensors |= {name + ".weight": normal(*shape), name + ".bias": normal(shape[1])}
    return tensors


def write_safetensors(path: Path, tensors: dict[str, Array], dtype: str) -> None:
    """Write a safetensors file as the format says: header length, header, bytes."""
    header, blobs, at = {}, [], 0
    for name, value in tensors.items():
        blob = as_dtype(value, dtype).tobytes()
        header[name] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": [at, at + len(blob)]}
        at += len(blob)
        blobs.append(blob)
    head = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + b"".join(blobs))


def as_dtype(value: Array, dtype: str) -> Array:
    """The same numbers in the type a file holds them in."""
    if dtype == "BF16":
        return (value.view(np.uint32) >> 16).astype(np.uint16)
    return value.astype({"F32": np.float32, "F16": np.float16}[dtype])


def make(source: Path, target: Path) -> Path:
    """Convert in this process."""
    target.mkdir()
    convert(source, target, name="lab/gpt2", weights="lab/gpt2@1-int8")
    return target


def greedy(folder: Path, text: str = "User: hi\nAssistant:", tokens: int = 12) -> list[int]:
    """What CTranslate2 answers, greedily."""
    import ctranslate2

    generator = ctranslate2.Generator(str(folder), device="cpu", compute_type="int8")
    prompt = read_tokenizer(folder).encode(text).tokens
    (answer,) = generator.generate_batch([prompt], max_length=tokens, include_prompt_in_result=False)
    return list(answer.sequences_ids[0])


def computed(folder: Path, ids: list[int]) -> Array:
    """The logits of each position as CTranslate2 computes them."""
    import ctranslate2

    generator = ctranslate2.Generator(str(folder), device="cpu", compute_type="int8")
    logits_of: Array = np.array(generator.forward_batch([ids], return_log_probs=False))[0]
    return logits_of


def logits(tensors: dict[str, Array], ids: list[int], heads: int = 4, epsilon: float = 1e-5) -> Array:
    """GPT-2 in float32, as its paper has it: the logits of each position."""
    x = tensors["wte.weight"][ids] + tensors["wpe.weight"][: len(ids)]
    layers = sum(name.endswith("ln_1.weight") for name in tensors)

    def norm(x: Array, at: str) -> Array:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
        return x * tensors[at + ".weight"] + tensors[at + ".bias"]

    def linear(x: Array, at: str) -> Array:
        return x @ tensors[at + ".weight"] + tensors[at + ".bias"]

    for layer in range(layers):
        at = f"h.{layer}."
        q, k, v = np.split(linear(norm(x, at + "ln_1"), at + "attn.c_attn"), 3, axis=-1)
        split = [part.reshape(len(ids), heads, -1).swapaxes(0, 1) for part in (q, k, v)]
        scores = split[0] @ split[1].swapaxes(1, 2) / np.sqrt(split[0].shape[-1])
        scores = np.where(np.tri(len(ids), dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True)) @ split[2]
        x = x + linear(mixed.swapaxes(0, 1).reshape(len(ids), -1), at + "attn.c_proj")
        h = linear(norm(x, at + "ln_2"), at + "mlp.c_fc")
        h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        x = x + linear(h, at + "mlp.c_proj")
    return norm(x, "ln_f") @ tensors["wte.weight"].T


def test_the_int8_model_computes_what_gpt2_computes(tmp_path: Path) -> None:
    """Its logits are those of a float32 GPT-2 within the error of int8."""
    folder = make(write_gpt2(tmp_path / "hf"), tmp_path / "int8")
    ids = read_tokenizer(folder).encode("User: said 49 to the Assistant:").ids
    ours = computed(folder, ids)
    exact = logits(random_tensors(64, 2, 256), ids)
    assert np.linalg.norm(ours - exact) / np.linalg.norm(exact) < 0.05


@pytest.mark.parametrize(
    ("dtype", "prefix"), [("F32", "transformer."), ("F16", ""), ("BF16", "transformer.")]
)
def test_types_and_key_prefixes_make_the_same_model(tmp_path: Path, dtype: str, prefix: str) -> None:
    """A file of any type and either spelling of its keys computes the same, as far as its bits go."""
    source = write_gpt2(tmp_path / "hf", dtype=dtype, prefix=prefix)
    folder = make(source, tmp_path / "int8")
    ids = read_tokenizer(folder).encode("User: hi").ids
    ours = computed(folder, ids)
    exact = logits(random_tensors(64, 2, 256), ids)
    assert np.linalg.norm(ours - exact) / np.linalg.norm(exact) < 0.06


def test_a_head_of_its_own_is_used(tmp_path: Path) -> None:
    """``tie_word_embeddings: false`` with an ``lm_head`` answers with that head."""
    tied = make(write_gpt2(tmp_path / "tied"), tmp_path / "tied-int8")
    source = write_gpt2(tmp_path / "hf")
    tensors = random_tensors(64, 2, 256)
    tensors["lm_head.weight"] = np.roll(tensors["wte.weight"], 1, axis=0)
    write_safetensors(source / "model.safetensors", tensors, "F32")
    config = json.loads((source / "config.json").read_text()) | {"tie_word_embeddings": False}
    (source / "config.json").write_text(json.dumps(config))
    untied = make(source, tmp_path / "untied-int8")
    assert greedy(untied, tokens=1)[0] == (greedy(tied, tokens=1)[0] + 1) % ROWS


def test_an_epsilon_of_its_own_is_used(tmp_path: Path) -> None:
    """A model trained with another ``layer_norm_epsilon`` computes with that one."""
    source = write_gpt2(tmp_path / "hf")
    config = json.loads((source / "config.json").read_text()) | {"layer_norm_epsilon": 0.5}
    (source / "config.json").write_text(json.dumps(config))
    folder = make(source, tmp_path / "int8")
    exact = logits(random_tensors(64, 2, 256), [1, 2, 3], epsilon=0.5)
    assert np.linalg.norm(computed(folder, [1, 2, 3]) - exact) / np.linalg.norm(exact) < 0.05


def test_vocab_and_merges_do_for_a_tokenizer(tmp_path: Path) -> None:
    """An older folder without ``tokenizer.json`` reads text the same way."""
    source = write_gpt2(tmp_path / "hf")
    text = "User: said 49 <|endoftext|> é🙂"
    before = read_tokenizer(source).encode(text).ids
    model = json.loads((source / "tokenizer.json").read_text())["model"]
    vocabulary = model["vocab"] | {"<|endoftext|>": ROWS - 100}
    (source / "vocab.json").write_text(json.dumps(vocabulary))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (source / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (source / "tokenizer.json").unlink()
    assert read_tokenizer(source).encode(text).ids == before


def test_quantising_keeps_rows_of_zeros_and_refuses_nan() -> None:
    """A row of zeros has no largest value; NaN would silently become zero."""
    rows, scales = quantize(np.array([[0, 0], [1, -2]], np.float32))
    assert (rows / scales[:, None]).tolist() == pytest.approx(np.array([[0, 0], [1, -2]]), abs=0.01)
    with pytest.raises(LocalModelError, match="NaN"):
        quantize(np.array([[np.nan, 1]], np.float32))


def spoil_type(source: Path) -> None:
    """Another architecture."""
    (source / "config.json").write_text('{"model_type": "qwen2"}')


def spoil_half(source: Path) -> None:
    """Weights cut in half."""
    weights = source / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)


def spoil_tensor(source: Path) -> None:
    """Weights without one of their tensors."""
    tensors = random_tensors(64, 2, 256)
    del tensors["h.1.mlp.c_fc.weight"]
    write_safetensors(source / "model.safetensors", tensors, "F32")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoil_type, "model_type is 'qwen2'"),
        (spoil_half, "it ends before tensor"),
        (spoil_tensor, "no tensor 'h.1.mlp.c_fc.weight'"),
        (
            lambda source: (source / "model.safetensors").write_bytes(b"\0" * 4),
            "not a whole safetensors file",
        ),
        (lambda source: (source / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda source: (source / "config.json").unlink(), "config.json cannot be read"),
        (lambda source: (source / "config.json").write_text("[]"), "is not a JSON object"),
        (lambda source: (source / "tokenizer.json").unlink(), "neither tokenizer.json nor vocab.json"),
        (lambda source: (source / "tokenizer.json").write_text("{"), "tokenizer in"),
    ],
)
def test_a_wrong_folder_is_named_and_nothing_is_stored(tmp_path: Path, spoil: Any, says: str) -> None:
    """What is wrong with a folder is said in one line; no model comes of it."""
    source = write_gpt2(tmp_path / "hf")
    spoil(source)
    with pytest.raises(LocalModelError, match=says) as caught:
        prepare(str(source), tmp_path / "weights")
    assert "\n" not in str(caught.value)
    assert store.prepared(tmp_path / "weights") == []


def test_a_folder_is_converted_once_and_again_when_it_changes(tmp_path: Path) -> None:
    """The content decides: the same folder is used as converted, a changed one is converted anew."""
    source, directory = write_gpt2(tmp_path / "hf"), tmp_path / "weights"
    first = prepare(str(source), directory)
    made = (first.path / "model.bin").stat()
    assert prepare(str(source), directory) == first
    assert (first.path / "model.bin").stat() == made
    tensors = random_tensors(64, 2, 256)
    tensors["wte.weight"][0, 0] += 1
    write_safetensors(source / "model.safetensors", tensors, "F32")
    assert prepare(str(source), directory).path != first.path


def test_a_prepared_folder_is_used_where_it_lies(tmp_path: Path) -> None:
    """A folder that was prepared elsewhere is not converted again."""
    folder = make(write_gpt2(tmp_path / "hf"), tmp_path / "int8")
    info = prepare(str(folder), tmp_path / "weights")
    assert (info.path, info.name) == (folder, "lab/gpt2")
    assert not (tmp_path / "weights").exists()


def test_a_conversion_killed_in_the_middle_leaves_no_model(tmp_path: Path) -> None:
    """After kill -9 nothing is listed, and the next conversion clears up and succeeds."""
    source, directory = write_gpt2(tmp_path / "hf", width=256, layers=8), tmp_path / "weights"
    program = (
        "import sys; from pathlib import Path; from sive.local.prepare import prepare\n"
        "prepare(sys.argv[1], Path(sys.argv[2]), told=lambda *at: print(*at, flush=True))"
    )
    command = [sys.executable, "-c", program, str(source), str(directory)]
    with subprocess.Popen(command, cwd=PACKAGE_ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline().startswith("convert 0 ")
        child.send_signal(signal.SIGKILL)
    assert store.prepared(directory) == []
    info = prepare(str(source), directory)
    assert store.prepared(directory, store.CONFIGURED) == [info]
    assert [path.name for path in directory.iterdir() if path.name != ".lock"] == [info.path.name]


def test_a_full_disk_leaves_no_model(tmp_path: Path) -> None:
    """A child that may write no more than a megabyte fails as on a full disk, and says so."""
    import resource

    source, directory = write_gpt2(tmp_path / "hf", width=256, layers=4), tmp_path / "weights"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(LocalModelError, match="File too large"):
            prepare(str(source), directory)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in directory.iterdir()] == [".lock"]


def test_the_best_on_disk_that_fits_is_chosen(tmp_path: Path) -> None:
    """``auto`` takes the largest prepared model there is memory for, else the embedded one, and says why."""
    directory = tmp_path / "weights"
    embedded = make(write_gpt2(tmp_path / "hf"), tmp_path / "embedded")
    settings = LocalSettings(weights_dir=directory)
    assert choose(settings, embedded).why == "embedded default"
    small = prepare(str(write_gpt2(tmp_path / "small")), directory)
    large = prepare(str(write_gpt2(tmp_path / "large", width=128)), directory)
    assert (choose(settings, embedded).path, choose(settings, embedded).why) == (large.path, "best on disk")
    frugal = LocalSettings(weights_dir=directory, headroom_mb=0)
    between = (small.size_bytes + large.size_bytes) // 2 + store.RUNNING_BYTES
    assert choose(frugal, embedded, free_bytes=between).path == small.path
    poor = choose(settings, embedded, free_bytes=349 * store.MB)
    assert (poor.path, poor.why) == (embedded, "only 349 MB free: 'small' needs 350 MB")


def test_a_configured_model_is_found_by_name_or_folder(tmp_path: Path) -> None:
    """A name that is prepared, a prepared folder, a plain folder; anything else leaves the embedded one."""
    directory, source = tmp_path / "weights", write_gpt2(tmp_path / "hf")
    embedded = make(source, tmp_path / "embedded")

    def chosen(model: object) -> LocalModelInfo:
        return choose(LocalSettings(model=str(model), weights_dir=directory), embedded)

    assert (chosen(source).path, chosen(source).why, chosen(source).context_tokens) == (
        source,
        "configured",
        256,
    )
    info = converted(chosen(source), directory)
    assert chosen("hf") == chosen(source) == info
    assert chosen(embedded).path == chosen("embedded").path == embedded
    lost = chosen("openai-community/gpt2")
    assert lost.path == embedded
    assert "run `sive weights prepare openai-community/gpt2`" in lost.why


def test_a_damaged_model_is_not_listed(tmp_path: Path) -> None:
    """A folder without its weights, or whose sive.json is cut, is no model."""
    directory = tmp_path / "weights"
    info = prepare(str(write_gpt2(tmp_path / "hf")), directory)
    shutil.copytree(info.path, directory / "copy")
    (directory / "copy" / "model.bin").unlink()
    shutil.copytree(info.path, directory / "cut")
    (directory / "cut" / "sive.json").write_text('{"name": "x"')
    assert [found.path for found in store.prepared(directory)] == [info.path]


def test_conversion_imports_no_torch(tmp_path: Path) -> None:
    """The child brings neither torch nor transformers in."""
    source = write_gpt2(tmp_path / "hf")
    (tmp_path / "int8").mkdir()
    program = (
        "import sys; sys.argv[0] = 'convert'; from sive.local.convert import main\n"
        "assert main() == 0; assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", program, str(source), str(tmp_path / "int8"), "--name=a", "--weights=b"]
    subprocess.run(command, cwd=PACKAGE_ROOT, check=True)
