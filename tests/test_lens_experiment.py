"""The lens experiment on a planted checkpoint, on nets of a run, and on what is neither."""

import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

pytest.importorskip("safetensors", reason="the extra `lens` is not installed")

from experiments.lens.__main__ import EXPERIMENT
from experiments.lens.config import Config
from experiments.lens.edits import (
    AGAIN,
    NOTHING,
    OTHERS,
    OWN,
    RANDOM,
    ROLLED,
    ROW,
    TURNED,
    UNTRANSPOSED,
    WHOLE,
    batches,
)
from experiments.lens.measures import measure
from experiments.lens.subjects import InContext, Subject, subjects
from imr import lens
from imr.lab.architecture import describe
from imr.lab.checkpoint import Checkpoints
from imr.lab.folder import RunFolder
from imr.lab.nets import graph_of, initialiser
from imr.lab.train import init_states
from imr.lens import (
    construction_cosines,
    context_circuits,
    model_from_transformer,
    weight_cosines,
)
from imr.nn import Classifier, LinearSelfAttention, PatchBlock, Transformer
from imr.processes import mess3
from tests.problems import error
from tests.test_heads import write as write_decoder
from tests.test_lens import H, L, arrays, tokenizer, write


def run(*flags):
    return EXPERIMENT.main([str(flag) for flag in flags])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Heads that descend, in BERT's format, and three texts."""
    folder = tmp_path_factory.mktemp("planted")
    tokenizer(write(folder / "model", "bert", arrays(mix=-1.0)))
    (folder / "texts.txt").write_text("a b c d\n\nb a a f g h i j k l m\nc c\n")
    return folder


@pytest.fixture(scope="module")
def smoke(folder):
    """One run on them."""
    flags = "--model-dir", folder / "model", "--texts", folder / "texts.txt"
    assert run(*flags, "--out", folder / "run", "--draws", 8) == 0
    return json.loads((folder / "run" / "summary.json").read_text())


def test_planted_heads_are_told(folder, smoke):
    rows = smoke["heads"]
    assert [(row["layer"], row["head"]) for row in rows] == list(np.ndindex(L, H))
    names = ("weight_cosine", "within_cosine", "folded_weight_cosine", "descent_residual",
             "symmetric_share", "row_cosine", "column_cosine", "sum_cosine", "energy_change",
             "gradient_share")  # fmt: skip
    for row in rows:
        assert np.isfinite([row[name] for name in names]).all()
        for name in names[:-2]:
            # Seven other heads are too few for a null.
            assert row[f"{name}_null"] is row[f"{name}_z"] is None
        assert np.isfinite([row["energy_change_z"], row["gradient_share_z"]]).all()
        assert row["weight_cosine_z_rotated"] < -3
        assert row["row_cosine_z_permuted"] > 2
        for name in ("row_cosine", "column_cosine", "sum_cosine", "energy_change"):
            assert row[f"{name}_ci"] > 0
        assert row["weight_cosine"] == pytest.approx(-1, abs=1e-6)
        assert row["descent_residual"] < 1e-6
    assert f"{L * H} of {L * H} heads have a negative cosine" in smoke["findings"][0]
    assert len(smoke["layers"]) == L
    for name in ("weights", "texts", "strip", "energy", "spectra"):
        assert (folder / "run" / "figures" / f"{name}.png").stat().st_size > 10_000
    table = (folder / "run" / "table.md").read_text()
    assert max(map(len, table.splitlines())) <= 80
    assert "-1.000" in table
    assert "nan" not in table


@pytest.mark.acceptance
def test_several_models_of_two_families(folder, tmp_path):
    """Tables within 80 columns; two names that are alike; a model that imr does not run or read."""
    planted, other = folder / "model", write_decoder(tmp_path / "model")
    third = write_decoder(tmp_path / "long" / "a-model-with-a-name-that-fills-a-table")
    flags = [part for each in (planted, other, third) for part in ("--model-dir", each)]
    assert run(*flags, "--weights-only", "--draws", 8, "--out", tmp_path / "run") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    names = [f"{each.parent.name}/model" for each in (planted, other)] + [third.name]
    assert [line["model"] for line in summary["models"]] == names
    assert summary["models"][0]["negative"] == L * H
    # The second is the third, and has key groups: cosines and controls are those of imr.lens.
    second, third = ([row for row in summary["heads"] if row["model"] == n] for n in names[1:])
    heads = lens.head_weights(map(lens.fold_heads, lens.read_heads(other)))
    wanted = lens.weight_cosines(heads).whole.ravel()
    for rows in (second, third):
        np.testing.assert_allclose([row["folded_weight_cosine"] for row in rows], wanted, atol=1e-6)
    line = summary["models"][1]
    assert line["norms_folded"]
    assert line["negative"] == (wanted < 0).sum()
    assert line["mean"] == pytest.approx(wanted.mean(), abs=1e-6)
    assert line["descent_left"] == pytest.approx(lens.imr_fits(heads).descent.mean(), abs=1e-6)
    assert line["group_negative"] is not None
    assert "group_negative" not in summary["models"][0]
    table = (tmp_path / "run" / "table.md").read_text()
    assert max(map(len, table.splitlines())) <= 80
    assert f"{L * H + 2 * line['negative']}/24" in table
    assert f"0 {names[0]}; 1 {names[1]};" in " ".join(table.split())
    files = {path.name for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert files == {"strip.png", "rotary_1.png", "rotary_2.png"} | {
        f"{file}_{number}.png" for file in ("weights", "spectra") for number in range(3)
    }


@pytest.mark.acceptance
def test_long_texts_are_split_and_said(folder, capsys):
    flags = "--model-dir", folder / "model", "--texts", folder / "texts.txt", "--draws", 8
    assert run(*flags, "--longest", 6, "--smoke", "--out", folder / "short") == 0
    # Two texts, the second of 11 words, 4 at a time.
    assert "1 texts were longer than 6 tokens and were split" in capsys.readouterr().err


def test_what_is_no_model(folder, tmp_path, capsys):
    def refuses(words, *flags):
        assert run(*flags, "--out", tmp_path / "run") == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / "run").exists()

    refuses("give --model-dir, a folder with a checkpoint, or --run-dir")
    refuses("is no model folder: config.json is not in it", "--model-dir", tmp_path)
    refuses("is no run folder", "--run-dir", folder / "model")
    refuses("--draws must be at least 8; found 1", "--model-dir", tmp_path, "--draws", 1)
    refuses("--texts is for --model-dir", "--run-dir", tmp_path, "--texts", tmp_path / "t")
    read = "--model-dir", folder / "model"
    refuses("--edits reads texts and --weights-only none", *read, "--edits", "--weights-only")
    refuses("names a folder twice", *read, *read)
    refuses(
        "no tokenizer.json, but --edits",
        "--edits",
        "--model-dir",
        write(tmp_path / "a", "bert", arrays()),
    )
    embeddings = {"embeddings.word_embeddings.weight": np.zeros((9, 12), np.float32)}
    other = write(tmp_path / "other", "bert", arrays(), change=embeddings)
    config = json.loads((other / "config.json").read_text()) | {"vocab_size": 9}
    (other / "config.json").write_text(json.dumps(config))
    texts = folder / "texts.txt"
    refuses("but the model has 9", "--model-dir", tokenizer(other), "--texts", texts)
    (tmp_path / "empty.txt").write_text("\n")
    model = folder / "model"
    refuses("is empty: give a file", "--model-dir", model, "--texts", tmp_path / "empty.txt")


@pytest.mark.acceptance
def test_nets_of_a_run_trained_and_untrained(tmp_path):
    from experiments.beliefs.__main__ import EXPERIMENT as beliefs

    assert beliefs.main(["--smoke", "--seeds", "2", "--out", str(tmp_path / "beliefs")]) == 0
    flags = "--run-dir", tmp_path / "beliefs", "--limit", 5, "--draws", 8
    assert run(*flags, "--out", tmp_path / "lens") == 0
    rows = json.loads((tmp_path / "lens" / "summary.json").read_text())["heads"]
    names = [f"slow, {kind}, seed {s}" for kind in ("untrained", "trained, soft") for s in (0, 1)]
    assert [row["model"] for row in rows] == names
    cosines = [row["weight_cosine"] for row in rows]
    assert len(set(cosines)) == 4
    # No other head is there to make a null of; rotations do.
    assert rows[0]["weight_cosine_z"] is None
    assert np.isfinite(rows[0]["weight_cosine_z_rotated"])
    assert "± " in (tmp_path / "lens" / "table.md").read_text()


@pytest.mark.acceptance
def test_blocks_of_images_are_the_flow_by_construction(tmp_path):
    from experiments.images.__main__ import EXPERIMENT as images

    models = "--models", "attention", "self_attention"
    assert images.main(["--smoke", *models, "--out", str(tmp_path / "images")]) == 0
    flags = "--run-dir", tmp_path / "images", "--draws", 8, "--out", tmp_path / "lens"
    assert run(*flags) == 0
    rows = json.loads((tmp_path / "lens" / "summary.json").read_text())["heads"]
    assert {", trained" in row["model"] for row in rows} == {True, False}
    np.testing.assert_allclose([row["weight_cosine"] for row in rows], -1, atol=1e-6)
    np.testing.assert_allclose([row["symmetric_share"] for row in rows], 1, atol=1e-6)


@pytest.mark.laws
def test_checkpoints_say_what_they_hold(tmp_path, capsys):
    """Nets of other sizes and two families are read from their checkpoints alone."""
    block = {"block": PatchBlock, "image_shape": (4, 4), "grid": 2, "rank": 2, "heads": 2}
    patches = partial(Classifier, 16, 2, iterations=1, mlp_width=None, signed_step=True, **block)
    small = partial(Transformer, 3, 6, layers=2, heads=2, features=8, head_features=4, mlp_width=8)
    plain = partial(Classifier, 16, 2, iterations=1)
    settings = {"noise": 0.5, "l2": 1e-4}
    words = {"process": describe(partial(mess3, 0.15, 0.6)), "targets": "soft"}
    nets = {}
    for name, call, run_, more in (
        ("a", small, {}, words), ("b", patches, settings, {}), ("c", plain, {}, {}),
        ("d", partial(LinearSelfAttention, 2), {"rate": 0.1}, {}),
    ):  # fmt: skip
        keys = jnp.stack([jax.random.key(seed) for seed in (3, 4)])
        states = init_states(initialiser(call), optax.identity(), keys)
        trained = jax.tree.map(lambda x: x + 1, states.params)
        runs = [{**run_, "seed": seed} for seed in (3, 4)]
        holds = {"architecture": describe(call), "runs": runs, "net": f"net {name}", **more}
        with Checkpoints(tmp_path / "checkpoints" / name, holds) as checkpoints:
            checkpoints.save(0, states._replace(params=trained), force=True)
        nets[name] = call, states.params, trained
    holds = {"architecture": {"baseline": "standard transformer"}, "runs": [], "net": "net e"}
    with Checkpoints(tmp_path / "checkpoints" / "e", holds) as checkpoints:
        checkpoints.save(0, states, force=True)
    (tmp_path / "config.json").write_text("{}")
    read = subjects(Config(run_dir=tmp_path, limit=4))
    told = capsys.readouterr().err
    assert "c: no heads with queries and keys; left out" in told
    assert "d: " not in told
    assert "e: a standard transformer, to compare with; left out" in told
    before, after = (each for each in read if isinstance(each, InContext))
    read = [each for each in read if isinstance(each, Subject)]
    assert (before.name, after.name) == ("net d, untrained", "net d, rate 0.1, trained")
    rows = measure(
        Config(run_dir=tmp_path, draws=8), RunFolder(tmp_path), [before, after]
    ).construction
    assert [row["circuit"] for row in rows] == 2 * ["key-query", "value"]
    assert rows[2]["cosine"] == np.median([
        construction_cosines(context_circuits(net)[0])[0, 0] for net in after.nets
    ])  # fmt: skip
    assert [subject.name for subject in read] == [
        *(f"net a, {kind}, seed {seed}" for kind in ("untrained", "trained, soft") for seed in (3, 4)),
        *(f"net b, noise 0.5, l2 0.0001, {kind}, seed {seed}" for kind in ("untrained", "trained")
          for seed in (3, 4)),
    ]  # fmt: skip
    assert [len(subject.tokens) for subject in read] == [4] * 4 + [0] * 4
    call, untrained, trained = nets["a"]
    for subject, params, seed in zip(
        read[:4], 2 * [untrained] + 2 * [trained], [0, 1, 0, 1], strict=True
    ):
        net = nnx.merge(graph_of(call), jax.tree.map(lambda x, s=seed: x[s], params))
        pair = map(jax.tree.leaves, (subject.model, model_from_transformer(net)))
        assert all(np.array_equal(a, b) for a, b in zip(*pair, strict=True))
        assert {len(tokens) for tokens in subject.tokens} == {6}
    assert error(read[6].model.heads.query[0], nets["b"][2]["blocks"][0]["phi"][...][0]) < 1e-6
    np.testing.assert_allclose(weight_cosines(read[4].model.heads).whole, -1, atol=1e-6)


@pytest.mark.acceptance
def test_edits_are_beside_as_much_elsewhere(folder, tmp_path, capsys):
    model = tokenizer(write(tmp_path / "gpt2", "gpt2", arrays(mix=-1.0)))
    flags = "--texts", folder / "texts.txt", "--edits", "--draws", 8
    assert run("--model-dir", model, *flags, "--out", tmp_path / "run") == 0
    rows = json.loads((tmp_path / "run" / "summary.json").read_text())["edits"]
    taken = {
        name: [row for row in rows if row["taken"] == name] for name in {r["taken"] for r in rows}
    }
    # Fewer shifts than draws leave the key group or the layer: there are 8 heads, 4 in each.
    assert {name: len(each) for name, each in taken.items()} == {
        NOTHING: 1, WHOLE: 1, OWN: 1, AGAIN: 1, UNTRANSPOSED: 1, TURNED: 8, OTHERS: 7, ROW: 1,
        RANDOM: 8, ROLLED: 3,
    }  # fmt: skip
    assert {row["heads"] for row in rows} == {"all 8 heads", "8 heads that descend"}
    assert all(change == 0 for change in taken[NOTHING][0]["changes"])
    assert np.isfinite([row["changes"] + row["moved"] for row in rows]).all()
    # One of them by hand: three texts make one, of three pieces.
    weights: Any = lens.fold_model(lens.read_model(model))
    text = " ".join((folder / "texts.txt").read_text().split())
    pieces = lens.tokenize(lens.read_tokenizer(model), [text], len(weights.positions)).tokens
    edits = [lens.without_part(lens.circuit_part(weights.heads))]
    losses = []
    for piece in pieces:
        activations: Any = lens.run(weights, piece, edits=edits)
        logits = np.asarray(lens.unembed(weights, activations.final), np.float64)
        chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        losses += [-np.log(chances[i, token]) for i, token in enumerate(piece[1:])]
    assert taken[OWN][0]["loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert abs(taken[OWN][0]["loss"] - taken[NOTHING][0]["loss"]) > 1e-3
    table = (tmp_path / "run" / "table.md").read_text()
    assert f"the loss of {len(losses)} tokens in {len(pieces)} texts" in table
    assert max(map(len, table.splitlines())) <= 80
    assert run("--model-dir", folder / "model", *flags, "--out", tmp_path / "none") == 2
    assert "has no token [MASK], which --edits predicts" in capsys.readouterr().err


@pytest.mark.laws
def test_masked_tokens_are_inside_of_texts(folder):
    model = lens.read_model(folder / "model")
    texts = [np.arange(1, n) for n in (4, 6, 10)]
    (batch,) = batches(Config(), model, texts, mask=0)
    assert batch.counted.sum(axis=1).tolist() == [1, 1, 1]
    assert not batch.counted[:, 0].any()
    assert not batch.counted[np.arange(3), batch.lengths - 1].any()
    assert (batch.lengths > batch.counted.argmax(axis=1) + 1).all()
    np.testing.assert_array_equal(batch.tokens, np.where(batch.counted, 0, batch.targets))
    for text, row in zip(texts, batch.targets, strict=True):
        np.testing.assert_array_equal(row[: len(text)], text)
