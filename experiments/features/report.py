"""The table and the figures of the features experiment."""

from typing import Any

import jax.numpy as jnp
import numpy as np

import imr
from experiments.features import figures
from experiments.features.config import Config
from experiments.features.measures import CLOSE, KINDS, Results
from imr.lab.console import markdown_table
from imr.lab.data import ImageData
from imr.lab.folder import RunFolder
from imr.lab.seeds import cell

_LEVELS = (0.05, 0.5, 0.95)
_TAU = 0.1  # of the block that is drawn


def report(config: Config, run: RunFolder, results: Results) -> None:
    """Writes the figures, the tables and the summary; pictures are those of the first seed."""
    data, ts, seeds = results.data, results.ts, results.seeds
    title = f"{data.name}, {len(data.train_labels):,} images, {config.seeds} bootstrap samples"
    _draw_law(run, ts, seeds, title)
    _draw_classes(run, ts, seeds, title)
    wanted = [0.0, *np.geomspace(ts[-1] * 1e-4, ts[-1], 5)]
    at = np.unique([int(np.argmin(np.abs(ts - t))) for t in wanted])  # the saved times next to them
    _draw_projection(run, ts, at, seeds[0], results.theta, data)
    _draw_pictures(config, run, ts, at, seeds[0], results.images, data)
    _draw_block(config, run, seeds[0], results.theta, results.images, data)
    run.finish(results.summary, tables(config, results.summary, data))


def tables(config: Config, summary: dict[str, Any], data: ImageData) -> str:
    """The tables to read, in Markdown, with what they say and do not say."""
    laws = [
        {
            "flow": row["flow"], "t": f"{row['from']:g} to {row['to']:g}",
            "loss slope": cell(row, "loss_slope", ".4f"),
            "margin slope": cell(row, "margin_slope", ".3f"),
            "5 to 95 % of rows": f"{row['margin_slope_q05']:.3f} to {row['margin_slope_q95']:.3f}",
            "law": "-1, 1" if row["flow"] == "free" else "none (a limit)",
        }
        for row in summary["law"]
    ]  # fmt: skip
    classes = [
        {
            "class": row["class"], "gamma": row["distance"], "rivals": f"{row['support']:.1f}",
            "1/gamma^2": f"{row['loss_constant_predicted']:.4f}",
            "t L": f"{row['loss_constant']:.4f}",
            "ratio": f"{row['ratio']:.3f} ({row['ratio_q05']:.3f} to {row['ratio_q95']:.3f})",
            "within 10 %": f"{100 * row['share_asymptotic']:.0f} %",
            "-log max alpha": f"{row['margin_constant_predicted']:.2f}",
            "margin - log t": f"{row['margin_constant']:.2f}",
            "one rival": f"{row['margin_constant_one_rival']:.2f}",
            "exponent": row["exponent_predicted"],
        }
        for row in summary["classes"]
    ]  # fmt: skip
    ends = [
        {
            "flow": row["flow"], "loss": f"{row['loss_start']:.3f} to {row['loss_end']:.3g}",
            "accuracy": f"{row['accuracy_start']:.3f} to {row['accuracy_end']:.3f}",
            "all correct at t": row["time_all_correct"],
            "median margin": cell(row, "margin_end", ".2f"),
            "nc1": f"{row['nc1_start']:.3g} to {row['nc1_end']:.3g}",
            "nc1 of logits": f"{row['nc1_logits_end']:.3g}",
            "cosine with w": f"{row['cosine_end']:.3f}",
            "field, end over start": f"{row['field_end_over_start']:.1e}",
        }
        for row in summary["ends"]
    ]  # fmt: skip
    bound = summary["bound"][0]
    free = summary["ends"][KINDS.index("free")]
    return "\n\n".join(
        [
            f"theta fitted to {data.name} (l2 {config.l2:g}); {len(data.train_labels):,} images flow "
            f"under their true labels to t = {config.t1:g}, free and anchored to their start with "
            f"lam = {config.anchor:g}. Means over {config.seeds} bootstrap samples, ± standard "
            "deviation.",
            "Slopes by least squares: of log mean loss against log t, and of each row's margin "
            "against log t (median over rows, with the spread over rows).",
            markdown_table(laws),
            f"The free flow at t = {config.t1:g}, class by class. Predicted from theta alone: t L "
            "tends to 1/gamma^2, gamma the distance from the class's row of theta to the convex hull "
            "of the others; margin - log t tends to -log max alpha. Ratio: t L gamma^2, median (5 to "
            f"95 % of rows); rows count as asymptotic within {100 * CLOSE:.0f} %. One rival: "
            "log |theta_c - theta_j|^2 of the nearest j, right were it alone. What is left of the "
            "start dies out like t to the power minus the exponent: where that is near 0 it does not "
            "within any run, and margins, which feel it at first order, are not at their constant; "
            "the loss feels it at second order.",
            markdown_table(classes, formats={"gamma": ".2f", "exponent": ".3f"}),
            "Where the flows start and end. The field's norm says whether the anchored flow is at its "
            "limit; the free flow has none. Cosine: between displacements and w, median over rows.",
            markdown_table(ends, formats={"all correct at t": ".2g"}),
            f"nc1 of the free flow's features falls with slope {free['nc1_slope']:.2f} against "
            "log log t over the last decade; -2 is what class means that part like log t and a "
            "scatter that stays give at late times.",
            "The bound on log-odds that holds at every time, u + e^u >= u0 + e^u0 + gamma^2 t: over "
            f"{bound['rows']:,} rows and {bound['times']} times the least slack is "
            f"{bound['least_slack']:.1e} nats; at the end the median is "
            f"{bound['median_slack_end']:.3f} and the largest {bound['largest_slack_end']:.2f}.",
        ]
    )


def _draw_law(run, ts, seeds, title):
    after, gamma = slice(1, None), [seed.late.distance[seed.labels] for seed in seeds]

    def spread(rows):
        # Rows of all seeds together: the spread over seeds is far below that over rows.
        return np.mean([np.quantile(r, _LEVELS, axis=-1) for r in rows], axis=0)

    losses, margins = (
        {kind: [getattr(s.courses[kind], name)[after] for s in seeds] for kind in KINDS}
        for name in ("loss", "margin")
    )
    scaled = [l * g**2 * ts[after, None] for l, g in zip(losses["free"], gamma, strict=True)]
    arrays = {
        "ts": ts[after], "scaled": spread(scaled),
        "loss_law": np.array([np.mean(g**-2) for g in gamma]),
        "margin_law": spread([-np.log(s.late.alpha.max(axis=1))[s.labels] for s in seeds]),
        **{f"loss_{kind}": np.stack([l.mean(axis=1) for l in losses[kind]]) for kind in KINDS},
        **{f"margin_{kind}": spread(margins[kind]) for kind in KINDS},
    }  # fmt: skip
    run.save_figure("law", figures.law(arrays, title=title), **arrays)


def _draw_classes(run, ts, seeds, title):
    arrays = {"ts": ts[1:]} | {
        f"{name}_{kind}": np.stack([getattr(s.courses[kind], name)[1:] for s in seeds])
        for name in ("nc1", "nc1_logits", "accuracy")
        for kind in KINDS
    }
    run.save_figure("classes", figures.classes(arrays, title=title), **arrays)


def _draw_projection(run, ts, at, seed, theta, data):
    # In coordinates: the plane lies within the span of theta, and so within theirs.
    weights = theta @ seed.basis
    weights = weights - weights.mean(axis=0)
    plane = np.linalg.svd(weights, full_matrices=False)[2][:2]
    points = seed.courses["free"].shown[at] @ plane.T
    arrays = {
        "ts": ts[at], "points": points, "labels": seed.labels[: points.shape[1]],
        "theta": weights @ plane.T, "plane": plane @ seed.basis.T,
    }  # fmt: skip
    title = (
        f"{data.name}: features of the free flow in the plane of theta's first two principal axes, "
        "the same at all times; arrows are theta's rows"
    )
    figure = figures.projection(arrays, data.class_names, title=title)
    run.save_figure("projection", figure, **arrays)


def _draw_pictures(config, run, ts, at, seed, images, data):
    course, names = seed.courses["free"], np.array(data.class_names)
    labels = seed.labels[: len(images)]
    chosen = _narrowest(config, seed, labels)
    moved = (course.shown[at] - course.shown[0])[:, chosen] @ seed.basis.T
    states = np.swapaxes(images[chosen] + moved, 0, 1)
    limits = seed.late.direction[labels[chosen]] @ seed.basis.T
    arrays = {
        "ts": ts[at], "labels": labels[chosen], "read": names[course.chosen[at][:, chosen]].T,
        "states": states.reshape(len(chosen), -1, *data.image_shape),
        "limits": limits.reshape(-1, *data.image_shape),
    }  # fmt: skip
    title = (
        f"{data.name}: for each class, the image with the least margin at t = 0, along the free flow. "
        "Below each image: the predicted class (red: wrong)"
    )
    figure = figures.pictures(arrays, names[labels[chosen]].tolist(), title=title)
    run.save_figure("pictures", figure, **arrays)


def _narrowest(config, seed, labels):
    """For each class, the image with the least margin at the start."""
    order = np.argsort(seed.courses["free"].margin[0, : len(labels)], kind="stable")
    return np.array([order[labels[order] == c][0] for c in np.unique(labels)[: config.strips]])


def _draw_block(config, run, seed, theta, images, data):
    labels, names = seed.labels[: len(images)], np.array(data.class_names)
    chosen = _narrowest(config, seed, labels)[:3]
    z = jnp.asarray(images[chosen])
    loss = imr.feature_loss(imr.Linear(jnp.asarray(theta)), jnp.asarray(labels[chosen]))
    attend, label = imr.split_fields(loss)
    attended = imr.lie_step([attend], z, tau=_TAU)
    states = [z, attended, imr.lie_step([label], attended, tau=_TAU)]
    states.append(imr.solve_reduced(loss, z, t1=_TAU).z)
    arrays = {
        "tau": np.array(_TAU), "labels": labels[chosen],
        "states": np.stack(states, axis=1).reshape(len(chosen), -1, *data.image_shape),
    }  # fmt: skip
    apart = np.linalg.norm(states[2] - states[3]) / np.linalg.norm(states[3] - z)
    title = (
        f"{data.name}: the flow dZ/dt = Cθ − CA(Z, θ) by one Lie step of its two operators, τ = {_TAU:g}, "
        f"a transformer block.\nBlock and flow end {100 * apart:.0f} % of the flow's way apart"
    )
    figure = figures.block(arrays, names[labels[chosen]].tolist(), title=title)
    run.save_figure("block", figure, **arrays)
