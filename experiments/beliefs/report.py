"""The tables of the beliefs experiment, and which figures are drawn from what."""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.beliefs import acceptance, figures
from experiments.beliefs.config import DEEP, LACKING, LENGTH, NETS, ONE, TWO, Config, Net, plan
from experiments.beliefs.readings import SHOWN, Readings, sites
from experiments.beliefs.theory import Truth, truth
from imr.constrained import additive_filter, one_head_attention, two_head_attention
from imr.lab.claims import verdict_words
from imr.lab.console import markdown_table
from imr.lab.folder import RunFolder

_CORRELATION = 0.4  # (3a - 1) / 2 at a = 0.6


def report(config: Config, run: RunFolder, results: acceptance.Results) -> None:
    """Writes the tables and the summary into the run folder."""
    exact, readings = results
    kinds = dict.fromkeys(targets for _, targets, _ in plan(config))
    rows = [row for kind in kinds for row in acceptance.rows(acceptance.claims(kind), readings)]
    spreads = acceptance.spreads(readings)
    shown = []
    for row in exact:
        words = verdict_words(row["role"], row["passed"])
        shown.append({**row, "value": f"{row['value']:.2e}", "verdict": words})
    parts = [
        "The theory, exactly, in float64. Differences are relative to the largest entry.",
        markdown_table(shown, ("id", "check", "role", "value", "must be", "verdict")),
    ]
    if rows:
        failed = sum(not row["passed"] for row in rows)
        ends = (
            f"{failed} are not as they must be." if failed else "All hold, and all controls fail."
        )
        parts += [
            f"Trained nets, {config.seeds} seeds, over all prefixes of up to {LENGTH} tokens weighed by "
            "their probability. A claim holds where every seed shows it; a control must show what "
            f"refutes the claim. {len(rows)} rows. {ends}",
            acceptance.markdown(rows),
            "What is predicted of heads takes their attention to be content-free. Spread: the largest "
            f"standard deviation over words of a weight of position {LENGTH}, first layer.",
            markdown_table(spreads, formats=dict.fromkeys(list(spreads[0])[3:], ".2g")),
        ]
    if config.smoke:
        parts.append("A smoke run: nets have learned too little for the verdicts to mean anything.")
    summary = {
        "theory": exact, "table": rows, "attention_spread": spreads,
        "courses": acceptance.courses(readings),
    }  # fmt: skip
    run.finish(summary, "\n\n".join(parts))


def verdict(summary: Mapping[str, Any]) -> int:
    """Names on standard error what is not as predicted; equations have to hold."""
    for row in (*summary["theory"], *summary["table"]):
        if not row["passed"]:
            sys.stderr.write(f"not as predicted: {row['id']}, {row['check']}\n")
    return 0 if all(row["passed"] for row in summary["theory"]) else 1


def draw_theory(run: RunFolder) -> None:
    """Draws the figures that need no net."""
    for net in (ONE, TWO):
        title = f"Mess3({net.x}, 0.6): beliefs after all words of {SHOWN} tokens"
        _draw_simplexes(run, f"theory_simplex_{net.x}", title, truth(net), {})
    one, two = one_head_attention(ONE.decay, LENGTH), two_head_attention(TWO.decay, LENGTH)
    arrays = {"one": np.asarray(one.attention), "two": np.asarray(two.attention)}
    patterns = {
        f"one head, λ = {ONE.decay:.2f}": arrays["one"][0],
        f"even head, λ = {TWO.decay:.2f}": arrays["two"][0],
        f"odd head, λ = {TWO.decay:.2f}": arrays["two"][1],
    }
    figure = figures.patterns([patterns], "Attention predicted from the spectrum")
    run.save_figure("theory_attention", figure, **arrays)


def draw_nets(run: RunFolder, net: Net, targets: str, readings: Readings, known: Truth) -> None:
    """Draws the figures of one net, and with the last of several nets those of all of them."""
    kinds = {"trained": readings[net.name, targets], "untrained": readings[net.name, "untrained"]}
    tag = f"{net.name.replace(', ', '_').replace(' ', '_')}_{targets}"
    title = f"{net.title}, {targets} targets, seed 0: all words of {SHOWN} tokens"
    _draw_simplexes(run, f"simplex_{tag}", title, known, kinds)
    if net is ONE:
        last = {k: np.array([one.attention[0, 0, -1, ::-1] for one in s]) for k, s in kinds.items()}
        pole = additive_filter(ONE.decay, _CORRELATION).pole
        decays = {f"decay λ = {ONE.decay:.2f}": ONE.decay, f"best additive filter {pole:.2f}": pole}
        figure = figures.attention_by_lag(
            last, decays, f"{net.title}: attention of position {LENGTH}"
        )
        run.save_figure(f"attention_{tag}", figure, **last)
    if net is TWO:
        _draw_parity(run, net, tag, kinds)
    if net in (ONE, TWO):
        _draw_values(run, net, tag, kinds, known)
        _draw_walk(run, net, tag, kinds["trained"][0], known)
    if net is DEEP:
        lines = {kind: np.array([one.r2_by_site for one in seeds]) for kind, seeds in kinds.items()}
        title = f"{net.title}: R² of the belief by site"
        figure = figures.by_site(sites(net.layers), lines, title)
        run.save_figure(f"r2_by_site_{tag}", figure, **lines)
    done = {n: readings[n.name, targets] for n in NETS if (n.name, targets) in readings}
    curves = {n: np.array([one.kl for one in seeds]) for n, seeds in done.items()}
    shown = {n.title: kl for n, kl in curves.items()}
    figure = figures.kl_by_position(shown, f"KL to the Bayes prediction, {targets} targets")
    run.save_figure(f"kl_{targets}", figure, **{n.name: kl for n, kl in curves.items()})
    if net is LACKING and TWO in done:
        nets = [n for n in (ONE, TWO, LACKING) if n in done]
        signs = {n.title: np.array([one.ov_along for one in done[n]]) for n in nets}
        title = "What heads write, by position; dotted: the second head"
        figure = figures.signs_by_position(signs, title)
        run.save_figure(f"ov_by_position_{targets}", figure, **signs)
        gains = {n.title: np.array([one.gains for one in done[n]]) for n in nets}
        title = "Gains of earlier tokens in the middle residual"
        figure = figures.gains_by_lag(gains, {n.title: n.decay for n in nets}, title)
        run.save_figure(f"gains_{targets}", figure, **gains)


def _draw_simplexes(run, name, title, known, kinds):
    """Beliefs after all words of `SHOWN` tokens: those of the theory, and those read off nets."""
    shown = known.position == SHOWN - 1
    arrays = {"bayes": known.bayes[shown], "constrained": known.constrained[shown]}
    predicted = {"Bayes": arrays["bayes"], "constrained, predicted": arrays["constrained"]}
    rows = {} if kinds else {"": predicted}
    for kind, (one, *_) in kinds.items():
        read = {"middle": one.shown_middle, "final": one.shown_final}
        rows[kind] = predicted | {f"{kind}: {at} residual": x for at, x in read.items()}
        arrays |= {f"{kind}_{at}": x for at, x in read.items()}
    run.save_figure(name, figures.simplexes(rows, arrays["bayes"], title), **arrays)


def _draw_parity(run, net, tag, kinds):
    predicted = np.asarray(two_head_attention(net.decay, LENGTH).attention)
    arrays = {"predicted": predicted}
    rows = [{"predicted: even head": predicted[0], "predicted: odd head": predicted[1]}]
    for name, (one, *_) in kinds.items():
        first = int(np.argmax(one.parity[:, 0] - one.parity[:, 1]))  # the even head
        heads = arrays[name] = one.attention[0]
        rows.append({f"{name}: even head": heads[first], f"{name}: odd head": heads[1 - first]})
    figure = figures.patterns(rows, f"{net.title}: attention, seed 0")
    run.save_figure(f"parity_{tag}", figure, **arrays)


def _draw_values(run, net, tag, kinds, known):
    nets = {name: (one.ov_read, one.embedding_read) for name, (one, *_) in kinds.items()}
    arrays = {f"{name}_ov_read": ov for name, (ov, _) in nets.items()}
    arrays |= {f"{name}_embedding_read": embedding for name, (_, embedding) in nets.items()}
    title = f"{net.title}: OV vectors and embeddings, read in belief space, seed 0"
    figure = figures.values(nets, known.vectors, title)
    run.save_figure(f"values_{tag}", figure, vectors=known.vectors, **arrays)


def _draw_walk(run, net, tag, one, known):
    word = np.array([0, 1, 1, 2, 0])
    last, sources = len(word) - 1, np.arange(len(word))
    # What each position adds to the belief: the token's own embedding, and what heads fetch.
    weights, read = one.attention[0][:, last, : last + 1], one.ov_read[:, sources, word]
    measured = np.einsum("hs,hsj->sj", weights, read)
    measured[last] += one.embedding_read[word[last]]
    predicted = net.decay ** (last - sources)[:, None] * known.vectors[word]
    letters = "".join("ABC"[t] for t in word)
    title = f"{net.title}: what each token adds to the belief after {letters}, seed 0"
    figure = figures.walk({"predicted": predicted, "trained": measured}, word, title)
    run.save_figure(f"walk_{tag}", figure, word=word, predicted=predicted, measured=measured)
