"""The tables of the beliefs experiment, and which figures are drawn from what."""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.beliefs import acceptance, figures
from experiments.beliefs.config import DEEP, LACKING, LENGTH, NETS, ONE, TWO, Config, Net
from experiments.beliefs.readings import SHOWN, Readings, sites
from experiments.beliefs.theory import Truth, truth
from imr.constrained import additive_filter, one_head_attention, two_head_attention
from imr.lab.claims import verdict_words
from imr.lab.console import markdown_table
from imr.lab.folder import RunFolder

_CORRELATION = 0.4  # (3a - 1) / 2 at a = 0.6


def report(config: Config, run: RunFolder, results: acceptance.Results) -> None:
    """Writes the tables and the summary into the run folder.

    Args:
      config: the flags.
      run: the folder.
      results: of `measure`, which has drawn the figures.
    """
    rows = acceptance.all_rows(config, results.readings)
    spreads = acceptance.spreads(results.readings)
    summary = {"theory": results.theory, "table": rows, "attention_spread": spreads}
    run.finish(summary, tables(config, results.theory, rows, spreads))


def verdict(summary: Mapping[str, Any]) -> int:
    """Names on standard error what is not as predicted; equations have to hold.

    Args:
      summary: of a finished run.

    Returns:
      1 if an equation does not hold, else 0: what nets do is a result, whatever it is.
    """
    for name in ("theory", "table"):
        for row in summary[name]:
            if not row["passed"]:
                sys.stderr.write(f"not as predicted: {row['id']}, {row['check']}\n")
    return 0 if all(row["passed"] for row in summary["theory"]) else 1


def tables(
    config: Config,
    exact: list[dict[str, Any]],
    rows: list[dict[str, Any]],
    spreads: list[dict[str, Any]],
) -> str:
    """The tables to read, in Markdown.

    Args:
      config: the flags.
      exact: rows of the theory.
      rows: of the acceptance table.
      spreads: of attention.

    Returns:
      The text.
    """
    shown = [
        {
            **row,
            "value": f"{row['value']:.2e}",
            "verdict": verdict_words(row["role"], row["passed"]),
        }
        for row in exact
    ]
    columns = ("id", "check", "role", "value", "must be", "verdict")
    parts = [
        "The theory, exactly, in float64. Differences are relative to the largest entry.",
        markdown_table(shown, columns),
    ]
    if rows:
        failed = sum(not row["passed"] for row in rows)
        verdict = (
            "All hold, and all controls fail."
            if not failed
            else f"{failed} are not as they must be."
        )
        parts += [
            f"Trained nets, {config.seeds} seeds, over all prefixes of up to {LENGTH} tokens weighed by "
            "their probability. A claim holds where every seed shows it; a control must show what "
            f"refutes the claim. {len(rows)} rows. {verdict}",
            acceptance.markdown(rows),
            "What is predicted of heads takes their attention to be content-free. Spread: the largest "
            f"standard deviation over words of a weight of position {LENGTH}, first layer.",
            markdown_table(spreads, formats=dict.fromkeys(list(spreads[0])[3:], ".2g")),
        ]
    if config.smoke:
        parts.append("A smoke run: nets have learned too little for the verdicts to mean anything.")
    return "\n\n".join(parts)


def draw_theory(run: RunFolder) -> None:
    """Draws the figures that need no net.

    Args:
      run: where they go.
    """
    for net in (ONE, TWO):
        known = truth(net)
        shown = known.position == SHOWN - 1
        arrays = {"bayes": known.bayes[shown], "constrained": known.constrained[shown]}
        panels = {"Bayes": arrays["bayes"], "constrained, predicted": arrays["constrained"]}
        title = f"Mess3({net.x}, 0.6): beliefs after all words of {SHOWN} tokens"
        figure = figures.simplexes([panels], [""], arrays["bayes"], title=title)
        run.save_figure(f"theory_simplex_{net.x}", figure, **arrays)
    one, two = one_head_attention(ONE.decay, LENGTH), two_head_attention(TWO.decay, LENGTH)
    arrays = {"one": np.asarray(one.attention), "two": np.asarray(two.attention)}
    patterns = {
        f"one head, λ = {ONE.decay:.2f}": arrays["one"][0],
        f"even head, λ = {TWO.decay:.2f}": arrays["two"][0],
        f"odd head, λ = {TWO.decay:.2f}": arrays["two"][1],
    }
    figure = figures.patterns([patterns], title="Attention predicted from the spectrum")
    run.save_figure("theory_attention", figure, **arrays)


def draw_nets(run: RunFolder, net: Net, targets: str, readings: Readings, known: Truth) -> None:
    """Draws the figures of one net, and with the last of several nets those of all of them.

    Args:
      run: where they go.
      net: that was read last.
      targets: that it was trained on.
      readings: so far.
      known: the theory of its process.
    """
    trained, untrained = readings[net.name, targets], readings[net.name, "untrained"]
    tag = f"{net.name.replace(', ', '_').replace(' ', '_')}_{targets}"
    shown = known.position == SHOWN - 1
    rows = {"trained": trained[0], "untrained": untrained[0]}
    panels = [
        {
            "Bayes": known.bayes[shown],
            "constrained, predicted": known.constrained[shown],
            f"{name}: middle residual": one.shown_middle,
            f"{name}: final residual": one.shown_final,
        }
        for name, one in rows.items()
    ]
    figure = figures.simplexes(
        panels, list(rows), known.bayes[shown],
        title=f"{net.title}, {targets} targets, seed 0: all words of {SHOWN} tokens",
    )  # fmt: skip
    run.save_figure(
        f"simplex_{tag}", figure, bayes=known.bayes[shown], constrained=known.constrained[shown],
        **{f"{name}_{key}": getattr(one, f"shown_{key}") for name, one in rows.items() for key in ("middle", "final")},
    )  # fmt: skip
    if net is ONE:
        _draw_attention(run, tag, trained, untrained)
        _draw_values(run, net, tag, trained, untrained, known)
    if net is TWO:
        _draw_parity(run, net, tag, trained, untrained)
        _draw_values(run, net, tag, trained, untrained, known)
    if net in (ONE, TWO):
        _draw_walk(run, net, tag, trained[0], known)
    if net is DEEP:
        names = sites(net.layers)
        lines = {
            kind: np.array([one.r2_by_site for one in runs])
            for kind, runs in (("trained", trained), ("untrained", untrained))
        }
        figure = figures.by_site(names, lines, title=f"{net.title}: R² of the belief by site")
        run.save_figure(f"r2_by_site_{tag}", figure, **lines)
    done = [n for n in NETS if (n.name, targets) in readings]
    curves = {n.title: np.array([one.kl for one in readings[n.name, targets]]) for n in done}
    figure = figures.kl_by_position(curves, title=f"KL to the Bayes prediction, {targets} targets")
    run.save_figure(
        f"kl_{targets}", figure, **{n.name: c for n, c in zip(done, curves.values(), strict=True)}
    )
    if net is LACKING and (TWO.name, targets) in readings:
        gains = {
            n.title: np.array([one.gains for one in readings[n.name, targets]])
            for n in (ONE, TWO, LACKING)
            if (n.name, targets) in readings
        }
        decays = {n.title: n.decay for n in (ONE, TWO, LACKING)}
        signs = {
            n.title: np.array([one.ov_along for one in readings[n.name, targets]])
            for n in (ONE, TWO, LACKING)
            if (n.name, targets) in readings
        }
        figure = figures.signs_by_position(
            signs, title="What heads write, by position; dotted: the second head"
        )
        run.save_figure(f"ov_by_position_{targets}", figure, **signs)
        figure = figures.gains_by_lag(
            gains, decays, title="Gains of earlier tokens in the middle residual"
        )
        run.save_figure(f"gains_{targets}", figure, **gains)


def _draw_attention(run, tag, trained, untrained):
    rows = {
        kind: np.array([one.attention[0, 0, -1, ::-1] for one in runs])
        for kind, runs in (("trained", trained), ("untrained", untrained))
    }
    filtered = additive_filter(ONE.decay, _CORRELATION).pole
    figure = figures.attention_by_lag(
        rows, {f"decay λ = {ONE.decay:.2f}": ONE.decay, f"best additive filter {filtered:.2f}": filtered},
        title=f"{ONE.title}: attention of position {LENGTH}",
    )  # fmt: skip
    run.save_figure(f"attention_{tag}", figure, **rows)


def _draw_parity(run, net, tag, trained, untrained):
    predicted = np.asarray(two_head_attention(net.decay, LENGTH).attention)
    panels, arrays = [], {"predicted": predicted}
    for name, one in (("trained", trained[0]), ("untrained", untrained[0])):
        first = int(np.argmax(one.parity[:, 0] - one.parity[:, 1]))  # the even head
        attention = one.attention[0]
        arrays[name] = attention
        panels.append(
            {f"{name}: even head": attention[first], f"{name}: odd head": attention[1 - first]}
        )
    panels.insert(0, {"predicted: even head": predicted[0], "predicted: odd head": predicted[1]})
    figure = figures.patterns(panels, title=f"{net.title}: attention, seed 0")
    run.save_figure(f"parity_{tag}", figure, **arrays)


def _draw_values(run, net, tag, trained, untrained, known):
    arrays = {
        f"{name}_{key}": getattr(runs[0], key)
        for name, runs in (("trained", trained), ("untrained", untrained))
        for key in ("ov_read", "embedding_read")
    }
    figure = figures.values(
        {name: (arrays[f"{name}_ov_read"], arrays[f"{name}_embedding_read"]) for name in ("trained", "untrained")},
        known.vectors, title=f"{net.title}: OV vectors and embeddings, read in belief space, seed 0",
    )  # fmt: skip
    run.save_figure(f"values_{tag}", figure, vectors=known.vectors, **arrays)


def _draw_walk(run, net, tag, one, known):
    word = np.array([0, 1, 1, 2, 0])
    last = len(word) - 1
    sources = np.arange(len(word))
    # What each position adds to the belief: the token's own embedding, and what heads fetch.
    measured = np.einsum(
        "hs,hsj->sj", one.attention[0][:, last, : last + 1], one.ov_read[:, sources, word]
    )
    measured[last] += one.embedding_read[word[last]]
    predicted = net.decay ** (last - sources)[:, None] * known.vectors[word]
    figure = figures.walk(
        {"predicted": predicted, "trained": measured}, word,
        title=f"{net.title}: what each token adds to the belief after {''.join('ABC'[t] for t in word)}, seed 0",
    )  # fmt: skip
    run.save_figure(f"walk_{tag}", figure, word=word, predicted=predicted, measured=measured)
